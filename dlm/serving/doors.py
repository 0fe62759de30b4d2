"""What a server lets in. Beside the server, which needs packages that a config does not."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Doors:
  """What a server lets in, and for how long.

  Args:
    body: bytes of a request.
    stall: seconds that a reader of a stream may take nothing.
    drain: seconds that what runs may still take after SIGTERM.
    origin: of web pages elsewhere that may ask (CORS); "": none.
  """

  body: int = 4 << 20
  stall: float = 30.0
  drain: float = 30.0
  origin: str = ""

  def __post_init__(self):
    for name in ("body", "stall", "drain"):
      if getattr(self, name) <= 0:
        raise ValueError(f"doors: {name}={getattr(self, name)} must be positive")
