"""The conversion experiment at a size of seconds; what it says of its numbers, on given ones."""

import json
import re

import numpy as np
import pytest

from dlm.evaluation.parallelism import Outcome
from tests.experiments import mains

convert = mains.load("experiments/studies/convert.py")

TINY = """
import runpy

def get_config(name="ar"):
  config = runpy.run_path("configs/train/convert.py")["get_config"](name)
  config.update(steps=2, batch=8)
  config.model.update(width=16, layers=1, heads=2, kv_heads=2, head_dim=8, mlp=16)
  config.optimizer.update(warmup=1, schedule="constant")
  config.eval.update(every=0)
  return config
"""


def main(folder, *arguments):
  config = folder / "tiny.py"
  config.write_text(TINY)
  sizes = ("--seeds=2", "--problems=1", f"--config={config}", f"--workdir={folder / 'run'}")
  return mains.run(folder, "experiments/studies/convert.py", *sizes, *arguments)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
  folder = tmp_path_factory.mktemp("convert")
  done = main(folder)
  assert done.returncode == 0, done.stderr
  return folder, done.stdout


def test_every_way_is_trained_from_the_model_and_asked(ran):
  folder, said = ran
  record = json.loads((folder / "run" / "convert.json").read_text())
  runs = {(run["way"], run["seed"]): run for run in record["runs"]}
  assert set(runs) == {("ar", 0), *((way, seed) for way in convert.WAYS for seed in (1, 2))}
  for (way, _), run in runs.items():
    assert (run["drift"]["all"] > 0) == (way != "ar")
    assert len(run["points"]) == 5 * (1 if way == "ar" else 3), "five tasks, three speeds"
  assert [list(claim["ours"]) for claim in record["claims"]] == [
    *[["k=1", "k=2", "k=4", "less drift"]] * 2,
    ["k=1", "k=2", "k=4"],
  ]
  page = (folder / "run" / "report.html").read_text()
  for name in convert.NAMES.values():
    assert name in said and name in page


def test_a_seed_draws_other_noise_and_the_ways_see_other_things(ran):
  record = json.loads((ran[0] / "run" / "convert.json").read_text())
  moved = [run["drift"]["all"] for run in record["runs"]]
  assert len(set(moved)) == len(moved)
  facts = [
    json.loads((ran[0] / "run" / name / "facts.json").read_text())
    for name in ("ar", "full-1", "noisy-1", "clean-1", "tilted-1")
  ]
  assert [each["attention"] for each in facts] == ["causal", "full", *["block_causal"] * 3]
  assert [each["shift"] for each in facts] == [1, 0, 0, 0, 0]


def test_a_second_call_trains_nothing_and_says_the_same(ran):
  folder, said = ran
  metrics = {path: path.read_text() for path in (folder / "run").glob("*/metrics.jsonl")}
  done = main(folder)
  assert done.returncode == 0, done.stderr
  assert len(metrics) == 9 and all(path.read_text() == was for path, was in metrics.items())
  assert "step 2/2" in said and "step 2/2" not in done.stdout
  drifts = re.compile(r"drift [\d.]+ %")
  assert drifts.findall(done.stdout) == drifts.findall(said) != []


def test_mistakes_are_one_line(tmp_path):
  done = main(tmp_path, "--config=configs/train/none.py")
  assert done.returncode == 2 and done.stderr.count("\n") == 1 and "none.py" in done.stderr
  assert not (tmp_path / "run").exists()


def test_drift_is_a_share_of_the_norm():
  start = {"layers": {"mlp": {"up": np.array([3.0, 4.0])}}, "embed": np.array([12.0])}
  end = {"layers": {"mlp": {"up": np.array([3.0, 4.5])}}, "embed": np.array([12.0])}
  moved = convert.drift(start, end)
  assert moved == pytest.approx({"all": 100 * 0.5 / 13, "mlp": 10.0, "embed": 0.0})


def converted(way, seed, solved, moved):
  """`solved` of ten problems, at every speed."""
  outcomes = {
    k: [Outcome(convert.NAMES[way], f"k={k}", "copy", float(i < solved), 8, 8 // k, 1.0)
        for i in range(10)]
    for k in convert.SPEEDS
  }  # fmt: skip
  return convert.Converted(way, seed, outcomes, dict.fromkeys(("all", *convert.GROUPS), moved))


def test_claims_compare_seeds_in_pairs():
  accuracies = {"full": (1, 2), "noisy": (8, 10), "clean": (6, 8), "tilted": (5, 9)}
  found = [converted(w, s, n, 10.0 + n) for w, each in accuracies.items()
           for s, n in enumerate(each, 1)]  # fmt: skip
  over_full, over_noisy, over_clean = (claim["ours"] for claim in convert.claims(found))
  assert over_full["k=4"]["mean"] == pytest.approx(55.0)
  assert over_full["k=4"]["verdict"] == "as in the paper"
  assert over_noisy["k=1"] == {"mean": -20.0, "sd": 0.0, "verdict": "against the paper"}, (
    "each seed loses 20 points, whatever the seeds are among themselves"
  )
  assert over_noisy["less drift"]["verdict"] == "as in the paper"
  assert over_clean["k=2"]["verdict"] == "within the spread of seeds"
