"""All that is done to a canvas: made of host lists, looked at slot by slot, written."""

import jax
import jax.numpy as jnp
import numpy as np

from dlm.sampling.sampler import Sampler
from dlm.seeds import check_seed
from dlm.types import FORWARD_KINDS, Array, Canvas

ALIGNMENTS = ("canvas", "prompt")


def make_canvas(
  tokens: list[np.ndarray],
  open_: list[np.ndarray],
  row_ids: list[int],
  *,
  samples: list[int] | None = None,
  slots: int,
  block: int,
  align: str,
  mask_id: int,
  seed: int,
) -> Canvas:
  """One row per request; `tokens[i]` holds its ids, `open_[i]` where they are to be written.

  align="canvas": blocks are cut from slot 0, as block-causal models are trained; "prompt": the
  first block starts at the first open slot (LLaDA). Row i's noise depends on the seed, row_ids[i]
  and samples[i] (None: 0, the first of its id) alone. Raises ValueError where a row does not fit or
  has nothing to write, or for a bad seed.
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
  # A seed fills the low word of a key: samples differ in the high one, 0 in the key of the seed.
  word_Bx2 = [[sample, check_seed(seed)] for sample in samples or [0] * batch]
  key_B = jax.random.wrap_key_data(jnp.asarray(word_Bx2, jnp.uint32), impl="threefry2x32")
  return untouched(
    tokens_BxL=jnp.asarray(tokens_BxL),
    open_BxL=jnp.asarray(open_BxL),
    start_B=jnp.asarray(start_B),
    length_B=jnp.asarray([len(ids) for ids in tokens], jnp.int32),
    key_B=jax.vmap(jax.random.fold_in)(key_B, jnp.asarray(row_ids, jnp.uint32)),
  )


def untouched(
  *, tokens_BxL: Array, open_BxL: Array, start_B: Array, length_B: Array, key_B: Array
) -> Canvas:
  """The canvas before its first forward."""
  batch, slots = tokens_BxL.shape
  return Canvas(
    tokens_BxL=tokens_BxL,
    open_BxL=open_BxL,
    when_BxL=jnp.full((batch, slots), -1, jnp.int32),
    logp_BxL=jnp.full((batch, slots), jnp.nan),
    start_B=start_B,
    length_B=length_B,
    key_B=key_B,
    done_B=jnp.zeros(batch, bool),
    forwards_Bx3=jnp.zeros((batch, len(FORWARD_KINDS)), jnp.int32),
    drafts_B=jnp.zeros(batch, jnp.int32),
    queries_B=jnp.zeros(batch, jnp.int32),
    computed_B=jnp.zeros(batch),
    remasked_B=jnp.zeros(batch, jnp.int32),
  )


def masked(canvas: Canvas, mask_id: int) -> Array:
  """Still to be written. A mask id in the prompt is text: only open slots count."""
  return canvas.open_BxL & (canvas.tokens_BxL == mask_id)


def scope(sampler: Sampler, canvas: Canvas) -> Array:
  """Slots [B, A] that the policy sees; some may lie past the canvas's end."""
  if sampler.scope == "canvas":
    batch, slots = canvas.tokens_BxL.shape
    return jnp.broadcast_to(jnp.arange(slots)[None, :], (batch, slots))
  return canvas.start_B[:, None] + jnp.arange(sampler.block)[None, :]


def at_slot(x_BxL: Array, slot_BxA: Array) -> Array:
  """x[b, slot[b, a]], further axes as they are; slots past the end read the last one."""
  slot_BxA = jnp.minimum(slot_BxA, x_BxL.shape[1] - 1)
  return jnp.take_along_axis(x_BxL, slot_BxA.reshape(*slot_BxA.shape, *[1] * (x_BxL.ndim - 2)), 1)


def in_block(sampler: Sampler, canvas: Canvas) -> Array:
  """The active block's masked slots, in scope [B, A]."""
  slot_BxA = scope(sampler, canvas)
  offset_BxA = slot_BxA - canvas.start_B[:, None]
  inside_BxA = (offset_BxA >= 0) & (offset_BxA < sampler.block)
  inside_BxA &= slot_BxA < canvas.tokens_BxL.shape[1]
  return at_slot(masked(canvas, sampler.mask_id), slot_BxA) & inside_BxA


def write(
  canvas: Canvas,
  where_BxA: Array,
  slot_BxA: Array,
  token_BxA: Array,
  *,
  turn_B: Array | None = None,
  logp_BxA: Array | None = None,
) -> Canvas:
  """Puts tokens into slots; closed ones and those past the canvas's end stay as they are.

  Args:
    turn_B: the row's forward that wrote them; None: nothing is decided yet (drafts, random ids).
    logp_BxA: the log-probability that it gave them; None: it gave none.
  """
  batch, slots = canvas.tokens_BxL.shape
  row_Bx1 = jnp.arange(batch)[:, None]
  where_BxA = where_BxA & at_slot(canvas.open_BxL, slot_BxA)
  into_BxA = jnp.where(where_BxA, slot_BxA, slots)  # out of range: dropped

  def put(x_BxL: Array, value_BxA: Array) -> Array:
    return x_BxL.at[row_Bx1, into_BxA].set(value_BxA, mode="drop")

  canvas = canvas.replace(tokens_BxL=put(canvas.tokens_BxL, token_BxA))
  if turn_B is None:
    return canvas
  turn_BxA = jnp.broadcast_to(turn_B[:, None], slot_BxA.shape)
  if logp_BxA is None:
    logp_BxA = jnp.full(slot_BxA.shape, jnp.nan)
  return canvas.replace(
    when_BxL=put(canvas.when_BxL, turn_BxA), logp_BxL=put(canvas.logp_BxL, logp_BxA)
  )
