"""The coins that policies toss: one stream a row, one number a slot of its scope."""

import jax

from dlm.types import Array


def uniform(key_B: Array, width: int) -> Array:
  """Uniform numbers in [0, 1), [B, width]; a row's depend on its key alone."""
  return jax.vmap(lambda key: jax.random.uniform(key, (width,)))(key_B)
