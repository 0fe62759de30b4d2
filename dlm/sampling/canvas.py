"""From host lists to a canvas: rows of unequal length, open where the sampler may write."""

import jax
import jax.numpy as jnp
import numpy as np

from dlm.seeds import check_seed
from dlm.types import FORWARD_KINDS, Canvas

ALIGNMENTS = ("canvas", "prompt")


def make_canvas(
  tokens: list[np.ndarray],
  open_: list[np.ndarray],
  row_ids: list[int],
  *,
  slots: int,
  block: int,
  align: str,
  mask_id: int,
  seed: int,
) -> Canvas:
  """One row per request; `tokens[i]` holds its ids, `open_[i]` where they are to be written.

  align="canvas": blocks are cut from slot 0, as block-causal models are trained; "prompt": the
  first block starts at the first open slot (LLaDA). Row i's noise depends on (seed, row_ids[i])
  alone. Raises ValueError where a row does not fit or has nothing to write, or for a bad seed.
  """
  if align not in ALIGNMENTS:
    raise ValueError(f"align={align!r} is not one of {', '.join(ALIGNMENTS)}")
  batch = len(tokens)
  tokens_BxL = np.zeros((batch, slots), np.int32)
  open_BxL = np.zeros((batch, slots), bool)
  start_B = np.zeros(batch, np.int32)
  for row, (ids, free) in enumerate(zip(tokens, open_, strict=True)):
    if len(ids) > slots:
      raise ValueError(f"request {row_ids[row]}: {len(ids)} tokens exceed the canvas of {slots}")
    if not free.any():
      raise ValueError(f"request {row_ids[row]}: nothing to write (no open position)")
    tokens_BxL[row, : len(ids)] = np.where(free, mask_id, ids)
    open_BxL[row, : len(ids)] = free
    first = int(np.argmax(free))
    start_B[row] = first // block * block if align == "canvas" else first
  key = jax.random.key(check_seed(seed))
  return Canvas(
    tokens_BxL=jnp.asarray(tokens_BxL),
    open_BxL=jnp.asarray(open_BxL),
    when_BxL=jnp.full((batch, slots), -1, jnp.int32),
    start_B=jnp.asarray(start_B),
    length_B=jnp.asarray([len(ids) for ids in tokens], jnp.int32),
    key_B=jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(row_ids, jnp.uint32)),
    done_B=jnp.zeros(batch, bool),
    forwards_Bx3=jnp.zeros((batch, len(FORWARD_KINDS)), jnp.int32),
    drafts_B=jnp.zeros(batch, jnp.int32),
    queries_B=jnp.zeros(batch, jnp.int32),
    remasked_B=jnp.zeros(batch, jnp.int32),
  )
