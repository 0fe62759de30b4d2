"""Experts that choose, or that blocks admit: what a cache, a batch and a padded window leave."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from dlm import masks
from dlm.models import ModelConfig, MoeConfig, bind
from dlm.sampling import loop
from dlm.sampling.caching import PLANS
from dlm.sampling.canvas import make_canvas
from dlm.sampling.clock import BlockMaskRatio, MaskRatio
from dlm.sampling.policies import Threshold
from dlm.sampling.sampler import Sampler
from tests.dlm.models.small import jitter

MASK, SLOTS, BLOCK = 22, 16, 4
M = MASK
ROWS = [[3] + [M] * 15, [1, 2, 3, 4, 5] + [M] * 6, [7] * 8 + [M] * 8, [6, M]]


def model(pool: int, ends: tuple[int, int] = (1, 3)):
  moe = MoeConfig(
    experts=4, per_token=2, mlp=16, shared=16, choice="expert", renormalise=True, pool=pool,
    schedule="linear_reverse", per_token_range=ends,
  )  # fmt: skip
  return bind(
    ModelConfig(vocab=23, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=1, moe=moe)
  )


def admitting(pool: int):
  """LLaDA2.2's: a block's tokens choose among three of six experts."""
  moe = MoeConfig(
    experts=6, per_token=2, mlp=16, score="sigmoid", renormalise=True, admitted=3, pool=pool
  )
  return bind(dataclasses.replace(model(pool).config, moe=moe))


@functools.cache
def params_of(model):
  """Random and sure of itself: confidences spread over (0, 1)."""
  params = jitter(jax.jit(model.init)(jax.random.key(0)))
  return params | {"final_norm": {"scale": 3 * params["final_norm"]["scale"]}}


run = jax.jit(loop.run, static_argnums=0)


BLOCK_CAUSAL = masks.BlockCausal(BLOCK)


def sampled(model, rows, *, cache="none", sees=BLOCK_CAUSAL, commit="fused", done=False):
  clock = BlockMaskRatio(BLOCK) if model.config.moe.pool else MaskRatio(prompt=True)
  sampler = Sampler(
    denoise=model, policy=Threshold(0.4), plan=PLANS[cache](), sees=sees, block=BLOCK,
    max_forwards=64, mask_id=MASK, commit=commit, clock=clock, temperature=1.0,
  )  # fmt: skip
  tokens = [np.asarray(ROWS[row]) for row in rows]
  canvas = make_canvas(
    tokens, [each == MASK for each in tokens], rows, slots=SLOTS, block=BLOCK, align="canvas",
    mask_id=MASK, seed=1,
  )  # fmt: skip
  done_B = np.broadcast_to(done, len(rows))
  return run(sampler, params_of(model), canvas.replace(done_B=done_B))


def same_text(a, b):
  np.testing.assert_array_equal(a.tokens_BxL, b.tokens_BxL)
  np.testing.assert_array_equal(a.when_BxL, b.when_BxL)


@pytest.mark.parametrize(
  ("choosing", "commit"),
  [
    (model(4), "fused"),
    (model(4), "separate"),
    (model(2, (2, 3)), "fused"),
    (admitting(4), "fused"),
  ],
)
def test_cached_blocks_equal_recomputed_ones(choosing, commit):
  """A window holds one or two blocks, whole pools each, and slots past the canvas's end."""
  rows = [0, 1, 2, 3]
  plain = sampled(choosing, rows)
  assert plain.done_B.all() and len(set(plain.turn_B.tolist())) > 2
  same_text(sampled(choosing, rows, cache="block", commit=commit), plain)


@pytest.mark.parametrize("pool", [0, 4])
def test_a_row_alone_is_the_row_in_a_batch(pool):
  """Of equal shapes: tokens of row 2 are equal in its pools, and rounding decides whom to take."""
  choosing = model(pool)
  sees = BLOCK_CAUSAL if pool else masks.Full()
  together = sampled(choosing, [0, 1, 2, 3], sees=sees)
  for row in range(4):
    alone = sampled(choosing, [row] * 4, sees=sees, done=[False, True, True, True])
    np.testing.assert_array_equal(alone.tokens_BxL[0], together.tokens_BxL[row])
    np.testing.assert_array_equal(alone.when_BxL[0], together.when_BxL[row])


@pytest.mark.parametrize("pool", [0, 4])
def test_a_row_alone_in_another_shape_is_the_row_in_a_batch_where_no_tokens_are_equal(pool):
  """Its decisions have a margin: see tests/margins.py."""
  choosing = model(pool)
  sees = BLOCK_CAUSAL if pool else masks.Full()
  alone = sampled(choosing, [1], sees=sees)
  together = sampled(choosing, [0, 1, 2, 3], sees=sees)
  np.testing.assert_array_equal(alone.tokens_BxL[0], together.tokens_BxL[1])
  np.testing.assert_array_equal(alone.when_BxL[0], together.when_BxL[1])
