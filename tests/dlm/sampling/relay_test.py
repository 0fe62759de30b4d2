"""Rows that take turns write what they write in the loop, over fewer keys."""

import functools

import jax
import numpy as np
import pytest

from dlm import masks
from dlm.models import ModelConfig, bind
from dlm.sampling import loop, relay
from dlm.sampling.caching import ExactBlock, Prefix
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policies import Threshold
from dlm.sampling.sampler import Sampler

MASK, SLOTS, GROUP, BLOCK = 64, 24, 3, 4
PROMPTS = (13, 2, 9)  # tokens: of several blocks, of less than one


@pytest.fixture(scope="module")
def model():
  return bind(ModelConfig(65, width=32, layers=1, heads=2, kv_heads=1, head_dim=16, mlp=32))


@pytest.fixture(scope="module")
def params(model):
  """Large, so that what a row reads decides what it writes."""
  return jax.tree.map(lambda x: 3 * x, jax.jit(model.init)(jax.random.key(0)))


def sampler(model, **fields):
  own = dict(plan=ExactBlock(), sees=masks.BlockCausal(BLOCK), max_forwards=200, temperature=0.5)
  return Sampler(
    denoise=model, policy=Threshold(0.2), block=BLOCK, mask_id=MASK, eos_ids=tuple(range(6)),
    **own | fields,
  )  # fmt: skip


def canvas_of(other=0):
  """Three answers to each prompt, side by side. `other`: prompts that say something else."""
  rng = np.random.default_rng(other)
  rows, open_ = [], []
  for length in PROMPTS:
    ids = np.append(rng.integers(6, MASK, length), np.full(SLOTS - length, MASK))
    rows += [ids] * GROUP
    open_ += [np.arange(SLOTS) >= length] * GROUP
  return make_canvas(
    rows, open_, list(range(len(rows))), slots=SLOTS, block=BLOCK, align="canvas", mask_id=MASK,
    seed=1,
  )  # fmt: skip


@pytest.fixture(scope="module")
def in_the_loop(model, params):
  """The finished canvas, and the bytes that the loop needs."""
  canvas = canvas_of()
  run = jax.jit(functools.partial(loop.run, sampler(model))).lower(params, canvas).compile()
  done, other = run(params, canvas), run(params, canvas_of(other=1))
  written, others = (
    np.where(each.open_BxL, each.tokens_BxL, MASK).tolist() for each in (done, other)
  )
  assert sum(a != b for a, b in zip(written, others, strict=True)) > 6  # the prompt is read
  return done, run.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
  "fields", [{}, {"positions": 8, "commit": "separate"}], ids=["all_at_once", "two_places"]
)
def test_rows_are_those_of_the_loop(model, params, in_the_loop, fields):
  want, bytes_ = in_the_loop
  own = sampler(model, **fields)
  run = jax.jit(functools.partial(relay.run, own, group=GROUP)).lower(params, canvas_of()).compile()
  got = run(params, canvas_of())
  for name in ("tokens_BxL", "when_BxL", "done_B", "start_B", "turn_B"):
    np.testing.assert_array_equal(getattr(got, name), getattr(want, name), err_msg=name)
  np.testing.assert_array_equal(*(jax.random.key_data(each.key_B) for each in (got, want)))
  np.testing.assert_allclose(got.logp_BxL, want.logp_BxL, atol=1e-4)
  assert (want.forwards_Bx3[:, 0] > 0).any() and not got.forwards_Bx3[:, 0].any()
  assert len(set(np.asarray(got.turn_B).tolist())) > 3  # they end at different times
  if own.positions:  # keys of two places and three prompts, where the loop has those of nine rows
    assert run.memory_analysis().temp_size_in_bytes < bytes_


def test_only_rows_whose_prompts_leave_keys_alone_take_turns(model):
  assert relay.runs(sampler(model))
  assert not relay.runs(sampler(model, plan=ExactBlock(fill=8)))
  assert not relay.runs(sampler(model, guidance=0.5))
  assert not relay.runs(sampler(model, sees=masks.Full(), plan=Prefix()))
  # The prompt's forward predicts the first token, where no window does.
  assert not relay.runs(sampler(model, shift=1, commit="separate"))
  assert relay.runs(sampler(model, shift=1))


def test_finished_blocks_are_cached_apart_where_that_writes_the_same(model):
  assert relay.of_one_width(sampler(model)) == sampler(model, commit="separate")
  shifted = sampler(model, shift=1)
  assert relay.of_one_width(shifted) == shifted
