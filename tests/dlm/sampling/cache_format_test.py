"""Sampling over a cache in few bits: who may, and that rows owe nothing to each other."""

import jax
import numpy as np
import pytest

from dlm import masks
from dlm.models import ModelConfig, bind
from dlm.sampling import loop
from dlm.sampling.caching import PLANS
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policies import Threshold
from dlm.sampling.sampler import Sampler

BLOCK, SLOTS, MASK = 16, 64, 19
MODEL = bind(ModelConfig(vocab=20, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp=16))
RULES = {"block": masks.BlockCausal(BLOCK), "ahead": masks.BlockCausal(BLOCK)}


def sampler(plan: str, format: str, block: int = BLOCK) -> Sampler:
  return Sampler(
    denoise=MODEL, policy=Threshold(0.5), plan=PLANS[plan](), sees=RULES.get(plan, masks.Full()),
    block=block, max_forwards=300, mask_id=MASK, own_width=True, cache_format=format,
  )  # fmt: skip


@pytest.mark.parametrize(
  "plan,format,block,says",
  [
    ("block", "kivi3", BLOCK, "cache_format='kivi3' is not one of int8, kivi4, kivi2"),
    ("none", "int8", BLOCK, "needs a cache that holds keys by their slot, not NoCache"),
    ("sparse", "int8", BLOCK, "needs a cache that holds keys by their slot, not Sparse"),
    ("dkv_pd", "kivi2", BLOCK, "PD.*keeps them one by one: use 'int8'"),
    ("matured", "kivi4", BLOCK, "Matured.*keeps them one by one: use 'int8'"),
  ],
)
def test_refuses_by_name(plan, format, block, says):
  with pytest.raises(ValueError, match=says):
    sampler(plan, format, block)


def test_small_blocks_are_refused():
  own = PLANS["block"]()
  with pytest.raises(ValueError, match="needs block=8 to have a divisor"):
    Sampler(
      denoise=MODEL, policy=Threshold(0.5), plan=own, sees=masks.BlockCausal(8), block=8,
      max_forwards=9, mask_id=MASK, cache_format="kivi2",
    )  # fmt: skip


def test_groups_are_the_largest_that_divide_a_block():
  found = {block: sampler("block", "kivi2", block).kept.group for block in (16, 32, 48, 64, 96)}
  assert found == {16: 16, 32: 32, 48: 24, 64: 32, 96: 32}
  assert sampler("dual", "kivi4", 8).kept.group == 32, "a refresh writes the canvas"


@pytest.mark.parametrize("plan", ["block", "dual"])
def test_a_row_in_a_batch_is_the_row_alone(plan):
  """To the bit: the same program, with other rows beside it."""
  own, rng = sampler(plan, "kivi2"), np.random.default_rng(0)
  params = jax.tree.map(lambda x: 3 * x, MODEL.init(jax.random.key(0)))
  align = "canvas" if plan == "block" else "prompt"
  run = jax.jit(loop.run, static_argnums=0)

  def of(first, second):
    canvas = make_canvas(
      [first, second], [np.arange(SLOTS) >= 20, np.arange(SLOTS) >= 37], [0, 1], slots=SLOTS,
      block=BLOCK, align=align, mask_id=MASK, seed=0,
    )  # fmt: skip
    return jax.device_get(run(own, params, canvas))

  rows = [rng.integers(0, MASK, SLOTS).astype(np.int32) for _ in range(3)]
  one, other = of(rows[0], rows[1]), of(rows[0], rows[2])
  np.testing.assert_array_equal(one.tokens_BxL[0], other.tokens_BxL[0])
  np.testing.assert_array_equal(one.logp_BxL[0], other.logp_BxL[0])
  assert (one.tokens_BxL[1] != other.tokens_BxL[1]).any()
  assert one.done_B.all() and (one.tokens_BxL != MASK).all()
