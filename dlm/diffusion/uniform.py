"""Uniform-state diffusion: noise replaces tokens by random ids, and no id says which."""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr, ndtr

from dlm.types import Array


def states(vocab: int, mask_id: int) -> int:
  """How many ids noise may put: those below `vocab`, never the mask id."""
  return vocab - (mask_id < vocab)


def random_ids(key: Array, shape: tuple[int, ...], vocab: int, mask_id: int) -> Array:
  """Ids that noise puts, all alike likely."""
  id_BxL = jax.random.randint(key, shape, 0, states(vocab, mask_id))
  return id_BxL + (id_BxL >= mask_id)


def gaussian(
  normal_BxLxV: Array, tokens_BxL: Array, gamma_B: Array, mask_id: int
) -> tuple[Array, Array]:
  """Gaussian noise about clean ids: the argmax [B, L], and the numbers [B, L, V] that it is of.

  Args:
    gamma_B: log of the noise's variance over the signal's; both variances sum to 1.
    mask_id: is never the argmax.
  """
  vocab = normal_BxLxV.shape[-1]
  signal_B, noise_B = (jnp.sqrt(jax.nn.sigmoid(sign * gamma_B)) for sign in (-1, 1))
  z_BxLxV = noise_B[:, None, None] * normal_BxLxV
  z_BxLxV += signal_B[:, None, None] * jax.nn.one_hot(tokens_BxL, vocab)
  z_BxLxV = jnp.where((jnp.arange(vocab) == mask_id)[None, None], -jnp.inf, z_BxLxV)
  return z_BxLxV.argmax(-1).astype(tokens_BxL.dtype), z_BxLxV


def argmax_survival(gamma_B: Array, n: int) -> tuple[Array, Array]:
  """Duo (2506.10892, Eq. 10): survival of a token where Gaussian diffusion is read by its argmax.

  Of n ids the clean one has a Gaussian coordinate about exp(-gamma / 2), the others about 0. The
  integral is a sum over a grid.

  Args:
    gamma_B: log of the noise's variance over the signal's.

  Returns:
    alpha and d alpha / d gamma, [B] each.
  """
  mean_Bx1 = jnp.exp(-gamma_B / 2)[:, None]
  grid_Q = jnp.arange(-900, 901) / 100.0
  x_BxQ = mean_Bx1 + grid_Q[None]
  # log Phi(x), with all digits where it is near 0: it is multiplied by n - 1.
  log_phi_BxQ = jnp.where(x_BxQ > 0, jnp.log1p(-ndtr(-jnp.abs(x_BxQ))), log_ndtr(x_BxQ))
  log_below_BxQ = (n - 1) * log_phi_BxQ  # all others lie below x
  density_Q = 0.01 * jnp.exp(-(grid_Q**2) / 2) / math.sqrt(2 * math.pi)
  p_B = (jnp.exp(log_below_BxQ) * density_Q[None]).sum(-1)
  # The slope is the same less any constant: where nearly all is 1, less 1, to lose no digits.
  rest_BxQ = jnp.where(p_B[:, None] > 0.5, jnp.expm1(log_below_BxQ), jnp.exp(log_below_BxQ))
  slope_B = (rest_BxQ * (density_Q * grid_Q)[None]).sum(-1) * -mean_Bx1[:, 0] / 2
  # Sums may round up to 1, where the loss has no value.
  return jnp.minimum((n * p_B - 1) / (n - 1), 1 - 1e-6), n / (n - 1) * slope_B
