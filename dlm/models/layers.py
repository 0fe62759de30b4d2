"""Layers that know nothing of diffusion: linear maps, norms, rotary positions, noise levels.

Parameters name their axes ("embed", "heads", ...); `dlm.parallel` says which mesh axis each one is
split over. Norms and rotations are computed in float32 whatever the activations are.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from dlm.models.lora import A, B, LoraConfig, on
from dlm.models.rope import RopeScaling, frequencies
from dlm.types import Array
from kernels_pallas import dispatch
from kernels_pallas.precision import float32_product
from kernels_pallas.shards import folded, unfolded

Initializer = jax.nn.initializers.Initializer


def product(eqn: str, x: Array, kernel: Array) -> Array:
  """`einsum(eqn, x, kernel)` in the type of x, whose first axis holds the rows.

  On CPUs XLA has its fast matmuls of bfloat16 for float32 results alone, so it is asked for these,
  and they are cast (BENCHMARKS.md, Products). Gradients, and the forward pass with them, are those
  of the plain product.
  """
  kernel = kernel.astype(x.dtype)
  if x.dtype == jnp.bfloat16 and dispatch.backend() == "cpu":
    return _wide(eqn, x, kernel)
  return jnp.einsum(eqn, x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _wide(eqn: str, x: Array, kernel: Array) -> Array:
  return float32_product(eqn, x, kernel).astype(x.dtype)


def _wide_forward(eqn: str, x: Array, kernel: Array) -> tuple[Array, Callable]:
  return jax.vjp(functools.partial(jnp.einsum, eqn), x, kernel)


def _wide_backward(eqn: str, pullback: Callable, dy: Array) -> tuple[Array, Array]:
  return pullback(dy)


_wide.defvjp(_wide_forward, _wide_backward)


def lookup(table_VxD: Array, id_BxW: Array) -> Array:
  """Rows of an embedding; ids past its last are the last."""
  if table_VxD.dtype == jnp.bfloat16 and dispatch.backend() == "cpu":
    return _narrow_lookup(table_VxD, id_BxW)
  return _taken(table_VxD, id_BxW)


def _taken(table_VxD: Array, id_BxW: Array) -> Array:
  return jnp.take(table_VxD, id_BxW, axis=0, mode="clip")


@jax.custom_vjp
def _narrow_lookup(table_VxD: Array, id_BxW: Array) -> Array:
  """Of bfloat16, taken as whole numbers: XLA's CPU backend would widen the whole table first.

  The barrier keeps the reading of the table as such in a sampler's loop: before it it is a copy.
  """
  table_VxD, id_BxW = jax.lax.optimization_barrier((table_VxD, id_BxW))
  word_VxD = jax.lax.bitcast_convert_type(table_VxD, jnp.uint16)
  return jax.lax.bitcast_convert_type(_taken(word_VxD, id_BxW), jnp.bfloat16)


def _narrow_forward(table_VxD: Array, id_BxW: Array) -> tuple[Array, tuple[Array, Array]]:
  return _narrow_lookup(table_VxD, id_BxW), (table_VxD, id_BxW)


def _narrow_backward(kept: tuple[Array, Array], dy: Array) -> tuple[Array, None]:
  table_VxD, id_BxW = kept
  (d_table_VxD,) = jax.linear_transpose(lambda table: _taken(table, id_BxW), table_VxD)(dy)
  return d_table_VxD, None


_narrow_lookup.defvjp(_narrow_forward, _narrow_backward)


class Einsum(nn.Module):
  """`einsum(eqn, x, kernel)` where `...` stands for the rows, plus a bias over the output axes.

  The initial kernel is normal with variance `gain**2 / fan_in`; gain 0 starts from zeros.
  With `lora` an adapter is added: to all rows, or if it is gated where `gate` is True.
  """

  eqn: str  # "...D,DNH->...NH"
  shape: tuple[int, ...]  # of the kernel
  names: tuple[str | None, ...]  # logical axes of the kernel
  gain: float = 1.0
  bias: bool = False
  lora: LoraConfig | None = None

  @nn.compact
  def __call__(self, x: Array, gate: Array | None = None) -> Array:
    inputs, output = self.eqn.split("->")
    x_letters, kernel_letters = inputs.replace("...", "").split(",")
    fan_in = 1
    for letter, size in zip(kernel_letters, self.shape, strict=True):
      fan_in *= size if letter in x_letters else 1
    # Rows folded to one axis: XLA's CPU backend physically transposes the operands of a weight
    # gradient that contracts two axes, at more than the cost of the product itself.
    lead = x.shape[: x.ndim - len(x_letters)]
    rows = folded(x, len(lead))
    if self.has_variable("apart", "kernel"):
      y = self._of_layer(rows, fan_in)
    elif self.has_variable("quantised", "kernel") or self.has_variable("stacked", "kernel"):
      y = self._of_codes(rows.reshape(len(rows), fan_in))
      y = y.reshape(len(rows), *self.shape[rows.ndim - 1 :])
    else:
      init = nn.initializers.normal(self.gain * fan_in**-0.5)
      kernel = self.param("kernel", nn.with_logical_partitioning(init, self.names), self.shape)
      y = product(self.eqn, rows, kernel)
    if self.bias:
      axes = [axis for axis, letter in enumerate(kernel_letters) if letter in output]
      bias = self.param(
        "bias",
        nn.with_logical_partitioning(nn.initializers.zeros, tuple(self.names[i] for i in axes)),
        tuple(self.shape[i] for i in axes),
      )
      y += bias.astype(x.dtype)[None]
    if self.lora is not None:
      y = self._adapted(y, rows, x_letters, output.replace("...", ""), fan_in, gate)
    return unfolded(y, lead)

  def _of_layer(self, rows: Array, fan_in: int) -> Array:
    """The product with this layer's kernel, where they are held apart (`dlm.models.apart`).

    A branch for each: a kernel that is chosen first and multiplied then would be copied.
    """

    def branch(kernel: Array) -> Callable[[Array], Array]:
      return lambda flat: product("RC,CD->RD", flat, kernel.reshape(fan_in, -1))

    branches = [branch(kernel) for kernel in self.get_variable("apart", "kernel")]
    flat = rows.reshape(len(rows), fan_in)
    y = jax.lax.switch(self.get_variable("layer", "kernel"), branches, flat)
    return y.reshape(len(rows), *self.shape[rows.ndim - 1 :])

  def _of_codes(self, flat: Array) -> Array:
    """The product with a kernel kept as codes: this layer's, or that of the stack of all."""
    if self.has_variable("quantised", "kernel"):
      return self.get_variable("quantised", "kernel").product(flat)
    stack = self.get_variable("stacked", "kernel")
    return stack.product(flat, self.get_variable("layer", "kernel"))

  def _adapted(
    self, y: Array, rows: Array, inward: str, outward: str, fan_in: int, gate: Array | None
  ) -> Array:
    """y + s B A x; rows that the gate leaves out are y itself, not y + 0."""
    cut, rank = len(inward), self.lora.rank  # the kernel's axes are those of x, then those of y
    # As PEFT has it: the variance of the uniform numbers that it draws.
    init = nn.initializers.normal((3 * fan_in) ** -0.5)
    init = nn.with_logical_partitioning(init, (*self.names[:cut], None))
    a = self.param(A, init, (*self.shape[:cut], rank)).astype(y.dtype)
    init = nn.with_logical_partitioning(nn.initializers.zeros, (None, *self.names[cut:]))
    b = self.param(B, init, (rank, *self.shape[cut:])).astype(y.dtype)
    thin = jnp.einsum(f"...{inward},{inward}R->...R", rows, a) * self.lora.scale
    adapted = y + jnp.einsum(f"...R,R{outward}->...{outward}", thin, b)
    if not self.lora.gated:
      return adapted
    return jnp.where(jnp.expand_dims(folded(gate, gate.ndim), range(1, y.ndim)), adapted, y)


class RMSNorm(nn.Module):
  """x / sqrt(mean(x^2) + eps) in float32, cast to x's dtype, then scaled (LLaMA's order)."""

  eps: float
  names: tuple[str | None, ...]  # logical axis of the scale

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = self.param(
      "scale", nn.with_logical_partitioning(nn.initializers.ones, self.names), x.shape[-1:]
    )
    return normalised(x, self.eps) * jnp.expand_dims(scale.astype(x.dtype), range(x.ndim - 1))


def normalised(x: Array, eps: float) -> Array:
  """RMSNorm without a scale."""
  wide = x.astype(jnp.float32)
  wide *= jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
  return wide.astype(x.dtype)


def gelu(x: Array) -> Array:
  """In its tanh form."""
  return jax.nn.gelu(x, approximate=True)


class SwiGLU(nn.Module):
  """down(silu(gate(x)) * up(x)), arXiv 2002.05202; with another activation GeGLU and so on."""

  width: int
  mlp: int
  out_gain: float
  bias: bool = False
  lora: LoraConfig | None = None
  activation: Callable[[Array], Array] = jax.nn.silu

  @nn.compact
  def __call__(self, x_BxWxD: Array, gate_BxW: Array | None = None) -> Array:
    def project(name: str) -> Array:
      shape, names, lora = (self.width, self.mlp), ("embed", "mlp"), on(self.lora, name)
      linear = Einsum("...D,DF->...F", shape, names, bias=self.bias, lora=lora, name=name)
      return linear(x_BxWxD, gate_BxW)

    hidden_BxWxF = self.activation(project("gate")) * project("up")
    down = Einsum(
      "...F,FD->...D", (self.mlp, self.width), ("mlp", "embed"), gain=self.out_gain, bias=self.bias,
      lora=on(self.lora, "down"), name="down",
    )  # fmt: skip
    return down(hidden_BxWxF, gate_BxW)


def rotary(
  slot_BxW: Array,
  dim: int,
  base: float,
  scaling: RopeScaling | None = None,
  rotated: float = 1.0,
) -> tuple[Array, Array]:
  """Cosines and sines [B, W, dim/2] in float32: bfloat16 cannot tell slots above 256 apart.

  Args:
    rotated: share of the pairs that turn, the fastest; the others stand still.
  """
  turns = frequencies(dim, base, scaling)
  turns[int(rotated * dim // 2) :] = 0
  angle = slot_BxW.astype(jnp.float32)[..., None] * turns[None, None, :]
  amplitude = 1.0 if scaling is None else scaling.amplitude
  return jnp.cos(angle) * amplitude, jnp.sin(angle) * amplitude


def query_scale(slot_BxW: Array, scaling: RopeScaling | None) -> Array | None:
  """What rotated queries are multiplied by, [B, W] in float32; None: they stay as they are.

  1 + beta ln(1 + floor(slot / original length)), so that attention over long texts stays sharp
  (Llama 4, Ministral 3): 1 within the original length.
  """
  if scaling is None or not scaling.llama_4_scaling_beta:
    return None
  lengths_BxW = slot_BxW // scaling.original_max_position_embeddings
  return 1 + scaling.llama_4_scaling_beta * jnp.log1p(lengths_BxW.astype(jnp.float32))


def rotate(x_BxWxNxH: Array, cos_sin: tuple[Array, Array]) -> Array:
  """RoPE (arXiv 2104.09864) with the two halves of a head as pairs, as in LLaMA checkpoints.

  Where the angles are fewer than half a head, the channels after the pairs pass as they are.
  """
  cos, sin = (part[:, :, None, :] for part in cos_sin)
  half = cos.shape[-1]
  a, b, tail = jnp.split(x_BxWxNxH, [half, 2 * half], axis=-1)
  a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return jnp.concatenate([turned.astype(tail.dtype), tail], axis=-1)


class TimeEmbedding(nn.Module):
  """Noise level in [0, 1] -> sinusoids -> two-layer MLP, as in DiT (arXiv 2212.09748)."""

  width: int
  sinusoids: int
  bias: bool = False

  @nn.compact
  def __call__(self, time_BxW: Array, dtype: jnp.dtype) -> Array:
    half = self.sinusoids // 2
    # Periods from 1/1000 of the noise range up: levels that differ visibly get distinct codes.
    rate = 1000.0 * jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angle = time_BxW.astype(jnp.float32)[..., None] * rate[None, None, :]
    x = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1).astype(dtype)
    for name in ("inner", "outer"):
      shape = (x.shape[-1], self.width)
      linear = Einsum("...C,CE->...E", shape, (None, None), bias=self.bias, name=name)
      x = jax.nn.silu(linear(x))
    return x
