"""A causal context: clean text is read causally and gives each block its first token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks
from dlm.sampling.caching import ExactBlock, NoCache
from dlm.sampling.policies import Fixed, Threshold
from tests.dlm.sampling.policies.introspective_test import (
  MASK,
  MODEL,
  ROWS,
  M,
  canvas_of,
  params_of,
  run,
  sampler,
)

BLOCK, SLOTS = 4, 16
PLAN = dict(plan=ExactBlock(), block=BLOCK, shift=0, commit="separate")


@jax.jit
def logits(tokens_L, start, end):
  """Of the text before `start`, read causally, and of the block from there to `end`."""
  slot_BxL = jnp.arange(SLOTS)[None]
  mask = masks.Causal()(slot_BxL, SLOTS)
  mask = mask.replace(hi_BxWxR=jnp.where(slot_BxL < start, slot_BxL + 1, end)[..., None])
  out = MODEL(params_of(), tokens_L[None], slot_BxW=slot_BxL, mask=mask)
  z_LxV = jnp.einsum("bad,vd->bav", out.head.hidden_BxAxD, out.head.unembed_VxD)[0]
  return z_LxV.at[:, MASK].set(-jnp.inf)


def by_hand(row: list[int]) -> list[int]:
  """The surest token of the block a forward; every forward a full recomputation."""
  tokens = np.array([*row, *[0] * (SLOTS - len(row))])
  for start in range(row.index(M), len(row), BLOCK):
    end = min(start + BLOCK, len(row))
    if start and tokens[start] == M:
      tokens[start] = logits(tokens, start, end)[start - 1].argmax()
    while (tokens[start:end] == M).any():
      z = logits(tokens, start, end)[start:end]
      sure = np.where(tokens[start:end] == M, jax.nn.softmax(z, axis=-1).max(-1), -1.0)
      tokens[start + sure.argmax()] = z[sure.argmax()].argmax()
  return tokens[: len(row)].tolist()


def test_blocks_are_written_behind_a_causal_context():
  """On the exact cache, rows in any phase beside each other, as by full recomputation."""
  context = sampler(Fixed(k=1), sees=masks.CausalContext(BLOCK), **PLAN)
  out = run(context, params_of(), canvas_of())
  for tokens_L, row in zip(np.asarray(out.tokens_BxL), ROWS, strict=True):
    assert tokens_L[: len(row)].tolist() == by_hand(row)
  # Three blocks: a forward over the text before each, which gives its first token, then the rest.
  assert int(out.forwards_Bx3[0].sum()) == 3 + (3 + 3 + 0)
  # With nothing before it, no forward gives the first block's first token.
  assert int(out.forwards_Bx3[2].sum()) == 4 + (1 + 1)


def test_the_quota_of_a_block_counts_what_is_left_behind_its_first_token():
  """Three of four in two forwards: two, then one."""
  context = sampler(Fixed(steps=2), sees=masks.CausalContext(BLOCK), **PLAN)
  out = run(context, params_of(), canvas_of([[1, 2, 3] + [M] * 4]))
  assert np.bincount(np.asarray(out.when_BxL[0, 3:7]) - 1).tolist() == [1, 2, 1]


@pytest.mark.parametrize(
  "changes",
  [{"commit": "fused"}, {"plan": NoCache()}, {"scope": "canvas"}, {"shift": 1}],
  ids=str,
)
def test_what_would_read_clean_text_otherwise_is_refused(changes):
  with pytest.raises(ValueError, match=r"cache '|CausalContext\(block=4\) reads clean text"):
    sampler(Threshold(), sees=masks.CausalContext(BLOCK), **PLAN | changes)
