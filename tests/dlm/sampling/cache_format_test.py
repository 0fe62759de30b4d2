"""Sampling over a cache in few bits: who may, and that rows owe nothing to each other."""

import dataclasses

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
from dlm.types import CacheFormat

BLOCK, SLOTS, MASK = 16, 64, 19
MODEL = bind(ModelConfig(vocab=20, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp=16))


def sampler(plan: str, format: str, block: int = BLOCK) -> Sampler:
  return Sampler(
    denoise=MODEL, policy=Threshold(0.5), plan=PLANS[plan](), block=block, max_forwards=300,
    sees=masks.BlockCausal(block) if plan == "block" else masks.Full(), mask_id=MASK,
    own_width=True, cache_format=format,
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


def test_blocks_fill_groups_or_what_is_left_of_one_waits():
  kept = {block: sampler("block", "kivi2", block).kept for block in (4, 12, 16, 32, 48, 64, 96)}
  assert {block: (each.group, each.recent) for block, each in kept.items()} == {
    4: (32, 28), 12: (32, 28), 16: (16, 0), 32: (32, 0), 48: (24, 0), 64: (32, 0), 96: (32, 0),
  }  # fmt: skip
  assert sampler("dual", "kivi4", 8).kept == CacheFormat(4, 32), "a refresh writes the canvas"
  # What later forwards read of the active block waits too; so does all that is cut elsewhere.
  free = dataclasses.replace(sampler("block", "kivi4", 8), commit="free")
  assert free.kept == CacheFormat(4, 32, 24 + 8)
  assert dataclasses.replace(free, sees=masks.Causal()).kept == CacheFormat(4, 32, 31 + 8)


@pytest.mark.parametrize("plan,block", [("block", BLOCK), ("block", 4), ("dual", BLOCK)])
def test_a_row_in_a_batch_is_the_row_alone(plan, block):
  """To the bit: the same program, with other rows beside it."""
  own, rng = sampler(plan, "kivi2", block), np.random.default_rng(0)
  params = jax.tree.map(lambda x: 3 * x, MODEL.init(jax.random.key(0)))
  align = "canvas" if plan == "block" else "prompt"
  run = jax.jit(loop.run, static_argnums=0)

  def of(first, second):
    canvas = make_canvas(
      [first, second], [np.arange(SLOTS) >= 20, np.arange(SLOTS) >= 37], [0, 1], slots=SLOTS,
      block=block, align=align, mask_id=MASK, seed=0,
    )  # fmt: skip
    return jax.device_get(run(own, params, canvas))

  rows = [rng.integers(0, MASK, SLOTS).astype(np.int32) for _ in range(3)]
  one, other = of(rows[0], rows[1]), of(rows[0], rows[2])
  np.testing.assert_array_equal(one.tokens_BxL[0], other.tokens_BxL[0])
  np.testing.assert_array_equal(one.logp_BxL[0], other.logp_BxL[0])
  assert (one.tokens_BxL[1] != other.tokens_BxL[1]).any()
  assert one.done_B.all() and (one.tokens_BxL != MASK).all()
