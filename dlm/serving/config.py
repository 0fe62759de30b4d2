"""A server's config."""

import dataclasses

from dlm.build import SamplingConfig, tables
from dlm.serving.doors import Doors
from dlm.serving.engine import Serving


@dataclasses.dataclass(frozen=True)
class ServeConfig(tables.Config):
  """What `experiments/serve.py` reads, and the defaults of all that a file leaves out.

  Args:
    sampling: how all rows are sampled; a request may choose temperature, top_p, threshold and seed.
    serving: canvases, rows and caches of the engine.
    doors: what is let in, and for how long.
    start_within: seconds that a request may wait for a row.
    end_within: seconds that it may take in all.
  """

  sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
  serving: Serving = dataclasses.field(default_factory=Serving)
  doors: Doors = dataclasses.field(default_factory=Doors)
  start_within: float = 30.0
  end_within: float = 600.0

  def __post_init__(self):
    for name in ("start_within", "end_within"):
      if getattr(self, name) <= 0:
        raise ValueError(f"{name}={getattr(self, name)} must be positive")
