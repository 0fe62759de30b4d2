"""Sizes: what a transformer is made of, and the shapes that have a name."""

import dataclasses
from typing import Any, Self

TIME_WIDTH = 128  # of the noise level's embedding, as in MDLM (arXiv 2406.07524)

DTYPES = ("float32", "bfloat16")

# From 30m on the name counts a tied vocabulary of 32k; smaller models serve small vocabularies, and
# their names leave the embedding out. The last three are the checkpoints' own shapes; their
# vocabularies have 126464, 152064 and 151936 rows.
PRESETS: dict[str, dict[str, Any]] = {
  "1m": dict(width=128, layers=4, heads=4, kv_heads=4, head_dim=32, mlp=512),
  "3m": dict(width=192, layers=6, heads=6, kv_heads=6, head_dim=32, mlp=576),
  "10m": dict(width=320, layers=8, heads=5, kv_heads=5, head_dim=64, mlp=896),
  "30m": dict(width=384, layers=10, heads=6, kv_heads=6, head_dim=64, mlp=1024),
  "100m": dict(width=768, layers=12, heads=12, kv_heads=4, head_dim=64, mlp=2048),
  "300m": dict(width=1024, layers=24, heads=16, kv_heads=4, head_dim=64, mlp=2816),
  "1b": dict(width=2048, layers=20, heads=32, kv_heads=8, head_dim=64, mlp=6144),
  "3b": dict(width=3072, layers=28, heads=24, kv_heads=8, head_dim=128, mlp=8192),
  "8b": dict(width=4096, layers=36, heads=32, kv_heads=8, head_dim=128, mlp=14336),
  # arXiv 2502.09992
  "llada-8b": dict(
    width=4096, layers=32, heads=32, kv_heads=32, head_dim=128, mlp=12288,
    rope_base=5e5, norm_eps=1e-5, tied=False,
  ),
  # arXiv 2508.15487: the shape of Qwen2.5-7B
  "dream-7b": dict(
    width=3584, layers=28, heads=28, kv_heads=4, head_dim=128, mlp=18944,
    rope_base=1e6, qkv_bias=True, tied=False,
  ),
  # also SDAR-8B
  "qwen3-8b": dict(
    width=4096, layers=36, heads=32, kv_heads=8, head_dim=128, mlp=12288,
    rope_base=1e6, qk_norm=True, tied=False,
  ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A LLaMA/Qwen-style decoder. Hashable: equal configurations share one compile."""

  vocab: int  # rows of the embedding, special tokens included
  width: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp: int
  rope_base: float = 10000.0
  norm_eps: float = 1e-6
  qk_norm: bool = False  # RMSNorm of every query and key head, before the rotation (Qwen3)
  qkv_bias: bool = False  # Qwen2
  tied: bool = True  # one matrix embeds and unembeds
  time_conditioned: bool = False  # the noise level shifts, scales and gates every layer
  soft_cap: float | None = None  # logits become cap * tanh(logits / cap)
  dtype: str = "float32"  # of activations and of the cache; parameters are always float32
  remat: bool = False  # the backward pass recomputes whole layers: least memory, one more forward

  def __post_init__(self):
    for name in ("vocab", "width", "layers", "heads", "kv_heads", "head_dim", "mlp"):
      if getattr(self, name) < 1:
        raise ValueError(f"ModelConfig: {name}={getattr(self, name)} must be at least 1")
    if self.heads % self.kv_heads:
      raise ValueError(
        f"ModelConfig: heads={self.heads} must be a multiple of kv_heads={self.kv_heads}"
      )
    if self.head_dim % 2:
      raise ValueError(f"ModelConfig: head_dim={self.head_dim} must be even, rotary pairs it up")
    if self.soft_cap is not None and self.soft_cap <= 0:
      raise ValueError(f"ModelConfig: soft_cap={self.soft_cap} must be positive, or None for off")
    if self.dtype not in DTYPES:
      raise ValueError(f"ModelConfig: dtype={self.dtype!r} must be one of {', '.join(DTYPES)}")

  @classmethod
  def from_preset(cls, name: str, *, vocab: int, **overrides: Any) -> Self:
    """The preset's sizes with `overrides` on top. ValueError for unknown presets and fields."""
    if name not in PRESETS:
      raise ValueError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    fields = [field.name for field in dataclasses.fields(cls)]
    unknown = [key for key in overrides if key not in fields]
    if unknown:
      raise ValueError(f"unknown model fields {unknown}; known: {', '.join(fields)}")
    return cls(**{**PRESETS[name], "vocab": vocab, **overrides})

  def _matmul_params(self) -> int:
    """Weights that multiply every token: all but the embedding lookup, norms and biases."""
    attention = 2 * self.width * (self.heads + self.kv_heads) * self.head_dim
    layer = attention + 3 * self.width * self.mlp
    time = 0
    if self.time_conditioned:
      layer += TIME_WIDTH * 6 * self.width
      time = 2 * TIME_WIDTH * TIME_WIDTH
    return self.layers * layer + time + self.vocab * self.width

  def n_params(self) -> int:
    """Exact size of the parameter tree."""
    layer = 2 * self.width
    if self.qk_norm:
      layer += 2 * self.head_dim
    if self.qkv_bias:
      layer += (self.heads + 2 * self.kv_heads) * self.head_dim
    lookup = 0 if self.tied else self.vocab * self.width
    return self._matmul_params() + self.layers * layer + self.width + lookup

  def flops_per_token(self, context: int) -> int:
    """Matmul FLOPs of one forward for a token that sees `context` keys; a backward costs twice."""
    attention = 4 * context * self.heads * self.head_dim * self.layers
    return 2 * self._matmul_params() + attention
