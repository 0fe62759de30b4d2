"""Runs that learn from rewards: from roll-outs to a resumed run, and what is refused."""

import functools
import json
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import build, checkpoint, masks, rollout, stepwise, train, workdir
from dlm.metrics import records
from dlm.rewards import scores
from dlm.rewards.advantages import Advantages
from dlm.rewards.judge import RewardConfig
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


MODEL = dict(width=32, layers=1, heads=2, kv_heads=1, head_dim=16, mlp=48)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """A masked diffusion model, hardly trained."""
  folder = tmp_path_factory.mktemp("runs") / "base"
  config = {name: CONFIG[name] for name in ("batch", "data", "optimizer", "eval")}
  config |= {"steps": 8, "objective": {"name": "exact_count"}, "model": MODEL}
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
  (judged,), numbers = rollout.judge(run)(rows, given)
  texts = rollout.judge(run).written(rows, given)
  assert [x.prompt for x in texts] == [x.prompt for x in texts[::4] for _ in range(4)]
  assert len({x.text for x in texts[:4]}) > 1 and len({x.prompt for x in texts}) == 2
  assert all(x.answer == x.prompt[-len(x.answer) - 3 : -3] for x in texts)  # they are copies
  advantage = np.asarray(judged.extra["advantage_B"]).reshape(2, 4)
  np.testing.assert_allclose(advantage.sum(1), 0, atol=1e-6)
  right = np.mean([scores("fields_right", texts)])
  assert numbers["reward/fields_right"] == pytest.approx(right)


def untrained(folder, objective):
  config = {name: CONFIG[name] for name in ("steps", "batch", "data", "optimizer", "checkpoint")}
  run = build.everything(config | {"objective": objective, "model": MODEL})
  folder.mkdir()
  workdir.fill(folder, run.config(), run.facts, run.tokenizer)
  params = jax.jit(run.model.init)(jax.random.key(0))
  checkpoint.save_params(folder, 0, params, {"from": "nowhere"})
  return folder


def test_an_autoregressive_model_stays_one_where_it_is_estimated_as_such(tmp_path):
  token_by_token = {
    "rollout.policy": {"name": "introspective", "stride": 1}, "rollout.cache": {"name": "rolling"},
    "objective.estimator": {"name": "autoregressive"},
  }  # fmt: skip
  run = training(untrained(tmp_path / "ar", {"name": "ar"}), **token_by_token)
  assert (run.facts.attention, run.facts.shift, run.objective.shift) == (masks.Causal(), 1, 1)


def test_pairs_of_a_file_are_learned_from(tmp_path):
  pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
  (tmp_path / "pairs.jsonl").write_text((json.dumps(pair) + "\n") * 40)
  pairs = {
    "objective": {"name": "preference", "estimator": {"name": "counted_elbo", "draws": 1}},
    "data.sources": ((f"pairs:{tmp_path / 'pairs.jsonl'}", 1.0),), "data.mode": "pad",
    "data.pad": "none", "rollout": None, "rewards": None, "eval.every": 0, "steps": 2,
  }  # fmt: skip
  base = untrained(tmp_path / "base", {"name": "exact_count"})
  train.train(training(base, **pairs), tmp_path / "run")
  told = [each for each in records(tmp_path / "run") if "loss" in each]
  # The first update finds the reference itself, the second what already prefers the better.
  assert told[0]["loss"] == pytest.approx(np.log(2), rel=1e-5) and told[0]["margin"] == 0
  assert told[1]["margin"] > 0 and told[1]["preferred"] == 1
  blocks = untrained(tmp_path / "blocks", {"name": "bd3lm", "block": 4})
  traced = {"objective.estimator": {"name": "trace", "block": 4}}
  for origin, fields, message in (
    (
      base,
      {"objective": CONFIG["objective"]},
      "'policy_gradient' does not learn from data.sources",
    ),
    (base, {"rewards": CONFIG["rewards"]}, "rewards does not go with data.sources of pairs"),
    (blocks, traced, "estimator='trace' needs to know which forward wrote each token"),
  ):
    with pytest.raises(ValueError, match=message):
      training(origin, **pairs | fields)


def weighs(written):
  """What texts of an untrained model differ in."""
  return sum(map(ord, written.text)) / 1000


def test_values_of_states_are_learned_and_resumed_with_the_policy(tmp_path):
  """They foretell 0 at first, and what they are later is saved as parameters of the objective."""
  estimator = {"name": "trace", "block": 4}
  run = training(
    untrained(tmp_path / "base", {"name": "bd3lm", "block": 4}),
    objective={"name": "policy_gradient", "estimator": estimator, "critic": {"gamma": 0.9}},
    **{"rewards.of": ((f"{__name__}:weighs", 1.0),), "rewards.updates": 1, "eval.every": 0},
    **{"steps": 2, "checkpoint.every": 1, "rollout.cache": {"name": "none"}},
  )
  state = train.train(run, tmp_path / "whole")
  value_D = state.params["objective"]["value_D"]
  assert value_D.shape == (32,) and np.abs(value_D).max() > 1e-3
  told = [each for each in records(tmp_path / "whole") if "loss" in each]
  assert told[0]["value"] == 0 != told[1]["value"] and told[0]["value_error"] > 0
  shutil.copytree(tmp_path / "whole", tmp_path / "run")
  shutil.rmtree(tmp_path / "run" / checkpoint.STEPS / "2")
  resumed = train.train(run, tmp_path / "run")
  jax.tree.map(np.testing.assert_array_equal, resumed, state)


STEPS = {
  "objective": {"name": "mdpo", "temperature": 1.0, "kl_weight": 0.0},
  "rollout.max_forwards": 4,
  "rewards.advantages": {"kind": "steps"},
}


def test_steps_of_answers_are_judged_and_those_that_tell_most_are_learned(base, tmp_path):
  """What a forward wrote is in its prediction; states are those the sampler went through."""
  run = training(base, **STEPS)
  params = Step(run).init().params
  given = Batch(*map(jnp.asarray, run.rows[0]))
  rows, states, _ = stepwise.of(run)(params, given, jax.random.key(0))
  open_BxL, mask_id = np.asarray(rows.noisable_BxL), run.facts.mask_id
  shown, predicted = (
    np.asarray(x)[open_BxL.nonzero()[0], :, open_BxL.nonzero()[1]].T
    for x in (states.shown_BxTxL, states.predicted_BxTxL)
  )
  when = np.asarray(rows.extra["when"])[open_BxL]
  for t in range(4):
    np.testing.assert_array_equal(shown[t] == mask_id, (when > t) | (when < 0))
    written = when == t + 1
    np.testing.assert_array_equal(
      predicted[t][written], np.asarray(rows.tokens_BxL)[open_BxL][written]
    )
  assert (predicted != mask_id).all() and (predicted[0] != predicted[3]).any()
  assert (states.prob_BxTxL > 0).all() and (states.prob_BxTxL <= 1.001).all()

  unfinished = (open_BxL & (np.asarray(rows.extra["when"]) < 0)).any(1)
  batches, numbers = stepwise.judge(run)(rows, states, given)
  for batch in batches:
    hidden = np.asarray(batch.extra["hidden_BxL"])
    assert not (hidden & ~open_BxL).any() and (batch.tokens_BxL[open_BxL] != mask_id).all()
    assert not (np.asarray(batch.noisable_BxL) & (np.asarray(rows.extra["when"]) < 0)).any()
    # All rows of a group learn the same forward: with a token a forward, as many masks but in
    # rows that ended early.
    masks = np.where(unfinished, -1, hidden.sum(1)).reshape(-1, 4)
    assert all(len({*each} - {-1}) <= 1 for each in masks)
  assert len(batches) == 2 and 0 <= numbers["rollout/backslid"] <= 1
  assert numbers["reward/fields_right"] == pytest.approx(
    np.mean(scores("fields_right", stepwise_texts(run, rows, states, given)))
  )

  train.train(training(base, steps=2, **STEPS, **{"eval.every": 0}), tmp_path / "run")
  told = [each for each in records(tmp_path / "run") if "loss" in each]
  assert [each["step"] for each in told] == [1, 2]
  assert all(each["policy"] == each["loss"] for each in told) and "rollout/backslid" in told[0]


def stepwise_texts(run, rows, states, given):
  """Of the last prediction, as the judge of whole answers reads it."""
  judge = rollout.judge(run)
  eos_ids = run.facts.eos_ids
  tokens = np.asarray(states.predicted_BxTxL[:, -1])
  ends = np.isin(tokens, eos_ids) & np.asarray(rows.noisable_BxL)
  first = ends & (ends.cumsum(1) == 1)
  behind = ends.cumsum(1) - first > 0
  return judge.written(
    rows.replace(
      tokens_BxL=tokens,
      noisable_BxL=np.asarray(rows.noisable_BxL) & ~behind,
      extra=rows.extra | {"end": first},
    ),
    given,
  )


def raises(written):
  raise RuntimeError(written.text)


def hangs(written):
  time.sleep(60)


def test_a_reward_that_fails_costs_its_row():
  rows = [Written("", "a", "a")]
  for name in ("raises", "hangs"):
    assert np.isnan(scores(f"{__name__}:{name}", rows, seconds=0.05)).all()


def test_a_batch_is_normalised_over_what_is_learned():
  """Rewards of groups without a right answer move no other group's advantage."""
  config = RewardConfig(
    (("exact", 1.0, "zscore"), ("tokens_per_forward", 1.0, "zscore")),
    group=2,
    advantages=Advantages("batch", some_right=True),
  )
  rows, found = [Written("", "")] * 4, np.array([[1, 2], [0, 1], [0, 1], [0, 2]])
  left_out = config.judged(found, rows, room=2)
  alone = config.judged(found[:2], rows[:2], room=2)
  assert [*left_out.kept] == [True, True, False, False]
  np.testing.assert_array_equal(left_out.advantage[:2], alone.advantage)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"rewards": None}, "objective.name='policy_gradient' needs `rewards`"),
    ({"rewards.of": (("exactly", 1.0),)}, "'exactly' is unknown; known: exact, "),
    ({"rewards.of": (("nowhere:x", 1.0),)}, "'nowhere:x' cannot be imported"),
    ({"rewards.advantages": {"kind": "x"}}, "advantages.kind='x' is unknown; known: none, centr"),
    ({"rewards.group": 3}, "rewards.group=3 must divide batch=8"),
    ({"steps": 5}, "steps=5 must divide by rewards.updates=2"),
    ({"objective.estimator": {"name": "elbo"}}, "'elbo' is unknown; known: autoregressive, "),
    (
      {"objective.estimator": {"name": "trace", "block": 4}},
      "estimator='trace' is of models with attention BlockCausal.*, not Full.* as in init_from",
    ),
    (
      {"objective.critic": {"lam": 0.9}},
      "a critic foretells states of an answer: ratio='token', estimator 'trace'; ratio='token', Fu",
    ),
    ({"objective.shift": 1}, "objective.shift=1 is not the shift=0 of init_from"),
    ({"checkpoint.keep_best": 1}, "checkpoint.keep_best=1 goes by the loss"),
    ({"rollout": None}, "learns from what the model writes: it needs `rollout`"),
    (STEPS | {"rollout.max_forwards": 1}, "rewards.updates=2 are the forwards .*, 1 to .*=1, all"),
    (STEPS | {"rewards.advantages": {}}, "kind='centred' does not go with objective.name='mdpo'"),
    (STEPS | {"rollout.temperature": 0.5}, "objective.temperature=1.0 must be rollout.temperature"),
    (
      {"objective": {"name": "preference", "estimator": {"name": "counted_elbo"}}},
      "rewards.group=4 must be 2",
    ),
  ],
)
def test_mistakes_are_named_before_work_starts(base, fields, message):
  with pytest.raises(ValueError, match=message):
    training(base, **fields)
