"""Grouped-query attention over the window's own keys and, with a cache, over the cached ones."""

import flax.linen as nn
import jax.numpy as jnp
from flax import struct

from dlm.models import cache
from dlm.models.cache import Stored
from dlm.models.config import ModelConfig
from dlm.models.layers import Einsum, RMSNorm, normalised, rotate
from dlm.models.lora import on
from dlm.types import Array
from kernels_pallas.block_attention import Part, Sight, block_attention


@struct.dataclass
class Shared:
  """What all layers have in common, computed once outside the scan."""

  rotary: tuple[Array, Array]  # cosines and sines of the window's slots
  query_scale_BxW: Array | None  # of rotated queries; None: 1
  sight: Sight  # of the window's own keys, and of the cached ones if there are any
  target_BxW: Array | None  # cache slots that the window's keys go to; None: they are not kept
  time_BxWxC: Array | None  # embedded noise level; [1, 1, C] where it is the same everywhere
  level_BxW: Array | None  # noise level itself; None where no layer reads it
  live_BxW: Array  # bool: real tokens, not padding
  gate_BxW: Array | None  # bool: where gated adapters act; None: there are none
  offer: cache.Offer | None = None  # to a sparse cache, which has no `target`
  coding: tuple[Array, Array] | None = None  # slots before this are codes: now, and after it
  tap_Y: Array | None = None  # which of the tapped layers each is; one past them: none; see `tap`
  reads: bool = struct.field(pytree_node=False, default=True)  # False: what is stored is not seen


# The stream; keys and values of all layers, None without a cache; outputs of the tapped layers
# [T, B, W, D], None where there are none.
Carry = tuple[Array, Stored | None, Array | None]


def tap(tapped: Array | None, x_BxWxD: Array, layer: Array, shared: Shared) -> Array | None:
  """The outputs of the tapped layers after `layer` gave x."""
  return None if tapped is None else tapped.at[shared.tap_Y[layer]].set(x_BxWxD, mode="drop")


class Attention(nn.Module):
  config: ModelConfig
  out_gain: float
  has_values: bool = True  # False: keys, before their norm, are the values too

  @nn.compact
  def __call__(
    self, x_BxWxD: Array, stored: Stored | None, layer: Array, shared: Shared
  ) -> tuple[Array, Stored | None]:
    """Returns the output, and the keys and values of all layers with the window's among them."""
    cfg = self.config

    def project(name: str, heads: int, axis: str) -> Array:
      shape = (cfg.width, heads, cfg.head_dim)
      names = ("embed", axis, "head_dim")
      lora = on(cfg.lora, name)
      linear = Einsum("...D,DNH->...NH", shape, names, bias=cfg.qkv_bias, lora=lora, name=name)
      return linear(x_BxWxD, shared.gate_BxW)

    q_BxWxNxH = project("query", cfg.heads, "heads")
    k_BxWxKxH = project("key", cfg.kv_heads, "kv_heads")
    v_BxWxKxH = project("value", cfg.kv_heads, "kv_heads") if self.has_values else k_BxWxKxH
    if cfg.qk_norm:
      q_BxWxNxH = RMSNorm(cfg.norm_eps, ("head_dim",), name="query_norm")(q_BxWxNxH)
      k_BxWxKxH = RMSNorm(cfg.norm_eps, ("head_dim",), name="key_norm")(k_BxWxKxH)
    if cfg.gemma is not None:  # values of length 1, and scores that are not divided
      v_BxWxKxH = normalised(v_BxWxKxH, cfg.norm_eps)
      q_BxWxNxH *= cfg.head_dim**0.5
    q_BxWxNxH = rotate(q_BxWxNxH, shared.rotary)
    if shared.query_scale_BxW is not None:
      q_BxWxNxH *= shared.query_scale_BxW[:, :, None, None].astype(q_BxWxNxH.dtype)
    k_BxWxKxH = rotate(k_BxWxKxH, shared.rotary)

    parts = [Part(k_BxWxKxH, v_BxWxKxH)]
    if stored is not None and shared.reads:
      parts += cache.parts(stored, layer)
    shape = (cfg.heads, cfg.head_dim, cfg.width)
    names = ("heads", "head_dim", "embed")
    out = Einsum(
      "...NH,NHD->...D", shape, names, gain=self.out_gain, bias=cfg.out_bias,
      lora=on(cfg.lora, "out"), name="out",
    )  # fmt: skip
    y_BxWxD = out(block_attention(q_BxWxNxH, parts, shared.sight), shared.gate_BxW)
    if shared.target_BxW is not None:
      # XLA writes in place only what has been read by then, and on CPU it goes by dependencies: so
      # the slots depend on the output, by a comparison that is never true.
      nowhere = stored[0].shape[2]
      target_BxW = jnp.where(y_BxWxD[:, :, 0] > jnp.inf, nowhere, shared.target_BxW)
      new = k_BxWxKxH, v_BxWxKxH
      stored = cache.put(stored, new, layer, target_BxW, shared.coding)
    if shared.offer is not None:
      batch = len(y_BxWxD)
      keeps_B = shared.offer.offered_BxW.any(1) & ~(y_BxWxD[:, 0, 0] > jnp.inf)  # as above
      row_B = jnp.where(keeps_B, jnp.arange(batch), batch)
      new = k_BxWxKxH, v_BxWxKxH
      stored = cache.choose(stored, new, q_BxWxNxH, layer, shared.offer, row_B)
    return y_BxWxD, stored
