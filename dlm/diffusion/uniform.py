"""Uniform-state diffusion: noise replaces tokens by random ids, and no id says which."""

import jax

from dlm.types import Array


def states(vocab: int, mask_id: int) -> int:
  """How many ids noise may put: those below `vocab`, never the mask id."""
  return vocab - (mask_id < vocab)


def random_ids(key: Array, shape: tuple[int, ...], vocab: int, mask_id: int) -> Array:
  """Ids that noise puts, all alike likely."""
  id_BxL = jax.random.randint(key, shape, 0, states(vocab, mask_id))
  return id_BxL + (id_BxL >= mask_id)
