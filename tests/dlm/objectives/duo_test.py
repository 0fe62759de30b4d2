"""Duo's curriculum: what the model reads, and that it ends. Losses: tests/checkers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm.diffusion import uniform
from dlm.objectives import Duo
from dlm.types import LogitHead, ModelOutput
from tests.dlm.objectives import oracle

STEPS, VOCAB, MASK = 10, 6, 2
TOKENS = np.array([[0, 1, 3, 4, 5, 1, 0, 3]], np.int32).repeat(4, 0)
OBJECTIVE = Duo(MASK, vocab=VOCAB, curriculum=STEPS, tau=(1.0, 1e-3), gamma=(-3.0, -1.0))


@dataclasses.dataclass(frozen=True)
class Reads:
  """Its hidden rows are what it reads: embeddings and what is added to them."""

  def __call__(self, params, tokens_BxW, *, soft_BxWxD=None, **_):
    read = params["embed"][tokens_BxW]
    read += 0 if soft_BxWxD is None else soft_BxWxD
    return ModelOutput(LogitHead(read, params["unembed"]), None, {})

  def embedding(self, params):
    return params["embed"]


@jax.jit
def noised(step):
  batch = oracle.rows(TOKENS)
  draws = OBJECTIVE.draw(jax.random.key(0), batch)
  return OBJECTIVE.corrupt_with(draws, batch, step), draws


def test_ids_are_the_argmax_of_the_noise_whose_softmax_is_read():
  noisy, draws = noised(0)
  mix = np.asarray(noisy.extra["mix_BxLxV"])
  np.testing.assert_allclose(mix.sum(-1), 1, rtol=1e-5)
  assert not mix[..., MASK].any() and (mix.max(-1) < 1).any()
  np.testing.assert_array_equal(mix.argmax(-1), noisy.inputs_BxW)
  t = OBJECTIVE.min_time + (1 - OBJECTIVE.min_time) * np.asarray(OBJECTIVE.times_of(draws))
  gamma = -3 + 2 * t
  signal, noise = (1 + np.exp(gamma)) ** -0.5, (1 + np.exp(-gamma)) ** -0.5
  z = signal[:, None, None] * np.eye(VOCAB)[TOKENS] + noise[:, None, None] * draws["normal"]
  z = np.where(np.arange(VOCAB) == MASK, -np.inf, z)
  want = np.exp(z - z.max(-1, keepdims=True))  # tau is 1 at the first update
  np.testing.assert_allclose(mix, want / want.sum(-1, keepdims=True), rtol=1e-4, atol=1e-6)
  alpha, slope = jax.jit(uniform.argmax_survival, static_argnums=1)(jnp.float32(gamma), 5)
  np.testing.assert_allclose(noisy.extra["alpha_BxL"][:, 0], alpha, rtol=1e-4)
  weight = -2 * np.asarray(slope) / (5 * np.asarray(alpha))
  np.testing.assert_allclose(noisy.weight_BxL[:, 0], weight, rtol=1e-4)


def test_the_temperature_falls_by_powers():
  sure = [float(noised(step)[0].extra["mix_BxLxV"].max(-1).mean()) for step in (0, 5, 9)]
  assert sure[0] < sure[1] < sure[2] and sure[2] > 0.98


def test_the_model_reads_mixed_embeddings_and_after_the_curriculum_plain_ones():
  rng = np.random.default_rng(0)
  params = {k: jnp.float32(rng.normal(size=(VOCAB, 3))) for k in ("embed", "unembed")}

  @jax.jit
  def ce(noisy):
    return OBJECTIVE.losses(Reads(), params, noisy)[1]

  for step in (0, STEPS):
    noisy, _ = noised(step)
    mix = np.asarray(noisy.extra["mix_BxLxV"], np.float64)
    logits = mix @ np.asarray(params["embed"], np.float64) @ np.asarray(params["unembed"]).T
    logits[..., MASK] = -np.inf
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    want = -np.take_along_axis(logp, TOKENS[..., None], -1)[..., 0]
    np.testing.assert_allclose(ce(noisy), want, rtol=1e-4, atol=1e-4)
  plain = dataclasses.replace(OBJECTIVE, curriculum=0)
  after, draws = noised(STEPS)
  want = jax.jit(plain.corrupt_with)(draws, oracle.rows(TOKENS), STEPS)
  np.testing.assert_array_equal(after.inputs_BxW, want.inputs_BxW)
  np.testing.assert_allclose(after.weight_BxL, want.weight_BxL, rtol=1e-6)
  np.testing.assert_array_equal(mix, np.eye(VOCAB)[np.asarray(want.inputs_BxW)])


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"vocab": 2}, "vocab=2 must be at least 3"),
    ({"curriculum": -1}, "curriculum=-1 must not be negative"),
    ({"tau": (1e-3, 1e-2)}, r"tau=\(0.001, 0.01\) must be positive and not rise"),
    ({"gamma": (1.0, 1.0)}, r"gamma=\(1.0, 1.0\) must rise"),
    ({"min_time": 0.0}, r"min_time=0.0 must lie in \(0, 1\)"),
  ],
)
def test_mistakes_are_named(fields, words):
  with pytest.raises(ValueError, match=f"Duo: {words}"):
    Duo(MASK, **{"vocab": VOCAB} | fields)
