"""What a stop id does to a row."""

import jax.numpy as jnp

from dlm.sampling.sampler import Sampler
from dlm.types import Array, Canvas


def written(sampler: Sampler, canvas: Canvas) -> Array:
  """Bool [B, L]: stop ids that the sampler wrote; one in the prompt is text."""
  stops = jnp.array(sampler.eos_ids, jnp.int32)
  return canvas.open_BxL & (canvas.when_BxL >= 0) & jnp.isin(canvas.tokens_BxL, stops)


def fills_after(sampler: Sampler, full_B: Array) -> Array:
  """Rows in which `on_eos` "fill" acts after this forward, over the whole canvas or not.

  With Fast-dLLM's caches it does so after the cheap forwards alone, as in the authors' code: the
  whole-canvas forward that opens a block fills nothing.
  """
  return ~full_B if sampler.plan.fills_inside else jnp.ones_like(full_B)


def fill(sampler: Sampler, canvas: Canvas, rows_B: Array, from_B: Array) -> Canvas:
  """Open slots behind the first stop id that was written, and not before `from`, become it."""
  slot_L = jnp.arange(canvas.tokens_BxL.shape[1])
  stop_BxL = written(sampler, canvas)
  seen_BxL = jnp.cumsum(stop_BxL, axis=1) > 0
  first_Bx1 = jnp.argmax(stop_BxL, axis=1)[:, None]
  eos_Bx1 = jnp.take_along_axis(canvas.tokens_BxL, first_Bx1, axis=1)
  fill_BxL = seen_BxL & canvas.open_BxL & rows_B[:, None] & (canvas.tokens_BxL != eos_Bx1)
  fill_BxL &= slot_L[None, :] >= from_B[:, None]
  return canvas.replace(
    tokens_BxL=jnp.where(fill_BxL, eos_Bx1, canvas.tokens_BxL),
    when_BxL=jnp.where(fill_BxL, canvas.turn_B[:, None], canvas.when_BxL),
    logp_BxL=jnp.where(fill_BxL, jnp.nan, canvas.logp_BxL),
  )


def stopped(sampler: Sampler, canvas: Canvas, masked_BxL: Array, finished_B: Array) -> Array:
  """Rows that end with the stop id they wrote, by `on_eos`: at once, or when the block is done.

  "fill" ends a row when its block is done too, for what was not filled behind it (`fills_after`).
  """
  if sampler.on_eos == "fill_block":
    return jnp.zeros_like(finished_B)
  offset_BxL = jnp.arange(masked_BxL.shape[1])[None, :] - canvas.start_B[:, None]
  block_BxL = (offset_BxL >= 0) & (offset_BxL < sampler.block)
  stop_BxL = written(sampler, canvas) & block_BxL
  if sampler.on_eos != "stop":
    return stop_BxL.any(-1) & finished_B
  waits_BxL = masked_BxL & block_BxL & (jnp.cumsum(stop_BxL, axis=-1) == 0)
  return stop_BxL.any(-1) & ~waits_BxL.any(-1)
