"""The coins that policies toss: one stream a row, one number a slot of its scope."""

import jax

from dlm.types import Array


def uniform(key_B: Array, width: int) -> Array:
  """Uniform numbers in [0, 1), [B, width]; a row's depend on its key alone."""
  return jax.vmap(lambda key: jax.random.uniform(key, (width,)))(key_B)


def gumbel(key_B: Array, width: int) -> Array:
  """Gumbel noise [B, width]: the n largest of log p + noise are n draws from p, none put back."""
  return jax.vmap(lambda key: jax.random.gumbel(key, (width,)))(key_B)


def ids(key_B: Array, width: int, vocab: int, without: int) -> Array:
  """Ids [B, width], uniform over [0, vocab) without one of them."""
  n = vocab - (0 <= without < vocab)
  id_BxA = jax.vmap(lambda key: jax.random.randint(key, (width,), 0, n))(key_B)
  return id_BxA + (id_BxA >= without)
