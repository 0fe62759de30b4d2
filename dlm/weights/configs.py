"""config.json of a Hugging Face directory <-> our `ModelConfig` and the facts that samplers ask."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from dlm.facts import ATTENTION, ModelFacts
from dlm.masks import Causal
from dlm.models.config import ModelConfig
from dlm.models.moe.config import MoeConfig
from dlm.weights.families import FAMILIES, Family
from dlm.weights.files import WeightsError, read_json

CONFIG, GENERATION = "config.json", "generation_config.json"
LONGEST = 4096  # slots of a canvas where nobody asks for more

# What may read back otherwise: nothing that the model computes.
UNSAID = ("dtype", "implementation", "remat", "length", "vocab", "eos_ids", "pad_id")
TRAINED_WITH = ("capacity_factor", "bias_rate", "z_loss", "balance_loss")  # of experts, unsaid too

# What our model computes, in every family. A field with another value means another model.
ONLY: dict[str, tuple[Any, ...]] = {
  "activation_type": ("silu",),
  "adaln": (True,),
  "alibi": (False,),
  "attention_bias": (False,),
  "attention_layer_norm": (False,),
  "bias_for_layer_norm": (False,),
  "block_group_size": (1,),
  "block_type": ("llama",),
  "causal": (False,),
  "clip_qkv": (None,),
  "cross_attn": (True,),
  "decoder_sparse_step": (1,),
  "hidden_act": ("silu",),
  "include_bias": (False,),
  "include_qkv_bias": (False,),
  "input_emb_norm": (False,),
  "layer_norm_type": ("rms",),
  "mlp_only_layers": ([], None),
  "multi_query_attention": (None, False),
  "norm_head": (False,),
  "qk_layernorm": (True,),
  "rope": (True,),
  "scale_logits": (False,),
  "time_conditioning": (False,),
  "use_bias": (False,),
  "use_qk_norm": (True,),
  "use_qkv_bias": (False,),
  "use_rmsnorm": (True,),
  "use_sliding_window": (False, None),
  "using_split_qkv_in_self_attention": (False,),
}


@dataclasses.dataclass(frozen=True)
class Source:
  """A Hugging Face directory whose config.json is read, and no tensor yet."""

  directory: pathlib.Path
  family: str  # a key of FAMILIES
  model: ModelConfig
  facts: ModelFacts  # its mask id is None where only the tokenizer can say it
  config: dict[str, Any]  # config.json itself


def is_huggingface(directory: str | pathlib.Path) -> bool:
  """Is there a config.json with a model_type?"""
  path = pathlib.Path(directory) / CONFIG
  return path.is_file() and "model_type" in read_json(path)


def open_source(directory: str | pathlib.Path) -> Source:
  """Reads config.json, and generation_config.json for the stop ids.

  `facts.mask_id` is None where neither says it and the vocabulary is not the published one:
  autoregressive models have none, other families' stands in their tokenizer.

  Raises:
    WeightsError: no config.json, a model_type that is not known, a field that is missing or that
      cannot be.
  """
  directory = pathlib.Path(directory)
  path = directory / CONFIG
  if not path.is_file():
    raise WeightsError(f"{directory} is no Hugging Face directory: it holds no {CONFIG}")
  config = read_json(path)
  generation = directory / GENERATION
  more = read_json(generation) if generation.is_file() else {}
  name = _family(config, path)
  try:
    model = _model(FAMILIES[name], config)
    facts = _facts(FAMILIES[name], model, config, more)
  except ValueError as error:
    raise WeightsError(f"{path}: {error}") from error
  return Source(directory, name, model, facts, config)


def _family(config: Mapping[str, Any], path: pathlib.Path) -> str:
  """By model_type; where two families share one, by what tells them apart."""
  kind, classes = config.get("model_type"), config.get("architectures")
  classes = [str(each) for each in classes] if isinstance(classes, list) else []
  if kind == "FastdLLMV2" or any(each.startswith("FastdLLMV2") for each in classes):
    return "fast_dllm_v2"
  if kind == "llada":
    return "llada_moe" if "num_experts" in config else "llada"
  if kind == "Dream":
    return "dream_reasoner" if "DreamForCausalLM" in classes else "dream"
  known = {family.model_type: name for name, family in FAMILIES.items()}
  if kind not in known:
    raise WeightsError(f"{path}: unknown model_type {kind!r}; known: {', '.join(known)}")
  return known[kind]


# ---------------------------------------------------------------------------------------------
# Reading


def _typed(name: str, value: Any, kind: type) -> Any:
  """`value` if it is what a field of that type may hold."""
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  good = {
    int: type(value) is int and 0 <= value < 2**31,
    float: is_number and math.isfinite(value) and value > 0,
    bool: isinstance(value, bool),
    str: isinstance(value, str),
  }[kind]
  if not good:
    raise ValueError(f"{name}={value!r:.80} is no {kind.__name__} that could be meant")
  return kind(value)


def _read(
  config: Mapping[str, Any], names: Mapping[str, str], defaults: Mapping[str, Any], into: type
) -> dict[str, Any]:
  """Fields of a dataclass, `into`, from those of config.json; null is absent."""
  kinds = {field.name: field.type for field in dataclasses.fields(into)}
  found = dict(defaults)
  for ours, theirs in names.items():
    if config.get(theirs) is not None:
      found[ours] = _typed(theirs, config[theirs], kinds[ours])
  missing = [theirs for ours, theirs in names.items() if ours not in found]
  if missing:
    raise ValueError(f"field {', '.join(missing)} is missing")
  return found


def _model(family: Family, config: Mapping[str, Any]) -> ModelConfig:
  for name, allowed in ONLY.items():
    if name in config and config[name] not in allowed:
      raise ValueError(f"{name}={config[name]!r:.80} is not supported; only {allowed[0]!r}")
  config = _with_rope(config)
  # Older configurations leave out what follows from other fields.
  if config.get("embedding_size") is None:
    config["embedding_size"] = config.get("vocab_size")
  config.setdefault("intermediate_size", config.get("moe_intermediate_size"))
  config.setdefault("dense_intermediate_size", config.get("expert_intermediate_size"))
  for names in ("num_attention_heads", "num_key_value_heads"), ("n_heads", "n_kv_heads"):
    if config.get(names[1]) is None:
      config[names[1]] = config.get(names[0])
  derived = {"head_dim": 0, "rotary_dim": 0}
  fields = _read(config, family.fields, {**derived, **family.defaults}, ModelConfig)
  if family.model_type == "bd3lm":
    fields |= {"kv_heads": fields["heads"], "mlp": 4 * fields["width"]}
  if not fields["head_dim"]:
    if fields["heads"] < 1 or fields["width"] % fields["heads"]:
      raise ValueError(f"{fields['heads']} heads do not divide a width of {fields['width']}")
    fields["head_dim"] = fields["width"] // fields["heads"]
  share = _typed("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0, float)
  fields["rotary_dim"] = fields["rotary_dim"] or round(share * fields["head_dim"])
  if fields["rotary_dim"] == fields["head_dim"]:
    fields["rotary_dim"] = 0
  if family.moe:
    fields["moe"] = _moe(family, config, fields["layers"])
  stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
  # float16 fits into neither, and into float32 without loss.
  dtype = "bfloat16" if stored.removeprefix("torch.") == "bfloat16" else "float32"
  return ModelConfig(**fields, dtype=dtype)


def _with_rope(config: Mapping[str, Any]) -> dict[str, Any]:
  """A copy whose rope_theta stands where transformers 4 has it; ValueError for scaled rotations."""
  config = dict(config)
  for name in ("rope_scaling", "rope_parameters"):
    rope = config.get(name) or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
    if kind != "default":
      raise ValueError(f"{name}={rope!r:.80} is not supported; only unscaled rotary positions")
    if "rope_theta" in rope:
      config["rope_theta"] = rope["rope_theta"]
  layers = config.get("layer_types") or ["full_attention"]
  if not isinstance(layers, list) or any(each != "full_attention" for each in layers):
    raise ValueError(f"layer_types={layers!r:.80} is not supported; only 'full_attention'")
  return config


def _moe(family: Family, config: Mapping[str, Any], layers: int) -> MoeConfig:
  moe = _read(config, family.moe, family.moe_defaults, MoeConfig)
  if family.model_type == "llada2_moe":  # counts shared experts; they are one of their joint width
    moe["shared"] = _typed("num_shared_experts", config.get("num_shared_experts") or 0, int)
    moe["shared"] *= moe["mlp"]
  if family.model_type == "lladamoe":  # adds the bias, and keeps it; ignores scale and groups
    moe["bias_in_weight"] = moe["bias"]
    sparse = config.get("moe_layer_freq", 1)
    sparse = sparse if isinstance(sparse, list) else [sparse] * layers
    dense = sparse.index(1) if 1 in sparse else layers
    if sparse != [0] * dense + [1] * (layers - dense):
      raise ValueError(f"moe_layer_freq={sparse!r:.80} is not 0 for some layers, then 1 for all")
    moe["dense_layers"] = dense
  return MoeConfig(**moe)


def _facts(
  family: Family, model: ModelConfig, config: Mapping[str, Any], generation: Mapping[str, Any]
) -> ModelFacts:
  published = family.published
  if published is not None and model.vocab not in published.vocabs:
    published = None

  def ids(value: Any, name: str) -> list[int]:
    value = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(each) is int and 0 <= each < model.vocab for each in value):
      raise ValueError(f"{name}={value!r:.80} lies outside the vocabulary of {model.vocab}")
    return value

  mask = ids(config.get("mask_token_id"), "mask_token_id")
  if family.mask_last:
    mask = mask or [model.vocab - 1]
  pad = ids(config.get("pad_token_id"), "pad_token_id")
  eos = [*ids(generation.get("eos_token_id"), "eos_token_id of " + GENERATION)]
  eos += ids(config.get("eos_token_id"), "eos_token_id")
  if published is not None:
    mask, pad, eos = mask or [published.mask], pad or [published.pad], [*eos, *published.eos]
  attention, shift = family.attention, family.shift
  if attention == "causal" and config.get("is_causal") is False:  # Open-dCoder
    attention = "full"
  if family.model_type.startswith("a2d-"):
    shift = int(_typed("right_shift_logits", config.get("right_shift_logits", False), bool))
  block = None
  if family.block_field is not None:
    block = _typed(family.block_field, config.get(family.block_field, family.block), int)
    if block < 1:
      raise ValueError(f"{family.block_field}={block} must be at least 1")
  length = config.get(family.length_field)
  rule = ATTENTION[attention]
  return ModelFacts(
    mask_id=mask[0] if mask else None,
    eos_ids=tuple(dict.fromkeys(eos or pad)),  # LLaDA2 names its end only as padding
    pad_id=pad[0] if pad else None,
    shift=shift,
    attention=rule(block) if attention == "block_causal" else rule(),
    block=block,
    vocab=model.vocab,
    length=LONGEST if length is None else min(_typed(family.length_field, length, int), LONGEST),
  )


# ---------------------------------------------------------------------------------------------
# Writing


def config_of(
  name: str, model: ModelConfig, facts: ModelFacts, base: Mapping[str, Any], dtype: str
) -> dict[str, Any]:
  """config.json that reads back as `model` and `facts`; other fields stay those of `base`.

  Raises:
    ValueError: this family's config.json cannot say so, or the family is not known.
  """
  if name not in FAMILIES:
    raise ValueError(f"unknown family {name!r}; known: {', '.join(FAMILIES)}")
  family = FAMILIES[name]
  config = {
    "architectures": [family.architecture],
    **({} if model.dit else {"hidden_act": "silu"}),
    **base,
    "model_type": family.model_type,
    "torch_dtype": dtype,
    **{theirs: getattr(model, ours) for ours, theirs in family.fields.items()},
  }
  for stale in ("dtype", "rope_parameters"):  # of transformers 5, which reads the fields above too
    config.pop(stale, None)
  config["vocab_size"] = model.vocab
  if "rotary_dim" in family.fields:
    config["rotary_dim"] = model.rotary_dim or model.head_dim
    config["partial_rotary_factor"] = config["rotary_dim"] / model.head_dim
  if model.moe is not None:
    config |= _moe_fields(family, model.moe, model.layers)
  config |= _fact_fields(family, facts, base)
  reads = _model(family, config)
  means = dataclasses.asdict(reads) | _facts(family, reads, config, {}).to_json()
  wants = dataclasses.asdict(model) | facts.to_json()
  if wants["moe"] is not None and means["moe"] is not None:
    wants["moe"] |= {name: means["moe"][name] for name in TRAINED_WITH}
  for field in means.keys() - set(UNSAID):
    if means[field] != wants[field]:
      raise ValueError(
        f"family {name!r} cannot say {field}={wants[field]!r}: it would mean {means[field]!r}"
      )
  return config


def _moe_fields(family: Family, moe: MoeConfig, layers: int) -> dict[str, Any]:
  fields = {theirs: getattr(moe, ours) for ours, theirs in family.moe.items()}
  if family.model_type == "llada2_moe":
    fields["num_shared_experts"] = moe.shared // moe.mlp
  if family.model_type == "lladamoe":
    fields["moe_layer_freq"] = [int(i >= moe.dense_layers) for i in range(layers)]
    fields["shared_expert_intermediate_size"] = moe.shared or None
  return fields


def _fact_fields(family: Family, facts: ModelFacts, base: Mapping[str, Any]) -> dict[str, Any]:
  eos = list(facts.eos_ids)
  fields = {
    "mask_token_id": facts.mask_id,
    "pad_token_id": facts.pad_id,
    "eos_token_id": eos[0] if len(eos) == 1 else eos,
    family.length_field: max(base.get(family.length_field, 0), facts.length),
    family.block_field: facts.block,
  }
  if family.attention == "causal":
    fields["is_causal"] = isinstance(facts.attention, Causal)
  if family.model_type.startswith("a2d-"):
    fields["right_shift_logits"] = bool(facts.shift)
  return {name: value for name, value in fields.items() if name is not None and value is not None}
