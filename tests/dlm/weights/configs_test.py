"""config.json -> what the model is and what samplers ask; fields that cannot be are refused."""

import dataclasses
import json
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks, weights
from dlm.models import PRESETS, BertConfig, ModelConfig, RopeScaling, bind, from_preset
from dlm.weights.configs import config_of
from dlm.weights.families import FAMILIES
from dlm.weights.fields import IRRELEVANT
from tests.dlm.weights import small
from tests.dlm.weights.published import CONFIGS, by_transformers_5

OWN = ("model_type", "architectures", "torch_dtype")
QWEN = {key: x for key, x in CONFIGS["qwen2"].items() if key not in OWN}
LLADA, LLADA2, BD3LM = CONFIGS["llada"], CONFIGS["llada2_moe"], CONFIGS["bd3lm"]


RECORDED = pathlib.Path(__file__).parents[2] / "conformance"


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
    vocab=126464, length=4096, insert_id=None, delete_id=None,
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
  assert source.model == preset("llada2-mini", 157184, dtype="bfloat16")
  facts = source.facts
  assert (facts.mask_id, facts.eos_ids, facts.block) == (156895, (156892,), 32)
  assert facts.attention_name == "block_causal"


def test_bd3lm_as_published(tmp_path):
  source = opened(tmp_path, BD3LM)
  model = source.model
  assert (model.kv_heads, model.head_dim, model.mlp, model.dit) == (12, 64, 3072, 128)
  assert source.facts.to_json() == dict(
    mask_id=50257, eos_ids=[50256], pad_id=50256, shift=0, attention="block_causal", block=16,
    vocab=50258, length=1024, insert_id=None, delete_id=None,
  )  # fmt: skip
  with pytest.raises(weights.WeightsError, match="time_conditioning=True is not supported"):
    opened(tmp_path, BD3LM | {"time_conditioning": True})


def test_llada_moe_is_told_from_llada_by_its_experts(tmp_path):
  source = opened(tmp_path, CONFIGS["llada_moe"])
  assert source.family == "llada_moe"
  assert source.model == preset("llada-moe-7b", 157184, dtype="bfloat16")
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


def test_smollm2_135m_as_published(tmp_path):
  source = opened(tmp_path, CONFIGS["llama"])
  assert source.model == preset("smollm2-135m", 49152, dtype="bfloat16")
  assert source.model.n_params() == 134_515_008
  facts = source.facts
  assert (facts.mask_id, facts.shift, facts.attention_name) == (None, 1, "causal")


def test_variants_of_llama(tmp_path):
  config = CONFIGS["llama"]
  wide = opened(tmp_path, config | {"head_dim": 128, "num_key_value_heads": None}).model
  assert (wide.head_dim, wide.heads, wide.kv_heads) == (128, 9, 9)  # heads of 128, not 576 / 9
  assert opened(tmp_path, config | {"head_dim": None}).model.head_dim == 64
  biased = opened(tmp_path, config | {"attention_bias": True, "mlp_bias": True}).model
  assert biased.qkv_bias and biased.out_bias and biased.mlp_bias
  oldest = {key: x for key, x in config.items() if key != "rope_theta"}
  assert opened(tmp_path, oldest).model.rope_base == 1e4
  with pytest.raises(weights.WeightsError, match="rope_interleaved=True is not supported"):
    opened(tmp_path, config | {"rope_interleaved": True})


def test_mistral_must_say_that_it_has_no_window(tmp_path):
  config = CONFIGS["mistral"]
  assert not opened(tmp_path, config).model.qkv_bias
  with pytest.raises(weights.WeightsError, match="sliding_window=4096 is not supported; only None"):
    opened(tmp_path, config | {"sliding_window": 4096})
  config = {key: x for key, x in config.items() if key != "sliding_window"}
  with pytest.raises(weights.WeightsError, match="sliding_window is missing and must be null"):
    opened(tmp_path, config)


def test_stable_diffcoder_is_a_llama_by_its_model_type_alone(tmp_path):
  config = CONFIGS["stable_diffcoder"]
  source = opened(tmp_path, config)
  assert source.model.n_params() == 8_250_462_208
  assert source.facts.to_json() == dict(
    mask_id=5, eos_ids=[2], pad_id=1, shift=0, attention="block_causal", block=4, vocab=155136,
    length=4096, insert_id=None, delete_id=None,
  )  # fmt: skip
  for family in ("llama", "mistral", "qwen2", "qwen3"):  # and no other class is taken for theirs
    with pytest.raises(weights.WeightsError, match=r"architectures=\['Own'\] is not supported"):
      opened(tmp_path, CONFIGS[family] | {"architectures": ["Own"]})


def test_rnd1_as_published(tmp_path):
  source = opened(tmp_path, CONFIGS["rnd1"])
  assert source.model.n_params() == 30_532_122_624  # Qwen3-30B-A3B's
  facts = source.facts
  assert (facts.mask_id, facts.eos_ids, facts.shift) == (151669, (151645,), 1)
  assert facts.attention_name == "full" and source.model.moe.renormalise


def test_wedlm_is_a_causal_qwen_that_predicts_masks(tmp_path):
  config = CONFIGS["wedlm"]
  source = opened(tmp_path, config)
  assert source.model.qk_norm and not source.model.qkv_bias
  facts = source.facts
  assert (facts.mask_id, facts.shift, facts.attention_name) == (151665, 0, "causal")
  of_qwen2 = {key: x for key, x in config.items() if key not in ("attention_bias", "qk_norm")}
  model = opened(tmp_path, of_qwen2).model
  assert model.qkv_bias and not model.qk_norm


def test_modernbert_base_as_published(tmp_path):
  config = CONFIGS["modernbert"]
  source = opened(tmp_path, config)
  assert source.model.n_params() == 149_655_232
  assert source.model.bert == BertConfig(3, 64, 1e4) and source.model.rope_base == 1.6e5
  facts = source.facts
  assert (facts.mask_id, facts.eos_ids, facts.shift) == (50284, (50282,), 0)
  written = config_of(source.family, source.model, facts, config, "float32")
  (tmp_path / "config.json").write_text(json.dumps(written))
  assert weights.open_source(tmp_path).model == source.model
  kinds, rotations = written["layer_types"], written["rope_parameters"]
  for change, words in (
    ({"layer_types": kinds[1:] + kinds[:1]}, "at equal distances"),
    ({"layer_types": kinds[:-1]}, "at equal distances"),
    ({"global_attn_every_n_layers": 4}, "global_attn_every_n_layers=4 disagrees with 3"),
    ({"local_rope_theta": 7.0}, "local_rope_theta=7.0 disagrees with 10000.0"),
    ({"rope_parameters": rotations | {"full_attention": {"rope_type": "yarn"}}}, "not understood"),
  ):
    with pytest.raises(weights.WeightsError, match=words):
      opened(tmp_path, written | change)


def test_nemotron_labs_diffusion_8b_as_published(tmp_path):
  config = CONFIGS["nemotron_labs_diffusion"]
  source = opened(tmp_path, config)
  assert source.model.n_params() == 8_489_553_920
  assert source.model.rope_scaling == RopeScaling(
    "yarn", 16.0, 16384, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.1
  )
  assert source.facts.to_json() == dict(
    mask_id=100, eos_ids=[11], pad_id=None, shift=0, attention="causal_context", block=32,
    vocab=131072, length=4096, insert_id=None, delete_id=None,
  )  # fmt: skip
  written = config_of(source.family, source.model, source.facts, config, "bfloat16")
  assert {key: written[key] for key in config} == config
  for change in ({"dlm_paradigm": "autoregressive"}, {"dlm_type": "dream"}):
    with pytest.raises(weights.WeightsError, match="is not supported; only"):
      opened(tmp_path, config | change)
  # No other class of transformers looks at the scale of queries.
  rope = {"rope_parameters": config["rope_parameters"]}
  with pytest.raises(weights.WeightsError, match="llama_4_scaling_beta of yarn is not understood"):
    opened(tmp_path, CONFIGS["mistral"] | rope)


@pytest.mark.parametrize(
  ("ids", "want"),
  [
    ({"eos_token_id": 151643, "pad_token_id": 151643}, ((151643, 151645), 151643)),
    ({"eos_token_id": 151645, "pad_token_id": 151667}, ((151645, 151643), 151667)),
  ],
)
def test_dream_coder_and_diffucoder_are_dreams(ids, want, tmp_path):
  source = opened(tmp_path, CONFIGS["dream"] | ids)
  facts = source.facts
  assert (source.family, facts.mask_id, facts.shift) == ("dream", 151666, 1)
  assert (facts.eos_ids, facts.pad_id) == want


def test_diffullama_says_what_it_is_by_two_keys(tmp_path):
  """Its config.json is LLaMA-2's, whose token 811 is its mask."""
  config = CONFIGS["llama"] | {"vocab_size": 32000, "tie_word_embeddings": False}
  facts = opened(tmp_path, config | {"is_causal": False, "mask_token_id": 811}).facts
  assert (facts.attention_name, facts.shift, facts.mask_id) == ("full", 1, 811)
  assert opened(tmp_path, config).facts.attention_name == "causal"


def test_the_published_ids_belong_to_the_published_vocabulary(tmp_path):
  named = {"mask_token_id": None, "pad_token_id": None, "eos_token_id": 3}
  facts = opened(tmp_path, LLADA | {"embedding_size": 200} | named).facts
  assert (facts.mask_id, facts.eos_ids, facts.pad_id) == (None, (3,), None)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_of_a_published_config_is_accounted_for(family, tmp_path):
  """As published, and as transformers 5 writes it: the same model, to the last fact."""
  source = opened(tmp_path, CONFIGS[family])
  assert source.family == family
  again = opened(tmp_path, by_transformers_5(CONFIGS[family]))
  assert (again.family, again.model, again.facts) == (family, source.model, source.facts)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_that_is_not_named_irrelevant_is_looked_at(family, tmp_path):
  """A table stands where none can be: whoever reads the key says so."""
  ignored = {*IRRELEVANT, *FAMILIES[family].irrelevant} - {"architectures", "model_type"}
  keys = CONFIGS[family].keys() - ignored - {"architectures", "transformers_version"}
  for key in keys - {"model_type"}:
    said = key.replace("rope_parameters", "rope_scaling")  # as it is spelled by then
    with pytest.raises(weights.WeightsError, match=f"config.json: .*{said}=") as error:
      opened(tmp_path, CONFIGS[family] | {key: {"a": 1}})
    assert str(error.value).count("\n") == 0


TEXT = CONFIGS["diffusion_gemma"]["text_config"]
PROPORTIONAL = TEXT["rope_parameters"]["full_attention"]


def test_diffusion_gemma_as_published(tmp_path):
  source = opened(tmp_path, CONFIGS["diffusion_gemma"], {"eos_token_id": [1, 106, 50]})
  assert source.model == preset("diffusion-gemma", 262144, dtype="bfloat16")
  facts = source.facts
  assert (facts.mask_id, facts.eos_ids, facts.pad_id) == (None, (1, 106, 50), 0)
  assert facts.attention == masks.Canvas(256) and facts.block == 256
  # What the authors' class fills in.
  least = {key: x for key, x in TEXT.items() if key not in ("layer_types", "rope_parameters")}
  least |= dict(per_layer_config=None, num_global_key_value_heads=2)
  least = CONFIGS["diffusion_gemma"] | {"text_config": least}
  assert opened(tmp_path, least).model == source.model


@pytest.mark.parametrize(
  ("text", "match"),
  [
    ({"expert_capacity": 48}, "expert_capacity=48 is not understood"),
    ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention='all' is not supported"),
    ({"vocab_size": None}, "vocab_size is missing"),
    ({"layer_types": ["full_attention"] * 29}, "must name a kind for each of 30 layers"),
    ({"layer_types": ["sliding_attention"] * 30, "per_layer_config": None}, "must end with"),
    ({"per_layer_config": {"5": {"head_dim": 512}}}, "must give all full layers the same sizes"),
    ({"tie_word_embeddings": False}, "tie_word_embeddings=True disagrees with False of text_conf"),
    ({"rope_parameters": {"full_attention": PROPORTIONAL | {"factor": 2.0}}}, "is not understood"),
    ({"model_type": "gemma4_text"}, "model_type='gemma4_text'"),
  ],
)
def test_diffusion_gemmas_of_other_kinds_are_refused(text, match, tmp_path):
  with pytest.raises(weights.WeightsError, match=match) as error:
    opened(tmp_path, CONFIGS["diffusion_gemma"] | {"text_config": TEXT | text})
  assert str(error.value).count("\n") == 0


def test_every_key_of_the_text_of_diffusion_gemma_is_looked_at(tmp_path):
  for key in TEXT.keys() - IRRELEVANT:
    with pytest.raises(weights.WeightsError, match=f"config.json: .*{key}=") as error:
      opened(tmp_path, CONFIGS["diffusion_gemma"] | {"text_config": TEXT | {key: {"a": 1}}})
    assert str(error.value).count("\n") == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_key_that_nobody_knows_is_refused(family, tmp_path):
  opened(tmp_path, CONFIGS[family] | {"expert_groups": None})
  with pytest.raises(weights.WeightsError) as error:
    opened(tmp_path, CONFIGS[family] | {"expert_groups": 48})
  path = tmp_path / "config.json"
  assert str(error.value) == f"{path}: expert_groups=48 is not understood (family {family})"


def test_llada22_is_told_from_llada2_by_its_router(tmp_path):
  """It keeps the model_type, and groups of experts that mean nothing any more."""
  source = opened(tmp_path, CONFIGS["llada22_moe"])
  moe = source.model.moe
  assert (moe.admitted, moe.pool, moe.groups, moe.top_groups) == (48, 32, 1, 1)
  assert (source.facts.insert_id, source.facts.delete_id) == (156931, 156930)
  assert source.facts.eos_ids == (156892, 156900)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_spellings_of_what_we_write(family, tmp_path):
  """Rotations of half a head among them, where a family can have them."""
  model, facts = small.MODELS[family], small.facts_of(family)
  if family in ("llada_moe", "llada2_moe", "llada22_moe"):
    model = dataclasses.replace(model, rotary_dim=model.head_dim // 2)
  config = config_of(family, model, facts, {}, "float32")
  for spelling in (config, by_transformers_5(config)):
    source = opened(tmp_path, spelling)
    assert (source.family, source.model, source.facts) == (family, model, facts)


def test_recorded_checkpoints_are_read():
  folders = sorted(RECORDED.glob("*/model*/config.json"))
  known = {family.model_type for family in FAMILIES.values()}
  read = [path for path in folders if json.loads(path.read_text())["model_type"] in known]
  assert len(read) > 8
  for path in read:
    weights.open_source(path.parent)


def test_llada2_gives_the_same_logits_in_both_spellings(tmp_path):
  """Half of a head is rotated, which transformers 5 says inside rope_parameters."""
  theirs = RECORDED / "llada2_moe" / "model"
  shutil.copyfile(theirs / "model.safetensors", tmp_path / "model.safetensors")
  config = json.loads((theirs / "config.json").read_text())
  tokens_BxL = jnp.arange(8)[None]
  logits = []
  for spelling in (config, by_transformers_5(config)):
    source = opened(tmp_path, spelling)
    mask = masks.BlockCausal(4)(tokens_BxL, 8, jnp.zeros(1, int))
    out = bind(source.model)(weights.load(source), tokens_BxL, slot_BxW=tokens_BxL, mask=mask)
    logits.append(np.asarray(out.head.hidden_BxAxD @ out.head.unembed_VxD.T))
  assert source.model.rotary_dim == 12 and np.ptp(logits[0]) > 0.1
  np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"model_type": "gpt2"}, "unknown model_type 'gpt2'; known: lladamoe, llada, "),
    ({"model_type": None}, "unknown model_type None"),
    ({"hidden_size": None}, "hidden_size is missing"),
    ({"hidden_size": "64"}, r"hidden_size='64' must be a whole number in 0\.\.2147483647"),
    ({"hidden_size": -64}, "hidden_size=-64 must be a whole number"),
    ({"hidden_size": True}, "hidden_size=True must be a whole number"),
    ({"vocab_size": 2**31}, r"vocab_size=2147483648 must be a whole number in 0\.\.2147483647"),
    ({"num_attention_heads": 0}, "num_attention_heads=0 must divide hidden_size=3584"),
    ({"num_hidden_layers": 0}, "layers=0 must be at least 1"),
    ({"num_key_value_heads": 3}, "must be a multiple of kv_heads=3"),
    ({"rope_theta": float("nan")}, "rope_theta=nan must be a positive number"),
    ({"rope_theta": 10**400}, "rope_theta=1000+ must be a positive number"),
    ({"rms_norm_eps": 0}, "rms_norm_eps=0 must be a positive number"),
    ({"tie_word_embeddings": "no"}, "tie_word_embeddings='no' must be true or false"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings=1 must be true or false"),
    ({"torch_dtype": "float8_e4m3fn"}, "torch_dtype='float8_e4m3fn' must be one of float32, bfl"),
    ({"dtype": "float16", "torch_dtype": "bfloat16"}, "dtype='float16' disagrees with torch_dtype"),
    ({"rope_scaling": "yarn"}, "rope_scaling='yarn' must be a table"),
    ({"rope_parameters": [1]}, r"rope_parameters=\[1\] must be a table"),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
     "rope_theta=500000.0 of rope_parameters disagrees with rope_theta=1000000.0"),
    ({"rope_parameters": {"rope_theta": 1e6, "factor": 2}}, "factor of default is not understood"),
    ({"rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 0.5}},
     "partial_rotary_factor=0.5 is not understood"),
    ({"use_sliding_window": True}, "use_sliding_window=True is not supported; only False"),
    ({"layer_types": ["sliding_attention"]}, "only 'full_attention'"),
    ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported; only 'silu'"),
    ({"is_encoder_decoder": True}, "is_encoder_decoder=True is not supported; only False"),
    ({"use_sliding_window": 0}, "use_sliding_window=0 is not supported; only False"),
    ({"mask_token_id": 152064}, "mask_token_id=152064 lies outside the vocabulary of 152064"),
    ({"mask_token_id": [1, 2]}, r"mask_token_id=\[1, 2\] must be a whole number"),
    ({"eos_token_id": [1, "2"]}, r"eos_token_id=\[1, '2'\] must be an id or a list of ids"),
    ({"eos_token_id": [1, 152064]}, "eos_token_id=152064 lies outside the vocabulary of 152064"),
    ({"max_position_embeddings": "long"}, "max_position_embeddings='long' must be a whole number"),
    ({"quantization": {"bits": 4}}, "quantization={'bits': 4}: the checkpoint is quantised"),
    ({"quantization_config": {"quant_method": "eetq"}},
     "quantization_config.quant_method='eetq' is unknown; known: awq, fp8, gptq"),
    ({"quantization_config": {"quant_method": "fp8"}}, "weight_block_size is missing"),
    ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128]}},
     r"weight_block_size=\[128\] must be two sizes"),
    ({"quantization_config": {"quant_method": "gptq", "bits": 3}},
     r"quantization_config: bits=3 is not supported; only 4 \(quant_method gptq\)"),
    ({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 0}},
     "group_size=0 must be -1, for all inputs, or their number"),
    ({"quantization_config": {"quant_method": "gptq", "bits": 4, "is_marlin_format": True}},
     "is_marlin_format=True is not supported"),
    ({"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemv"}},
     "version='gemv' is not supported; only 'gemm'"),
    ({"quantization_config": {"quant_method": "awq", "bits": 4, "rotated": 1}},
     "rotated=1 is not understood"),
  ],
)  # fmt: skip
def test_fields_that_cannot_be(change, message, tmp_path):
  with pytest.raises(weights.WeightsError, match=message) as error:
    opened(tmp_path, QWEN | {"model_type": "qwen2"} | change)
  assert str(tmp_path / "config.json") in str(error.value)


LLAMA3 = dict(
  rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
  original_max_position_embeddings=8192,
)  # fmt: skip
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32768)
SCALED = [
  dict(rope_type="linear", factor=2.0), LLAMA3, YARN,
  YARN | dict(beta_fast=16.0, mscale=0.7, mscale_all_dim=1.0, truncate=False),
  YARN | dict(attention_factor=1.25),
]  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "dream", "llada2_moe"])
@pytest.mark.parametrize("table", SCALED)
def test_scaled_rotations_in_every_spelling(family, table, tmp_path):
  """Of transformers 4, of before it named the kind rope_type, and of transformers 5."""
  want, config = RopeScaling(**table), CONFIGS[family]
  old = {"type" if key == "rope_type" else key: value for key, value in table.items()}
  theirs = config | {"rope_scaling": None, "rope_parameters": table | {"rope_theta": 7e5}}
  del theirs["rope_theta"]
  sources = [
    opened(tmp_path, spelling)
    for spelling in (config | {"rope_scaling": table}, config | {"rope_scaling": old}, theirs)
  ]
  assert [source.model.rope_scaling for source in sources] == [want] * 3
  assert sources[2].model.rope_base == 7e5
  written = config_of(family, sources[0].model, sources[0].facts, sources[0].config, "float32")
  assert written["rope_scaling"].items() >= table.items()
  again = opened(tmp_path, written)
  assert dataclasses.replace(again.model, dtype="bfloat16") == sources[0].model


def test_what_transformers_fills_in(tmp_path):
  def scaling(**fields):
    rope = {key: x for key, x in YARN.items() if key != "original_max_position_embeddings"}
    config = QWEN | {"model_type": "qwen2", "rope_scaling": rope} | fields
    return opened(tmp_path, config).model.rope_scaling

  assert scaling() == RopeScaling("yarn", 4.0, 131072)  # of max_position_embeddings
  beside = {"original_max_position_embeddings": 4096}  # as Phi has it
  assert scaling(**beside) == RopeScaling("yarn", 4.0, 4096)
  assert scaling(rope_scaling=YARN | {"factor": None}) == RopeScaling("yarn", 4.0, 32768)
  assert scaling(rope_scaling={"rope_type": "default"}) is None
  with pytest.raises(weights.WeightsError, match="original_max_position_embeddings=4096 beside"):
    scaling(rope_scaling=YARN, **beside)
  with pytest.raises(weights.WeightsError, match="original_max_position_embeddings=4096 is not un"):
    scaling(rope_scaling=None, **beside)


@pytest.mark.parametrize(
  ("table", "message"),
  [
    ({"rope_type": "dynamic", "factor": 2.0}, "rope_type='dynamic' is not supported; only default"),
    ({"rope_type": "longrope"}, "rope_type='longrope' is not supported"),
    ({"rope_type": "proportional"}, "rope_type='proportional' is not supported"),
    ({"rope_type": ["yarn"]}, r"rope_scaling: rope_type=\['yarn'\] must be a text"),
    ({"rope_type": "yarn", "type": "linear"}, "rope_type='yarn' disagrees with type='linear'"),
    ({"type": "linear"}, "factor is missing"),
    ({"type": "linear", "factor": None}, "factor=None must be a positive number"),
    ({"type": "linear", "factor": 0.5}, "factor=0.5 must be at least 1"),
    (LLAMA3 | {"low_freq_factor": None}, "low_freq_factor is missing"),
    (LLAMA3 | {"high_freq_factor": 1}, "low_freq_factor=1.0 must be positive and below"),
    (YARN | {"finetuned": True}, "finetuned of yarn is not understood"),
    (YARN | {"llama_4_scaling_beta": 0.1}, "llama_4_scaling_beta of yarn is not understood"),
    (YARN | {"truncate": None}, "truncate=None must be true or false"),
    (YARN | {"original_max_position_embeddings": 4096.5}, "4096.5 must be a whole number"),
  ],
)
def test_scalings_that_cannot_be(table, message, tmp_path):
  with pytest.raises(weights.WeightsError, match=message) as error:
    opened(tmp_path, CONFIGS["llama"] | {"rope_scaling": table})
  assert str(error.value).count("\n") == 0


def test_two_scalings_must_agree(tmp_path):
  config = CONFIGS["llama"] | {"rope_scaling": YARN}
  both = opened(tmp_path, config | {"rope_parameters": YARN | {"rope_theta": 100000}})
  assert both.model.rope_scaling == RopeScaling(**YARN)
  for other in (LLAMA3, {"rope_type": "default"}):
    with pytest.raises(weights.WeightsError, match=r"rope_parameters=.* disagrees with rope_scal"):
      opened(tmp_path, config | {"rope_parameters": other})


@pytest.mark.parametrize("family", ["llada", "bd3lm"])
def test_classes_that_scale_nothing_refuse_it(family, tmp_path):
  with pytest.raises(weights.WeightsError, match=r"rope_scaling=.* is not understood"):
    opened(tmp_path, CONFIGS[family] | {"rope_scaling": YARN})
  model = dataclasses.replace(small.MODELS[family], rope_scaling=RopeScaling(**YARN))
  with pytest.raises(ValueError, match="cannot say rope_scaling="):
    config_of(family, model, small.facts_of(family), {}, "float32")


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"num_experts_per_tok": 300}, "per_token=300 exceeds"),
    ({"score_function": "relu"}, "score='relu' must be one of"),
    ({"first_k_dense_replace": 20}, "dense_layers=20 must be below layers=20"),
    ({"use_qk_norm": False}, "use_qk_norm=False is not supported"),
    ({"block_size": 0}, "block_size=0 must be at least 1"),
    ({"rotary_dim": 32}, "rotary_dim=32 disagrees with partial_rotary_factor=0.5 of heads of 128"),
  ],
)
def test_experts_that_cannot_be(change, message, tmp_path):
  with pytest.raises(weights.WeightsError, match=message):
    opened(tmp_path, LLADA2 | change)


@pytest.mark.parametrize("frequency", [[1, 0], [1], 2, "all", [1, 1, 1]])
def test_layers_with_experts_come_last(frequency, tmp_path):
  config = CONFIGS["llada_moe"] | {"num_hidden_layers": 2, "moe_layer_freq": frequency}
  with pytest.raises(weights.WeightsError, match="is not 0 for some of 2 layers, then 1 for all"):
    opened(tmp_path, config)


def test_is_huggingface(tmp_path):
  assert not weights.is_huggingface(tmp_path)
  (tmp_path / "config.json").write_text('{"objective": {}}')
  assert not weights.is_huggingface(tmp_path)
  (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
  assert weights.is_huggingface(tmp_path)


def test_a_directory_without_a_config(tmp_path):
  with pytest.raises(weights.WeightsError, match=r"it holds no config\.json"):
    weights.open_source(tmp_path)


def test_stops_that_are_no_ids_name_their_file(tmp_path):
  with pytest.raises(weights.WeightsError, match=r"generation_config\.json: eos_token_id=\['a'\]"):
    opened(tmp_path, CONFIGS["qwen2"], {"eos_token_id": ["a"]})


def test_an_adapter_says_that_it_is_one(tmp_path):
  """Also beside a config.json: whoever loads that alone has another model."""
  config = {"peft_type": "LORA", "base_model_name_or_path": "Dream-org/Dream-v0-Base-7B", "r": 8}
  (tmp_path / "adapter_config.json").write_text(json.dumps(config))
  assert weights.is_huggingface(tmp_path)
  for _ in range(2):
    with pytest.raises(weights.WeightsError, match=r"an adapter .*'LORA'.* of 'Dream-org/Dream-"):
      weights.open_source(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["dream"]))
