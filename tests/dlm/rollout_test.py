"""Rows that the model writes itself, from the sampling loop to a resumed run that learns them."""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import build, generate, rollout, train
from dlm.models import lora
from dlm.train import Step
from dlm.types import Batch

LENGTH, BLOCK = 32, 4
CONFIG = {
  "steps": 4,
  "batch": 4,
  "log_every": 1,
  "data": {"sources": (("lists", 1.0, (("mode", "pad"), ("pad", "none"))),), "length": LENGTH},
  "objective": {"name": "opdlm", "block": BLOCK},
  "rollout": {
    "policy": {"name": "fixed", "k": 1}, "temperature": 1.0, "stop": "stop_block",
    "max_new_tokens": 10,
  },
  "optimizer": {"lr": 1e-2},
  "eval": {"every": 2, "batches": 1},
  "checkpoint": {"every": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  """An autoregressive checkpoint, hardly trained."""
  folder = tmp_path_factory.mktemp("runs") / "ar"
  ar = {name: CONFIG[name] for name in ("batch", "data", "optimizer", "eval")}
  ar |= {"steps": 20, "objective": {"name": "ar"}, "model": MODEL}
  train.train(build.everything(ar), folder)
  return folder


MODEL = dict(width=32, layers=2, heads=2, kv_heads=1, head_dim=16, mlp=48)


def training(origin, config=CONFIG, **changes):
  config = copy.deepcopy(config) | {"init_from": str(origin)}
  for field, value in changes.items():
    *tables, name = field.split(".")
    table = config
    for each in tables:
      table = table[each]
    table[name] = value
  return build.everything(config)


def rolled(run, params, batch, key=0):
  rows, numbers = rollout.of(run)(params, batch, jax.random.key(key))
  return jax.tree.map(np.asarray, rows), numbers


def test_a_finished_canvas_becomes_a_row(teacher):
  """Its answer ends with the first stop id; the rest of that block stays in sight, unlearned."""
  run = training(teacher)
  roll, eos, mask_id = rollout.of(run), run.facts.eos_ids[0], run.facts.mask_id
  prompt = Batch(
    tokens_BxL=jnp.full((3, LENGTH), 65),
    noisable_BxL=jnp.tile(jnp.arange(LENGTH) >= 6, (3, 1)),
    segment_BxL=jnp.ones((3, LENGTH), jnp.int32),
    position_BxL=jnp.tile(jnp.arange(LENGTH), (3, 1)),
  )
  canvas = jax.jit(roll.canvas)(prompt, jax.random.key(0))
  np.testing.assert_array_equal(np.asarray(canvas.open_BxL).nonzero()[1], np.tile(range(6, 16), 3))
  np.testing.assert_array_equal(canvas.length_B, [16] * 3)
  np.testing.assert_array_equal(canvas.tokens_BxL[:, :6], np.full((3, 6), 65))
  written = np.asarray(canvas.tokens_BxL).copy()
  written[:, 6:16] = 66
  written[0, [11, 13]] = eos  # in the second block, slots 10 to 13
  written[1, 12] = mask_id
  when = np.where(np.asarray(canvas.open_BxL), np.arange(LENGTH)[None], -1)
  canvas = canvas.replace(tokens_BxL=jnp.asarray(written), when_BxL=jnp.asarray(when))
  rows = jax.tree.map(np.asarray, jax.jit(roll.rows)(prompt, canvas))
  np.testing.assert_array_equal(rows.segment_BxL.sum(-1), [14, 12, 16])
  np.testing.assert_array_equal(rows.noisable_BxL.nonzero()[1][:6], range(6, 12))
  np.testing.assert_array_equal(rows.noisable_BxL.sum(-1), [6, 6, 10])
  np.testing.assert_array_equal(np.argwhere(rows.extra["end"]), [[0, 11]])
  np.testing.assert_array_equal((rows.extra["when"] >= 0).sum(-1), [8, 6, 10])
  np.testing.assert_array_equal(rows.extra["when"][0, 6:14], range(6, 14))
  assert (rows.tokens_BxL[rows.segment_BxL == 0] == run.tokenizer.pad_id).all()
  np.testing.assert_array_equal(rows.position_BxL[0], [*range(14), *range(LENGTH - 14)])


def test_rows_are_what_the_generator_writes(teacher):
  """After the same prompts by the same parameters, at temperature 0."""
  run = training(teacher, **{"rollout.temperature": 0.0})
  params = Step(run).init().params
  batch = Batch(*map(jnp.asarray, run.rows[0]))
  rows, numbers = rolled(run, params, batch)
  write, own = generate.generator(run.run.rollout, run)
  firsts = np.asarray(batch.noisable_BxL).argmax(1)
  requests = [
    generate.Request.from_ids(i, "", np.asarray(ids[:first]), run.facts.mask_id, **own.room)
    for i, (ids, first) in enumerate(zip(batch.tokens_BxL, firsts, strict=True))
  ]
  done = write(params, requests)
  for row, first, completion in zip(range(len(done)), firsts, done, strict=True):
    end = rows.segment_BxL[row].sum()
    assert completion.row[:end] == rows.tokens_BxL[row, :end].tolist()
    assert completion.when[first:end] == rows.extra["when"][row, first:end].tolist()
    learned = rows.noisable_BxL[row] & ~rows.extra["end"][row]
    assert completion.tokens == rows.tokens_BxL[row][learned].tolist()
  forwards = sum(sum(each.forwards.values()) for each in done)
  assert float(numbers["rollout/tokens_per_forward"]) == rows.noisable_BxL.sum() / forwards


def test_rows_differ_by_update_and_by_row_and_not_by_run(teacher):
  run = training(teacher)
  params = Step(run).init().params
  same = Batch(*(jnp.asarray(np.tile(x[:1], (4, 1))) for x in run.rows[0]))
  first, again, other = (rolled(run, params, same, key)[0].tokens_BxL for key in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert (first != other).any() and (first[0] != first[1]).any()


def test_a_resumed_run_writes_and_learns_what_the_unbroken_one_does(teacher, tmp_path):
  whole = train.train(training(teacher), tmp_path / "whole")
  train.train(training(teacher, steps=2), tmp_path / "run")
  resumed = train.train(training(teacher), tmp_path / "run")
  jax.tree.map(np.testing.assert_array_equal, resumed, whole)
  lines = [json.loads(x) for x in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
  assert all(0 < r["rollout/tokens"] <= 10 for r in lines if "loss" in r)
  assert len({r["loss"] for r in lines if "loss" in r}) == 4
  assert [r["step"] for r in lines if "eval/loss" in r] == [2, 4]
  found = build.pretrained(tmp_path / "whole")
  assert (found.facts.attention_name, found.facts.block, found.facts.shift) == (
    "answer_blocks", BLOCK, 1,
  )  # fmt: skip
  # Who samples the checkpoint gets the exact cache.
  assert "ExactBlock" in str(generate.generator({}, found)[0].sampler.plan)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(teacher):
  """Blocks of one: the next token given the text, by the same parameters."""
  run = training(teacher, **{"objective.block": 1})
  step = Step(run)
  params = step.init().params
  batch, _ = rollout.of(run)(params, Batch(*map(jnp.asarray, run.rows[0])), jax.random.key(0))
  loss = step.evaluate(params, batch, jnp.int32(0), step.teacher())
  assert float(loss.total) == pytest.approx(0, abs=1e-4) and float(loss.count) == 4
  other = jax.tree.map(lambda x: x * 1.1, params)
  assert float(step.evaluate(other, batch, jnp.int32(0), step.teacher()).total) > 1e-3


def test_adapters_are_taught_by_the_model_without_them(teacher):
  """One copy of its parameters serves both; what is told is what a second copy would tell."""
  whole, adapted = training(teacher), training(teacher, model={"lora": {"rank": 2, "alpha": 4.0}})
  assert Step(adapted).teacher() is None
  params, own = Step(whole).init().params, Step(adapted).init().params
  own = jax.tree.map(jnp.ones_like, lora.adapters(own))  # else the model is what it was
  own = lora.joined(params, jax.tree.map(lambda x: x / 10, own))
  batch, _ = rollout.of(whole)(params, Batch(*map(jnp.asarray, whole.rows[0])), jax.random.key(0))
  model, teacher = adapted.model, Step(whole).teacher()
  noisy = Step(whole).corrupt("eval", batch, jnp.int32(0), params)
  want, _ = jax.jit(
    lambda own, teacher: whole.objective.loss((model, whole.teacher_model), (own, teacher), noisy)
  )(own, teacher)
  got = Step(adapted).evaluate(own, batch, jnp.int32(0))
  assert float(want.total) > 1e-3
  np.testing.assert_allclose(got.total, want.total, rtol=1e-5)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (
      {"rollout": None},
      "objective.name='opdlm' learns from what the model writes: it needs `rollo",
    ),
    ({"rollout.batch": 3}, "rollout.batch=3 is not for roll-outs: leave it out"),
    ({"data.sources": (("stdlib", 1.0),)}, "rollout needs one prompt a row: data.mode='pad'"),
    ({"init_from": "", "model": MODEL}, "objective.name='opdlm' needs teacher, or init_from"),
    ({"teacher": "nowhere"}, "nowhere"),
    (
      {"objective": {"name": "mdlm"}, "teacher": "x"},
      "teacher='x' does not go with objective.name",
    ),
    ({"objective.states": "all"}, "states='all' is not one of trace, random"),
    ({"objective.fill": "noise"}, "fill='noise' is not one of text, guess"),
    ({"objective.divergence": {"kind": "tv"}}, "kind='tv' is not one of kl, jsd"),
    ({"objective.divergence": {"reverse": 0.5, "top_p": 0.9}}, "reverse=0.5 is infinite where"),
  ],
)
def test_mistakes_are_named_before_work_starts(teacher, fields, message):
  with pytest.raises((ValueError, OSError), match=message):
    training(teacher, **fields)
