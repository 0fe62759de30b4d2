"""P-ReAct's order: the frame first, then the region, then the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks
from dlm.sampling import loop
from dlm.sampling.caching import ExactBlock, NoCache, Prefix
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policies import Cad, EntropyBounded, Fixed, Region, Threshold
from dlm.sampling.sampler import Sampler
from tests.dlm.sampling.caching.prefix_test import CachedTable
from tests.dlm.sampling.policies.views import keys, view_of
from tests.dlm.sampling.table import Lookup, random_table

MASK, VOCAB, SLOTS = 6, 7, 16


def run(policy, rows, block=8, align="prompt"):
  rows = [np.asarray(row) for row in rows]
  canvas = make_canvas(
    rows, [row == MASK for row in rows], list(range(len(rows))), slots=SLOTS, block=block,
    align=align, mask_id=MASK, seed=0,
  )  # fmt: skip
  sampler = Sampler(
    Lookup(), policy, NoCache(), masks.Full(), block=block, max_forwards=40, mask_id=MASK
  )
  params = random_table(3, SLOTS, VOCAB)
  return jax.jit(loop.run, static_argnums=0)(sampler, params, canvas)


FRAMED = Region(Fixed(k=1), first=3, last=7, bias=2.0, forced=((3, 0), (6, 1)))


@pytest.mark.parametrize("align", ["prompt", "canvas"])
def test_the_frame_then_the_region_then_the_rest(align):
  """Offsets count from the first open slot, whichever block holds it."""
  out = run(FRAMED, [[1, 2] + [MASK] * 14], align=align)
  when, tokens = np.asarray(out.when_BxL[0]), np.asarray(out.tokens_BxL[0])
  region = np.arange(5, 10 if align == "prompt" else 8)
  assert tokens[5] == 0 and when[5] == 1
  if align == "prompt":
    assert tokens[8] == 1 and when[8] == 1
  block = np.arange(2, 10 if align == "prompt" else 8)
  rest = np.setdiff1d(block, region)
  assert (when == 1).sum() == (2 if align == "prompt" else 1), "the first forward forces alone"
  assert when[region].max() < when[rest].min() and when[block].max() < when[block[-1] + 1 :].min()


def test_forced_tokens_save_forwards_and_given_tokens_stay():
  """P-ReAct's count: one forward that forces two tokens, then one a token."""
  out = run(FRAMED, [[MASK] * 8, [MASK] * 3 + [4] + [MASK] * 4])
  assert out.forwards_Bx3.sum(-1).tolist() == [1 + 6, 1 + 6]
  assert int(out.tokens_BxL[1, 3]) == 4 and int(out.tokens_BxL[0, 3]) == 0


def test_later_blocks_are_left_alone():
  rows = [[MASK] * 16]
  plain, led = run(Fixed(k=1), rows), run(Region(Fixed(k=1), 2, 5, bias=0.0), rows)
  np.testing.assert_array_equal(plain.when_BxL, led.when_BxL)
  led = run(Region(Fixed(k=1), 2, 5, bias=2.0), rows)
  assert (np.asarray(led.when_BxL[0, 2:6]) <= 4).all()
  assert not (np.asarray(led.when_BxL[0, 10:14]) <= 12).all(), "no region in the second block"


def test_the_bias_is_a_probability():
  """Between .3 and .7 a bias of .5 decides, between .1 and .7 it does not; so for margins."""
  prob, second = [[0.7, 0.3, 0.1]], [[0.2, 0.25, 0.05]]
  for inner, want in ((Fixed(k=1), 1), (Threshold(0.75), 1), (Fixed(k=1, order="margin"), 1)):
    policy = Region(inner, first=1, last=2)
    view = view_of(prob, [[True] * 3], top2=second)
    state = policy.enter(view.masked_BxA, None)
    write = policy.decide(view, state, keys(1))[0].write_BxA
    assert jnp.flatnonzero(write[0]).tolist() == [want], inner
  policy = Region(Fixed(k=1), first=2, last=2)
  state = policy.enter(view.masked_BxA, None)
  assert policy.decide(view, state, keys(1))[0].write_BxA.tolist() == [[True, False, False]]


def test_an_inner_policy_ends_nothing_with_a_decision_that_was_put_aside():
  """Cad leaves its block once it has written all of it: it has not, in the forward that forces."""
  policy = Region(Cad(0.0, most=8), first=2, last=3, forced=((2, 0),))
  out = run(policy, [[MASK] * 8])
  assert not (out.tokens_BxL[0, :8] == MASK).any() and out.forwards_Bx3.sum(-1).tolist() == [2]


def test_forced_tokens_wait_where_the_first_forward_writes_one_token_alone():
  """Fast-dLLM's cache for Dream: the forward that fills it writes the block's first token."""
  params = random_table(3, SLOTS, VOCAB) | dict.fromkeys(
    ("left", "right"), jnp.zeros((VOCAB, VOCAB))
  )
  sampler = Sampler(
    CachedTable(), FRAMED, Prefix(anchor=False), masks.Full(), block=8, max_forwards=40,
    mask_id=MASK, shift=1,
  )  # fmt: skip
  row = np.array([1] + [MASK] * 8)
  canvas = make_canvas(
    [row], [row == MASK], [0], slots=SLOTS, block=8, align="prompt", mask_id=MASK, seed=0
  )
  out = jax.jit(loop.run, static_argnums=0)(sampler, params, canvas)
  assert out.tokens_BxL[0, jnp.array([4, 7])].tolist() == [0, 1]
  assert out.when_BxL[0, jnp.array([1, 4, 7])].tolist() == [1, 2, 2]


def test_it_goes_with_a_block_cache_where_the_inner_policy_does():
  sees = masks.BlockCausal(8)
  fields = dict(block=8, max_forwards=9, mask_id=MASK)
  assert Sampler(Lookup(), FRAMED, ExactBlock(), sees, **fields).scope == "block"


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: Region(Fixed(k=1), 5, 3), "first=5, last=3"),
    (lambda: Region(Fixed(k=1), 0, 3, bias=-0.5), "bias=-0.5"),
    (lambda: Region(EntropyBounded(), 0, 3), "goes by entropy"),
    (lambda: Region(Fixed(k=1), 0, 3, forced=((1, 0), (1, 2))), "each once"),
    (lambda: run(Region(Fixed(k=1), 0, 8), [[MASK] * 8]), "offset 8"),
  ],
)
def test_bad_settings_are_refused_by_name(make, message):
  with pytest.raises(ValueError, match=message):
    make()
