"""What an evaluation costs besides time: joules as counters tell them, memory, arithmetic.

Joules are those of NVML on NVIDIA devices and of RAPL on CPUs (/sys/class/powercap); where neither
can be read, the reason stands in their place, and never what a data sheet says. The ratios are
Intelligence per Watt's (2511.07885) and EfficientLLM's (2505.13840), whose papers leave averages
open; ours are said at each.
"""

import contextlib
import dataclasses
import functools
import importlib
import os
import pathlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np

POWERCAP = pathlib.Path("/sys/class/powercap")
PERIOD = 0.1  # seconds between two looks
IDLE = 2.0  # seconds of nothing before, whose power may be subtracted


class Meter(Protocol):
  """A counter of joules."""

  source: str  # "rapl", "nvml", or "none"
  reason: str  # why there is none; else what is counted

  def joules(self) -> float | None:
    """Used since it was made; to be asked often enough that no counter turns over twice."""
    ...


@dataclasses.dataclass(frozen=True)
class NoMeter:
  reason: str
  source = "none"

  def joules(self) -> None:
    return None


class Rapl:
  """Packages and memory of the machine's CPUs, all that runs on them included.

  Raises:
    OSError: a counter cannot be read.
    ValueError: there is none.
  """

  source = "rapl"

  def __init__(self, folder: pathlib.Path = POWERCAP):
    self._zones = []
    for zone in sorted(folder.glob("*-rapl:*")):
      name = (zone / "name").read_text().strip()
      if name.startswith("package") or name == "dram":
        self._zones.append((zone / "energy_uj", int((zone / "max_energy_range_uj").read_text())))
    if not self._zones:
      raise ValueError(f"{folder} has no counter of a processor's package")
    self._last = [self._read(path) for path, _ in self._zones]
    self._sum = 0
    self.reason = f"{len(self._zones)} zones of {folder}"

  @staticmethod
  def _read(path: pathlib.Path) -> int:
    return int(path.read_text())

  def joules(self) -> float:
    for i, (path, most) in enumerate(self._zones):
      now = self._read(path)
      self._sum += now - self._last[i] + (most if now < self._last[i] else 0)
      self._last[i] = now
    return self._sum / 1e6


class Nvml:
  """The NVIDIA devices at these places, by their energy counters, else by their power integrated.

  Raises:
    ModuleNotFoundError: nvidia-ml-py is not installed.
    pynvml.NVMLError: the driver tells neither.
  """

  source = "nvml"

  def __init__(self, places: Sequence[str]):
    self._nvml = importlib.import_module("pynvml")
    self._nvml.nvmlInit()
    self._devices = [self._device(place) for place in places]
    try:
      self._first = [self._nvml.nvmlDeviceGetTotalEnergyConsumption(d) for d in self._devices]
    except self._nvml.NVMLError:  # before Volta
      self._first = None
    self._sum, self._watts, self._when = 0.0, self._power(), time.perf_counter()
    counted = "energy counters" if self._first is not None else "power, integrated"
    self.reason = f"{counted} of {len(self._devices)} devices"

  def _device(self, place: str) -> Any:
    if place.isdigit():
      return self._nvml.nvmlDeviceGetHandleByIndex(int(place))
    return self._nvml.nvmlDeviceGetHandleByUUID(place)

  def _power(self) -> float:
    return sum(self._nvml.nvmlDeviceGetPowerUsage(d) for d in self._devices) / 1e3

  def joules(self) -> float:
    if self._first is not None:
      now = [self._nvml.nvmlDeviceGetTotalEnergyConsumption(d) for d in self._devices]
      return (sum(now) - sum(self._first)) / 1e3
    watts, when = self._power(), time.perf_counter()
    self._sum += (watts + self._watts) / 2 * (when - self._when)
    self._watts, self._when = watts, when
    return self._sum


def meter(powercap: pathlib.Path = POWERCAP) -> Meter:
  """Of the devices that JAX computes on; `NoMeter` with the reason where none can be read."""
  if jax.process_count() > 1:  # of which several may share a counter
    return NoMeter("energy is that of one process, not of several")
  kind = jax.default_backend()
  if kind == "cpu":
    try:
      return Rapl(powercap)
    except PermissionError as error:
      return NoMeter(f"{error.filename} may be read by root alone")
    except (OSError, ValueError) as error:
      return NoMeter(f"no RAPL: {error}")
  if kind in ("gpu", "cuda"):
    visible = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    own = [device.local_hardware_id for device in jax.local_devices()]
    try:
      return Nvml([visible[i] if visible else str(i) for i in own])
    except ModuleNotFoundError:
      return NoMeter("no NVML: nvidia-ml-py is not installed")
    except Exception as error:  # NVMLError, a class of the module that may not be there
      return NoMeter(f"no NVML: {error}")
  return NoMeter(f"{kind} devices tell no power that can be read")


@dataclasses.dataclass
class Usage:
  """What `watched` saw.

  Args:
    joules, idle_watts: None: no meter. Idle power is that of the seconds before.
    memory: mean share in use, by time, of the device's memory, or of the machine's by this process
      where a device tells none.
  """

  source: str
  reason: str
  seconds: float = 0.0
  joules: float | None = None
  idle_watts: float | None = None
  memory: float | None = None
  memory_of: str = ""

  @property
  def watts(self) -> float | None:
    return None if self.joules is None else self.joules / self.seconds

  def describe(self) -> str:
    """For the screen."""
    if self.joules is None:
      return f"energy: not measured ({self.reason})"
    return (
      f"energy: {self.joules:.4g} J in {self.seconds:.4g} s, {self.watts:.4g} W "
      f"(idle {self.idle_watts:.4g} W), by {self.source}: {self.reason}"
    )


@contextlib.contextmanager
def watched(by: Meter, *, idle: float = IDLE) -> Iterator[Usage]:
  """Watches what runs inside; the usage is filled in when it ends."""
  usage = Usage(by.source, by.reason)
  if (before := by.joules()) is not None and idle:
    began = time.perf_counter()
    _until(idle, by)
    usage.idle_watts = (by.joules() - before) / (time.perf_counter() - began)
  shares: list[float] = []
  ended = threading.Event()

  def look() -> None:
    while True:
      by.joules()
      share, usage.memory_of = memory()
      shares.append(share)
      if ended.wait(PERIOD):
        return

  start, began = by.joules(), time.perf_counter()
  thread = threading.Thread(target=look, daemon=True)
  thread.start()
  try:
    yield usage
  finally:
    ended.set()
    thread.join()
    usage.seconds = time.perf_counter() - began
    usage.joules = None if start is None else by.joules() - start
    usage.memory = float(np.mean(shares))


def _until(seconds: float, by: Meter) -> None:
  end = time.perf_counter() + seconds
  while time.perf_counter() < end:
    time.sleep(min(PERIOD, seconds))
    by.joules()


def memory() -> tuple[float, str]:
  """The share of memory in use, and whose."""
  told = jax.local_devices()[0].memory_stats()
  if told and "bytes_limit" in told:
    return told["bytes_in_use"] / told["bytes_limit"], "the device's"
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages / os.sysconf("SC_PHYS_PAGES"), "the machine's, by this process"


def record(
  usage: Usage,
  *,
  tokens: int,
  right: float,
  answers: int,
  latencies: Sequence[float],
  batches: Sequence[tuple[float, float]] = (),
  peak: float | None = None,
) -> dict[str, Any]:
  """The ratios, by name; None where a part of one was not measured.

  Args:
    tokens, right, answers: written; scores summed; asked.
    latencies: seconds of each answer.
    batches: of what ran together: operations, and seconds.
    peak: operations a second that the device reaches.
  """
  watts, joules, idle = usage.watts, usage.joules, usage.idle_watts

  def over(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b

  net = None if joules is None or idle is None else max(joules - idle * usage.seconds, 0.0)
  fastest = max((operations / seconds for operations, seconds in batches), default=None)
  whole = sum(operations for operations, _ in batches) if batches else None
  quantiles = np.quantile(latencies, (0.5, 0.95, 0.99)) if len(latencies) else [None] * 3
  return {
    "energy": {**dataclasses.asdict(usage), "watts": watts},
    "joules_per_token": over(joules, tokens),
    "joules_per_right_answer": over(joules, right),
    "right_answers_per_joule": over(right, joules),
    "accuracy_per_watt": over(right / answers, watts),
    "above_idle": {  # the same without the power of doing nothing
      "joules": net,
      "joules_per_token": over(net, tokens),
      "joules_per_right_answer": over(net, right),
      "accuracy_per_watt": over(right / answers, over(net, usage.seconds)),
    },
    "average_memory_utilisation": usage.memory,
    "peak_compute_utilisation": over(fastest, peak),
    "average_compute_utilisation": over(over(whole, usage.seconds), peak),
    "average_latency": float(np.mean(latencies)) if len(latencies) else None,
    "latency_quantiles": dict(zip(("p50", "p95", "p99"), map(_plain, quantiles), strict=True)),
    "average_throughput": tokens / usage.seconds,
    "average_energy_consumption": watts,
  }


def _plain(value: Any) -> float | None:
  return None if value is None else float(value)


@functools.cache
def reached_peak(rounds: int = 20) -> float:
  """Operations a second of a product of matrices in the device's fast type, at best.

  On a CPU it is short, and often run: on a busy machine a long one is always interrupted.
  """
  size, kind = (512, "float32") if jax.default_backend() == "cpu" else (8192, "bfloat16")
  matrix = jax.numpy.ones((size, size), kind)
  product = jax.jit(lambda x: x @ x)
  jax.block_until_ready(product(matrix))
  seconds = []
  for _ in range(rounds):
    began = time.perf_counter()
    jax.block_until_ready(product(matrix))
    seconds.append(time.perf_counter() - began)
  return 2 * size**3 / min(seconds)
