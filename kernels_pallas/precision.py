"""The precision that matmuls ask for, in kernels and beside them."""

import jax
import jax.numpy as jnp


def of(*operands: jax.Array) -> jax.lax.Precision | None:
  """For bfloat16 the only one it has, since Mosaic refuses any other; else None: jax's setting."""
  narrow = all(x.dtype == jnp.bfloat16 for x in operands)
  return jax.lax.Precision.DEFAULT if narrow else None
