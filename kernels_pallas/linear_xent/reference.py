"""The definition: all logits at once, differentiated by JAX."""

import jax
import jax.numpy as jnp

from kernels_pallas import vocabulary

Array = jax.Array


def linear_xent(
  hidden_RxD: Array,
  unembed_VxD: Array,
  target_R: Array,
  *,
  forbidden: tuple[int, ...],
  soft_cap: float | None,
) -> Array:
  """See `kernels_pallas.linear_xent.linear_xent`."""
  ids_V = jnp.arange(unembed_VxD.shape[0], dtype=jnp.int32)
  z_RxV = vocabulary.logits(hidden_RxD, unembed_VxD, soft_cap)
  z_RxV = jnp.where(vocabulary.allowed(ids_V, forbidden)[None, :], z_RxV, -jnp.inf)
  inside_R, target_z_R = vocabulary.at_id(z_RxV, target_R)
  return jax.nn.logsumexp(z_RxV, axis=1) - jnp.where(inside_R, target_z_R, -jnp.inf)
