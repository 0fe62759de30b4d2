"""Duo's sampler: a step has the law of the reverse process, and levels fall with the steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm.diffusion.schedules import Linear
from dlm.sampling.policies import Duo
from tests.dlm.sampling.policies.views import keys, view_of

P = np.array([0.1, 0.2, 0.3, 0.4])  # what the model says of every slot
DRAWS = 40_000


def decided(step, steps, stands=1):
  """Tokens after a step, of slots where `stands` stood, and whether the block goes on."""
  token = np.random.default_rng(0).choice(4, p=P, size=(1, DRAWS))
  view = view_of(np.full((1, DRAWS), 0.5), np.zeros((1, DRAWS)), token=token)
  stats = dataclasses.replace(view.stats, current=jnp.full((1, DRAWS), np.log(P[stands])))
  tokens_BxA = jnp.full((1, DRAWS), stands)
  view = view.replace(stats=stats, tokens_BxA=tokens_BxA, step_B=jnp.array([step]), mask_id=4)
  policy = Duo(vocab=5, schedule=Linear(), steps=steps)
  decision, _ = jax.jit(policy.decide)(view, (), keys(1))
  assert decision.write_BxA.all()
  return np.asarray(decision.token_BxA[0]), bool(decision.stay_B[0])


@pytest.mark.parametrize(("step", "steps"), [(0, 4), (2, 4), (3, 4)])
def test_a_step_draws_from_the_posterior(step, steps):
  """q(s | t) by Bayes: tokens keep with alpha, else any of 4; the mask id is never drawn."""
  token, goes_on = decided(step, steps)
  assert goes_on == (step + 1 < steps)
  alpha_t, alpha_s = step / steps, (step + 1) / steps
  alpha_ts = alpha_t / alpha_s
  eye = np.eye(4)
  at_s = alpha_s * eye + (1 - alpha_s) / 4  # [clean, s]
  there = alpha_ts * eye + (1 - alpha_ts) / 4  # [s, t]
  # The model's mean of the clean token stands where the clean one does, as in the authors' code.
  mixed = P @ at_s
  want = mixed * there[:, 1] / (mixed * there[:, 1]).sum()
  found = np.bincount(token, minlength=4) / DRAWS
  np.testing.assert_allclose(found, want, atol=5 * np.sqrt(0.25 / DRAWS))


def test_levels_fall_from_all_noise_to_the_last_step():
  policy = Duo(vocab=5, schedule=Linear(), steps=4)
  np.testing.assert_allclose(policy.level(jnp.arange(4)), [1, 0.75, 0.5, 0.25])


def test_mistakes_are_named():
  with pytest.raises(ValueError, match="duo: vocab=5 must be at least 3, steps=0 1"):
    Duo(vocab=5, schedule=Linear(), steps=0)
