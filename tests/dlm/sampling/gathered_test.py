"""Forwards over the rows that need them: the same tokens, and hardly a position for nothing."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks
from dlm.sampling import loop, sizes
from dlm.sampling.caching import Ahead, Dual, ExactBlock, NoCache, Vicinity
from dlm.sampling.canvas import make_canvas
from dlm.sampling.forward import share_out
from dlm.sampling.policies import Pipelined, Threshold
from dlm.sampling.sampler import Sampler
from dlm.types import KVCache, LogitHead, ModelOutput

MASK, SLOTS, BLOCK, ROWS = 8, 128, 16, 16


@dataclasses.dataclass(frozen=True)
class BySlot:
  """Logits of a slot are those of a table, however much of the row is computed."""

  width: int = 9

  def __call__(
    self, params, tokens_BxW, *, slot_BxW, cache=None, write_BxW=None, ask_BxA=None, **_
  ):
    logits_BxWxV = params[jnp.minimum(slot_BxW, SLOTS - 1)]
    if ask_BxA is not None:
      logits_BxWxV = jnp.take_along_axis(logits_BxWxV, ask_BxA[..., None], axis=1)
    if write_BxW is not None:
      row_Bx1 = jnp.arange(len(slot_BxW))[:, None]
      into_BxW = jnp.where(write_BxW, slot_BxW, SLOTS)
      filled_BxS = cache.filled_BxS.at[row_Bx1, into_BxW].set(True, mode="drop")
      cache = cache.replace(filled_BxS=filled_BxS)
    return ModelOutput(LogitHead(logits_BxWxV, jnp.eye(9), jnp.eye(9)), cache, {})

  def empty_cache(self, batch, slots):
    nothing = jnp.zeros((1, batch, slots, 1, 1))
    return KVCache(nothing, nothing, jnp.zeros((batch, slots), bool))


def canvas():
  rng = np.random.default_rng(0)
  lengths = rng.integers(SLOTS // 2 + 1, SLOTS + 1, ROWS)
  opens = rng.integers(BLOCK, SLOTS // 2, ROWS)
  return make_canvas(
    [np.zeros(n, np.int32) for n in lengths],
    [np.arange(n) >= n - k for n, k in zip(lengths, opens, strict=True)],
    list(range(ROWS)), slots=SLOTS, block=BLOCK, align="prompt", mask_id=MASK, seed=0,
  )  # fmt: skip


@pytest.mark.parametrize("plan", [NoCache(), Dual(), Vicinity()], ids=str)
def test_sixteen_ragged_rows_compute_little_more_than_they_need(plan):
  table = jnp.asarray(np.random.default_rng(1).normal(size=(SLOTS, 9)) * 2, jnp.float32)
  sampler = Sampler(
    BySlot(), Threshold(0.6), plan, masks.Full(), block=BLOCK, max_forwards=200, mask_id=MASK,
    temperature=1.0,
  )  # fmt: skip
  run = jax.jit(loop.run, static_argnums=0)
  plain = jax.device_get(run(sampler, table, canvas()).replace(key_B=None))
  few = dataclasses.replace(sampler, positions=2 * BLOCK)
  found = jax.device_get(run(few, table, canvas()).replace(key_B=None))
  for name in ("tokens_BxL", "when_BxL", "forwards_Bx3", "queries_B"):
    np.testing.assert_array_equal(getattr(found, name), getattr(plain, name), err_msg=name)
  needed = plain.queries_B.sum()
  assert found.computed_B.sum() / needed < 1.15
  assert plain.computed_B.sum() / needed > 1.5
  # Whatever is computed is computed for somebody, whole forwards of whole batches here.
  assert round(float(plain.computed_B.sum())) % (ROWS * BLOCK) == 0


def shared_out(sampler, lengths, opens, waited=None):
  """The first turn of rows that all may act."""
  canvas = make_canvas(
    [np.zeros(n, np.int32) for n in lengths],
    [np.arange(n) >= n - k for n, k in zip(lengths, opens, strict=True)],
    list(range(len(lengths))), slots=SLOTS, block=BLOCK, align="prompt", mask_id=MASK, seed=0,
  )  # fmt: skip
  at = loop.progress(sampler, loop.start(sampler, canvas))
  all_B = jnp.ones(len(lengths), bool)
  full_B, waited_B = sampler.plan.refresh_B(at), jnp.array(waited or [0] * len(lengths))
  return share_out(sampler, canvas, at, all_B, full_B, waited_B)


def together(plan, policy=Threshold(0.6), sees=masks.Full()):  # noqa: B008
  return Sampler(
    BySlot(), policy, plan, sees, block=BLOCK, max_forwards=9, mask_id=MASK, positions=2 * SLOTS
  )


@pytest.mark.parametrize(
  ("lengths", "opens", "waited", "act", "widths"),
  [
    # Two rows of 128 make a forward. The third waits, which has least to write.
    ((128, 128, 128), (40, 20, 60), (0, 0, 0), (True, False, True), (128,)),
    ((128, 128, 128), (40, 20, 60), (0, 4, 0), (False, True, True), (128,)),
    # Places that are taken by a row that needs less, but not much less.
    ((128, 112, 80), (40, 40, 40), (0, 0, 0), (True, True, False), (128,)),
    ((128, 80, 128), (40, 40, 40), (0, 0, 0), (True, False, True), (128,)),
    # Nobody waits for ever.
    ((128, 80, 128, 128), (40, 40, 40, 9), (0, 0, 0, 11), (True, False, False, True), (128,)),
    ((128, 80, 128), (40, 40, 40), (0, 12, 0), (True, True, True), (128, 80)),
    # Nothing is full: the fullest.
    ((128, 80), (40, 40), (0, 0), (True, True), (128,)),
    ((80, 70, 66, 70, 128), (20,) * 5, (0,) * 5, (True, True, True, True, False), (80,)),
    ((90,), (20,), (0,), (True,), (96,)),
  ],
)
def test_rows_wait_for_a_forward_that_is_full(lengths, opens, waited, act, widths):
  found = shared_out(together(NoCache()), lengths, opens, waited)
  np.testing.assert_array_equal(found.act_B, act)
  assert [share.width for share in found.shares if share.own_B.any()] == list(widths)


@pytest.mark.parametrize(
  ("plan", "policy"),
  [(Ahead(), Pipelined(BLOCK, 0.6, begin=0.3, eager=0.6)), (ExactBlock(fill=32), Threshold(0.6))],
  ids=str,
)
def test_plans_that_never_ask_for_the_whole_canvas_compile_no_forward_over_it(plan, policy):
  found = shared_out(together(plan, policy, masks.Causal()), (128, 70), (40, 16))
  assert not any(share.whole for share in found.shares) and found.act_B.any()
  assert not plan.refreshes and Dual().refreshes and ExactBlock().refreshes


def test_sizes_are_few_and_near():
  for block, length, want in [(4, 3, 4), (4, 5, 8), (32, 33, 64), (32, 10, 16), (1024, 120, 128)]:
    assert sizes.canvas(length, block) == want
  assert sizes.canvas(25, 24) == 48
  for slots in (16, 24, 48, 64, 100, 128, 1024):
    found = sizes.widths(slots)
    assert found[-1] == slots and list(found) == sorted(set(found)) and len(found) <= 12
    whole = [(a, b) for a, b in itertools.pairwise(found) if a > slots / 2]
    assert all(b <= max(1.25 * a, a + 16) for a, b in whole), "rows that their canvas is for"
  assert sizes.widths(128, 65) == (80, 96, 112, 128)
  assert sizes.fewer(sizes.widths(128)) == (8, 16, 32, 48, 80, 128)


def test_of_a_file_of_many_lengths_at_most_a_tenth_is_padding():
  rng = np.random.default_rng(0)
  for lengths in (rng.integers(32, 257, 500), rng.lognormal(np.log(200), 0.6, 500).astype(int)):
    canvases = [sizes.canvas(n, 32) for n in lengths]
    widths = [
      min(width for width in sizes.widths(slots, slots // 2 + 1) if width >= n)
      for n, slots in zip(lengths, canvases, strict=True)
    ]
    assert 1 - lengths.sum() / sum(widths) < 0.1
    assert 1 - lengths.sum() / sum(canvases) > 0.2 and len(set(canvases)) <= 7, "few programs"
