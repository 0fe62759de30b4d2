"""The definition: all logits of both at once, differentiated by JAX."""

import jax
import jax.numpy as jnp

from kernels_pallas import vocabulary
from kernels_pallas.linear_distill.spec import Spec

Array = jax.Array


def linear_distill(
  hidden_RxD: Array,
  unembed_VxD: Array,
  teacher_hidden_RxE: Array,
  teacher_unembed_VxE: Array,
  spec: Spec,
) -> Array:
  """See `kernels_pallas.linear_distill.linear_distill`."""
  ids_V = jnp.arange(unembed_VxD.shape[0], dtype=jnp.int32)
  live_1xV = vocabulary.allowed(ids_V, spec.forbidden)[None]
  q_RxV = jax.nn.log_softmax(spec.student(hidden_RxD, unembed_VxD), where=live_1xV)
  p_RxV = jax.nn.log_softmax(spec.teacher(teacher_hidden_RxE, teacher_unembed_VxE), where=live_1xV)
  gap_RxV = jnp.where(live_1xV, p_RxV - q_RxV, 0)
  weight_RxV = (1 - spec.reverse) * jnp.exp(p_RxV) - spec.reverse * jnp.exp(q_RxV)
  return jnp.where(live_1xV, weight_RxV * gap_RxV, 0).sum(axis=1)
