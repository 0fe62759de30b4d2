"""Counters of joules that a test turns, and the ratios that follow."""

import dataclasses
import sys
import types

import pytest

from dlm.evaluation import energy

MOST = 262_143_328_850  # of a counter, in microjoules


@pytest.fixture
def powercap(tmp_path):
  """Two packages, one with cores and memory of its own, and the whole platform."""
  for zone, name, start in (
    ("intel-rapl:0", "package-0", 5_000_000), ("intel-rapl:0:0", "core", 1),
    ("intel-rapl:0:1", "dram", 100), ("intel-rapl:1", "psys", 7),
    ("intel-rapl:2", "package-1", MOST - 1_000_000),
  ):  # fmt: skip
    (tmp_path / zone).mkdir()
    for file, value in (("name", name), ("energy_uj", start), ("max_energy_range_uj", MOST)):
      (tmp_path / zone / file).write_text(f"{value}\n")
  (tmp_path / "intel-rapl").mkdir()
  return tmp_path


def turn(powercap, zone, to):
  (powercap / zone / "energy_uj").write_text(str(to))


def test_packages_and_memory_are_added_and_counters_turn_over(powercap):
  meter = energy.meter(powercap)
  assert (meter.source, meter.joules()) == ("rapl", 0)
  turn(powercap, "intel-rapl:0", 7_000_000)  # 2 J
  turn(powercap, "intel-rapl:0:0", 900_000_000)  # within the package: not counted twice
  turn(powercap, "intel-rapl:1", 900_000_000)
  turn(powercap, "intel-rapl:0:1", 500_100)  # 0.5 J
  turn(powercap, "intel-rapl:2", 3_000_000)  # 1 J to its end, 3 J from there
  assert meter.joules() == pytest.approx(6.5)
  turn(powercap, "intel-rapl:2", 2_000_000)  # once more round, but for 1 J
  assert meter.joules() == pytest.approx(6.5 + MOST / 1e6 - 1)


def test_what_cannot_be_read_is_named(powercap, tmp_path, monkeypatch):
  found = energy.meter(tmp_path / "nothing")
  assert found.source == "none" and "no counter of a processor's package" in found.reason
  assert found.joules() is None

  def forbidden(path):
    raise PermissionError(13, "Permission denied", str(path))

  monkeypatch.setattr(energy.Rapl, "_read", staticmethod(forbidden))
  assert energy.meter(powercap).reason.endswith("energy_uj may be read by root alone")
  monkeypatch.setattr(energy.jax, "default_backend", lambda: "tpu")
  assert energy.meter(powercap).reason == "tpu devices tell no power that can be read"
  monkeypatch.setattr(energy.jax, "default_backend", lambda: "gpu")
  monkeypatch.setitem(sys.modules, "pynvml", None)
  assert energy.meter(powercap).reason == "no NVML: nvidia-ml-py is not installed"


class Refused(Exception):
  pass


@pytest.mark.parametrize("counts", [True, False])
def test_nvml_counts_energy_or_integrates_power(monkeypatch, counts):
  told = {"energy": 1000, "power": 100_000}  # millijoules, milliwatts

  def counter(device):
    if not counts:
      raise Refused
    return told["energy"]

  nvml = types.SimpleNamespace(
    NVMLError=Refused, nvmlInit=lambda: None,
    nvmlDeviceGetHandleByIndex=lambda index: index, nvmlDeviceGetHandleByUUID=lambda name: name,
    nvmlDeviceGetTotalEnergyConsumption=counter,
    nvmlDeviceGetPowerUsage=lambda device: told["power"],
  )  # fmt: skip
  monkeypatch.setitem(sys.modules, "pynvml", nvml)
  clock = iter([0.0, 2.0])
  monkeypatch.setattr(energy.time, "perf_counter", lambda: next(clock))
  meter = energy.Nvml(["0", "GPU-1"])
  told.update(energy=4000, power=300_000)
  # Two devices, 3 J each; or 2 s at 100 and 300 W each, a trapezoid.
  assert meter.joules() == pytest.approx(6 if counts else 2 * 400)


@dataclasses.dataclass
class Ticking:
  """Ten joules at each look."""

  source, reason = "rapl", "a test"
  spent: float = 0.0

  def joules(self):
    self.spent += 10
    return self.spent


def test_what_runs_inside_is_watched():
  with energy.watched(Ticking(), idle=1e-3) as usage:
    pass
  assert usage.joules >= 20 and usage.seconds > 0 and usage.idle_watts > 0
  assert 0 < usage.memory < 1 and usage.memory_of
  assert usage.describe().startswith("energy: ")
  with energy.watched(energy.NoMeter("no RAPL: so it is")) as usage:
    pass
  assert (usage.joules, usage.idle_watts, usage.watts) == (None, None, None)
  assert usage.describe() == "energy: not measured (no RAPL: so it is)"


def test_ratios():
  usage = energy.Usage("rapl", "a test", 10.0, joules=500.0, idle_watts=20.0, memory=0.25)
  got = energy.record(
    usage, tokens=100, right=4, answers=8, latencies=[1.0, 1.0, 1.0, 3.0],
    batches=[(10.0, 2.0), (30.0, 3.0)], peak=40.0,
  )  # fmt: skip
  assert (got["joules_per_token"], got["joules_per_right_answer"]) == (5, 125)
  assert got["right_answers_per_joule"] == pytest.approx(4 / 500)
  assert got["accuracy_per_watt"] == pytest.approx(0.5 / 50)
  assert got["above_idle"]["joules"] == 300 and got["above_idle"]["joules_per_token"] == 3
  assert got["above_idle"]["accuracy_per_watt"] == pytest.approx(0.5 / 30)
  assert got["peak_compute_utilisation"] == pytest.approx(10 / 40)
  assert got["average_compute_utilisation"] == pytest.approx(4 / 40)
  assert (got["average_latency"], got["latency_quantiles"]["p50"]) == (1.5, 1)
  assert (got["average_throughput"], got["average_energy_consumption"]) == (10, 50)


def test_ratios_of_what_was_not_measured_are_none():
  usage = energy.Usage("none", "no RAPL", 10.0)
  got = energy.record(usage, tokens=0, right=0, answers=8, latencies=[])
  for name in (
    "joules_per_token",
    "accuracy_per_watt",
    "peak_compute_utilisation",
    "average_latency",
  ):
    assert got[name] is None
  assert got["energy"]["reason"] == "no RAPL" and got["above_idle"]["joules"] is None
