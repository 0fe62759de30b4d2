"""The precision that matmuls ask for, in kernels and beside them."""

import jax
import jax.numpy as jnp

from kernels_pallas import dispatch


def of(*operands: jax.Array) -> jax.lax.Precision | None:
  """For bfloat16 the only one it has, since Mosaic refuses any other; else None: jax's setting."""
  narrow = all(x.dtype == jnp.bfloat16 for x in operands)
  return jax.lax.Precision.DEFAULT if narrow else None


def float32_product(eqn: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`einsum(eqn, x, kernel)` added up and given in float32; x's first axis holds the rows.

  On CPUs XLA has its fast matmuls of bfloat16 for float32 results and two rows or more alone; for
  one row it would first widen the whole kernel (BENCHMARKS.md, Products).
  """
  rows = len(x)
  if rows == 1 and x.dtype == jnp.bfloat16 and dispatch.backend() == "cpu":
    x = jnp.concatenate([x, jnp.zeros_like(x)])
  wide = {"precision": of(x, kernel), "preferred_element_type": jnp.float32}
  return jnp.einsum(eqn, x, kernel, **wide)[:rows]
