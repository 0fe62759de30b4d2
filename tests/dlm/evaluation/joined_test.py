"""Records of evaluations become one page."""

import dataclasses
import json

import pytest

from dlm.evaluation import joined, report
from dlm.evaluation.parallelism import CurvePoint
from tests.experiments import mains


def run(setting, accuracy, joules):
  seen = {"sample": "copy", "policy": "threshold", "setting": setting, "forwards": 2}
  return {
    "policy": "threshold",
    "setting": setting,
    "tasks": {"copy": {"n": 10, "accuracy": accuracy}, "sort": {"n": 10, "accuracy": accuracy}},
    "traces": [seen | {"tokens": ["a", "="], "when": [-1, 1], "correct": True}],
    "cost": {
      "average_throughput": 50.0, "average_latency": 0.1, "latency_quantiles": {"p95": 0.2},
      "joules_per_token": joules, "joules_per_right_answer": joules,
      "average_energy_consumption": joules, "average_memory_utilisation": 0.25,
      "peak_compute_utilisation": None,
    },
  }  # fmt: skip


def record(name, accuracy=0.8, parameter_bytes=800, joules=2.0):
  settings = {"policy.threshold=0.9": 1.0, "policy.threshold=0.5": 4.0}
  curves = [
    CurvePoint("threshold", setting, task, 100 * accuracy, tpf, tpf, 8 / tpf, 100.0, 10)
    for setting, tpf in [*settings.items(), ("oracle", 4.0)]
    for task in ("copy", "sort")
  ]
  return {
    "name": name,
    "checkpoint": f"runs/{name}",
    "tasks": ["lists:copy,sort"],
    "problems": {"size": 10, "seed": 0, "shots": 0, "chat": False},
    "vocab": 260,
    "parameter_bytes": parameter_bytes,
    "facts": [["device", "cpu x 1"]],
    "curves": [dataclasses.asdict(point) | {"interval": [0, 1]} for point in curves],
    "runs": [run(setting, accuracy, joules) for setting in settings],
  }


def test_one_record_is_a_curve_a_policy():
  page = joined.page_of([joined.check(record("a"), "a.json")])
  assert {point.policy for point in page.curves} == {"threshold"}
  assert [point.task for point in page.curves[:2]] == ["mean", "mean"]
  assert {point.setting for point in page.curves} == {"threshold=0.9", "threshold=0.5"}
  assert (page.costs[0].answers, page.costs[0].joules_per_token) == (20, 2.0)
  assert page.facts == (("device", "cpu x 1"),) and len(page.traces) == 2
  assert "runs/a: 2 tasks, 10 problems of each" in page.sentence
  assert "What it costs" in report.page(page)


def test_several_are_compared_by_name_and_by_size(tmp_path, capsys):
  """In the page, the table and the JSON of compare.py; half the bytes at 3/4 of the accuracy."""
  for name, options in (
    ("a", {}),
    ("b", {"accuracy": 0.6, "parameter_bytes": 400, "joules": None}),
  ):
    (tmp_path / f"{name}.json").write_text(json.dumps(record(name, **options)))
  out = tmp_path / "out"
  compare = mains.load("experiments/compare.py")
  compare.join(
    [compare.read(f"{tmp_path / 'a.json'}"), compare.read(f"small={tmp_path / 'b.json'}")], out
  )
  assert "small   threshold=0.5  60.0 @ 4.00  60.0 @ 4.00  60.0 @ 4.00" in capsys.readouterr().out
  found = json.loads((out / "results.json").read_text())
  assert {point["policy"] for point in found["curves"]} == {"a", "small"}
  assert [cost["watts"] for cost in found["costs"]] == [2.0, 2.0, None, None]
  told = "1.5 (2 times smaller, 0.75 of its accuracy)"
  assert ["small: compression against a", told] in found["facts"]
  page = (out / "report.html").read_text()
  assert '"policy":"small"' in page and "compression against a" in page


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"name": "a"}, "two evaluations are called 'a': name them, as NAME=FILE"),
    ({"tasks": ["lists:copy"]}, r"'b' was asked other problems than 'a': tasks \['lists:copy'\]"),
    ({"problems": {"seed": 1}}, "other problems than 'a': problems"),
  ],
)
def test_what_does_not_compare_is_refused(change, said):
  with pytest.raises(ValueError, match=said):
    joined.page_of([record("a"), record("b") | change])


def test_another_file_is_named():
  with pytest.raises(ValueError, match=r"x\.json is no results\.json .* it lacks 'checkpoint'"):
    joined.check({"name": "x"}, "x.json")
