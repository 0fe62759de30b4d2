"""KIVI (2402.02750): keep keys and values as whole numbers of 2 or 4 bits. And plainly, of 8.

Of 2 and 4 bits: code = round((x - zero) / scale) with halves to even, zero = min x, scale =
(max x - min x) / (2^bits - 1). Keys share these by channel, over a group of tokens; values by
token, over a group of channels. A group of tokens is coded whole, and never from what was read back
from codes: so no error grows. Of 8 bits each token and head has a scale, max |x| / 127.

What a forward computes itself it sees as it is; the rest it reads as it was kept. Where forwards
write whole groups, what they write is coded at once. Where they write less, the newest tokens wait
at full precision until their group is whole and final: KIVI's residual, which the forward that
makes it whole still reads as it is. A group's codes are those of all of it at once, whoever brought
its tokens when; values wait with their keys. A row's codes owe nothing to the other rows.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from dlm.types import Array, CacheFormat

CHANNELS = 32  # that share a scale of their token's value, as in the paper's code
AT_ONCE = 1024  # tokens whose numbers stand in float32 at a time, four times as wide on a TPU


@struct.dataclass
class Packed:
  """Keys, or values, of all layers. C: groups of slots; the last may reach past the canvas."""

  code: Array  # [Y, B, C, words, K, H]: of a group's slots the first is in the lowest bits
  scale: Array  # of 8 bits and of values [Y, B, C, slots of a group, K * groups of channels]; of
  zero: Array | None  # keys [Y, B, C, 1, K * H]; None: of 8 bits
  recent: Array | None  # the residual [Y, B, R, K, H]: slot s at s modulo R; None: there is none
  format: CacheFormat = struct.field(pytree_node=False)
  values: bool = struct.field(pytree_node=False)
  slots: int = struct.field(pytree_node=False)

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the array [Y, B, S, K, H] that it stands for."""
    layers, batch, *_, heads, dim = self.code.shape
    return layers, batch, self.slots, heads, dim

  def read(self, layer: Array) -> Array:
    """A layer's, [B, S, K, H], in the type of the scales."""

    def own(x: Array) -> Array:
      return jax.lax.dynamic_index_in_dim(x, layer, keepdims=False)

    def wide(code: Array, scale: Array, zero: Array | None) -> Array:
      x = decoded(self.format, code, scale, zero)
      return x.reshape(len(x), -1, *x.shape[3:])[:, : self.slots]

    zero = None if self.zero is None else own(self.zero)
    return _few_rows(wide, self.slots, own(self.code), own(self.scale), zero)

  def put(
    self,
    new_BxWxKxH: Array,
    layer: Array,
    target_BxW: Array,
    coding: tuple[Array, Array] | None = None,
  ) -> "Packed":
    """With a window's in the slots `target`; those that go nowhere: one past the last.

    A group of which any slot is written is written whole: its other slots hold nothing after that.

    Args:
      coding: with a residual, which this needs: slots before the first are codes. From there to the
        second, a multiple of a group, all slots are in the window or in the residual, and are coded
        now; what else is written goes to the residual, and lies less than that behind the second.
    """
    width = target_BxW.shape[1]
    if self.recent is not None:
      return self._put_recent(new_BxWxKxH, layer, target_BxW, *coding)

    def narrow(new_BxWxKxH: Array, target_BxW: Array) -> tuple[Array | None, ...]:
      x, there, group_BxC = new_BxWxKxH[:, :, None], None, target_BxW
      if self.format.group > 1:
        first_Bx1 = target_BxW.min(1, keepdims=True) // self.format.group
        count = min(-(-width // self.format.group), self.code.shape[2])
        x, there = self._grouped(new_BxWxKxH, target_BxW, first_Bx1, count)
        number_BxC = first_Bx1 + jnp.arange(count)[None, :]
        group_BxC = jnp.where(there.any(2), number_BxC, self.code.shape[2])
      return group_BxC, *coded(self.format, self.values, x, there, self.scale.dtype)

    return self._with_groups(layer, *_few_rows(narrow, width, new_BxWxKxH, target_BxW))

  def _put_recent(
    self, new_BxWxKxH: Array, layer: Array, target_BxW: Array, from_B: Array, to_B: Array
  ) -> "Packed":
    batch, width = target_BxW.shape
    (_, _, places, *_), size, groups = self.recent.shape, self.format.group, self.code.shape[2]
    count = min((places + width) // size, groups)

    def narrow(new, target_BxW, recent_BxRxKxH, from_B, to_B) -> tuple[Array | None, ...]:
      first_Bx1 = from_B[:, None] // size
      x, there = self._grouped(new, target_BxW, first_Bx1, count)
      slot_BxT = from_B[:, None] + jnp.arange(count * size)[None, :]
      held = jnp.take_along_axis(recent_BxRxKxH, (slot_BxT % places)[:, :, None, None], axis=1)
      x = jnp.where(there[..., None, None], x, held.reshape(x.shape))
      number_BxC = first_Bx1 + jnp.arange(count)[None, :]
      group_BxC = jnp.where(number_BxC < to_B[:, None] // size, number_BxC, groups)
      return group_BxC, *coded(self.format, self.values, x, None, self.scale.dtype)

    recent_BxRxKxH = jax.lax.dynamic_index_in_dim(self.recent, layer, keepdims=False)
    arrays = new_BxWxKxH, target_BxW, recent_BxRxKxH, from_B, to_B
    group_BxC, code, scale, zero = _few_rows(narrow, width, *arrays)
    waits_BxW = (target_BxW >= to_B[:, None]) & (target_BxW < self.slots)
    place_BxW = jnp.where(waits_BxW, target_BxW % places, places)
    # Few of a whole canvas go there: they are looked up, where a scatter would copy the window.
    from_BxR = jnp.full((batch, places), width, jnp.int32)
    row_Bx1 = jnp.arange(batch)[:, None]
    from_BxR = from_BxR.at[row_Bx1, place_BxW].set(jnp.arange(width)[None, :], mode="drop")
    from_BxRx1x1 = from_BxR[:, :, None, None]
    own = jnp.take_along_axis(new_BxWxKxH, jnp.minimum(from_BxRx1x1, width - 1), axis=1)
    own = jnp.where(from_BxRx1x1 < width, own.astype(recent_BxRxKxH.dtype), recent_BxRxKxH)
    recent = self.recent.at[layer].set(own)
    return self._with_groups(layer, group_BxC, code, scale, zero).replace(recent=recent)

  def _with_groups(
    self, layer: Array, group_BxC: Array, code: Array, scale: Array, zero: Array | None
  ) -> "Packed":
    """With these at their numbers; a group that goes nowhere: one past the last."""
    row_Bx1 = jnp.arange(len(group_BxC))[:, None]

    def one(into: Array, own: Array) -> Array:
      return into.at[layer, row_Bx1, group_BxC].set(own, mode="drop")

    zero = None if self.zero is None else one(self.zero, zero)
    return self.replace(code=one(self.code, code), scale=one(self.scale, scale), zero=zero)

  def _grouped(
    self, new_BxWxKxH: Array, target_BxW: Array, first_Bx1: Array, count: int
  ) -> tuple[Array, Array]:
    """The window in groups [B, C, slots of a group, K, H] from `first` on; which are in it."""
    (batch, width), size = target_BxW.shape, self.format.group
    offset_BxW = target_BxW - first_Bx1 * size
    offset_BxW = jnp.where((offset_BxW < 0) | (target_BxW >= self.slots), count * size, offset_BxW)
    place_BxT = jnp.full((batch, count * size), width, jnp.int32)
    row_Bx1 = jnp.arange(batch)[:, None]
    place_BxT = place_BxT.at[row_Bx1, offset_BxW].set(jnp.arange(width)[None, :], mode="drop")
    index_BxTx1x1 = jnp.minimum(place_BxT, width - 1)[:, :, None, None]
    x_BxTxKxH = jnp.take_along_axis(new_BxWxKxH, index_BxTx1x1, axis=1)
    shape = batch, count, size
    return x_BxTxKxH.reshape(*shape, *x_BxTxKxH.shape[2:]), (place_BxT < width).reshape(shape)


def _few_rows(fn: Callable[..., Any], tokens: int, *arrays: Array | None) -> Any:
  """`fn(*arrays)` of rows of so many tokens, for few of them at a time: it is the same for each."""
  batch = len(arrays[0])
  rows = max(n for n in range(1, batch + 1) if batch % n == 0 and (n == 1 or n * tokens <= AT_ONCE))
  if rows == batch:
    return fn(*arrays)
  parts = jax.tree.map(lambda x: x.reshape(batch // rows, rows, *x.shape[1:]), arrays)
  out = jax.lax.map(lambda part: fn(*part), parts)
  return jax.tree.map(lambda x: x.reshape(batch, *x.shape[2:]), out)


def empty(
  format: CacheFormat,
  *,
  values: bool,
  layers: int,
  batch: int,
  slots: int,
  kv_heads: int,
  head_dim: int,
  dtype: jnp.dtype,
) -> Packed:
  """Of so many slots; scales, and what waits for its group, are of the model's type."""
  groups = -(-slots // format.group)
  x = jax.ShapeDtypeStruct((batch, groups, format.group, kv_heads, head_dim), dtype)
  shapes = jax.eval_shape(lambda x: coded(format, values, x, None, dtype), x)
  code, scale, zero = jax.tree.map(lambda s: jnp.zeros((layers, *s.shape), s.dtype), shapes)
  recent = None
  if format.recent:
    recent = jnp.zeros((layers, batch, format.recent, kv_heads, head_dim), dtype)
  return Packed(code, scale, zero, recent, format, values, slots)


def coded(
  format: CacheFormat, values: bool, x: Array, there_BxCxT: Array | None, dtype: jnp.dtype
) -> tuple[Array, Array, Array | None]:
  """Codes, scales and zeros of x [B, C, T, K, H], as `Packed` has them without the layers."""
  batch, groups, size, heads, dim = x.shape
  x = x.astype(jnp.float32)
  if format.bits == 8:
    scale = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / 127
    scale = jnp.where(scale > 0, scale, 1).astype(dtype)
    code = jnp.clip(jnp.round(x / scale.astype(jnp.float32)), -127, 127).astype(jnp.int8)
    return code, scale[..., 0], None
  there = None if there_BxCxT is None else there_BxCxT[..., None, None]
  if values:
    channels = math.gcd(CHANNELS, dim)
    x = x.reshape(batch, groups, size, heads, dim // channels, channels)
    code, scale, zero = rounded(x, format.bits, -1, dtype)
    code = code.reshape(batch, groups, size, heads, dim)
  else:
    code, scale, zero = rounded(x, format.bits, 2, dtype, there)
  scale, zero = (y.reshape(batch, groups, size if values else 1, -1) for y in (scale, zero))
  return packed(code, format.bits, axis=2), scale, zero


def decoded(format: CacheFormat, code: Array, scale: Array, zero: Array | None) -> Array:
  """[B, C, T, K, H] in the type of the scales: what `coded` was given, but for rounding."""
  batch, groups, _, heads, dim = code.shape
  if zero is None:
    return (code * scale[..., None].astype(jnp.float32)).astype(scale.dtype)
  code, dtype = unpacked(code, format.bits, axis=2), scale.dtype
  # Of keys [.., 1, K, H, 1], of values [.., T, K, groups of channels, 1].
  scale, zero = (y.reshape(*y.shape[:3], heads, -1, 1).astype(jnp.float32) for y in (scale, zero))
  wide = code.reshape(*code.shape[:4], scale.shape[4], -1) * scale + zero
  return wide.astype(dtype).reshape(batch, groups, -1, heads, dim)


def rounded(
  x: Array, bits: int, axis: int, dtype: jnp.dtype, there: Array | None = None
) -> tuple[Array, Array, Array]:
  """Codes (uint8), scales and zeros of x, float32; what lies along `axis` shares the latter two.

  Scales are rounded to `dtype` first, so that a code is the nearest to what will be read.

  Args:
    there: which numbers count; None: all. The others' codes mean nothing.
  """
  low = jnp.min(x, axis=axis, keepdims=True, initial=jnp.inf, where=there)
  high = jnp.max(x, axis=axis, keepdims=True, initial=-jnp.inf, where=there)
  scale = (high - low) / (2**bits - 1)
  usable = (scale > 0) & jnp.isfinite(scale)  # not of equal numbers, nor where none count
  scale, zero = jnp.where(usable, scale, 1).astype(dtype), jnp.where(low < jnp.inf, low, 0)
  zero = zero.astype(dtype)
  code = (x - zero.astype(jnp.float32)) / scale.astype(jnp.float32)
  return jnp.clip(jnp.round(code), 0, 2**bits - 1).astype(jnp.uint8), scale, zero


def packed(code: Array, bits: int, axis: int) -> Array:
  """Words of 32 bits, or of the most that divide a group: the first code in the lowest bits."""
  size = code.shape[axis] * bits
  word = math.gcd(size, 32)
  each = word // bits
  axis %= code.ndim
  shape = (*code.shape[:axis], size // word, each, *code.shape[axis + 1 :])
  code = code.astype(f"uint{word}").reshape(shape)
  shift = jnp.arange(each, dtype=code.dtype) * bits
  shift = shift.reshape(*[1] * (axis + 1), each, *[1] * (code.ndim - axis - 2))
  return (code << shift).sum(axis + 1, dtype=code.dtype)


def unpacked(words: Array, bits: int, axis: int) -> Array:
  """The codes that `packed` was given."""
  each = words.dtype.itemsize * 8 // bits
  axis %= words.ndim
  shift = jnp.arange(each, dtype=words.dtype) * bits
  shift = shift.reshape(*[1] * (axis + 1), each, *[1] * (words.ndim - axis - 1))
  code = (jnp.expand_dims(words, axis + 1) >> shift) & (2**bits - 1)
  return code.reshape(*words.shape[:axis], -1, *words.shape[axis + 1 :]).astype(jnp.uint8)
