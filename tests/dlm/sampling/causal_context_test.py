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
# Masks alone would all be as sure as one another.
OWN = [*ROWS[:2], [M, 2, M, M, M, M], *ROWS[3:]]
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
  """Two forwards a block, that share what is left behind its first token; no cache."""
  tokens = np.array([*row, *[0] * (SLOTS - len(row))])
  for start in range(row.index(M), len(row), BLOCK):
    end = min(start + BLOCK, len(row))
    if start and tokens[start] == M:
      tokens[start] = logits(tokens, start, end)[start - 1].argmax()
    left = (tokens[start:end] == M).sum()
    for quota in (left - left // 2, left // 2):
      z = logits(tokens, start, end)[start:end]
      sure = np.where(tokens[start:end] == M, jax.nn.softmax(z, axis=-1).max(-1), -1.0)
      for best in np.argsort(-sure)[:quota]:
        tokens[start + best] = z[best].argmax()
  return tokens[: len(row)].tolist()


def test_blocks_are_written_behind_a_causal_context():
  """On the exact cache, rows in any phase beside each other, as by full recomputation."""
  context = sampler(Fixed(steps=2), sees=masks.CausalContext(BLOCK), **PLAN)
  out = run(context, params_of(), canvas_of(OWN))
  for tokens_L, row in zip(np.asarray(out.tokens_BxL), OWN, strict=True):
    assert tokens_L[: len(row)].tolist() == by_hand(row)
  # Three blocks: a forward over the text before each, which gives its first token, then two: of the
  # nine masks the last is a block's first.
  assert int(out.forwards_Bx3[0].sum()) == 3 + (2 + 2 + 0)
  # With nothing before it, no forward gives the first block's first token.
  assert int(out.forwards_Bx3[2].sum()) == 2 + (1 + 1)


@pytest.mark.parametrize(
  "changes",
  [{"commit": "fused"}, {"plan": NoCache()}, {"scope": "canvas"}, {"shift": 1}],
  ids=str,
)
def test_what_would_read_clean_text_otherwise_is_refused(changes):
  with pytest.raises(ValueError, match=r"cache '|CausalContext\(block=4\) reads clean text"):
    sampler(Threshold(), sees=masks.CausalContext(BLOCK), **PLAN | changes)
