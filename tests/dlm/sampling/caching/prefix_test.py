"""Fast-dLLM's caches, filled anew every few forwards."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks
from dlm.sampling import loop
from dlm.sampling.caching import Dual, NoCache, Prefix
from dlm.sampling.policies import Fixed, Threshold
from dlm.sampling.sampler import Sampler
from dlm.types import KVCache
from tests.dlm.sampling.caching.delayed_test import M, queries, sampler, step
from tests.dlm.sampling.loop_test import MASK, VOCAB, canvas_of
from tests.dlm.sampling.table import Lookup

ROW = [1, 2] + [M] * 9  # blocks of 6 and 3


@pytest.mark.parametrize(
  ("plan", "want"),
  [
    (Dual(), [11, 6, 6, 6, 6, 6, 11, 3, 3]),
    (Dual(every=2), [11, 6, 6, 11, 6, 6, 11, 3, 3]),
    (Dual(settles=True, every=3), [11, 6, 6, 6, 11, 6, 11, 3, 3]),
    (Prefix(every=2), [11, 9, 9, 11, 9, 9, 11, 3, 3]),
    (Dual(every=2, count="forwards"), [11, 6, 11, 6, 11, 6, 11, 3, 11]),
    (
      Dual(settles=True, every=2, count="forwards"),
      [11, 6, 11, 6, 11, 6, 11, 3, 11, 3],
    ),
  ],
  ids=str,
)
def test_what_every_forward_computes(plan, want):
  assert queries(sampler(plan, Fixed(k=1)), ROW) == want


def test_bad_settings_are_refused():
  with pytest.raises(ValueError, match="every=-1 must not be negative"):
    Prefix(every=-1)
  with pytest.raises(ValueError, match="'blocks' is not one of windows, forwards"):
    Dual(count="blocks")


@dataclasses.dataclass(frozen=True)
class CachedTable(Lookup):
  """As `Lookup` with a cache: of no effect where `left` and `right` are zero."""

  def __call__(self, params, tokens_BxW, *, cache=None, write_BxW=None, slot_BxW, **kwargs):
    out = super().__call__(params, tokens_BxW, slot_BxW=slot_BxW, **kwargs)
    if cache is not None:
      row_Bx1 = jnp.arange(len(tokens_BxW))[:, None]
      slot_BxW = jnp.where(write_BxW, slot_BxW, cache.filled_BxS.shape[1])
      filled_BxS = cache.filled_BxS.at[row_Bx1, slot_BxW].set(True, mode="drop")
      cache = cache.replace(filled_BxS=filled_BxS)
    return out.replace(cache=cache)

  def empty_cache(self, batch, slots):
    nothing = jnp.zeros((1, batch, slots, 1, 1))
    return KVCache(nothing, nothing, jnp.zeros((batch, slots), bool))


A, END = 1, 2
SURE, LESS, LEAST = 9.0, 2.0, 1.0  # logits of the token to write, all others 0


def filled(plan, logits):
  """The canvas after every forward of one row of two blocks of 4, where END fills."""
  own = np.zeros((8, VOCAB), np.float32)
  own[np.arange(8), [A, END, *[A] * 6]] = logits
  alone = np.zeros((VOCAB, VOCAB), np.float32)
  params = {"own": jnp.asarray(own), "left": alone, "right": alone}
  s = Sampler(
    CachedTable(), Threshold(0.9), plan, masks.Full(), block=4, max_forwards=20, mask_id=MASK,
    eos_ids=(END,), on_eos="fill",
  )  # fmt: skip
  state, rows = loop.start(s, canvas_of([[MASK] * 8], slots=8)), []
  while not state.canvas.done_B.all():
    state = step(s, params, state)
    rows.append(np.asarray(state.canvas.tokens_BxL[0]).tolist())
  return rows


def test_a_stop_id_fills_after_the_cheap_forwards_not_after_the_one_that_opens_a_block():
  """The opening forward writes slots 0 and 1; the next writes slot 2, and then END fills."""
  logits = [SURE, SURE, LESS, LEAST, SURE, SURE, SURE, SURE]
  opened, ended = [A, END] + [MASK] * 6, [A] + [END] * 7
  assert filled(NoCache(), logits) == [ended]
  assert filled(Dual(), logits) == filled(Prefix(), logits) == [opened, ended]


def test_a_row_ends_with_a_block_of_a_stop_id_that_its_first_forward_finished():
  assert filled(Dual(), [SURE] * 8) == [[A, END, A, A] + [MASK] * 4]
