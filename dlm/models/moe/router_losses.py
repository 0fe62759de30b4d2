"""What is asked of a router besides the loss: small logits, even load. Values without coefficients.

As EC-DLM has them (arXiv 2604.01622). Means are over live tokens.
"""

import jax
import jax.numpy as jnp

from dlm.types import Array


def z_loss(logits_TxE: Array, live_T: Array) -> Array:
  """Mean of logsumexp(logits)^2 (ST-MoE, arXiv 2202.08906)."""
  size_T = jax.nn.logsumexp(logits_TxE.astype(jnp.float32), axis=1) ** 2
  return jnp.where(live_T, size_T, 0).sum() / jnp.maximum(live_T.sum(), 1)


def token_balance(logits_TxE: Array, load_E: Array, per_token: int, live_T: Array) -> Array:
  """Token choice: Switch's loss (arXiv 2101.03961), 1 where routing is uniform.

  Args:
    load_E: tokens that chose each expert, before any is dropped; no gradient.
  """
  tokens = jnp.maximum(live_T.sum(), 1).astype(jnp.float32)
  prob_TxE = jax.nn.softmax(logits_TxE.astype(jnp.float32), axis=1)
  prob_E = jnp.where(live_T[:, None], prob_TxE, 0).sum(0)
  uneven = (prob_E * load_E.astype(jnp.float32)).sum()
  return uneven * len(load_E) / (tokens**2 * per_token)


def expert_balance(
  logits_TxE: Array, choosers_T: Array, per_token: Array | int, live_T: Array
) -> Array:
  """Expert choice: EC-DLM's loss over the softmax of each expert's logits over all tokens.

  1 where routing is uniform. It couples the rows of a batch.
  """
  live_logits_TxE = jnp.where(live_T[:, None], logits_TxE.astype(jnp.float32), -jnp.inf)
  top_1xE = jax.lax.stop_gradient(live_logits_TxE.max(0, keepdims=True))
  weight_TxE = jnp.exp(live_logits_TxE - jnp.where(top_1xE == -jnp.inf, 0, top_1xE))
  prob_TxE = weight_TxE / jnp.maximum(weight_TxE.sum(0, keepdims=True), 1e-20)
  wanted = (prob_TxE.sum(1) * choosers_T.astype(jnp.float32)).sum()
  return wanted / (logits_TxE.shape[1] * per_token)


def updated_bias(bias_E: Array, load_E: Array, rate: float) -> Array:
  """The bias after an optimiser step: up where load is below its mean (arXiv 2408.15664).

  Args:
    load_E: over the whole batch of the step, before any token is dropped.
  """
  load_E = load_E.astype(jnp.float32)
  return bias_E + rate * jnp.sign(load_E.mean() - load_E)
