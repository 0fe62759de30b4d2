"""ModernBERT's layers and head (arXiv 2412.13663), as transformers 5.24 computes them.

LayerNorms without biases, an MLP gated by GELU, and two kinds of layers: full ones, and local ones
that see a few tokens on either side. One norm stands behind the embedding, so the first layer has
none before its attention.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from dlm.models.attention import Attention, Carry, Shared, tap
from dlm.models.config import ModelConfig
from dlm.models.dit import LayerNorm, biased
from dlm.models.layers import Einsum, SwiGLU
from dlm.types import Array, Mask
from kernels_pallas.block_attention import Part, Sight


def gelu(x: Array) -> Array:
  """By the error function."""
  return jax.nn.gelu(x, approximate=False)


@struct.dataclass
class OneOf:
  """A sight that is chosen when it is known which layer looks."""

  first: Sight
  second: Sight
  is_first: Array

  def attend(self, q_BxWxNxH: Array, parts: list[Part]) -> Array:
    return jax.lax.cond(
      self.is_first,
      lambda: self.first.attend(q_BxWxNxH, parts),
      lambda: self.second.attend(q_BxWxNxH, parts),
    )


class BertBlock(nn.Module):
  """x + attention(norm(x)), then x + mlp(norm(x))."""

  config: ModelConfig
  first: bool  # has no norm before its attention

  @nn.compact
  def __call__(
    self, carry: Carry, layer: Array, shared: tuple[Shared, Shared]
  ) -> tuple[Carry, dict[str, Array]]:
    """As `transformer.Block`; `shared`: of full layers, and of local ones."""
    cfg, (x_BxWxD, stored, tapped) = self.config, carry
    out_gain = (2 * cfg.layers) ** -0.5
    full, local = shared
    is_full = layer % cfg.bert.full_every == 0
    turns = [jnp.where(is_full, *both) for both in zip(full.rotary, local.rotary, strict=True)]
    own = full.replace(rotary=tuple(turns), sight=OneOf(full.sight, local.sight, is_full))
    y_BxWxD = x_BxWxD
    if not self.first:
      y_BxWxD = LayerNorm(cfg.norm_eps, name="attention_norm")(x_BxWxD)
    y_BxWxD, stored = Attention(cfg, out_gain, name="attention")(y_BxWxD, stored, layer, own)
    x_BxWxD += y_BxWxD
    mlp = SwiGLU(cfg.width, cfg.mlp, out_gain, lora=cfg.lora, activation=gelu, name="mlp")
    x_BxWxD += mlp(LayerNorm(cfg.norm_eps, name="mlp_norm")(x_BxWxD), own.gate_BxW)
    return (x_BxWxD, stored, tap(tapped, x_BxWxD, layer, full)), {}


class BertHead(nn.Module):
  """norm(gelu(dense(x))), and a head with a bias, as one more column."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x_BxAxD: Array, unembed_VxD: Array) -> tuple[Array, Array]:
    """Hidden rows and head, both D + 1 wide."""
    cfg = self.config
    dense = Einsum("...D,DE->...E", (cfg.width, cfg.width), ("embed", None), name="dense")
    x_BxAxD = LayerNorm(cfg.norm_eps, name="norm")(gelu(dense(x_BxAxD)))
    init = nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",))
    return biased(x_BxAxD, unembed_VxD, self.param("bias", init, (cfg.vocab,)))


def nearby(mask: Mask, key_BxW: Array, reach: int) -> Mask:
  """What local layers see of a mask: keys at most `reach` slots from the query's own.

  Raises:
    ValueError: the mask is of several streams, whose slots are no distances.
  """
  if mask.lo_BxWxR.shape[-1] != 1:
    raise ValueError(
      "this model has local layers: its inputs must stand in the order of the text, which those of "
      "[noisy; clean] training and of policy 'wino' do not"
    )
  key_BxWx1 = key_BxW[:, :, None]
  return mask.replace(
    lo_BxWxR=jnp.maximum(mask.lo_BxWxR, key_BxWx1 - reach),
    hi_BxWxR=jnp.minimum(mask.hi_BxWxR, key_BxWx1 + reach + 1),
  )
