"""dInfer's cache: what is computed when, and when that changes nothing."""

import jax
import numpy as np
import pytest

from dlm.sampling import loop
from dlm.sampling.caching import NoCache, Vicinity
from dlm.sampling.policies import Fixed, Threshold
from tests.dlm.sampling.caching.delayed_test import ROWS, M, canvas_of, params, queries, sampler

run = jax.jit(loop.run, static_argnums=0)
SHORT = [1, 2] + [M] * 9  # blocks of 6 and 3
LONG = [1, 2] + [M] * 12  # of 6 and 6


@pytest.mark.parametrize(
  ("plan", "k", "row", "want"),
  [
    (Vicinity(2, 1, warmup=0), 2, SHORT, [11, 9, 9, 11, 5]),
    (Vicinity(2, 1, warmup=1), 2, SHORT, [11, 11, 9, 11, 5]),
    (Vicinity(1, 1, warmup=0), 6, SHORT, [11, 8, 11, 4]),  # windows with nothing left to write
    (Vicinity(2, 1, warmup=1), 6, SHORT, [11, 11, 5]),  # the warm-up ends a block
    (Vicinity(2, 1, warmup=3), 2, LONG, [14, 14, 14, 14, 8, 14, 8]),  # filled late, and twice
    (Vicinity(2, 1, 0, every=2), 1, LONG, [14, 9, 9, 9, 9, 9, 14, 8, 14, 8, 14, 8]),
  ],
  ids=str,
)
def test_what_every_forward_computes(plan, k, row, want):
  assert queries(sampler(plan, Fixed(k=k)), row) == want


def test_a_warm_up_is_no_refresh():
  out = run(sampler(Vicinity(2, 1, warmup=1), Fixed(k=2)), params(), canvas_of([SHORT]))
  assert out.forwards_Bx3[0].tolist() == [2, 3, 0]


@pytest.mark.parametrize("plan", [Vicinity(16, 16, 0), Vicinity(0, 0, 50)], ids=str)
def test_where_everything_is_computed_it_is_no_cache(plan):
  cached, plain = (
    run(sampler(p, Threshold(0.4)), params(), canvas_of(ROWS)) for p in (plan, NoCache())
  )
  np.testing.assert_array_equal(cached.tokens_BxL, plain.tokens_BxL)


def test_a_row_alone_equals_the_row_in_a_batch():
  s = sampler(Vicinity(2, 1, 2), Threshold(0.4), temperature=1.0)
  together = run(s, params(), canvas_of(ROWS))
  assert not (together.tokens_BxL == M).any()
  for i, row in enumerate(ROWS):
    alone = run(s, params(), canvas_of([row], row_ids=[i]))
    for name in ("tokens_BxL", "when_BxL", "forwards_Bx3", "queries_B"):
      np.testing.assert_array_equal(getattr(alone, name)[0], getattr(together, name)[i])


@pytest.mark.parametrize("field", ["before", "after", "warmup", "every"])
def test_bad_settings_are_refused(field):
  with pytest.raises(ValueError, match=f"vicinity: {field}=-1"):
    Vicinity(**{field: -1})
