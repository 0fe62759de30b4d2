"""What a model may call: a text becomes a call, which runs in a thread and gives a text."""

import inspect
import json
import threading
import time
from collections.abc import Callable, Mapping

Tool = Callable[..., str]


class Call:
  """A call that runs since it was made.

  Attributes:
    seconds: how long it took; None while it runs.
    failed: it gave no response of its own, so far.
  """

  def __init__(self, text: str, tool: Callable[[], str], limit: float):
    self.text, self.seconds, self.failed = text, None, True
    self._tool, self._limit, self._began = tool, limit, time.monotonic()
    self._response = f"error: no response within {limit:g} seconds"
    # A thread that hangs holds nobody up: it is a daemon, and is waited for no longer than `limit`.
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def _run(self) -> None:
    try:
      response, failed = self._tool(), False
      if not isinstance(response, str):
        raise TypeError(f"the tool returned {type(response).__name__}, not a text")
    except Exception as error:
      failed = True
      response = f"error: {' '.join(str(error).split()) or type(error).__name__}"
    self._response, self.failed = response, failed
    self.seconds = time.monotonic() - self._began

  def response(self) -> str:
    """Waits for it. What went wrong is a response too, for the model to read."""
    self._thread.join(max(0.0, self._began + self._limit - time.monotonic()))
    if self.seconds is None:
      self.seconds = self._limit
    return self._response


class Tools:
  """Functions that give a text, by name.

  Args:
    tools: each takes texts. The first is called by a text that is no JSON, its one argument.
    seconds: a call may take; what takes longer is told the model as an error.
    digest: of the data that they look into, equal for equal data.
  """

  def __init__(self, tools: Mapping[str, Tool], seconds: float = 20.0, digest: str = ""):
    if not tools:
      raise ValueError("Tools: tools must name at least one")
    if not seconds > 0:
      raise ValueError(f"Tools: seconds={seconds} must be positive")
    self._tools, self._seconds, self.digest = dict(tools), seconds, digest

  def call(self, text: str) -> Call:
    """Starts what `{"name": ..., "arguments": {...}}` says, or the first tool with the text."""
    return Call(text, lambda: self._called(text), self._seconds)

  def _called(self, text: str) -> str:
    try:
      said = json.loads(text)
    except ValueError:
      said = None
    if not isinstance(said, dict):
      name, tool = next(iter(self._tools.items()))
      return tool(text)
    name, arguments = said.get("name"), said.get("arguments", {})
    if not isinstance(name, str) or name not in self._tools:
      raise ValueError(f"there is no tool {name!r}; known: {', '.join(self._tools)}")
    if not isinstance(arguments, dict):
      raise ValueError(f"{name}: {arguments=} must be an object")
    tool = self._tools[name]
    try:
      inspect.signature(tool).bind(**arguments)
    except TypeError as error:
      raise ValueError(f"{name} takes {inspect.signature(tool)}: {error}") from error
    return tool(**arguments)
