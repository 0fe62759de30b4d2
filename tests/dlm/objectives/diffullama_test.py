"""What lets an autoregressive model go on as a diffusion model: shifted logits, opening attention.

The authors' own numbers are the conformance cases `diffullama_loss`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm.objectives import Annealed, Bd3lm, DiffuLlama, ExactCount, Llada, LladaSft, Mdlm, Shifted
from kernels_pallas.block_attention import Keys, visible
from tests.dlm.objectives import oracle
from tests.dlm.objectives.oracle import MASK, Oracle

LENGTH = 16
TOKENS = oracle.sample(1500, LENGTH)
EXACT = oracle.exact_nats(TOKENS)


def losses_of(objective):
  """Of one draw a row, by a model that answers for the token after its own, and the counts."""

  @jax.jit
  def one_draw(key, batch):
    noisy = objective.corrupt(key, batch, 0)
    return objective.token_losses(Oracle(ahead=1), {}, noisy), noisy.count_B

  return map(np.asarray, one_draw(jax.random.key(3), oracle.rows(TOKENS)))


@pytest.mark.parametrize(
  "objective",
  [Mdlm(MASK), ExactCount(MASK), Bd3lm(MASK, LENGTH, ignore_bos=False)],
  ids=["mdlm", "exact_count", "bd3lm in one block"],
)
def test_shifted_bounds_equal_the_likelihood_given_the_first_token(objective):
  """Asked one input too early or too late, the oracle would be wrong."""
  shifted = Shifted(objective)
  losses, count_B = losses_of(shifted)
  assert not losses[:, 0].any() and (count_B == LENGTH - 1).all()
  off = losses.sum(-1) - EXACT[:, 1:].sum(-1)
  assert abs(off.mean()) < 4 * off.std() / np.sqrt(len(off))
  assert shifted.not_a_likelihood() is None and shifted.block == objective.block


@pytest.mark.parametrize(
  "objective",
  [ExactCount(MASK, block=4), Bd3lm(MASK, 4, ignore_bos=False)],
  ids=["exact_count", "bd3lm"],
)
def test_shifted_blocks_predict_their_first_token_from_clean_text_alone(objective):
  """On average that costs what it costs an autoregressive model; the bound is the looser for it."""
  losses, _ = losses_of(Shifted(objective))
  off = losses[:, 4::4].sum(-1) - EXACT[:, 4::4].sum(-1)
  assert abs(off.mean()) < 4 * off.std() / np.sqrt(len(off))
  assert losses.sum(-1).mean() > EXACT[:, 1:].sum(-1).mean()


WHOLE_ROWS = functools.partial(Llada, random_length=0.0)


@pytest.mark.parametrize("make", [WHOLE_ROWS, LladaSft, Mdlm, DiffuLlama])
def test_first_tokens_of_documents_are_never_scored(make):
  batch = oracle.rows(TOKENS[:64], np.tile([1] * 5 + [2] * 8 + [0] * 3, (64, 1)))
  objective = make(MASK) if make is DiffuLlama else Shifted(make(MASK))
  noisy = oracle.corrupt(objective, 0, batch)
  scored = np.flatnonzero((np.asarray(noisy.weight_BxL) > 0).any(0))
  np.testing.assert_array_equal(scored, [*range(1, 5), *range(6, 13)])
  first_is_masked = (np.asarray(noisy.inputs_BxW[:, [0, 5]]) == MASK).any()
  assert first_is_masked == (make is DiffuLlama)
  np.testing.assert_array_equal(noisy.ask_BxL[0], [0, *range(15)])


def test_first_token_of_a_block_asks_the_clean_token_before_it():
  noisy = oracle.corrupt(Shifted(Bd3lm(MASK, 4)), 0, oracle.rows(TOKENS[:2, :12]))
  want = [0, 0, 1, 2, 12 + 3, 4, 5, 6, 12 + 7, 8, 9, 10]
  np.testing.assert_array_equal(noisy.ask_BxL, [want, want])


def seen(objective, step, rows=2):
  """Which keys each input may see after `step` updates, [W, W], the same for all rows."""
  batch = oracle.rows(TOKENS[:rows])
  draws = oracle.draw(objective, 0, batch)
  mask = jax.jit(objective.corrupt_with)(draws, batch, step).mask
  window = mask.lo_BxWxR.shape[1]
  key_BxS = jnp.broadcast_to(jnp.arange(window), (rows, window))
  seen = np.asarray(jax.jit(visible)(mask, Keys(key_BxS)))
  np.testing.assert_array_equal(seen, np.broadcast_to(seen[0], seen.shape))
  return seen[0]


def test_attention_opens_from_causal_to_full():
  objective = Annealed(Mdlm(MASK), steps=1000)
  causal = np.tril(np.ones((LENGTH, LENGTH), bool))
  np.testing.assert_array_equal(seen(objective, -1), causal)
  half, later = seen(objective, 499), ~causal
  assert half[causal].all() and 0.3 < half[later].mean() < 0.7
  more = seen(objective, 799)
  assert (more | ~half).all(), "with one draw, what was in sight stays in sight"
  assert seen(objective, 999).all() and seen(objective, 10_000).all()


def test_annealing_hides_nothing_that_was_not_hidden_and_shows_nothing_that_was():
  """[noisy; clean]: each half opens within what block diffusion may see."""
  objective = Bd3lm(MASK, 4)
  whole = seen(objective, 0)
  closed = seen(Annealed(objective, steps=1000), -1)
  slot = np.arange(2 * LENGTH) % LENGTH
  np.testing.assert_array_equal(closed, whole & (slot[None] <= slot[:, None]))
  np.testing.assert_array_equal(seen(Annealed(objective, steps=1), 0), whole)


def test_annealed_corruption_is_a_draw_and_its_replay():
  objective, batch = Annealed(Shifted(Mdlm(MASK)), steps=10), oracle.rows(TOKENS[:4])
  once = oracle.corrupt(objective, 5, batch)
  again = oracle.replay(objective, oracle.draw(objective, 5, batch), batch)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), once, again)
  other = oracle.corrupt(objective, 6, batch)
  assert (np.asarray(once.mask.dense_BxWxS) != np.asarray(other.mask.dense_BxWxS)).any()


@pytest.mark.parametrize(
  ("make", "words"),
  [
    (lambda: DiffuLlama(MASK, shift=2), "objective.shift=2 must be 0 or 1"),
    (lambda: DiffuLlama(MASK, min_time=0.0), r"min_time=0.0 must lie in \(0, 1\)"),
    (lambda: Annealed(Mdlm(MASK), steps=0), "Annealed: steps=0 must be at least 1"),
  ],
)
def test_mistakes_are_named(make, words):
  with pytest.raises(ValueError, match=words):
    make()
