"""Fast-dLLM's caches, filled anew every few forwards."""

import pytest

from dlm.sampling.caching import Dual, Prefix
from dlm.sampling.policies import Fixed
from tests.dlm.sampling.caching.delayed_test import M, queries, sampler

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
