"""DiT layers as in the published checkpoints of BD3-LM (arXiv 2503.09573) and of MDLM before it.

LayerNorm without a bias and an MLP with GELU; a vector made from the noise level shifts, scales and
gates every branch (adaLN, arXiv 2212.09748). They were trained with noise level 0 throughout: the
vector is a parameter like others, and time never enters.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dlm.models.attention import Attention, Carry, Shared, tap
from dlm.models.config import ModelConfig
from dlm.models.layers import Einsum
from dlm.models.lora import LoraConfig, on
from dlm.types import Array


class LayerNorm(nn.Module):
  """(x - mean) / sqrt(variance + eps) in float32, cast to x's dtype, then scaled."""

  eps: float

  @nn.compact
  def __call__(self, x_BxWxD: Array) -> Array:
    init = nn.with_logical_partitioning(nn.initializers.ones, ("embed",))
    scale_D = self.param("scale", init, x_BxWxD.shape[-1:])
    wide = x_BxWxD.astype(jnp.float32)
    wide -= wide.mean(-1, keepdims=True)
    wide *= jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.eps)
    return wide.astype(x_BxWxD.dtype) * scale_D.astype(x_BxWxD.dtype)[None, None]


class GeluMlp(nn.Module):
  """down(gelu(up(x))), both with biases; the tanh form of GELU."""

  width: int
  mlp: int
  out_gain: float
  lora: LoraConfig | None

  @nn.compact
  def __call__(self, x_BxWxD: Array, gate_BxW: Array | None) -> Array:
    up = Einsum(
      "...D,DF->...F", (self.width, self.mlp), ("embed", "mlp"), bias=True,
      lora=on(self.lora, "up"), name="up",
    )  # fmt: skip
    down = Einsum(
      "...F,FD->...D", (self.mlp, self.width), ("mlp", "embed"), gain=self.out_gain, bias=True,
      lora=on(self.lora, "down"), name="down",
    )  # fmt: skip
    return down(jax.nn.gelu(up(x_BxWxD, gate_BxW), approximate=True), gate_BxW)


class Modulation(nn.Module):
  """`parts` vectors [1, 1, D] from the conditioning; zeros at first (adaLN-zero)."""

  parts: int
  width: int

  @nn.compact
  def __call__(self, condition_1x1xC: Array) -> list[Array]:
    shape = (condition_1x1xC.shape[-1], self.parts, self.width)
    linear = Einsum(
      "...C,CMD->...MD", shape, (None, None, "embed"), gain=0.0, bias=True, name="linear"
    )
    split = jnp.split(linear(condition_1x1xC), self.parts, axis=2)
    return [part.squeeze(2) for part in split]


def modulated(x_BxWxD: Array, shift_1x1xD: Array, scale_1x1xD: Array) -> Array:
  return x_BxWxD * (1 + scale_1x1xD) + shift_1x1xD


class DitBlock(nn.Module):
  """x + gate * attention(norm(x)), then x + gate * mlp(norm(x)), the norms modulated."""

  config: ModelConfig

  @nn.compact
  def __call__(self, carry: Carry, layer: Array, shared: Shared) -> tuple[Carry, dict[str, Array]]:
    """As `transformer.Block`."""
    cfg, (x_BxWxD, stored, tapped) = self.config, carry
    out_gain = (2 * cfg.layers) ** -0.5
    parts = Modulation(6, cfg.width, name="modulation")(shared.time_BxWxC)
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
    y = modulated(LayerNorm(cfg.norm_eps, name="attention_norm")(x_BxWxD), shift, scale)
    y, stored = Attention(cfg, out_gain, name="attention")(y, stored, layer, shared)
    x_BxWxD += gate * y
    y = modulated(LayerNorm(cfg.norm_eps, name="mlp_norm")(x_BxWxD), mlp_shift, mlp_scale)
    mlp = GeluMlp(cfg.width, cfg.mlp, out_gain, cfg.lora, name="mlp")
    x_BxWxD += mlp_gate * mlp(y, shared.gate_BxW)
    return (x_BxWxD, stored, tap(tapped, x_BxWxD, layer, shared)), {}


class DitHead(nn.Module):
  """The last norm, modulated, and a head with a bias.

  The bias is one more column of the head, which meets a channel of ones: logits stay one product.
  """

  config: ModelConfig

  @nn.compact
  def __call__(
    self, x_BxAxD: Array, unembed_VxD: Array, condition_1x1xC: Array
  ) -> tuple[Array, Array]:
    """Hidden rows and head, both D + 1 wide."""
    cfg = self.config
    x = LayerNorm(cfg.norm_eps, name="norm")(x_BxAxD)
    x = modulated(x, *Modulation(2, cfg.width, name="modulation")(condition_1x1xC))
    init = nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",))
    return biased(x, unembed_VxD, self.param("bias", init, (cfg.vocab,)))


def biased(x_BxAxD: Array, unembed_VxD: Array, bias_V: Array) -> tuple[Array, Array]:
  """Hidden rows and a head with a bias: one more column, which meets a channel of ones."""
  one_BxAx1 = jnp.ones_like(x_BxAxD[..., :1])
  bias_Vx1 = bias_V.astype(x_BxAxD.dtype)[:, None]
  return (
    jnp.concatenate([x_BxAxD, one_BxAx1], axis=-1),
    jnp.concatenate([unembed_VxD, bias_Vx1], axis=1),
  )
