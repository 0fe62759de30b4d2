"""Runs that learn from rewards: from roll-outs to a resumed run, and what is refused."""

import functools
import json
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import build, checkpoint, rollout, train
from dlm.rewards import scores
from dlm.rewards.written import Written
from dlm.train import Step
from dlm.types import Batch
from tests.dlm import rollout_test

LENGTH = 24
LISTS = (
  ("mode", "pad"), ("pad", "none"), ("tasks", ("copy",)), ("items", (2, 2)),
)  # fmt: skip
CONFIG = {
  "steps": 4,
  "batch": 8,
  "log_every": 1,
  "data": {"sources": (("lists", 1.0, LISTS),), "length": LENGTH},
  "objective": {
    "name": "policy_gradient", "estimator": {"name": "full_mask"}, "clip": (0.5, 0.5),
  },
  "rollout": {
    "policy": {"name": "fixed", "k": 1}, "block": 4, "temperature": 1.0, "max_new_tokens": 4,
  },
  "rewards": {"of": (("fields_right", 1.0), ("tokens_per_forward", 0.1)), "group": 4, "updates": 2},
  "optimizer": {"lr": 1e-2},
  "eval": {"every": 4, "batches": 1},
  "checkpoint": {"every": 2, "keep_best": 0},
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """A masked diffusion model, hardly trained."""
  folder = tmp_path_factory.mktemp("runs") / "base"
  model = dict(width=32, layers=1, heads=2, kv_heads=1, head_dim=16, mlp=48)
  config = {name: CONFIG[name] for name in ("batch", "data", "optimizer", "eval")}
  config |= {"steps": 8, "objective": {"name": "exact_count"}, "model": model}
  train.train(build.everything(config), folder)
  return folder


training = functools.partial(rollout_test.training, config=CONFIG)


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
  """The state of an unbroken run, and its folder."""
  folder = tmp_path_factory.mktemp("runs") / "whole"
  return train.train(training(base), folder), folder


def test_a_resumed_run_ends_where_the_unbroken_one_does(base, whole, tmp_path):
  state, folder = whole
  shutil.copytree(folder, tmp_path / "run")
  shutil.rmtree(tmp_path / "run" / checkpoint.STEPS / "4")
  resumed = train.train(training(base), tmp_path / "run")
  jax.tree.map(np.testing.assert_array_equal, resumed, state)


def test_a_run_tells_what_it_was_rewarded_for(whole):
  lines = [json.loads(x) for x in (whole[1] / "metrics.jsonl").read_text().splitlines()]
  told = [line for line in lines if "loss" in line]
  for line in told:
    assert 0 <= line["reward/fields_right"] <= 1
    assert 0 <= line["reward/tokens_per_forward"] <= 4
    assert line["rollout/entropy"] > 0 and line["rollout/failed"] == 0
    assert 0 <= line["clipped"] <= line["outside"] <= 1
  # The first of two updates on the same rows finds the model that wrote them.
  assert [round(line["ratio"], 6) == 1 for line in told] == [True, False, True, False]
  assert [line["step"] for line in lines if "eval/reward/fields_right" in line] == [4]


def test_rows_of_a_group_answer_the_same_prompt_and_are_compared(base):
  run = training(base)
  params = Step(run).init().params
  given = Batch(*map(jnp.asarray, run.rows[0]))
  rows, _ = rollout.of(run)(params, given, jax.random.key(0))
  judged, numbers = rollout.judge(run)(rows, given)
  texts = rollout.judge(run).written(rows, given)
  assert [x.prompt for x in texts] == [x.prompt for x in texts[::4] for _ in range(4)]
  assert len({x.text for x in texts[:4]}) > 1 and len({x.prompt for x in texts}) == 2
  assert all(x.answer == x.prompt[-len(x.answer) - 3 : -3] for x in texts)  # they are copies
  advantage = np.asarray(judged.extra["advantage_B"]).reshape(2, 4)
  np.testing.assert_allclose(advantage.sum(1), 0, atol=1e-6)
  right = np.mean([scores("fields_right", texts)])
  assert numbers["reward/fields_right"] == pytest.approx(right)


def raises(written):
  raise RuntimeError(written.text)


def hangs(written):
  time.sleep(60)


def test_a_reward_that_fails_costs_its_row():
  rows = [Written("", "a", "a")]
  for name in ("raises", "hangs"):
    assert np.isnan(scores(f"{__name__}:{name}", rows, seconds=0.05)).all()


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"rewards": None}, "objective.name='policy_gradient' needs `rewards`"),
    ({"rewards.of": (("exactly", 1.0),)}, "'exactly' is unknown; known: exact, "),
    ({"rewards.of": (("nowhere:x", 1.0),)}, "'nowhere:x' cannot be imported"),
    ({"rewards.advantages": {"kind": "x"}}, "advantages.kind='x' is unknown; known: none, centr"),
    ({"rewards.group": 3}, "rewards.group=3 must divide batch=8"),
    ({"steps": 5}, "steps=5 must divide by rewards.updates=2"),
    ({"objective.estimator": {"name": "elbo"}}, "'elbo' is unknown; known: block_elbo, "),
    (
      {"objective.estimator": {"name": "trace", "block": 4}},
      "estimator='trace' is of models with attention BlockCausal.*, not Full.* as in init_from",
    ),
    ({"objective.shift": 1}, "objective.shift=1 is not the shift=0 of init_from"),
    ({"checkpoint.keep_best": 1}, "checkpoint.keep_best=1 goes by the loss"),
    ({"rollout": None}, "learns from what the model writes: it needs `rollout`"),
    (
      {"objective": {"name": "preference", "estimator": {"name": "counted_elbo"}}},
      "rewards.group=4 must be 2",
    ),
  ],
)
def test_mistakes_are_named_before_work_starts(base, fields, message):
  with pytest.raises(ValueError, match=message):
    training(base, **fields)
