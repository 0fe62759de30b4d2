"""Targets that a teacher told beforehand: what is learned from them is what it would have said."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import build, checkpoint, files, targets, train, workdir
from dlm.data import array_records
from dlm.metrics import records
from dlm.objectives.divergence import Divergence
from dlm.train import Step
from dlm.types import Batch, LogitHead

LENGTH = 24
LISTS = (("mode", "pad"), ("pad", "none"), ("tasks", ("copy",)), ("items", (2, 2)))
CONFIG = {
  "steps": 1,
  "batch": 4,
  "data": {"sources": (("lists", 1.0, LISTS),), "length": LENGTH},
  "objective": {"name": "dscd", "temperature": 1.5},
  "optimizer": {"lr": 1e-2},
  "checkpoint": {"keep_best": 0},
}
MODEL = dict(width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp=24)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """A masked diffusion model that was never trained."""
  folder = tmp_path_factory.mktemp("runs") / "base"
  run = build.everything(CONFIG | {"objective": {"name": "exact_count"}, "model": MODEL})
  folder.mkdir()
  workdir.fill(folder, run.config(), run.facts, run.tokenizer)
  params = jax.jit(run.model.init)(jax.random.key(0))
  checkpoint.save_params(folder, 0, params, {"from": "nowhere"})
  return folder


def training(base, source=None, **fields):
  config = copy.deepcopy(CONFIG) | {"init_from": str(base)}
  if source is not None:
    config["data"]["sources"] = ((f"targets:{source}", 1.0),)
  return build.everything(config | fields)


@pytest.fixture(scope="module")
def written(base, tmp_path_factory):
  """All ids of all targets, in two files of the train split and one of the other."""
  folder = tmp_path_factory.mktemp("targets") / "all"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(targets, "FILE_ROWS", 4)
    counts = targets.write_targets(folder, training(base), keep=10**6, batches=2, test_batches=1)
  assert counts == {"written": 3, "there": 0}
  return folder


def test_the_loss_is_what_the_teacher_gives_while_it_is_asked(base, written):
  """Of the held-out batch, which both runs draw with the same noise."""
  online, offline = training(base), training(base, written)
  teacher = Step(online).teacher()
  student = jax.tree.map(lambda x: x + 0.3 * jnp.cos(jnp.arange(x.size).reshape(x.shape)), teacher)
  rows = [Batch(*jax.tree.map(jnp.asarray, tuple(run.eval_rows[0]))) for run in (online, offline)]
  for name in ("tokens_BxL", "noisable_BxL", "segment_BxL", "position_BxL"):
    np.testing.assert_array_equal(*(getattr(each, name) for each in rows))
  want = Step(online).evaluate(student, rows[0], jnp.int32(0), teacher)
  got = Step(offline).evaluate(student, rows[1], jnp.int32(0))
  assert got.count == want.count > 0 and want.metrics["kl"] > 0.1 * want.count
  np.testing.assert_allclose(got.total, want.total, rtol=2e-5)
  np.testing.assert_allclose(got.metrics["kl"], want.metrics["kl"], rtol=2e-5)


def test_d2f_is_told_what_its_teacher_sees_in_the_whole_noisy_text(base, tmp_path):
  """Not what it would see by the student's blocks."""
  objective = {"name": "d2f", "block": 2, "target": "teacher"}
  online = training(base, objective=objective)
  targets.write_targets(tmp_path / "told", online, keep=10**6, batches=1, test_batches=1)
  offline = training(base, tmp_path / "told", objective=objective)
  teacher = Step(online).teacher()
  rows = [Batch(*jax.tree.map(jnp.asarray, tuple(run.eval_rows[0]))) for run in (online, offline)]
  want = Step(online).evaluate(teacher, rows[0], jnp.int32(0), teacher)
  got = Step(offline).evaluate(teacher, rows[1], jnp.int32(0))
  assert got.count == want.count > 0 and want.total > 1e-3 * want.count
  np.testing.assert_allclose(got.total, want.total, rtol=2e-4)


def test_a_run_learns_from_them_without_a_teacher(base, written, tmp_path):
  run = training(base, written)
  assert run.teacher is None and not run.objective.taught
  train.train(run, tmp_path / "run")
  (told,) = (each for each in records(tmp_path / "run") if "loss" in each)
  assert np.isfinite(told["loss"]) and 0 < told["kl"] < told["loss"]


def test_writing_goes_on_where_it_was_interrupted(base, written, monkeypatch):
  monkeypatch.setattr(targets, "FILE_ROWS", 4)
  whole = files.read_json(written / array_records.INDEX)
  for name in (array_records.INDEX, "train-00001-of-00002.json"):
    (written / name).unlink()
  with pytest.raises(ValueError, match=r"index.json is missing: not, or not yet all, written by"):
    training(base, written)
  again = functools.partial(targets.write_targets, written, training(base), test_batches=1)
  with pytest.raises(ValueError, match=r"00000-of-00002.json: kept=\d+, not 3: write elsewhere"):
    again(keep=3, batches=2)
  assert again(keep=10**6, batches=2) == {"written": 1, "there": 2}
  assert files.read_json(written / array_records.INDEX) == whole


@pytest.mark.parametrize(
  ("objective", "message"),
  [
    ({"name": "dscd"}, r"objective.temperature=2.0 must be 1.5, by which the targets of"),
    ({"name": "mdlm"}, "objective.name='mdlm' asks a teacher while it learns, or none: targets"),
  ],
)
def test_targets_of_another_objective_are_refused(base, written, objective, message):
  with pytest.raises(ValueError, match=message):
    training(base, written, objective=objective)
  if objective["name"] == "mdlm":
    with pytest.raises(ValueError, match=r"objective.name=.mdlm. has no teacher that could be"):
      targets.write_targets(
        written, training(base, objective=objective), keep=1, batches=1, test_batches=1
      )


def test_kept_ids_and_one_for_all_others():
  """All ids kept: the divergence and its gradient. Fewer: of distributions over those and one id
  of all the others, which are closer."""
  divergence = Divergence(softened=2.0, reverse=0.3)
  draw = np.random.default_rng(0)
  student, teacher = (draw.normal(size=(1, 3, 7)).astype(np.float32) for _ in range(2))

  @jax.jit
  def found(student, teacher, asked):
    heads = [LogitHead(x, jnp.eye(7), implementation="reference") for x in (student, teacher)]

    def total(student, told):
      return divergence(heads[0].replace(hidden_BxAxD=student), told, asked).sum()

    kept = [divergence.keep(heads[1], count) for count in (7, 4)]
    return [jax.value_and_grad(total)(student, told) for told in (heads[1], *kept)]

  whole, told, (got, _) = found(student, teacher, np.array([[True, True, False]]))
  np.testing.assert_allclose(told[0], whole[0], rtol=1e-5)
  np.testing.assert_allclose(told[1], whole[1], atol=1e-6)
  p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (teacher[0] / 2, student[0] / 2))
  want = 0.0
  for row in range(2):
    first = np.argsort(-p[row])[:4]
    few = [np.append(x[row, first], 1 - x[row, first].sum()) for x in (p, q)]
    log = np.log(few[0] / few[1])
    want += (0.7 * few[0] * log - 0.3 * few[1] * log).sum()
  assert 0 < got < whole[0]
  np.testing.assert_allclose(got, want, rtol=1e-5)
