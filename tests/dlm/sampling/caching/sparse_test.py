"""Sparse caches: which keys they keep, and what they are where they keep all or few."""

import dataclasses

import jax
import numpy as np
import pytest

from dlm import masks
from dlm.models import cache
from dlm.sampling import loop
from dlm.sampling.caching import Dual, HeadSparse, Sparse
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policies import Fixed
from dlm.sampling.sampler import Sampler
from dlm.types import Choice
from tests.dlm.serving.engine_test import MASK, MODEL, params

assert params  # a fixture

BLOCK, SLOTS = 4, 24
run = jax.jit(loop.run, static_argnums=0)


@dataclasses.dataclass(frozen=True)
class Dense(Dual):
  """What a sparse cache is if it keeps everything."""

  def refresh_B(self, at):
    return at.step_B <= 1


def sampler(plan):
  return Sampler(
    MODEL, Fixed(k=1), plan, masks.Full(), block=BLOCK, max_forwards=64, mask_id=MASK,
    temperature=1.0, own_width=True,
  )  # fmt: skip


def canvas(live=(0, 1, 2)):
  """Rows of three lengths; the last block of the second is cut short."""
  rng = np.random.default_rng(0)
  tokens = [rng.integers(97, 123, n).astype(np.int32) for n in (24, 21, 12)]
  made = make_canvas(
    tokens, [np.arange(len(row)) >= 7 for row in tokens], [0, 1, 2],
    slots=SLOTS, block=BLOCK, align="prompt", mask_id=MASK, seed=1,
  )  # fmt: skip
  return made.replace(done_B=~np.isin(np.arange(3), live))


def by_hand(q, k, offered, asking, choice):
  """Sets of kept places by key head, row by row and in loops (Sparse-dLLM, dLLM-Serve)."""
  heads, shared = k.shape[2], q.shape[2] // k.shape[2]
  found = []
  for row in range(len(q)):
    mean = q[row][asking[row]].mean(0)
    score = np.array([[mean[n] @ key[n // shared] for key in k[row]] for n in range(q.shape[2])])
    if choice.by_head:
      score = score.reshape(heads, shared, -1).max(1)
    else:
      score = np.repeat(score.mean(0)[None], heads, 0)
    places = np.flatnonzero(offered[row])
    count = min(max(choice.least, int(len(places) * choice.ratio)), len(places))
    kept = []
    for of_head in score[:, places]:
      pooled = [of_head[max(i - 1, 0) : i + 2].max() for i in range(len(places))]
      kept.append({int(places[i]) for i in np.argsort(-np.array(pooled), kind="stable")[:count]})
    found.append(kept)
  return found


def test_how_many_are_kept_is_rounded_down():
  assert [Choice(0.29).kept(n) for n in (0, 3, 4, 100)] == [0, 0, 1, 28], "0.29 * 100 < 29"
  assert [Choice(0.01, least=1).kept(n) for n in (0, 1, 50, 250)] == [0, 1, 1, 2]
  assert Choice(1.0).kept(7) == 7


@pytest.mark.parametrize(("ratio", "by_head"), [(0.29, False), (0.5, True)])
def test_the_keys_that_are_kept_are_those_of_the_papers(ratio, by_head):
  rng = np.random.default_rng(3)
  q, k = (rng.normal(size=(3, SLOTS, heads, 8)).astype(np.float32) for heads in (4, 2))
  places = np.arange(SLOTS)
  asking = np.stack([(places >= a) & (places < a + BLOCK) for a in (0, 10, 20)])
  offered = ~asking & np.stack([places < n for n in (24, 17, 24)])
  choice = Choice(ratio, by_head, least=int(by_head))
  offer = cache.Offer(offered, asking, choice)
  most = max(choice.kept(SLOTS), 1)
  got = np.broadcast_to(cache.chosen(q, k, offer, most), (3, most, 2))
  for row, kept in enumerate(by_hand(q, k, offered, asking, choice)):
    count = int(offer.kept_B[row])
    assert [set(got[row, :count, head].tolist()) for head in range(2)] == kept


def test_where_everything_is_kept_it_is_the_dense_cache(params):
  want = run(sampler(Dense()), params, canvas())
  got = run(sampler(Sparse(ratio=1.0)), params, canvas())
  np.testing.assert_array_equal(got.tokens_BxL, want.tokens_BxL)
  np.testing.assert_array_equal(got.forwards_Bx3, want.forwards_Bx3)
  np.testing.assert_allclose(got.logp_BxL, want.logp_BxL, rtol=1e-4, atol=1e-5)


def test_a_row_alone_is_the_row_of_a_batch_and_what_is_dropped_matters(params):
  own = sampler(HeadSparse(ratio=0.3))
  together = run(own, params, canvas())
  for row in range(3):
    alone = run(own, params, canvas([row]))
    np.testing.assert_array_equal(alone.tokens_BxL[row], together.tokens_BxL[row])
    np.testing.assert_array_equal(alone.logp_BxL[row], together.logp_BxL[row])
  # 17, 14 and 5 slots to write, one a forward: two whole canvases a block, then blocks.
  np.testing.assert_array_equal(together.forwards_Bx3, [[9, 8, 0], [8, 6, 0], [3, 2, 0]])
  dense = run(sampler(Dense()), params, canvas())
  assert not np.allclose(together.logp_BxL, dense.logp_BxL, equal_nan=True, rtol=1e-3)
  kept = jax.eval_shape(lambda: loop.start(own, canvas())).cache
  assert kept.k_YxBxSxKxH.shape[2] == int(0.3 * SLOTS), "and it holds no more than that"


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: Sparse(ratio=1.5), r"ratio=1\.5 must lie in \[0, 1\]"),
    (lambda: HeadSparse(delay=-1), "delay=-1 must not be negative"),
    (
      lambda: dataclasses.replace(sampler(Sparse()), sees=masks.BlockCausal(4)),
      "forget where keys stand",
    ),
  ],
)
def test_what_cannot_be_is_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()
