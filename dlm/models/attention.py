"""Grouped-query attention over the window's own keys and, with a cache, over the cached ones."""

import flax.linen as nn
from flax import struct

from dlm.models.layers import Einsum, RMSNorm, rotate
from dlm.models.presets import ModelConfig
from dlm.types import Array
from kernels_pallas.block_attention import Part, Sight, block_attention


@struct.dataclass
class Shared:
  """What all layers have in common, computed once outside the scan."""

  rotary: tuple[Array, Array]  # cosines and sines of the window's slots
  sight: Sight  # of the window's own keys, and of the cached ones if there are any
  time_BxWxC: Array | None  # embedded noise level; [1, 1, C] where it is the same everywhere
  level_BxW: Array | None  # noise level itself; None where no layer reads it
  live_BxW: Array  # bool: real tokens, not padding


class Attention(nn.Module):
  config: ModelConfig
  out_gain: float

  @nn.compact
  def __call__(
    self, x_BxWxD: Array, cached: Part | None, shared: Shared
  ) -> tuple[Array, tuple[Array, Array]]:
    """Returns the output and the window's keys and values; `cached` holds those of all layers."""
    cfg = self.config

    def project(name: str, heads: int, axis: str) -> Array:
      shape = (cfg.width, heads, cfg.head_dim)
      names = ("embed", axis, "head_dim")
      return Einsum("...D,DNH->...NH", shape, names, bias=cfg.qkv_bias, name=name)(x_BxWxD)

    q_BxWxNxH = project("query", cfg.heads, "heads")
    k_BxWxKxH = project("key", cfg.kv_heads, "kv_heads")
    v_BxWxKxH = project("value", cfg.kv_heads, "kv_heads")
    if cfg.qk_norm:
      q_BxWxNxH = RMSNorm(cfg.norm_eps, ("head_dim",), name="query_norm")(q_BxWxNxH)
      k_BxWxKxH = RMSNorm(cfg.norm_eps, ("head_dim",), name="key_norm")(k_BxWxKxH)
    q_BxWxNxH = rotate(q_BxWxNxH, shared.rotary)
    k_BxWxKxH = rotate(k_BxWxKxH, shared.rotary)

    parts = [Part(k_BxWxKxH, v_BxWxKxH), *([] if cached is None else [cached])]
    shape = (cfg.heads, cfg.head_dim, cfg.width)
    names = ("heads", "head_dim", "embed")
    out = Einsum("...NH,NHD->...D", shape, names, gain=self.out_gain, name="out")
    return out(block_attention(q_BxWxNxH, parts, shared.sight)), (k_BxWxKxH, v_BxWxKxH)
