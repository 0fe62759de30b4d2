"""With the true conditionals a NELBO is the likelihood, exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm.diffusion import schedules
from dlm.objectives import Autoregressive, Bd3lm, D3pm, ExactCount, GenMd4, Llada, Md4, Mdlm
from dlm.objectives.objective import with_own
from tests.dlm.objectives import oracle
from tests.dlm.objectives.oracle import MASK, Oracle

LENGTH = 16
TOKENS = oracle.sample(1500, LENGTH)
EXACT = oracle.exact_nats(TOKENS)


@pytest.fixture(scope="module")
def estimates():
  """Nats per token of each sequence under an estimator, one draw each; computed once a name."""
  made = {
    "row": Bd3lm(MASK, LENGTH, ignore_bos=False),
    "blocks of 4": Bd3lm(MASK, 4, ignore_bos=False),
    "blocks of 1": Bd3lm(MASK, 1, ignore_bos=False),
    "blocks of 1, all masked": Bd3lm(MASK, 1, window=(1.0, 1.0), ignore_bos=False),
    "exact count": ExactCount(MASK),
    "exact count, blocks of 4": ExactCount(MASK, block=4),
    "mdlm": Mdlm(MASK),
    "mdlm cosine": Mdlm(MASK, schedule=schedules.MdlmCosine()),
    "mdlm discrete": Mdlm(MASK, timesteps=1000),
    "md4 cosine": Md4(MASK, vocab=5, schedule=schedules.Md4Cosine()),
    "md4 discrete": Md4(MASK, vocab=5, timesteps=1000),
    "genmd4": GenMd4(MASK, vocab=5),
    "low window": Bd3lm(MASK, LENGTH, window=(1e-3, 0.5), ignore_bos=False),
    "high window": Bd3lm(MASK, LENGTH, window=(0.5, 1.0), ignore_bos=False),
  }
  known = {}

  def estimate(name):
    if name not in known:
      objective = made[name]

      @jax.jit
      def one_draw(key, batch):
        noisy = objective.corrupt(key, batch, 0)
        return objective.token_losses(
          Oracle(), with_own({}, objective.init(oracle.STATES + 1)), noisy
        )

      known[name] = np.asarray(one_draw(jax.random.key(3), oracle.rows(TOKENS)))
    return made[name], known[name]

  return estimate


UNBIASED = (
  "row",
  "blocks of 4",
  "blocks of 1",
  "exact count",
  "exact count, blocks of 4",
  "mdlm",
  "mdlm cosine",
  "mdlm discrete",
  "md4 cosine",
  "md4 discrete",
  "genmd4",
)


def test_the_source_has_the_entropy_of_the_specification():
  assert EXACT.mean() == pytest.approx(0.8556, abs=4 * EXACT.mean(-1).std() / np.sqrt(len(EXACT)))


@pytest.mark.parametrize("name", UNBIASED)
def test_bounds_equal_the_likelihood_on_average(estimates, name):
  objective, losses = estimates(name)
  assert objective.not_a_likelihood() is None
  off = losses.sum(-1) / LENGTH - EXACT.mean(-1)
  assert abs(off.mean()) < 4 * off.std() / np.sqrt(len(off))


def test_one_token_blocks_all_masked_are_autoregressive_token_by_token(estimates):
  objective, losses = estimates("blocks of 1, all masked")
  assert objective.not_a_likelihood() is None
  np.testing.assert_allclose(losses, EXACT, rtol=1e-4, atol=1e-5)


def test_autoregression_gives_the_exact_likelihood_but_for_the_first_token():
  losses = oracle.losses(Autoregressive(MASK), {}, oracle.rows(TOKENS[:50]), Oracle(ahead=1))
  np.testing.assert_allclose(losses[:, :-1], EXACT[:50, 1:], rtol=1e-4, atol=1e-5)
  assert not np.asarray(losses[:, -1]).any()


def test_counting_exactly_varies_less_than_masking_token_by_token(estimates):
  def variance(name):
    return (estimates(name)[1].mean(-1) - EXACT.mean(-1)).var()

  assert variance("exact count") < variance("row") / 2
  assert variance("exact count, blocks of 4") < variance("blocks of 4") / 2
  assert variance("blocks of 4") < variance("row")


@pytest.mark.parametrize(("name", "mean"), [("low window", 0.689), ("high window", 1.024)])
def test_windows_are_biased_and_say_so(estimates, name, mean):
  objective, losses = estimates(name)
  assert "leaves noise levels out" in objective.not_a_likelihood()
  error = losses.mean(-1).std() / np.sqrt(len(losses))
  assert abs(losses.mean() - mean) < 5 * error
  assert abs(losses.mean() - EXACT.mean()) > 5 * error


def test_what_is_no_likelihood_says_why():
  assert "ignore_bos" in Bd3lm(MASK, 4).not_a_likelihood()
  assert "random_length" in Llada(MASK).not_a_likelihood()
  assert "Bd3Cosine" in Mdlm(MASK, schedule=schedules.Bd3Cosine()).not_a_likelihood()
  assert D3pm(MASK).not_a_likelihood() is None


@pytest.mark.parametrize(
  "objective", [Mdlm(MASK), ExactCount(MASK), ExactCount(MASK, block=8), Bd3lm(MASK, 4)]
)
def test_packed_documents_and_padding_do_not_leak(objective):
  """A document's losses stay when its neighbour and the padding change."""
  segment = np.array([[1] * 7 + [2] * 6 + [0] * 3])
  other = TOKENS[:1].copy()
  other[:, 7:] = (other[:, 7:] + 1) % 4
  here, there = (oracle.rows(tokens, segment) for tokens in (TOKENS[:1], other))
  draws = oracle.draw(objective, 0, here)
  draws["u_mask"] = draws["u_mask"] * 0.3  # much is masked
  a, b = (oracle.losses(objective, draws, rows, Oracle()) for rows in (here, there))
  np.testing.assert_allclose(a[:, :7], b[:, :7], rtol=1e-6)
  assert np.asarray(a[:, :7]).any()
  assert not np.asarray(a[:, 13:]).any()
  assert float(oracle.replay(objective, draws, here).count_B[0]) == 13


def test_a_noisy_block_does_not_see_its_own_clean_copy():
  """Three blocks; the clean token of block b reaches noisy blocks after b alone."""
  objective = Bd3lm(MASK, 4, ignore_bos=False)
  batch = oracle.rows(TOKENS[:1, :12])
  draws = oracle.draw(objective, 0, batch) | {"u_mask": jnp.zeros((1, 12))}

  @jax.jit
  def hidden(clean_token):
    noisy = objective.corrupt_with(draws, batch, 0)
    inputs = noisy.inputs_BxW.at[0, 12 + 7].set(clean_token)  # last of clean block 1
    ask = jnp.arange(12)[None]
    out = Oracle()({}, inputs, slot_BxW=noisy.slot_BxW, mask=noisy.mask, ask_BxA=ask)
    return out.head.hidden_BxAxD[0]

  changed = np.abs(np.asarray(hidden(0)) - np.asarray(hidden(1))).max(-1) > 0
  np.testing.assert_array_equal(changed, [False] * 8 + [True] * 4)
