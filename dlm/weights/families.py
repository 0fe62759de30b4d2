"""The families of checkpoints: their tensors, the fields of their config.json, what samplers ask.

From specs/moe_distill_rl.md, sections 2 and 3. A family is facts alone; `configs` reads and writes
config.json by them, `names` holds the tables of tensors.

Without the authors' files at hand: SDAR-MoE is read as Qwen3-MoE (softmax over all experts,
renormalised where norm_topk_prob says so) in SDAR's blocks; `Dream` with the class
DreamForCausalLM is read as Dream-Reasoner, a Qwen3 in blocks of 32 whose logits are not shifted.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dlm.weights import names


@dataclasses.dataclass(frozen=True)
class Published:
  """Special ids of the released checkpoints, for where config.json leaves them out."""

  vocabs: tuple[int, ...]  # rows of their embeddings: other sizes mean another tokenizer
  mask: int
  eos: tuple[int, ...]  # the chat's own end included
  pad: int


@dataclasses.dataclass(frozen=True)
class Family:
  """One `model_type`."""

  model_type: str
  architecture: str
  table: names.NameTable
  fields: Mapping[str, str]  # of ModelConfig -> of config.json
  defaults: Mapping[str, Any]  # fields of ModelConfig where config.json has none
  moe: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of MoeConfig -> of config.json
  moe_defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  attention: str = "full"  # "causal", "block_causal": see facts.json
  shift: int = 0  # 1: logits at i predict token i + 1
  block_field: str | None = None  # of config.json, tokens a block
  block: int | None = None  # where config.json has none
  length_field: str = "max_position_embeddings"
  mask_last: bool = False  # the mask token is one past the tokenizer's ids: the table's last row
  published: Published | None = None


_SIZES = {
  "vocab": "vocab_size",
  "width": "hidden_size",
  "layers": "num_hidden_layers",
  "heads": "num_attention_heads",
  "kv_heads": "num_key_value_heads",
  "head_dim": "head_dim",
  "rope_base": "rope_theta",
  "norm_eps": "rms_norm_eps",
  "tied": "tie_word_embeddings",
}
_QWEN_FIELDS = {**_SIZES, "mlp": "intermediate_size"}
_LLADA_FIELDS = {
  "vocab": "embedding_size",
  "width": "d_model",
  "layers": "n_layers",
  "heads": "n_heads",
  "kv_heads": "n_kv_heads",
  "mlp": "mlp_hidden_size",
  "rope_base": "rope_theta",
  "norm_eps": "rms_norm_eps",
  "tied": "weight_tying",
}
_EXPERTS = {"experts": "num_experts", "per_token": "num_experts_per_tok"}
_QWEN2 = {"rope_base": 1e6, "norm_eps": 1e-6, "tied": False, "qkv_bias": True}
_QWEN3 = {"rope_base": 1e6, "norm_eps": 1e-6, "tied": False, "qk_norm": True}
_SDAR_IDS = Published((151936,), mask=151669, eos=(151645, 151643), pad=151643)

FAMILIES: dict[str, Family] = {
  "llada": Family(
    model_type="llada",
    architecture="LLaDAModelLM",
    table=names.LLADA,
    fields=_LLADA_FIELDS,
    defaults={"rope_base": 5e5, "norm_eps": 1e-5, "tied": False},
    length_field="max_sequence_length",
    published=Published((126464,), mask=126336, eos=(126081, 126348), pad=126081),
  ),
  "llada_moe": Family(
    model_type="lladamoe",
    architecture="LLaDAMoEModelLM",
    table=names.LLADA_MOE,
    fields={**_SIZES, "mlp": "dense_intermediate_size"},
    defaults={"rope_base": 5e4, "norm_eps": 1e-5, "tied": False, "qk_norm": True},
    moe={**_EXPERTS, "mlp": "expert_intermediate_size", "shared": "shared_expert_intermediate_size",
         "bias": "moe_router_enable_expert_bias"},
    moe_defaults={"shared": 0, "bias": False},
    published=Published((157184,), mask=156895, eos=(156892,), pad=156892),
  ),
  "llada2_moe": Family(
    model_type="llada2_moe",
    architecture="LLaDA2MoeModelLM",
    table=names.LLADA2_MOE,
    fields={**_QWEN_FIELDS, "rotary_dim": "rotary_dim"},
    defaults={"rope_base": 6e5, "norm_eps": 1e-6, "tied": False, "qk_norm": True},
    moe={**_EXPERTS, "mlp": "moe_intermediate_size", "dense_layers": "first_k_dense_replace",
         "score": "score_function", "bias": "moe_router_enable_expert_bias",
         "renormalise": "norm_topk_prob", "scale": "routed_scaling_factor",
         "groups": "n_group", "top_groups": "topk_group"},
    moe_defaults={"dense_layers": 1, "score": "sigmoid", "bias": True, "renormalise": True,
                  "scale": 2.5, "groups": 8, "top_groups": 4},
    attention="block_causal",
    block_field="block_size",
    block=32,
    published=Published((157184,), mask=156895, eos=(156892,), pad=156892),
  ),
  "dream": Family(
    model_type="Dream",
    architecture="DreamModel",
    table=names.QWEN,
    fields=_QWEN_FIELDS,
    defaults=_QWEN2,
    shift=1,
    published=Published((152064,), mask=151666, eos=(151643, 151645), pad=151643),
  ),
  "dream_reasoner": Family(
    model_type="Dream",
    architecture="DreamForCausalLM",
    table=names.QWEN,
    fields=_QWEN_FIELDS,
    defaults=_QWEN3,
    attention="block_causal",
    block_field="block_size",
    block=32,
    published=_SDAR_IDS,
  ),
  "qwen2": Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    table=names.QWEN,
    fields=_QWEN_FIELDS,
    defaults=_QWEN2,
    attention="causal",
    shift=1,
  ),
  "qwen3": Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    table=names.QWEN,
    fields=_QWEN_FIELDS,
    defaults=_QWEN3,
    attention="causal",
    shift=1,
  ),
  "sdar": Family(
    model_type="sdar",
    architecture="SDARForCausalLM",
    table=names.QWEN,
    fields=_QWEN_FIELDS,
    defaults=_QWEN3,
    attention="block_causal",
    block_field="block_size",
    block=4,
    published=_SDAR_IDS,
  ),
  "sdar_moe": Family(
    model_type="sdar_moe",
    architecture="SDARMoeForCausalLM",
    table=names.QWEN_MOE,
    fields=_QWEN_FIELDS,
    defaults=_QWEN3,
    moe={**_EXPERTS, "mlp": "moe_intermediate_size", "renormalise": "norm_topk_prob"},
    moe_defaults={"renormalise": True},
    attention="block_causal",
    block_field="block_size",
    block=4,
    published=_SDAR_IDS,
  ),
  "fast_dllm_v2": Family(
    model_type="Fast_dLLM_Qwen",
    architecture="Fast_dLLM_QwenForCausalLM",
    table=names.QWEN,
    fields=_QWEN_FIELDS,
    defaults=_QWEN2,
    attention="block_causal",
    shift=1,
    block_field="bd_size",
    block=32,
    published=Published((151936, 152064), mask=151665, eos=(151645,), pad=151643),
  ),
  "bd3lm": Family(
    model_type="bd3lm",
    architecture="BD3LM",
    table=names.BD3LM,
    fields={"vocab": "vocab_size", "width": "hidden_dim", "layers": "n_blocks", "heads": "n_heads",
            "dit": "cond_dim"},
    defaults={"rope_base": 1e4, "norm_eps": 1e-5, "tied": False},
    attention="block_causal",
    block_field="block_size",
    block=1,
    length_field="model_length",
    mask_last=True,
    published=Published((50258,), mask=50257, eos=(50256,), pad=50256),
  ),
  "a2d-qwen2": Family(
    model_type="a2d-qwen2",
    architecture="A2DQwen2LMHeadModel",
    table=names.QWEN,
    fields=_QWEN_FIELDS,
    defaults=_QWEN2,
  ),
  "a2d-qwen3": Family(
    model_type="a2d-qwen3",
    architecture="A2DQwen3LMHeadModel",
    table=names.QWEN,
    fields=_QWEN_FIELDS,
    defaults=_QWEN3,
  ),
}  # fmt: skip
