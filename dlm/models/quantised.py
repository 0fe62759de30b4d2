"""Weights as small whole numbers: a kernel is codes and a scale, a half or a quarter of bfloat16.

w = scale * code, code = round(w / scale) with halves to even, scale = max |w| / (2^(bits-1) - 1/2):
over the inputs of an output channel, or of each group of them; these are the scales of qwix. With
a zero point w = scale * (code - zero), and the codes reach from the least number to the largest.
DGQ (2310.04836): w = scale * step * code, a whole step for each group of 4-bit codes inside one
scale of their channel; step * code fits int8, so that a product is one of 8-bit whole numbers.
`Codes` stand where the kernel stood in the tree of parameters, and `Einsum` of `dlm.models.layers`
and the experts of `dlm.models.moe.layer` read them. Embeddings, norms, routers and what a noise
level modulates stay as they are. On disk they are dicts of arrays: `as_dicts`.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct, traverse_util

from dlm.models.layers import product
from dlm.types import Array, Params
from kernels_pallas import dispatch, shards
from kernels_pallas.precision import float32_product

KNOWN = re.compile(r"(int8|int4)(?:g([1-9][0-9]*))?(z)?|w8a8|(?:dgq|w4a8g)([1-9][0-9]*)")
# On a CPU a tile of a kernel, as it is multiplied, has at most so many bytes, or as many inputs as
# there are rows, up to TILE_ROWS: the sum so far is read and written for each tile. Measured on two
# cores of an EPYC with 1 MB of cache each (4096 x 4096 and 4096 x 12288, 1 to 512 rows).
TILE_BYTES, TILE_ROWS, TILE_MIN = 3 << 20, 512, 32
TINY = jnp.finfo(jnp.float32).tiny ** 0.5  # a channel of smaller numbers has scale 1, and codes 0


# Scales of a channel that DGQ tries: its largest weight, and less, at 127 steps.
CLIPS = tuple(1 - i / 32 for i in range(20))


@dataclasses.dataclass(frozen=True)
class Format:
  """How a kernel is kept.

  Args:
    bits: 8, or 4, two codes a byte.
    group: inputs that share a scale; 0: all of an output channel.
    activations: what a kernel is applied to is rounded to int8 too, a scale a token, and the sum is
      one of whole numbers.
    steps: groups have whole steps inside the scale of their channel (DGQ).
    zero: each scale has a zero point.
  """

  bits: int
  group: int = 0
  activations: bool = False
  steps: bool = False
  zero: bool = False

  @property
  def name(self) -> str:
    if self.steps:
      return f"w4a8g{self.group}" if self.activations else f"dgq{self.group}"
    if self.activations:
      return "w8a8"
    return f"int{self.bits}" + (f"g{self.group}" if self.group else "") + "z" * self.zero

  @classmethod
  def of(cls, name: str) -> "Format":
    """int8, int4, either with gN (groups of N inputs) or z (zero points) or both, dgqN, w8a8 or
    w4a8gN (dgqN, and activations in int8). ValueError for another name."""
    known = KNOWN.fullmatch(name)
    if known is None:
      raise ValueError(
        f"weights={name!r} must be int8, int4, int8gN or int4gN (groups of N inputs: int4g128), "
        "one of these and z (zero points: int4g128z), dgqN (int4, whole steps of groups in a scale "
        "of the channel), w8a8 or w4a8gN (activations in int8 too), or empty for as they are stored"
      )
    if name == "w8a8":
      return cls(8, activations=True)
    if known[4]:
      return cls(4, int(known[4]), activations=name.startswith("w4a8"), steps=True)
    return cls(8 if known[1] == "int8" else 4, int(known[2] or 0), zero=bool(known[3]))

  def reads(self, other: "Format") -> bool:
    """Whether the codes of `other` are its own: activations may be rounded or not."""
    return dataclasses.replace(self, activations=other.activations) == other


@struct.dataclass
class Codes:
  """A kernel [in..., out...] or a stack of them."""

  codes: Array  # int8 [in, out...]; of 4 bits uint8 [in / 2, out...]: see `packed`
  scale: Array  # float32 [groups, out...]; with steps [1, out...]
  format: Format = struct.field(pytree_node=False)
  steps: Array | None = None  # int8 [groups, out...], at least 1
  zero: Array | None = None  # int8 [groups, out...]

  @property
  def whole(self) -> Array:
    """The codes of a single kernel as int8 [in, out], output axes folded; times their steps, if
    they have any."""
    codes = self.codes.reshape(len(self.codes), -1)
    codes = unpacked(codes) if self.format.bits == 4 else codes
    if self.steps is None:
      return codes
    steps = self.steps.reshape(len(self.steps), 1, -1)
    return (codes.reshape(len(steps), -1, codes.shape[1]) * steps).reshape(codes.shape)

  def wide(self, dtype: jnp.dtype) -> Array:
    """The kernel [in, out] that it stands for."""
    codes, scale = self.whole, self.scale.reshape(len(self.scale), -1)
    grouped = codes.reshape(len(scale), -1, codes.shape[1])
    if self.zero is not None:
      grouped = grouped.astype(jnp.float32) - self.zero.reshape(len(scale), 1, -1)
    grouped *= scale[:, None]
    return grouped.reshape(codes.shape).astype(dtype)

  def product(self, x_RxI: Array, layer: Array | None = None) -> Array:
    """x @ kernel: [rows, out], in x's type; of a stack of kernels that of this layer."""
    tile = self._tile(x_RxI, stacked=layer is not None)
    if tile:
      stack = self if layer is not None else jax.tree.map(lambda x: x[None], self)
      return _in_tiles(x_RxI, stack, 0 if layer is None else layer, tile)
    own = self if layer is None else jax.tree.map(lambda x: x[layer], self)
    return own._whole_product(x_RxI)

  def _whole_product(self, x_RxI: Array) -> Array:
    if len(self.scale) > 1 or self.zero is not None:
      return product("RI,IO->RO", x_RxI, self.wide(x_RxI.dtype))
    codes_IxO, scale_1xO = self.whole, self.scale.reshape(1, -1)
    if not self.format.activations:
      # Codes are exact in bfloat16; the scale waits for the sum.
      y_RxO = float32_product("RI,IO->RO", x_RxI, codes_IxO.astype(x_RxI.dtype))
      return (y_RxO * scale_1xO).astype(x_RxI.dtype)
    rounded_RxI, scale_Rx1 = rounded(x_RxI.astype(jnp.float32), 8, axes=(1,))
    y_RxO = jnp.matmul(rounded_RxI, codes_IxO, preferred_element_type=jnp.int32)
    return (y_RxO * scale_Rx1 * scale_1xO).astype(x_RxI.dtype)

  def _tile(self, x_RxI: Array, stacked: bool) -> int:
    """Inputs that a CPU multiplies at a time, see `_in_tiles`; 0: all of them, not in tiles."""
    own = shards.axes()
    if dispatch.backend() != "cpu" or own.rows or own.tensor:
      return 0
    run = x_RxI.shape[1] * self.format.bits // 8  # inputs whose codes follow on each other
    outputs = math.prod(self.codes.shape[1 + stacked :])
    bytes_ = 1 if self.format.activations else _wide_type(x_RxI).itemsize
    most = max(TILE_BYTES // (outputs * bytes_), min(len(x_RxI), TILE_ROWS), TILE_MIN)
    group = self.format.group or run
    fit = [
      size
      for size in range(min(TILE_MIN, run), min(most, run) + 1)
      if run % size == 0 and (group % size == 0 or size % group == 0)
    ]
    return max(fit, default=0)


def _wide_type(x_RxI: Array) -> jnp.dtype:
  """What codes become beside x on a CPU: for one row XLA has matmuls of float32 alone."""
  return jnp.dtype(jnp.float32) if len(x_RxI) == 1 else x_RxI.dtype


def _in_tiles(x_RxI: Array, stack: Codes, layer: Array | int, tile: int) -> Array:
  """x @ a kernel of the stack, so many inputs at a time: for CPUs.

  XLA's CPU backend writes operands of a product to memory, so a kernel that is widened whole, or
  taken from the stack first, costs several times the product of few rows. A tile stays in the
  caches (BENCHMARKS.md, Products).
  """
  format, rows = stack.format, len(x_RxI)
  given, dtype = x_RxI.dtype, _wide_type(x_RxI)
  parts = 8 // format.bits  # the two halves of the inputs that 4-bit codes are packed of
  count = x_RxI.shape[1] // parts // tile
  outputs = math.prod(stack.codes.shape[2:])
  if format.activations:
    x_RxI, scale_Rx1 = rounded(x_RxI.astype(jnp.float32), 8, axes=(1,))
    # Of one row XLA would widen codes to 32 bits.
    x_RxI = jnp.pad(x_RxI, ((0, rows == 1), (0, 0)))
  else:
    x_RxI = x_RxI.astype(dtype)
  x_RxPxNxT = x_RxI.reshape(len(x_RxI), parts, count, tile)

  def cut(array: Array, first: Array, size: int) -> Array:
    array = array.reshape(*array.shape[:2], outputs)
    return jax.lax.dynamic_slice(array, (layer, first, 0), (1, size, outputs))[0]

  def of_groups(array: Array, part: int, i: Array) -> Array:
    """What the tile's inputs have of scales, steps or zeros: [groups, 1, out]."""
    groups = array.shape[1]
    size = max(groups * tile // x_RxI.shape[1], 1)
    first = (part * count + i) * tile * groups // x_RxI.shape[1]
    return cut(array, first, size)[:, None]

  def add(i: Array, y_RxO: Array) -> Array:
    stored_TxO = cut(stack.codes, i * tile, tile)
    for part in range(parts):
      codes_TxO = stored_TxO if parts == 1 else _of_half(stored_TxO, part)
      x_RxT = jax.lax.dynamic_index_in_dim(x_RxPxNxT[:, part], i, 1, keepdims=False)
      if stack.steps is not None:
        steps = of_groups(stack.steps, part, i)
        codes_TxO = (codes_TxO.reshape(len(steps), -1, outputs) * steps).reshape(tile, outputs)
      if format.activations:
        y_RxO += jnp.matmul(x_RxT, codes_TxO, preferred_element_type=jnp.int32)
        continue
      scale = of_groups(stack.scale, part, i)
      wide = codes_TxO.reshape(len(scale), -1, outputs).astype(jnp.float32)
      if stack.zero is not None:
        wide -= of_groups(stack.zero, part, i)
      if len(scale) > 1:
        wide *= scale
      wide_TxO = wide.reshape(tile, outputs).astype(dtype)
      sum_RxO = jnp.matmul(x_RxT, wide_TxO, preferred_element_type=jnp.float32)
      # Codes less their zero are exact in bfloat16: the scale of all of them waits for the sum.
      y_RxO += sum_RxO if len(scale) > 1 else sum_RxO * scale[0]
    return y_RxO

  kind = jnp.int32 if format.activations else jnp.float32
  y_RxO = jnp.zeros((len(x_RxI), outputs), kind)
  y_RxO = jax.lax.fori_loop(0, count, add, y_RxO)[:rows]
  if format.activations:
    y_RxO = y_RxO * scale_Rx1 * cut(stack.scale, 0, 1)
  return y_RxO.astype(given)


def map_numbers(fn: Callable[[Array], Any], params: Params) -> Params:
  """fn of all parameters but those that are codes."""

  def own(leaf: Array | Codes) -> Any:
    return leaf if isinstance(leaf, Codes) else fn(leaf)

  return jax.tree.map(own, params, is_leaf=lambda x: isinstance(x, Codes))


def as_dicts(params: Params) -> Params:
  """Codes as plain dicts, as a checkpoint holds them: kernel/codes, kernel/scale and so on."""

  def plain(leaf: Array | Codes) -> Array | dict[str, Array]:
    if not isinstance(leaf, Codes):
      return leaf
    arrays = {"codes": leaf.codes, "scale": leaf.scale, "steps": leaf.steps, "zero": leaf.zero}
    return {name: array for name, array in arrays.items() if array is not None}

  return jax.tree.map(plain, params, is_leaf=lambda x: isinstance(x, Codes))


def from_dicts(params: Params, name: str) -> Params:
  """What `as_dicts` was given, or, where only activations tell them apart, a format like it."""

  def whole(tree: Any, path: tuple[str, ...] = ()) -> Any:
    if not isinstance(tree, dict):
      return tree
    if path and _axes(path) is not None:
      return Codes(format=Format.of(name), **tree)
    return {key: whole(below, (*path, key)) for key, below in tree.items()}

  return whole(params)


def as_kept(name: str, shapes: Params, shardings: Params | None) -> tuple[Params, Params | None]:
  """Shapes and shardings of `as_dicts` of a model whose own are these: what a checkpoint restores.

  An axis of a kernel is split in its codes and scales as it was, where it still divides.
  """
  made = jax.eval_shape(functools.partial(quantised, of=quantise(name)), nn.unbox(shapes))
  if shardings is None:
    return as_dicts(made), None

  where, flat = traverse_util.flatten_dict(shardings), traverse_util.flatten_dict(made)
  placed = {path: of_codes(path, leaf, where[path]) for path, leaf in flat.items()}
  return as_dicts(made), as_dicts(traverse_util.unflatten_dict(placed))


def of_codes(path: tuple[str, ...], shapes: Any, sharding: jax.sharding.Sharding) -> Any:
  """The shardings of a parameter's arrays, of these shapes, where its own is known."""
  if not isinstance(shapes, Codes) or not isinstance(sharding, jax.sharding.NamedSharding):
    return jax.tree.map(lambda _: sharding, shapes)
  lead, inputs = _axes(path)
  outputs = shapes.codes.ndim - lead - 1
  spec = (*sharding.spec, *[None] * (lead + inputs + outputs - len(sharding.spec)))

  def split(array: jax.ShapeDtypeStruct) -> jax.sharding.NamedSharding:
    axes = (spec[lead],) if isinstance(spec[lead], str | None) else spec[lead]
    parts = math.prod(sharding.mesh.shape[axis] for axis in axes if axis is not None)
    own = spec[lead] if array.shape[lead] % parts == 0 else None
    own = jax.sharding.PartitionSpec(*spec[:lead], own, *spec[lead + inputs :])
    return jax.sharding.NamedSharding(sharding.mesh, own)

  return jax.tree.map(split, shapes)


@dataclasses.dataclass(frozen=True)
class Kept:
  """What a model keeps of a parameter, by its path."""

  format: Format

  def codes(self, path: tuple[str, ...]) -> bool:
    """Whether codes are kept of it."""
    return _axes(path) is not None

  def __call__(self, path: tuple[str, ...], leaf: Array) -> Array | Codes:
    """ValueError: groups do not divide a kernel's inputs."""
    axes = _axes(path)
    if axes is None:
      return leaf
    _check(self.format, path, leaf.shape)
    return _stack(leaf, *axes, self.format)

  def of_codes(
    self, path: tuple[str, ...], codes: Array, scale: Array, zero: Array, sharding: Any
  ) -> Codes:
    """Of codes int8 [..., in, out...] that are there already, sharded as codes are."""
    if self.format.bits == 4:
      codes = _packed(codes, _axes(path)[0], sharding)
    return Codes(codes, scale, self.format, zero=zero)


def quantise(name: str) -> Kept:
  """What keeps parameters in a format. ValueError: it is none."""
  return Kept(Format.of(name))


def check(name: str, shapes: Params) -> None:
  """ValueError where a model of these shapes, boxed or not, cannot be kept in the format."""
  for path, leaf in traverse_util.flatten_dict(nn.unbox(shapes)).items():
    if _axes(path) is not None:
      _check(Format.of(name), path, leaf.shape)


def _axes(path: tuple[str, ...]) -> tuple[int, int] | None:
  """Leading axes that count layers and experts, and axes of inputs; None: it stays as it is."""
  if not path[0].startswith(("layers", "dense_layers")) or path[-1] != "kernel":
    return None
  if {"router", "modulation"} & set(path):
    return None
  experts = "moe" in path and "shared" not in path
  return 1 + experts, 2 if path[-2] == "out" else 1


def _check(format: Format, path: tuple[str, ...], shape: tuple[int, ...]) -> None:
  lead, inputs = _axes(path)
  fan_in = math.prod(shape[lead : lead + inputs])
  whole = math.lcm(format.group or 1, 8 // format.bits)
  if fan_in % whole:
    raise ValueError(
      f"weights={format.name!r}: the {fan_in} inputs of {'/'.join(path)} must be a multiple of "
      f"{whole}"
    )


def quantised(params: Params, of: Kept) -> Params:
  """Parameters of which each is kept as `quantise` has it. `Model` takes them as it does others."""
  flat = traverse_util.flatten_dict(params)
  return traverse_util.unflatten_dict({path: of(path, leaf) for path, leaf in flat.items()})


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _stack(kernels: Array, lead: int, inputs: int, format: Format) -> Codes:
  """`lead`: leading axes that count layers and experts."""
  shape, of = kernels.shape, functools.partial(coded, format)
  for _ in range(lead):
    of = functools.partial(jax.lax.map, of)
  return of(kernels.reshape(*shape[:lead], -1, *shape[lead + inputs :]))


def _packed(codes: Array, lead: int, sharding: Any) -> Array:
  """Of a stack, a kernel at a time."""

  def of(codes: Array) -> Array:
    made = packed
    for _ in range(lead):
      made = functools.partial(jax.lax.map, made)
    return made(codes)

  return jax.jit(of, out_shardings=sharding)(codes)


def coded(format: Format, kernel: Array) -> Codes:
  """Of one kernel [in, out...]."""
  groups = kernel.reshape(-1, format.group or len(kernel), *kernel.shape[1:]).astype(jnp.float32)
  steps = zero = None
  if format.steps:
    codes, steps, scale = _stepped(groups)
  elif format.zero:
    codes, scale, zero = spanned(groups, format.bits, axes=(1,))
    scale, zero = scale[:, 0], zero[:, 0]
  else:
    codes, scale = rounded(groups, format.bits, axes=(1,))
    scale = scale[:, 0]
  codes = codes.reshape(kernel.shape)
  return Codes(packed(codes) if format.bits == 4 else codes, scale, format, steps, zero)


def _stepped(groups: Array) -> tuple[Array, Array, Array]:
  """Codes int8 of [groups, inputs, out...], steps int8 [groups, out...] and scale [1, out...].

  The scale of a channel is the one of CLIPS that leaves least squared error. The authors judge by
  the error of the outputs on calibration texts, and have a zero point a group.
  """
  largest = jnp.max(jnp.abs(groups), axis=(0, 1), keepdims=True)
  own = jnp.max(jnp.abs(groups), axis=1, keepdims=True) / 7.5  # the scale of a group alone

  def at(clip: Array) -> tuple[Array, Array, Array]:
    scale = largest * clip / 127
    scale = jnp.where(scale < TINY, 1.0, scale)
    steps = jnp.clip(jnp.round(own / scale), 1, 127)
    most = jnp.minimum(jnp.floor(127 / steps), 7)  # codes times steps fit int8
    least = -jnp.minimum(jnp.floor(128 / steps), 8)
    return jnp.clip(jnp.round(groups / (scale * steps)), least, most), steps, scale

  def better(index: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
    clip = jnp.asarray(CLIPS, jnp.float32)[index]
    codes, steps, scale = at(clip)
    error = jnp.sum(jnp.square(codes * steps * scale - groups), axis=(0, 1), keepdims=True)
    return jnp.minimum(best[0], error), jnp.where(error < best[0], clip, best[1])

  start = jnp.full(largest.shape, jnp.inf), jnp.ones(largest.shape)
  _, clip = jax.lax.fori_loop(0, len(CLIPS), better, start)
  codes, steps, scale = at(clip)
  return codes.astype(jnp.int8), steps[:, 0].astype(jnp.int8), scale[0]


def rounded(x: Array, bits: int, axes: tuple[int, ...]) -> tuple[Array, Array]:
  """Codes of x, int8, and the float32 scale that all numbers along `axes` share.

  Args:
    x: float32.
  """
  scale = jnp.max(jnp.abs(x), axis=axes, keepdims=True) / (2 ** (bits - 1) - 0.5)
  scale = jnp.where(scale < TINY, 1.0, scale)
  most = 2 ** (bits - 1) - 1
  return jnp.clip(jnp.round(x / scale), -most - 1, most).astype(jnp.int8), scale


def spanned(x: Array, bits: int, axes: tuple[int, ...]) -> tuple[Array, Array, Array]:
  """As `rounded` with a zero point, int8: nought is a code, and the ends are the least and largest.

  x ~ scale * (code - zero).
  """
  least = jnp.minimum(jnp.min(x, axis=axes, keepdims=True), 0)
  scale = (jnp.maximum(jnp.max(x, axis=axes, keepdims=True), 0) - least) / (2**bits - 1)
  scale = jnp.where(scale < TINY, 1.0, scale)
  first = -(2 ** (bits - 1))
  zero = jnp.round(first - least / scale)
  codes = jnp.clip(jnp.round(x / scale) + zero, first, first + 2**bits - 1)
  return codes.astype(jnp.int8), scale, zero.astype(jnp.int8)


def packed(codes: Array) -> Array:
  """Two codes of 4 bits a byte: of the first half of the inputs the low ones, of the second the
  high ones, so that they come apart without a shuffle."""
  low, high = jnp.split(codes.astype(jnp.uint8) & 15, 2)
  return low | (high << 4)


def unpacked(codes: Array) -> Array:
  """The int8 codes that `packed` was given."""
  return jnp.concatenate([_of_half(codes, 0), _of_half(codes, 1)])


def _of_half(codes: Array, half: int) -> Array:
  """The codes of the first half of the inputs, or of the second, with their signs."""
  high = jax.lax.bitcast_convert_type(codes if half else codes << 4, jnp.int8)
  return high >> 4
