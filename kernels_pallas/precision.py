"""What matmuls in kernels and beside them are told of precision."""

import jax
import jax.numpy as jnp


def of(*operands: jax.Array) -> jax.lax.Precision | None:
  """bfloat16 has one, whatever jax is told, and Mosaic refuses to be told another; else jax's."""
  narrow = all(x.dtype == jnp.bfloat16 for x in operands)
  return jax.lax.Precision.DEFAULT if narrow else None
