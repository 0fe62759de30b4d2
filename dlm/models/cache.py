"""Keys and values by canvas position: every layer reads its own, then writes the window's."""

import jax
import jax.numpy as jnp
from flax import struct

from dlm.models import packed
from dlm.models.packed import Packed
from dlm.types import Array, CacheFormat, Choice, KVCache, Ring
from kernels_pallas import dispatch
from kernels_pallas.block_attention import Part

Stored = tuple[Array | Packed, Array | Packed]  # keys and values


def empty(
  *,
  layers: int,
  batch: int,
  slots: int,
  kv_heads: int,
  head_dim: int,
  dtype: jnp.dtype,
  format: CacheFormat | None = None,
) -> KVCache:
  dtype = _held(dtype) if format is None else dtype
  sizes = {"layers": layers, "batch": batch, "slots": slots}
  sizes |= {"kv_heads": kv_heads, "head_dim": head_dim, "dtype": dtype}
  shape = (layers, batch, slots, kv_heads, head_dim)
  k, v = (
    jnp.zeros(shape, dtype) if format is None else packed.empty(format, values=values, **sizes)
    for values in (False, True)
  )
  coded_B = jnp.zeros(batch, jnp.int32) if format is not None and format.recent else None
  return KVCache(k, v, filled_BxS=jnp.zeros((batch, slots), bool), coded_B=coded_B)


def _held(dtype: jnp.dtype) -> jnp.dtype:
  """On CPUs bfloat16 is held in float32: XLA has no writes of bfloat16 there, and would widen the
  whole cache at each, and narrow it again."""
  on_cpu = dispatch.backend() == "cpu" and dtype == jnp.bfloat16
  return jnp.dtype(jnp.float32) if on_cpu else dtype


def parts(stored: Stored, layer: Array) -> list[Part]:
  """A layer's keys and values, for attention: where they are, or read into arrays of their own.

  With a residual those of its slots come last, as `recent_slots` has them.
  """
  if not isinstance(stored[0], Packed):
    return [Part(*stored, layer)]
  found = [Part(*(each.read(layer) for each in stored))]
  if stored[0].recent is not None:
    found.append(Part(*(each.recent for each in stored), layer))
  return found


def recent_slots(cache: KVCache) -> Array:
  """Int [B, R]: the slot that each place of a residual is for; some lie past the canvas's end."""
  first_Bx1, places = cache.coded_B[:, None], cache.k_YxBxSxKxH.format.recent
  return first_Bx1 + (jnp.arange(places)[None, :] - first_Bx1) % places


def coded_to(cache: KVCache, final_B: Array) -> Array:
  """Slots before this are codes once what comes before `final` is written: whole groups alone."""
  group = cache.k_YxBxSxKxH.format.group
  return jnp.maximum(cache.coded_B, final_B // group * group)


def ring(
  *, layers: int, batch: int, slots: int, kv_heads: int, head_dim: int, dtype: jnp.dtype
) -> Ring:
  """Empty; `slots`: as many positions as its layers look back."""
  shape = (layers, batch, slots, kv_heads, head_dim)
  nothing, dtype = jnp.full((batch, slots), -1, jnp.int32), _held(dtype)
  return Ring(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), nothing)


def targets(slot_BxW: Array, write_BxW: Array, slots: int) -> Array:
  """The slot that each of the window's keys goes to; those that go nowhere: one past the last."""
  return jnp.where(write_BxW, slot_BxW, slots)


def ring_targets(slot_BxW: Array, write_BxW: Array, size: int) -> Array:
  """The place in a ring that each of the window's keys goes to; one past the last: it goes nowhere.

  Keys enter in the order of the canvas, so those of a row that are `size` behind its last are lost.
  """
  last_Bx1 = jnp.where(write_BxW, slot_BxW, -1).max(1, keepdims=True)
  return jnp.where(write_BxW & (slot_BxW > last_Bx1 - size), slot_BxW % size, size)


def held(slot_BxS: Array, target_BxW: Array, slot_BxW: Array) -> Array:
  """The positions that a ring holds after that."""
  row_Bx1 = jnp.arange(target_BxW.shape[0])[:, None]
  return slot_BxS.at[row_Bx1, target_BxW].set(slot_BxW, mode="drop")


def put(
  stored: Stored,
  new: Stored,
  layer: Array,
  target_BxW: Array,
  coding: tuple[Array, Array] | None = None,
) -> Stored:
  """A layer's new keys and values [B, W, K, H] in their slots; all else stays, bit for bit.

  One scatter a tensor, so that a donated or looped cache is updated in place.

  Args:
    coding: of a residual: what comes before the first is codes, and before the second is after it.
  """
  row_Bx1 = jnp.arange(target_BxW.shape[0])[:, None]

  def one(store_YxBxSxKxH: Array | Packed, new_BxWxKxH: Array) -> Array | Packed:
    if isinstance(store_YxBxSxKxH, Packed):
      return store_YxBxSxKxH.put(new_BxWxKxH, layer, target_BxW, coding)
    own = new_BxWxKxH.astype(store_YxBxSxKxH.dtype)
    return store_YxBxSxKxH.at[layer, row_Bx1, target_BxW].set(own, mode="drop")

  return one(stored[0], new[0]), one(stored[1], new[1])


def filled(filled_BxS: Array, target_BxW: Array) -> Array:
  """Which slots hold keys after that."""
  row_Bx1 = jnp.arange(target_BxW.shape[0])[:, None]
  return filled_BxS.at[row_Bx1, target_BxW].set(True, mode="drop")


@struct.dataclass
class Offer:
  """Keys of a window over whole rows that a sparse cache may keep."""

  offered_BxW: Array
  asking_BxW: Array  # bool: queries whose mean says which keys matter
  choice: Choice = struct.field(pytree_node=False)

  @property
  def kept_B(self) -> Array:
    """How many of each row are kept."""
    width = self.offered_BxW.shape[1]
    table = jnp.array([self.choice.kept(n) for n in range(width + 1)], jnp.int32)
    return table[self.offered_BxW.sum(1)]


def chosen(q_BxWxNxH: Array, k_BxWxKxH: Array, offer: Offer, most: int) -> Array:
  """Int [B, C, K or 1]: the places in the window of the `most` best keys, best first.

  A key's score is its product with the mean of the asking queries, the largest of the query heads
  that share it, or the mean of all heads where one choice is made for all; and then the largest of
  its own and its two neighbours', among what is offered: what is not is taken out before. Of those
  that are returned the first `kept_B` count.
  """
  batch, _, heads, dim = k_BxWxKxH.shape
  asking_BxW = offer.asking_BxW.astype(jnp.float32)
  asking_BxW /= jnp.maximum(asking_BxW.sum(1, keepdims=True), 1)
  mean_BxNxH = jnp.einsum("bw,bwnh->bnh", asking_BxW, q_BxWxNxH.astype(jnp.float32))
  mean_BxKxGxH = mean_BxNxH.reshape(batch, heads, -1, dim)
  score_BxKxGxW = jnp.einsum("bkgh,bwkh->bkgw", mean_BxKxGxH, k_BxWxKxH.astype(jnp.float32))
  score_BxKxW = score_BxKxGxW.max(2)
  if not offer.choice.by_head:
    score_BxKxW = score_BxKxGxW.mean((1, 2))[:, None]
  order_Bx1xW = jnp.argsort(~offer.offered_BxW, axis=1, stable=True)[:, None]
  there_Bx1xW = jnp.take_along_axis(offer.offered_BxW[:, None], order_Bx1xW, axis=2)
  score_BxKxW = jnp.take_along_axis(score_BxKxW, order_Bx1xW, axis=2)
  score_BxKxW = jnp.where(there_Bx1xW, score_BxKxW, -jnp.inf)
  edge = ((0, 0), (0, 0), (1, 1))
  padded_BxKxV = jnp.pad(score_BxKxW, edge, constant_values=-jnp.inf)
  beside_BxKxW = jnp.maximum(padded_BxKxV[..., :-2], padded_BxKxV[..., 2:])
  pooled_BxKxW = jnp.where(there_Bx1xW, jnp.maximum(score_BxKxW, beside_BxKxW), -jnp.inf)
  _, best_BxKxC = jax.lax.top_k(pooled_BxKxW, most)
  return jnp.take_along_axis(order_Bx1xW, best_BxKxC, axis=2).swapaxes(1, 2)


def choose(
  stored: Stored, new: Stored, q_BxWxNxH: Array, layer: Array, offer: Offer, row_B: Array
) -> Stored:
  """A layer's best keys and their values take the place of all that it kept of these rows.

  `row_B`: of each row its number; one past the last: it keeps what it has.
  """
  index_BxCxKx1 = chosen(q_BxWxNxH, new[0], offer, stored[0].shape[2])[..., None]

  def one(store_YxBxSxKxH: Array, new_BxWxKxH: Array) -> Array:
    own = jnp.take_along_axis(new_BxWxKxH, index_BxCxKx1, axis=1).astype(store_YxBxSxKxH.dtype)
    return store_YxBxSxKxH.at[layer, row_B].set(own, mode="drop")

  return one(stored[0], new[0]), one(stored[1], new[1])


def filled_by(offer: Offer, filled_BxS: Array) -> Array:
  """Which slots hold keys after that."""
  first_BxS = jnp.arange(filled_BxS.shape[1])[None, :] < offer.kept_B[:, None]
  return jnp.where(offer.offered_BxW.any(1)[:, None], first_BxS, filled_BxS)


def in_window(slot_BxW: Array, slots: int) -> Array:
  """Bool [B, S]: slots that the window itself holds, so the cache's copy is stale."""
  batch = slot_BxW.shape[0]
  nowhere_BxS = jnp.zeros((batch, slots), bool)
  return nowhere_BxS.at[jnp.arange(batch)[:, None], slot_BxW].set(True, mode="drop")
