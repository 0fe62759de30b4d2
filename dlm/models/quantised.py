"""Weights as small whole numbers: a kernel is codes and a scale, a half or a quarter of bfloat16.

w = scale * code, code = round(w / scale) with halves to even, scale = max |w| / (2^(bits-1) - 1/2):
over the inputs of an output channel, or of each group of them; these are the scales of qwix.
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

from dlm.types import Array, Params

KNOWN = re.compile(r"(int8|int4)(?:g([1-9][0-9]*))?|w8a8|(?:dgq|w4a8g)([1-9][0-9]*)")
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
  """

  bits: int
  group: int = 0
  activations: bool = False
  steps: bool = False

  @property
  def name(self) -> str:
    if self.steps:
      return f"w4a8g{self.group}" if self.activations else f"dgq{self.group}"
    if self.activations:
      return "w8a8"
    return f"int{self.bits}" + (f"g{self.group}" if self.group else "")

  @classmethod
  def of(cls, name: str) -> "Format":
    """int8, int4, either with gN (groups of N inputs), dgqN, w8a8 or w4a8gN (dgqN, and activations
    in int8). ValueError for another name."""
    known = KNOWN.fullmatch(name)
    if known is None:
      raise ValueError(
        f"weights={name!r} must be int8, int4, int8gN or int4gN (groups of N inputs: int4g128), "
        "dgqN (int4, whole steps of groups inside a channel's scale), w8a8 or w4a8gN (activations "
        "in int8 too), or empty for as they are stored"
      )
    if name == "w8a8":
      return cls(8, activations=True)
    if known[3]:
      return cls(4, int(known[3]), activations=name.startswith("w4a8"), steps=True)
    return cls(8 if known[1] == "int8" else 4, int(known[2] or 0))

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

  @property
  def whole(self) -> Array:
    """The whole numbers that scales multiply, as int8 [in, out] of a single kernel, output axes
    folded: the codes, times their steps if they have any."""
    codes = self.codes.reshape(len(self.codes), -1)
    codes = unpacked(codes) if self.format.bits == 4 else codes
    if self.steps is None:
      return codes
    steps = self.steps.reshape(len(self.steps), 1, -1)
    return (codes.reshape(len(steps), -1, codes.shape[1]) * steps).reshape(codes.shape)

  def wide(self, dtype: jnp.dtype) -> Array:
    """The kernel [in, out] that it stands for."""
    codes, scale = self.whole, self.scale.reshape(len(self.scale), -1)
    grouped = codes.reshape(len(scale), -1, codes.shape[1]) * scale[:, None]
    return grouped.reshape(codes.shape).astype(dtype)

  def product(self, x_RxI: Array) -> Array:
    """x @ kernel: [rows, out], in x's type."""
    if len(self.scale) > 1:
      return x_RxI @ self.wide(x_RxI.dtype)
    codes_IxO, scale_1xO = self.whole, self.scale.reshape(1, -1)
    if not self.format.activations:
      # Codes are exact in bfloat16; the scale waits for the sum.
      y_RxO = jnp.matmul(x_RxI, codes_IxO.astype(x_RxI.dtype), preferred_element_type=jnp.float32)
      return (y_RxO * scale_1xO).astype(x_RxI.dtype)
    rounded_RxI, scale_Rx1 = rounded(x_RxI.astype(jnp.float32), 8, axes=(1,))
    y_RxO = jnp.matmul(rounded_RxI, codes_IxO, preferred_element_type=jnp.int32)
    return (y_RxO * scale_Rx1 * scale_1xO).astype(x_RxI.dtype)


def map_numbers(fn: Callable[[Array], Any], params: Params) -> Params:
  """fn of all parameters but those that are codes."""

  def own(leaf: Array | Codes) -> Any:
    return leaf if isinstance(leaf, Codes) else fn(leaf)

  return jax.tree.map(own, params, is_leaf=lambda x: isinstance(x, Codes))


def as_dicts(params: Params) -> Params:
  """Codes as plain dicts, as a checkpoint holds them: kernel/codes, kernel/scale, kernel/steps."""

  def plain(leaf: Array | Codes) -> Array | dict[str, Array]:
    if not isinstance(leaf, Codes):
      return leaf
    arrays = {"codes": leaf.codes, "scale": leaf.scale, "steps": leaf.steps}
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

  def place(path: tuple[str, ...], leaf: Any, sharding: jax.sharding.Sharding) -> Any:
    if not isinstance(leaf, Codes) or not isinstance(sharding, jax.sharding.NamedSharding):
      return jax.tree.map(lambda _: sharding, leaf)
    lead, inputs = _axes(path)
    outputs = leaf.codes.ndim - lead - 1
    spec = (*sharding.spec, *[None] * (lead + inputs + outputs - len(sharding.spec)))

    def split(array: jax.ShapeDtypeStruct) -> jax.sharding.NamedSharding:
      axes = (spec[lead],) if isinstance(spec[lead], str | None) else spec[lead]
      parts = math.prod(sharding.mesh.shape[axis] for axis in axes if axis is not None)
      own = spec[lead] if array.shape[lead] % parts == 0 else None
      own = jax.sharding.PartitionSpec(*spec[:lead], own, *spec[lead + inputs :])
      return jax.sharding.NamedSharding(sharding.mesh, own)

    return jax.tree.map(split, leaf)

  where, flat = traverse_util.flatten_dict(shardings), traverse_util.flatten_dict(made)
  placed = {path: place(path, leaf, where[path]) for path, leaf in flat.items()}
  return as_dicts(made), as_dicts(traverse_util.unflatten_dict(placed))


def quantise(name: str) -> Callable[[tuple[str, ...], Array], Array | Codes]:
  """What makes of a parameter, by its path, what a model of these weights keeps of it.

  ValueError: a format that is none, or groups that do not divide a kernel's inputs.
  """
  format = Format.of(name)

  def of(path: tuple[str, ...], leaf: Array) -> Array | Codes:
    axes = _axes(path)
    if axes is None:
      return leaf
    _check(format, path, leaf.shape)
    return _stack(leaf, *axes, format)

  return of


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


def quantised(params: Params, of: Callable[[tuple[str, ...], Array], Array | Codes]) -> Params:
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


def coded(format: Format, kernel: Array) -> Codes:
  """Of one kernel [in, out...]."""
  groups = kernel.reshape(-1, format.group or len(kernel), *kernel.shape[1:]).astype(jnp.float32)
  steps = None
  if format.steps:
    codes, steps, scale = _stepped(groups)
  else:
    codes, scale = rounded(groups, format.bits, axes=(1,))
    scale = scale[:, 0]
  codes = codes.reshape(kernel.shape)
  return Codes(packed(codes) if format.bits == 4 else codes, scale, format, steps)


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


def packed(codes: Array) -> Array:
  """Two codes of 4 bits a byte: of the first half of the inputs the low ones, of the second the
  high ones, so that they come apart without a shuffle."""
  low, high = jnp.split(codes.astype(jnp.uint8) & 15, 2)
  return low | (high << 4)


def unpacked(codes: Array) -> Array:
  """The int8 codes that `packed` was given."""
  high = jax.lax.bitcast_convert_type(jnp.concatenate([codes << 4, codes & 240]), jnp.int8)
  return high >> 4  # with its sign
