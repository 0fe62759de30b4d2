"""config.json -> what the model is and what samplers ask; fields that cannot be are refused."""

import json

import pytest

from dlm import weights
from dlm.models import PRESETS, ModelConfig, from_preset

QWEN = dict(
  hidden_size=3584, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
  intermediate_size=18944, vocab_size=152064, rope_theta=1e6, rms_norm_eps=1e-6,
  max_position_embeddings=131072,
)  # fmt: skip
LLADA = dict(
  model_type="llada", d_model=4096, n_layers=32, n_heads=32, n_kv_heads=None, mlp_hidden_size=12288,
  embedding_size=126464, vocab_size=126464, rope_theta=5e5, rms_norm_eps=1e-5, weight_tying=False,
  eos_token_id=126081, max_sequence_length=4096, torch_dtype="bfloat16",
)  # fmt: skip
LLADA2 = dict(
  model_type="llada2_moe", num_hidden_layers=20, hidden_size=2048, intermediate_size=5120,
  first_k_dense_replace=1, moe_intermediate_size=512, num_experts=256, num_experts_per_tok=8,
  num_shared_experts=1, num_attention_heads=16, num_key_value_heads=4, head_dim=128, n_group=8,
  topk_group=4, routed_scaling_factor=2.5, norm_topk_prob=True, score_function="sigmoid",
  moe_router_enable_expert_bias=True, rope_theta=600000, partial_rotary_factor=0.5,
  rms_norm_eps=1e-6, vocab_size=157184, max_position_embeddings=16384, pad_token_id=156892,
)  # fmt: skip


def opened(tmp_path, config: dict, generation: dict | None = None) -> weights.Source:
  (tmp_path / "config.json").write_text(json.dumps(config))
  if generation is not None:
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
  return weights.open_source(tmp_path)


def preset(name: str, vocab: int, **fields) -> ModelConfig:
  assert name in PRESETS
  return from_preset(name, vocab=vocab, **fields)


def test_llada_8b_as_published(tmp_path):
  source = opened(tmp_path, LLADA)
  assert source.model == preset("llada-8b", 126464, dtype="bfloat16")
  assert source.model.n_params() == 8_015_581_184
  assert source.facts.to_json() == dict(
    mask_id=126336, eos_ids=[126081, 126348], pad_id=126081, shift=0, attention="full", block=None,
    vocab=126464, length=4096,
  )  # fmt: skip


def test_dream_7b_as_published(tmp_path):
  source = opened(
    tmp_path, QWEN | dict(model_type="Dream", mask_token_id=151666, eos_token_id=151643)
  )
  assert source.model == preset("dream-7b", 152064)
  assert source.model.n_params() == 7_615_616_512
  facts = source.facts
  assert (facts.mask_id, facts.shift, facts.attention_name) == (151666, 1, "full")


def test_llada2_mini_as_published(tmp_path):
  source = opened(tmp_path, LLADA2)
  assert source.model == preset("llada2-mini", 157184)
  facts = source.facts
  assert (facts.mask_id, facts.eos_ids, facts.block) == (156895, (156892,), 32)
  assert facts.attention_name == "block_causal"


def test_bd3lm_as_published(tmp_path):
  config = dict(
    model_type="bd3lm", adaln=True, causal=False, cross_attn=True, time_conditioning=False,
    block_size=16, cond_dim=128, hidden_dim=768, model_length=1024, n_blocks=12, n_heads=12,
    vocab_size=50258, torch_dtype="float32",
  )  # fmt: skip
  source = opened(tmp_path, config)
  model = source.model
  assert (model.kv_heads, model.head_dim, model.mlp, model.dit) == (12, 64, 3072, 128)
  assert source.facts.to_json() == dict(
    mask_id=50257, eos_ids=[50256], pad_id=50256, shift=0, attention="block_causal", block=16,
    vocab=50258, length=1024,
  )  # fmt: skip
  with pytest.raises(weights.WeightsError, match="time_conditioning=True is not supported"):
    opened(tmp_path, config | {"time_conditioning": True})


def test_llada_moe_is_told_from_llada_by_its_experts(tmp_path):
  config = dict(
    model_type="llada", hidden_size=2048, num_hidden_layers=16, num_attention_heads=16,
    num_key_value_heads=16, num_experts=64, num_experts_per_tok=8, expert_intermediate_size=1024,
    dense_intermediate_size=8192, moe_layer_freq=[1] * 16, shared_expert_intermediate_size=None,
    rope_theta=50000, rms_norm_eps=1e-5, vocab_size=157184, norm_topk_prob=None,
    moe_router_score_function="softmax", routed_scaling_factor=1,
  )  # fmt: skip
  source = opened(tmp_path, config)
  assert source.family == "llada_moe" and source.model == preset("llada-moe-7b", 157184)
  assert source.facts.mask_id == 156895


def test_sdar_takes_its_blocks_and_stops_from_both_files(tmp_path):
  config = QWEN | dict(model_type="sdar", head_dim=128, block_size=8, vocab_size=151936)
  source = opened(tmp_path, config | {"eos_token_id": 151643}, {"eos_token_id": [151645, 151643]})
  facts = source.facts
  assert facts.eos_ids == (151645, 151643) and facts.block == 8
  assert facts.mask_id == 151669 and facts.shift == 0
  assert source.model.qk_norm and not source.model.qkv_bias


def test_autoregressive_models_have_no_mask(tmp_path):
  facts = opened(tmp_path, QWEN | {"model_type": "qwen2"}).facts
  assert (facts.mask_id, facts.shift, facts.attention_name) == (None, 1, "causal")
  assert facts.length == 4096  # of 131072


def test_variants_of_qwen(tmp_path):
  coder = opened(tmp_path, QWEN | {"model_type": "qwen2", "is_causal": False}).facts
  assert (coder.attention_name, coder.shift) == ("full", 1)
  a2d = opened(tmp_path, QWEN | {"model_type": "a2d-qwen3"})
  assert (a2d.facts.attention_name, a2d.facts.shift, a2d.model.qk_norm) == ("full", 0, True)
  shifted = opened(tmp_path, QWEN | {"model_type": "a2d-qwen2", "right_shift_logits": True})
  assert shifted.facts.shift == 1 and shifted.model.qkv_bias
  for named in {"model_type": "Fast_dLLM_Qwen"}, {"architectures": ["FastdLLMV2ForCausalLM"]}:
    fast = opened(tmp_path, QWEN | {"bd_size": 16} | named)
    assert fast.family == "fast_dllm_v2"
    assert (fast.facts.mask_id, fast.facts.block, fast.facts.shift) == (151665, 16, 1)
  reasoner = {"model_type": "Dream", "architectures": ["DreamForCausalLM"], "vocab_size": 151936}
  found = opened(tmp_path, QWEN | reasoner)
  assert (found.facts.mask_id, found.facts.shift, found.model.qk_norm) == (151669, 0, True)


def test_the_published_ids_belong_to_the_published_vocabulary(tmp_path):
  facts = opened(tmp_path, LLADA | {"embedding_size": 200, "eos_token_id": 3}).facts
  assert (facts.mask_id, facts.eos_ids, facts.pad_id) == (None, (3,), None)


def test_where_transformers_5_keeps_the_rotation(tmp_path):
  rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "dtype": "bfloat16"}
  config = {key: value for key, value in QWEN.items() if key != "rope_theta"}
  model = opened(tmp_path, config | rope | {"model_type": "qwen2"}).model
  assert (model.rope_base, model.dtype) == (5e5, "bfloat16")


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"model_type": "llama"}, "unknown model_type 'llama'; known: llada, lladamoe, "),
    ({"model_type": None}, "unknown model_type None"),
    ({"hidden_size": None}, "field hidden_size is missing"),
    ({"hidden_size": "64"}, "hidden_size='64' is no int"),
    ({"hidden_size": -64}, "hidden_size=-64 is no int"),
    ({"num_attention_heads": 0}, "0 heads do not divide"),
    ({"num_hidden_layers": 0}, "layers=0 must be at least 1"),
    ({"num_key_value_heads": 3}, "must be a multiple of kv_heads=3"),
    ({"rope_theta": float("nan")}, "rope_theta=nan is no float"),
    ({"rms_norm_eps": 0}, "rms_norm_eps=0 is no float"),
    ({"tie_word_embeddings": "no"}, "tie_word_embeddings='no' is no bool"),
    ({"rope_scaling": {"rope_type": "yarn"}}, "only unscaled rotary positions"),
    ({"rope_scaling": "yarn"}, "only unscaled rotary positions"),
    ({"use_sliding_window": True}, "use_sliding_window=True is not supported; only False"),
    ({"layer_types": ["sliding_attention"]}, "only 'full_attention'"),
    ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported; only 'silu'"),
    ({"mask_token_id": 152064}, r"mask_token_id=\[152064\] lies outside the vocabulary of 152064"),
    ({"eos_token_id": [1, "2"]}, "lies outside the vocabulary"),
    ({"max_position_embeddings": "long"}, "max_position_embeddings='long' is no int"),
  ],
)  # fmt: skip
def test_fields_that_cannot_be(change, message, tmp_path):
  with pytest.raises(weights.WeightsError, match=message) as error:
    opened(tmp_path, QWEN | {"model_type": "qwen2"} | change)
  assert str(tmp_path / "config.json") in str(error.value)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"num_experts_per_tok": 300}, "per_token=300 exceeds"),
    ({"score_function": "relu"}, "score='relu' must be one of"),
    ({"first_k_dense_replace": 20}, "dense_layers=20 must be below layers=20"),
    ({"use_qk_norm": False}, "use_qk_norm=False is not supported"),
    ({"block_size": 0}, "block_size=0 must be at least 1"),
  ],
)
def test_experts_that_cannot_be(change, message, tmp_path):
  with pytest.raises(weights.WeightsError, match=message):
    opened(tmp_path, LLADA2 | change)


def test_layers_with_experts_come_last(tmp_path):
  config = dict(LLADA2, model_type="lladamoe", expert_intermediate_size=512, moe_layer_freq=[1, 0])
  with pytest.raises(weights.WeightsError, match="is not 0 for some layers, then 1 for all"):
    opened(tmp_path, config | {"num_hidden_layers": 2})


def test_is_huggingface(tmp_path):
  assert not weights.is_huggingface(tmp_path)
  (tmp_path / "config.json").write_text('{"objective": {}}')
  assert not weights.is_huggingface(tmp_path)
  (tmp_path / "config.json").write_text('{"model_type": "llama"}')
  assert weights.is_huggingface(tmp_path)


def test_a_directory_without_a_config(tmp_path):
  with pytest.raises(weights.WeightsError, match=r"it holds no config\.json"):
    weights.open_source(tmp_path)
