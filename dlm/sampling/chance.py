"""The coins that policies toss: one stream a row, one number a slot, the same in either scope."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dlm.types import Array, View


def uniform(key_B: Array, view: View) -> Array:
  """Uniform numbers in [0, 1), [B, A]; a row's depend on its key and the place in its block."""
  return _by_place(jax.random.uniform, key_B, view)


def gumbel(key_B: Array, view: View) -> Array:
  """Gumbel noise [B, A]: the n largest of log p + noise are n draws from p, none put back."""
  return _by_place(jax.random.gumbel, key_B, view)


def ids(key_B: Array, width: int, vocab: int, without: int) -> Array:
  """Ids [B, width], uniform over [0, vocab) without one of them."""
  n = vocab - (0 <= without < vocab)
  id_BxA = jax.vmap(lambda key: jax.random.randint(key, (width,), 0, n))(key_B)
  return id_BxA + (id_BxA >= without)


def _by_place(draw: Callable[..., Array], key_B: Array, view: View) -> Array:
  """Numbers counted from the active block's first slot; slots before it have a stream of their own.

  So a policy that sees every slot decides as one that sees its block alone.
  """
  width = view.slot_BxA.shape[1]

  def row(key: Array, place_A: Array) -> Array:
    behind_A, before_A = draw(key, (width,)), draw(jax.random.fold_in(key, 0), (width,))
    return jnp.where(place_A < 0, before_A[-place_A - 1], behind_A[place_A])

  return jax.vmap(row)(key_B, view.slot_BxA - view.start_B[:, None])
