"""The cache that is refreshed by count."""

import numpy as np
import pytest

from dlm.sampling.caching import Dual, Interval, NoCache
from dlm.sampling.policies import Fixed, Threshold
from tests.dlm.sampling.caching.delayed_test import (
  BLOCK,
  ROWS,
  M,
  canvas_of,
  params,
  queries,
  run,
  same_text,
  sampler,
)


@pytest.mark.parametrize("shift", [0, 1])
def test_every_forward_is_no_cache_and_never_is_the_dual_cache(shift):
  for plan, same in ((Interval(1), NoCache()), (Interval(BLOCK + 1), Dual())):
    a, b = (
      run(sampler(p, Threshold(0.4), temperature=1.0, shift=shift), params(), canvas_of(ROWS))
      for p in (plan, same)
    )
    same_text(a, b)
    np.testing.assert_array_equal(a.queries_B, b.queries_B)


def test_the_whole_canvas_every_interval_else_the_block():
  row = [1, 2] + [M] * 9  # blocks of 6 and 3
  got = queries(sampler(Interval(3), Fixed(k=1)), row)
  assert got == [11, 6, 6, 11, 6, 6, 11, 3, 3]
  assert queries(sampler(Interval(3), Fixed(k=1), shift=1), row)[:2] == [11, 7]


def test_a_row_alone_equals_the_row_in_a_batch():
  s = sampler(Interval(2), Fixed(k=1, order="random"), temperature=1.0)
  together = run(s, params(), canvas_of(ROWS))
  assert not (together.tokens_BxL == M).any()
  for i, row in enumerate(ROWS):
    alone = run(s, params(), canvas_of([row], row_ids=[i]))
    for name in ("tokens_BxL", "when_BxL", "forwards_Bx3", "queries_B"):
      np.testing.assert_array_equal(getattr(alone, name)[0], getattr(together, name)[i])


def test_an_interval_is_at_least_one():
  with pytest.raises(ValueError, match="interval=0 must be at least 1"):
    Interval(0)
