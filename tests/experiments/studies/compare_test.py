"""The page of all methods, from the command line, on a model that has learned nothing."""

import pytest

from tests.experiments import mains

MAIN = mains.load("experiments/studies/compare.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  where = tmp_path_factory.mktemp("compare")
  tiny = ["steps=1", "batch=8", "model.width=16", "model.layers=1", "model.mlp=16", "eval.every=0"]
  tiny += ["optimizer.warmup=0"]
  done = mains.run(
    where,
    "experiments/train.py",
    "--config=configs/train/quickstart.py",
    f"--workdir={where / 'model'}",
    "--config.checkpoint.keep_best=0",
    *[f"--config.{each}" for each in tiny],
  )
  assert done.returncode == 0, done.stderr
  return where / "model"


def compare(tmp_path, folder, *arguments):
  return mains.run(
    tmp_path,
    "experiments/studies/compare.py",
    f"--checkpoint={folder}",
    f"--workdir={tmp_path / 'out'}",
    "--problems=1",
    *arguments,
  )


def test_a_table_and_a_page(tmp_path, folder):
  done = compare(tmp_path, folder, "--methods=LLaDA,credit")
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert sum(line.startswith("LLaDA") for line in lines) == 3
  assert sum(line.startswith("credit") for line in lines) == 3
  page = (tmp_path / "out" / "report.html").read_text()
  assert "credit" in page and "inner.threshold 0.8" in page


def test_mistakes(tmp_path, folder):
  done = compare(tmp_path, folder, "--methods=magic")
  assert done.returncode == 2 and "'magic' is unknown; known: LLaDA, " in done.stderr
  assert done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


def test_every_curve_names_a_policy_and_a_cache_that_exist():
  from dlm.sampling.caching import PLANS
  from dlm.sampling.policies import POLICIES

  for method in MAIN.CURVES.values():
    assert method.policy["name"] in POLICIES and method.cache in PLANS
    assert len(method.values) == 3
    assert MAIN.with_field(method.policy, method.field, 7) != method.policy
