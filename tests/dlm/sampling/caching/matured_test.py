"""Blocks enter the cache some forwards after they are complete."""

import dataclasses

import jax
import numpy as np
import pytest

from dlm import masks
from dlm.sampling import loop
from dlm.sampling.caching import Matured, NoCache
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policies import Distilled
from dlm.sampling.sampler import Sampler
from tests.dlm.sampling.cache_test import MASK, MODEL, M, params_of

ROWS = [[1, 2, 3] + [M] * 12, [4] * 7 + [M] * 8, [5] + [M] * 6]
BASE = Sampler(
  MODEL, Distilled(4, 1.5, begin=0.3), NoCache(), masks.Causal(), block=4, max_forwards=60,
  mask_id=MASK,
)  # fmt: skip
run = jax.jit(loop.run, static_argnums=0)


def out(plan, **changes):
  rows = [np.asarray(row) for row in ROWS]
  canvas = make_canvas(
    rows, [row == MASK for row in rows], [0, 1, 2], slots=16, block=4, align="prompt",
    mask_id=MASK, seed=0,
  )  # fmt: skip
  return run(dataclasses.replace(BASE, plan=plan, **changes), params_of(MODEL), canvas)


@pytest.mark.parametrize("plan", [Matured(1), Matured(2, every=3)], ids=str)
def test_it_is_exact_where_keys_do_not_depend_on_what_follows(plan):
  plain, cached = out(NoCache()), out(plan)
  np.testing.assert_array_equal(cached.tokens_BxL, plain.tokens_BxL)
  np.testing.assert_array_equal(cached.when_BxL, plain.when_BxL)
  np.testing.assert_array_equal(cached.forwards_Bx3.sum(-1), plain.forwards_Bx3.sum(-1))
  assert (cached.queries_B <= plain.queries_B).all()
  assert cached.queries_B.sum() < plain.queries_B.sum()


def test_a_delay_without_end_is_no_cache():
  full = {"sees": masks.Full()}
  plain, cached = out(NoCache(), **full), out(Matured(1000), **full)
  np.testing.assert_array_equal(cached.tokens_BxL, plain.tokens_BxL)
  np.testing.assert_array_equal(cached.queries_B, plain.queries_B)
  soon = out(Matured(1), **full)  # approximate: other tokens, another number of forwards
  share = [one.queries_B.sum() / one.forwards_Bx3.sum() for one in (soon, plain)]
  assert share[0] < share[1]


def test_bad_numbers_are_refused():
  with pytest.raises(ValueError, match="matured: delay=-1 must not be negative"):
    Matured(-1)
