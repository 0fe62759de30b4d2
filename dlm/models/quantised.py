"""Weights as small whole numbers: a kernel is codes and a scale, a half or a quarter of bfloat16.

w = scale * code, code = round(w / scale) with halves to even, scale = max |w| / (2^(bits-1) - 1/2):
over the inputs of an output channel, or of each group of them; these are the scales of qwix.
`Codes` stand where the kernel stood in the tree of parameters, and `Einsum` of `dlm.models.layers`
and the experts of `dlm.models.moe.layer` read them. Embeddings, norms, routers and what a noise
level modulates stay as they are.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct, traverse_util

from dlm.types import Array, Params

KNOWN = re.compile(r"(int8|int4)(?:g([1-9][0-9]*))?|w8a8")
TINY = jnp.finfo(jnp.float32).tiny ** 0.5  # a channel of smaller numbers has scale 1, and codes 0


@dataclasses.dataclass(frozen=True)
class Format:
  """How a kernel is kept.

  Args:
    bits: 8, or 4, two codes a byte.
    group: inputs that share a scale; 0: all of an output channel.
    activations: what a kernel is applied to is rounded to int8 too, a scale a token, and the sum is
      one of whole numbers.
  """

  bits: int
  group: int = 0
  activations: bool = False

  @property
  def name(self) -> str:
    if self.activations:
      return "w8a8"
    return f"int{self.bits}" + (f"g{self.group}" if self.group else "")

  @classmethod
  def of(cls, name: str) -> "Format":
    """int8, int4, either with gN (groups of N inputs), or w8a8. ValueError for another name."""
    known = KNOWN.fullmatch(name)
    if known is None:
      raise ValueError(
        f"weights={name!r} must be int8, int4, int8gN or int4gN (groups of N inputs: int4g128), "
        "w8a8, or empty for as they are stored"
      )
    if name == "w8a8":
      return cls(8, activations=True)
    return cls(8 if known[1] == "int8" else 4, int(known[2] or 0))


@struct.dataclass
class Codes:
  """A kernel [in..., out...] or a stack of them."""

  codes: Array  # int8 [in, out...]; of 4 bits uint8 [in / 2, out...]: see `packed`
  scale: Array  # float32 [groups, out...]
  format: Format = struct.field(pytree_node=False)

  @property
  def whole(self) -> Array:
    """The codes as int8 [in, out] of a single kernel, output axes folded."""
    codes = self.codes.reshape(len(self.codes), -1)
    return unpacked(codes) if self.format.bits == 4 else codes

  def wide(self, dtype: jnp.dtype) -> Array:
    """The kernel [in, out] that it stands for."""
    codes, scale = self.whole, self.scale.reshape(len(self.scale), -1)
    grouped = codes.reshape(len(scale), -1, codes.shape[1]) * scale[:, None]
    return grouped.reshape(codes.shape).astype(dtype)

  def product(self, x_RxI: Array) -> Array:
    """x @ kernel: [rows, out], in x's type."""
    if self.format.group:
      return x_RxI @ self.wide(x_RxI.dtype)
    codes_IxO, scale_1xO = self.whole, self.scale.reshape(1, -1)
    if not self.format.activations:
      # Codes are exact in bfloat16; the scale waits for the sum.
      y_RxO = jnp.matmul(x_RxI, codes_IxO.astype(x_RxI.dtype), preferred_element_type=jnp.float32)
      return (y_RxO * scale_1xO).astype(x_RxI.dtype)
    rounded_RxI, scale_Rx1 = rounded(x_RxI.astype(jnp.float32), 8, axes=(1,))
    y_RxO = jnp.matmul(rounded_RxI, codes_IxO, preferred_element_type=jnp.int32)
    return (y_RxO * scale_Rx1 * scale_1xO).astype(x_RxI.dtype)


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
  groups = kernel.reshape(-1, format.group or len(kernel), *kernel.shape[1:])
  codes, scale = rounded(groups.astype(jnp.float32), format.bits, axes=(1,))
  codes = codes.reshape(kernel.shape)
  return Codes(packed(codes) if format.bits == 4 else codes, scale[:, 0], format)


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
