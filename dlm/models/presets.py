"""Shapes that have a name: sizes of our own, and those of published checkpoints."""

import dataclasses
from typing import Any

from dlm.models.config import GemmaConfig, ModelConfig
from dlm.models.moe.config import MoeConfig

# From 30m on the name counts a tied vocabulary of 32k; smaller models serve small vocabularies, and
# their names leave the embedding out. The last seven are the checkpoints' own shapes; their
# vocabularies have 49152, 126464, 152064, 151936, 157184, 157184 and 262144 rows.
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
  # arXiv 2502.02737
  "smollm2-135m": dict(
    width=576, layers=30, heads=9, kv_heads=3, head_dim=64, mlp=1536, rope_base=1e5, norm_eps=1e-5,
  ),
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
  # arXiv 2509.24389; `mlp` is read by no layer
  "llada-moe-7b": dict(
    width=2048, layers=16, heads=16, kv_heads=16, head_dim=128, mlp=8192,
    rope_base=5e4, norm_eps=1e-5, qk_norm=True, tied=False,
    moe=MoeConfig(experts=64, per_token=8, mlp=1024),
  ),
  "llada2-mini": dict(
    width=2048, layers=20, heads=16, kv_heads=4, head_dim=128, mlp=5120,
    rope_base=6e5, rotary_dim=64, qk_norm=True, tied=False,
    moe=MoeConfig(
      experts=256, per_token=8, mlp=512, shared=512, dense_layers=1, score="sigmoid", bias=True,
      renormalise=True, scale=2.5, groups=8, top_groups=4,
    ),
  ),
  # 26B-A4B; google-deepmind/gemma
  "diffusion-gemma": dict(
    width=2816, layers=30, heads=16, kv_heads=8, head_dim=256, mlp=2112, qk_norm=True,
    soft_cap=30.0, moe=MoeConfig(experts=128, per_token=8, mlp=704, renormalise=True),
    gemma=GemmaConfig(full=(5, 11, 17, 23, 29), window=1024, kv_heads=2, head_dim=512),
  ),
}  # fmt: skip


def from_preset(name: str, *, vocab: int, **overrides: Any) -> ModelConfig:
  """The preset's sizes with `overrides` on top. ValueError for unknown presets and fields."""
  if name not in PRESETS:
    raise ValueError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
  fields = [field.name for field in dataclasses.fields(ModelConfig)]
  unknown = [key for key in overrides if key not in fields]
  if unknown:
    raise ValueError(f"unknown model fields {unknown}; known: {', '.join(fields)}")
  return ModelConfig(**{**PRESETS[name], "vocab": vocab, **overrides})
