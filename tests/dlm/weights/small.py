"""A small model of every family, with random parameters, and its directory."""

import flax.linen as nn
import jax
import ml_dtypes
import numpy as np

from dlm import weights
from dlm.facts import ModelFacts
from dlm.models import BertConfig, GemmaConfig, ModelConfig, MoeConfig, RopeScaling, bind
from dlm.models.config import DrafterConfig

SIZES = dict(
  vocab=40, width=16, layers=3, heads=4, kv_heads=2, head_dim=8, mlp=24, rope_base=1e6, tied=False
)
QWEN2, QWEN3 = dict(SIZES, qkv_bias=True), dict(SIZES, qk_norm=True)
EXPERTS = dict(experts=8, per_token=2, mlp=12)
LLADA2 = dict(
  shared=12, dense_layers=1, score="sigmoid", bias=True, renormalise=True, scale=2.5, groups=4,
  top_groups=2,
)  # fmt: skip
LLADA22 = LLADA2 | dict(groups=1, top_groups=1, admitted=5, pool=16)
LLADA_MOE = dict(shared=20, dense_layers=1, bias=True, bias_in_weight=True)

MODELS = {
  "llada": ModelConfig(**SIZES | dict(kv_heads=4, head_dim=4)),
  "llada_moe": ModelConfig(**QWEN3, moe=MoeConfig(**EXPERTS, **LLADA_MOE)),
  "llada2_moe": ModelConfig(**QWEN3, rotary_dim=4, moe=MoeConfig(**EXPERTS, **LLADA2)),
  "llada22_moe": ModelConfig(**QWEN3, rotary_dim=4, moe=MoeConfig(**EXPERTS, **LLADA22)),
  "dream": ModelConfig(**QWEN2),
  "dream_reasoner": ModelConfig(**QWEN3),
  "qwen2": ModelConfig(**QWEN2 | dict(tied=True)),
  "qwen3": ModelConfig(**QWEN3),
  "dflash": ModelConfig(**QWEN3 | dict(tied=True), drafter=DrafterConfig((0, 3), 6, mask_id=38)),
  "llama": ModelConfig(**SIZES, qkv_bias=True, out_bias=True, mlp_bias=True),
  "mistral": ModelConfig(**SIZES),
  "stable_diffcoder": ModelConfig(**SIZES),
  "rnd1": ModelConfig(**QWEN3, moe=MoeConfig(**EXPERTS, renormalise=True)),
  "wedlm": ModelConfig(**QWEN3),
  "sdar": ModelConfig(**QWEN3),
  "sdar_moe": ModelConfig(**QWEN3, moe=MoeConfig(**EXPERTS, renormalise=True)),
  "fast_dllm_v2": ModelConfig(**QWEN2),
  "nemotron_labs_diffusion": ModelConfig(**SIZES, norm_eps=1e-5, rope_scaling=RopeScaling(
    "yarn", 4.0, 16, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.1,
  )),
  "bd3lm": ModelConfig(**SIZES | dict(
    kv_heads=4, head_dim=4, mlp=64, rope_base=1e4, norm_eps=1e-5, dit=10,
  )),
  "modernbert": ModelConfig(**SIZES | dict(
    kv_heads=4, head_dim=4, norm_eps=1e-5, tied=True, bert=BertConfig(2, 5, 5e3),
  )),
  "diffusion_gemma": ModelConfig(**QWEN3 | dict(tied=True), soft_cap=30.0,
    moe=MoeConfig(**EXPERTS, renormalise=True), gemma=GemmaConfig((1, 2), 4, 1, 12, rotated=0.5)),
  "a2d-llama": ModelConfig(**SIZES, rope_scaling=RopeScaling("llama3", 32.0, 8192)),
  "a2d-qwen2": ModelConfig(**QWEN2),
  "a2d-qwen3": ModelConfig(**QWEN3),
}  # fmt: skip
ATTENTION = {
  "qwen2": ("causal", 1, None),
  "qwen3": ("causal", 1, None),
  "dflash": ("full", 0, 8),
  "llama": ("causal", 1, None),
  "mistral": ("causal", 1, None),
  "dream": ("full", 1, None),
  "dream_reasoner": ("block_causal", 0, 16),
  "llada2_moe": ("block_causal", 0, 16),
  "llada22_moe": ("block_causal", 0, 16),
  "stable_diffcoder": ("block_causal", 0, 4),
  "rnd1": ("full", 1, None),
  "wedlm": ("causal", 0, None),
  "sdar": ("block_causal", 0, 8),
  "sdar_moe": ("block_causal", 0, 8),
  "fast_dllm_v2": ("block_causal", 1, 16),
  "bd3lm": ("block_causal", 0, 8),
  "diffusion_gemma": ("canvas", 0, 8),
  "nemotron_labs_diffusion": ("causal_context", 0, 8),
}


def facts_of(family: str) -> ModelFacts:
  attention, shift, block = ATTENTION.get(family, ("full", 0, None))
  mask_id = None if (attention == "causal" and shift) or family == "dflash" else 39
  edits = dict(insert_id=31, delete_id=32) if family == "llada22_moe" else {}
  return ModelFacts.from_json(dict(
    mask_id=mask_id, eos_ids=[3, 5], pad_id=3, shift=shift, attention=attention, block=block,
    vocab=40, length=64, **edits,
  ))  # fmt: skip


def params_of(model: ModelConfig, dtype=ml_dtypes.bfloat16):
  """Random bits of numbers below 2, in the host's memory; router biases are float32."""
  rng = np.random.default_rng(0)

  def leaf(path, shape):
    kind = np.dtype(
      np.float32 if jax.tree_util.keystr(path).endswith("['router']['bias']") else dtype
    )
    bits = rng.integers(0, 256, (shape.size, kind.itemsize), np.uint8)
    bits[:, -1] &= 0b10111111  # the exponent's highest: without it nothing is infinite or NaN
    return bits.view(kind).reshape(shape.shape)

  return jax.tree_util.tree_map_with_path(leaf, nn.unbox(bind(model).abstract()))


def write(directory, family: str, kind=ml_dtypes.bfloat16, **options):
  """The directory of a family's small model; its parameters."""
  model = MODELS[family]
  params = params_of(model, kind)
  weights.export(directory, family, model, params, facts=facts_of(family), **options)
  return params


def same_bits(got, want) -> None:
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    a = np.asarray(a)
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a.view(np.uint8), np.ascontiguousarray(b).view(np.uint8))
