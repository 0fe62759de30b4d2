"""DiffusionGemma's layers and self-conditioning (google-deepmind/gemma; transformers 5.24).

One set of weights in two passes. Clean text is read causally; its keys are what a cache holds.
Noise, the inputs whose level is above 0, sees all of its canvas, and what the model predicted of it
a forward ago. Each layer scales its output, differently in either pass.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dlm.models.attention import Attention, Carry, Shared, tap
from dlm.models.config import ModelConfig
from dlm.models.layers import RMSNorm, SwiGLU, gelu, normalised
from dlm.models.moe.layer import Moe
from dlm.types import Array, Mask

# What its masks are made of, see `dlm.masks.Canvas`: ranges of every query.
OWN, PAST = 0, 1


class GemmaBlock(nn.Module):
  """x + norm(attention(norm(x))), then x + norm(norm(mlp(norm(x))) + norm(experts(norm(x))))."""

  config: ModelConfig
  full: bool  # its attention sees all that the mask allows

  @nn.compact
  def __call__(self, carry: Carry, layer: Array, shared: Shared) -> tuple[Carry, dict[str, Array]]:
    """As `transformer.Block`; `layer` counts those of its kind, whose keys are stored together."""
    cfg, (x_BxWxD, stored, tapped) = self.config, carry
    out_gain = (2 * cfg.layers) ** -0.5

    def norm(name: str, x: Array) -> Array:
      return RMSNorm(cfg.norm_eps, ("embed",), name=name)(x)

    attention = Attention(cfg, out_gain, has_values=not self.full, name="attention")
    y, stored = attention(norm("attention_norm", x_BxWxD), stored, layer, shared)
    x_BxWxD += norm("attention_post_norm", y)
    mlp = SwiGLU(cfg.width, cfg.mlp, out_gain, lora=cfg.lora, activation=gelu, name="mlp")
    y = norm("mlp_post_norm", mlp(norm("mlp_norm", x_BxWxD), shared.gate_BxW))
    moe = Moe(cfg, out_gain, name="moe")
    z, facts = moe(norm("moe_norm", x_BxWxD), shared.live_BxW, shared.level_BxW, x_BxWxD)
    x_BxWxD += norm("post_norm", y + norm("moe_post_norm", z))
    x_BxWxD *= self._scale(shared.level_BxW).astype(x_BxWxD.dtype)
    return (x_BxWxD, stored, tap(tapped, x_BxWxD, layer, shared)), facts

  def _scale(self, level_BxW: Array) -> Array:
    """[B, W, 1], as the checkpoint has it: the authors do not train it."""
    ones = nn.with_logical_partitioning(nn.initializers.ones, (None,))
    clean_1, noisy_1 = (self.param(name, ones, (1,)) for name in ("clean_scale", "noisy_scale"))
    noisy_BxWx1 = (level_BxW > 0)[:, :, None]
    scale_BxWx1 = jnp.where(noisy_BxWx1, noisy_1[None, None], clean_1[None, None])
    return jax.lax.stop_gradient(scale_BxWx1)


class SelfConditioning(nn.Module):
  """Embeddings as the first layer is given them: noise also carries what was predicted of it.

  norm(embedding + mlp(norm(soft))). The outer norm acts on noise without a prediction, soft = 0,
  too; clean text has none.
  """

  config: ModelConfig

  @nn.compact
  def __call__(self, x_BxWxD: Array, soft_BxWxD: Array | None, level_BxW: Array) -> Array:
    """`x`: rows of the embedding; `soft`: a mean of such rows, None: nothing was predicted."""
    cfg = self.config
    unit = jnp.asarray(cfg.width**0.5, x_BxWxD.dtype)
    x_BxWxD *= unit
    y_BxWxD = x_BxWxD
    if self.is_initializing() and soft_BxWxD is None:
      soft_BxWxD = jnp.zeros_like(x_BxWxD)
    if soft_BxWxD is not None:
      soft_BxWxD = soft_BxWxD.astype(x_BxWxD.dtype) * unit
      normed = RMSNorm(cfg.norm_eps, ("embed",), name="norm")(soft_BxWxD)
      y_BxWxD += SwiGLU(cfg.width, cfg.mlp, 1.0, activation=gelu, name="mlp")(normed)
    noisy_BxWx1 = (level_BxW > 0)[:, :, None]
    return jnp.where(noisy_BxWx1, normalised(y_BxWxD, cfg.norm_eps), x_BxWxD)


def sliding(mask: Mask, window: int) -> Mask:
  """What sliding layers see: of the past the last `window` - 1 keys, of a canvas all of itself.

  Raises:
    ValueError: the mask does not tell the past from a query's own canvas.
  """
  if mask.lo_BxWxR.shape[-1] != 2:
    raise ValueError(
      f"this model has sliding layers: its masks need two ranges, a query's own and its past, as "
      f"dlm.masks.Canvas gives them; got {mask.lo_BxWxR.shape[-1]}"
    )
  lo_BxW = jnp.maximum(mask.lo_BxWxR[..., PAST], mask.hi_BxWxR[..., PAST] - (window - 1))
  return mask.replace(lo_BxWxR=mask.lo_BxWxR.at[..., PAST].set(lo_BxW))
