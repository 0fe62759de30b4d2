"""The families of checkpoints: their tensors, the keys of their config.json, what samplers ask.

A family is one entry of FAMILIES, and the functions above it that say what is odd about it;
`configs` reads and writes config.json by them, `names` holds the tables of tensors.

Without the authors' files at hand: SDAR-MoE is read as Qwen3-MoE (softmax over all experts,
renormalised where norm_topk_prob says so) in SDAR's blocks; `Dream` with the class
DreamForCausalLM is read as Dream-Reasoner, a Qwen3 in blocks of 32 whose logits are not shifted;
Stable-DiffCoder by its class (a Llama in blocks of 4, whose mask token is 5); WeDLM by its class (a
Qwen2 or Qwen3, as its keys say).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dlm.masks import Causal
from dlm.models.config import BertConfig, DrafterConfig, GemmaConfig, ModelConfig
from dlm.weights import names, scaling
from dlm.weights.fields import ConfigJson, typed

UNREAD = (".rotary_emb.inv_freq",)  # follows from config.json


@dataclasses.dataclass(frozen=True)
class Published:
  """Special ids of the released checkpoints, for where config.json leaves them out."""

  vocabs: tuple[int, ...]  # rows of their embeddings: other sizes mean another tokenizer
  mask: int
  eos: tuple[int, ...]  # the chat's own end included
  pad: int


@dataclasses.dataclass(frozen=True)
class Derived:
  """A field of ours that no single key of config.json holds as it is.

  Args:
    read: its value, of config.json.
    write: keys that say it, of the model (a ModelConfig; for what samplers ask, ModelFacts).
  """

  read: Callable[[ConfigJson], Any]
  write: Callable[[Any], Mapping[str, Any]] = lambda _: {}


# A key of config.json; of several the first that is there, and the first is written.
Said = str | tuple[str, ...] | Derived


@dataclasses.dataclass(frozen=True)
class Family:
  """One `model_type`, or one of the models that share it."""

  model_type: str
  architecture: str
  table: names.NameTable
  fields: Mapping[str, Said]  # of ModelConfig
  defaults: Mapping[str, Any]  # fields of ModelConfig where config.json has none
  moe: Mapping[str, Said] = dataclasses.field(default_factory=dict)  # of MoeConfig
  moe_defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  # Keys by which a config.json could mean another model, and the values that mean ours; the first
  # is written where no config.json of the authors is at hand.
  only: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
  irrelevant: tuple[str, ...] = ()  # keys that say nothing about what the model computes
  named: tuple[str, ...] = ()  # keys whose absence means another model than null does
  claims: Callable[[Mapping[str, Any]], bool] | None = None  # a config.json; None: by model_type
  attention: str | Derived = "full"  # see `dlm.facts.ATTENTION`
  shift: int | Derived = 0  # 1: logits at i predict token i + 1
  block_field: str | None = None  # of config.json, tokens a block
  block: int | None = None  # where config.json has none
  insert_field: str | None = None  # of config.json, see `dlm.facts.ModelFacts`
  delete_field: str | None = None
  length_field: str = "max_position_embeddings"
  mask_field: str | None = "mask_token_id"  # None: none of the tokenizer's ids is named
  mask_last: bool = False  # the mask token is one past the tokenizer's ids: the table's last row
  published: Published | None = None
  # transformers 5 reads its tokenizer as Qwen2's, whatever class tokenizer_config.json declares.
  qwen2_tokenizer: bool = False
  unread: tuple[str, ...] = UNREAD  # ends of tensors that are stored by some, and that we ignore
  unread_below: tuple[str, ...] = ()  # beginnings of such
  # A config.json in parts -> one table, and back with the one that it came from ({}: from none).
  flat: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda config: config
  nested: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]] = lambda c, _: dict(c)
  # Tensors that the authors' class looks for, though config.json says what is in them.
  constants: Callable[[ModelConfig, Mapping[str, Any]], Mapping[str, np.ndarray]] | None = None


# ---------------------------------------------------------------------------------------------
# Heads


def _per_head(config: ConfigJson, width: str, heads: str) -> int:
  size, count = config.need(width, int), config.need(heads, int)
  if count < 1 or size % count:
    raise ValueError(f"{heads}={count} must divide {width}={size}")
  return size // count


def _width_per_head(width: str, heads: str) -> Derived:
  return Derived(lambda config: _per_head(config, width, heads))


def _head_dim(config: ConfigJson) -> int:
  return config.value("head_dim", int) or _per_head(config, "hidden_size", "num_attention_heads")


_HEAD_DIM = Derived(_head_dim, lambda model: {"head_dim": model.head_dim})


def _rotary_dim(default: float) -> Callable[[ConfigJson], int]:
  """Reads the channels of a head that are rotated; `default`: their share where none is given."""

  def read(config: ConfigJson) -> int:
    head_dim = _head_dim(config)
    share = config.value("partial_rotary_factor", float)
    size = config.value("rotary_dim", int)
    if size is None:
      size = int((share or default) * head_dim)
    elif share is not None and size != int(share * head_dim):
      raise ValueError(
        f"rotary_dim={size} disagrees with partial_rotary_factor={share} of heads of {head_dim}"
      )
    return 0 if size == head_dim else size

  return read


def _rotated(model: ModelConfig) -> int:
  return model.rotary_dim or model.head_dim


# ---------------------------------------------------------------------------------------------
# Qwen and what was made of it

_SIZES: Mapping[str, Said] = {
  "vocab": "vocab_size",
  "width": "hidden_size",
  "layers": "num_hidden_layers",
  "heads": "num_attention_heads",
  "kv_heads": ("num_key_value_heads", "num_attention_heads"),
  "head_dim": _HEAD_DIM,
  "rope_base": "rope_theta",
  "rope_scaling": Derived(scaling.read, scaling.said),
  "norm_eps": "rms_norm_eps",
  "tied": "tie_word_embeddings",
}
_QWEN_FIELDS = {**_SIZES, "mlp": "intermediate_size"}
_QWEN_ONLY = {"hidden_act": ("silu",), "use_mrope": (False,), "use_sliding_window": (False,)}
_QWEN3_ONLY = {**_QWEN_ONLY, "attention_bias": (False,)}
# The window is off; Qwen2's class has its biases whatever attention_bias says.
_QWEN_IRRELEVANT = ("max_window_layers", "sliding_window")
_QWEN2_IRRELEVANT = (*_QWEN_IRRELEVANT, "attention_bias")
_EXPERTS = {"experts": "num_experts", "per_token": "num_experts_per_tok"}
_QWEN2 = {"rope_base": 1e6, "norm_eps": 1e-6, "tied": False, "qkv_bias": True}
_QWEN3 = {"rope_base": 1e6, "norm_eps": 1e-6, "tied": False, "qk_norm": True}

_QWEN_MOE_FIELDS = {**_SIZES, "mlp": ("intermediate_size", "moe_intermediate_size")}
_QWEN_MOE = {**_EXPERTS, "mlp": "moe_intermediate_size", "renormalise": "norm_topk_prob"}
_QWEN_MOE_ONLY = {**_QWEN3_ONLY, "decoder_sparse_step": (1,), "mlp_only_layers": ([],)}

_LLAMA_FIELDS: Mapping[str, Said] = {
  **_QWEN_FIELDS,
  "qkv_bias": Derived(
    lambda config: config.value("attention_bias", bool, False),
    lambda model: {"attention_bias": model.qkv_bias},
  ),
  "out_bias": Derived(lambda config: config.value("attention_bias", bool, False)),
  "mlp_bias": "mlp_bias",
}
_LLAMA = {"rope_base": 1e4, "norm_eps": 1e-6, "tied": False, "mlp_bias": False}
_LLAMA_ONLY = {"hidden_act": ("silu",), "rope_interleaved": (False,)}


def _class(name: str) -> dict[str, tuple[list[str], ...]]:
  """A class of transformers with its head, or its body alone: others of that model_type differ."""
  return {"architectures": ([f"{name}ForCausalLM"], [f"{name}Model"])}


# How its products were cut in training; what SmolLM's authors note for other programs.
_LLAMA_IRRELEVANT = ("is_llama_config", "pretraining_tp", "transformers.js_config")

# Open-dCoder is a Qwen2 that sees everything.
_IS_CAUSAL = Derived(
  lambda config: "causal" if config.value("is_causal", bool, True) else "full",
  lambda facts: {"is_causal": isinstance(facts.attention, Causal)},
)
_RIGHT_SHIFT = Derived(
  lambda config: int(config.value("right_shift_logits", bool, False)),
  lambda facts: {"right_shift_logits": bool(facts.shift)},
)

_SDAR_IDS = Published((151936,), mask=151669, eos=(151645, 151643), pad=151643)
# How SDAR's authors train.
_SDAR_IRRELEVANT = (
  *_QWEN_IRRELEVANT, "debug", "ep_size", "fuse_cross_entropy", "micro_forward", "skip_checkpoint",
  "use_deepep",
)  # fmt: skip
_BALANCE = ("output_router_logits", "router_aux_loss_coef")  # losses of routers, for training


def _classes(config: Mapping[str, Any]) -> list[str]:
  found = config.get("architectures")
  return [str(each) for each in found] if isinstance(found, list) else []


def _is_fast_dllm_v2(config: Mapping[str, Any]) -> bool:
  """Also by the class's older name, FastdLLMV2."""
  kinds = ("Fast_dLLM_Qwen", "FastdLLMV2")
  old = any(each.startswith("FastdLLMV2") for each in _classes(config))
  return config.get("model_type") in kinds or old


def _is_stable_diffcoder(config: Mapping[str, Any]) -> bool:
  return config.get("model_type") == "llama" and "StableDiffcoderForCausalLM" in _classes(config)


def _is_dream_reasoner(config: Mapping[str, Any]) -> bool:
  return config.get("model_type") == "Dream" and "DreamForCausalLM" in _classes(config)


# ---------------------------------------------------------------------------------------------
# DFlash


def _is_dflash(config: Mapping[str, Any]) -> bool:
  """Its model_type is that of its layers."""
  return config.get("model_type") == "qwen3" and "DFlashDraftModel" in _classes(config)


def _drafter(config: ConfigJson) -> DrafterConfig:
  said = typed("dflash_config", config.get("dflash_config"), dict)
  if unknown := sorted(said.keys() - {"mask_token_id", "target_layer_ids"}):
    raise ValueError(f"dflash_config={said!r:.80}: {', '.join(unknown)} is not understood")
  target_layers = config.need("num_target_layers", int)
  made = DrafterConfig.of(target_layers, config.need("num_hidden_layers", int))
  if "target_layer_ids" in said:
    ids = typed("dflash_config.target_layer_ids", said["target_layer_ids"], list)
    taps = tuple(typed("dflash_config.target_layer_ids", each, int) for each in ids)
    made = dataclasses.replace(made, taps=taps)
  mask_id = typed("dflash_config.mask_token_id", said.get("mask_token_id"), int)
  return dataclasses.replace(made, mask_id=mask_id)


def _drafter_said(model: ModelConfig) -> dict[str, Any]:
  own = model.drafter
  if own is None:
    return {}
  if own.window:
    raise ValueError(f"model.drafter.window={own.window} has no word in DFlash's config.json")
  said = {"mask_token_id": own.mask_id, "target_layer_ids": list(own.taps)}
  return {"dflash_config": said, "num_target_layers": own.target_layers}


# ---------------------------------------------------------------------------------------------
# LLaDA

_LLADA_FIELDS = {
  "vocab": ("embedding_size", "vocab_size"),
  "width": "d_model",
  "layers": "n_layers",
  "heads": "n_heads",
  "kv_heads": ("n_kv_heads", "n_heads"),
  "head_dim": _width_per_head("d_model", "n_heads"),
  "mlp": "mlp_hidden_size",
  "rope_base": "rope_theta",
  "norm_eps": "rms_norm_eps",
  "tied": "weight_tying",
}
_LLADA_ONLY = {
  "activation_type": ("silu",),
  "alibi": (False,),
  "attention_layer_norm": (False,),
  "bias_for_layer_norm": (False,),
  "block_group_size": (1,),
  "block_type": ("llama",),
  "include_bias": (False,),
  "include_qkv_bias": (False,),
  "input_emb_norm": (False,),
  "layer_norm_type": ("rms",),
  "layer_norm_with_affine": (True,),
  "multi_query_attention": (False,),
  "rope": (True,),
  "rope_full_precision": (True,),
  "scale_logits": (False,),
}
# First weights, training and kernels; what belongs to parts that _LLADA_ONLY leaves out; a size
# that mlp_hidden_size takes the place of; transformers' own word for weight_tying, which the
# authors' class does not read.
_LLADA_IRRELEVANT = (
  "alibi_bias_max", "attention_layer_norm_with_affine", "flash_attention", "init_cutoff_factor",
  "init_device", "init_fn", "init_std", "mlp_ratio", "precision", "residual_dropout",
  "tie_word_embeddings",
)  # fmt: skip


def _is_llada_moe(config: Mapping[str, Any]) -> bool:
  """Its authors' class has LLaDA's model_type, and experts; dllm's has one of its own."""
  kind = config.get("model_type")
  return kind == "lladamoe" or (
    kind == "llada" and {"num_experts", "num_local_experts"} & {*config}
  )


def _dense_layers(config: ConfigJson) -> int:
  """Layers that come before those with experts; moe_layer_freq is one number, or one a layer."""
  layers, sparse = config.need("num_hidden_layers", int), config.get("moe_layer_freq", 1)
  if type(sparse) is int and sparse in (0, 1):
    return 0 if sparse else layers
  if isinstance(sparse, list) and len(sparse) == layers:
    dense = sparse.index(1) if 1 in sparse else layers
    if sparse == [0] * dense + [1] * (layers - dense):
      return dense
  raise ValueError(
    f"moe_layer_freq={sparse!r:.80} is not 0 for some of {layers} layers, then 1 for all"
  )


def _layer_freq(model: ModelConfig) -> dict[str, Any]:
  dense = model.moe.dense_layers
  return {"moe_layer_freq": [0] * dense + [1] * (model.layers - dense)}


def _shared_width(config: ConfigJson) -> int:
  """LLaDA2 counts its shared experts; they are one of their joint width."""
  count = config.value("num_shared_experts", int, 0)
  return count * config.need("moe_intermediate_size", int)


def _is_llada22(config: Mapping[str, Any]) -> bool:
  return config.get("model_type") == "llada2_moe" and bool(config.get("expert_capacity"))


_LLADA2_FIELDS: Mapping[str, Said] = {
  **_QWEN_FIELDS,
  "rotary_dim": Derived(
    _rotary_dim(0.5),
    lambda m: {"rotary_dim": _rotated(m), "partial_rotary_factor": _rotated(m) / m.head_dim},
  ),
}
_LLADA2 = {"rope_base": 6e5, "norm_eps": 1e-6, "tied": False, "qk_norm": True}
_LLADA2_EXPERTS: Mapping[str, Said] = {
  **_EXPERTS,
  "mlp": "moe_intermediate_size",
  "dense_layers": "first_k_dense_replace",
  "score": "score_function",
  "bias": "moe_router_enable_expert_bias",
  "renormalise": "norm_topk_prob",
  "scale": "routed_scaling_factor",
  "shared": Derived(_shared_width, lambda m: {"num_shared_experts": m.moe.shared // m.moe.mlp}),
}
_LLADA2_ROUTER = {
  "dense_layers": 1, "score": "sigmoid", "bias": True, "renormalise": True, "scale": 2.5,
}  # fmt: skip
_LLADA2_ONLY = {
  "hidden_act": ("silu",), "use_sliding_window": (False,), "norm_head": (False,),
  "norm_softmax": (False,), "router_dtype": ("fp32",), "use_bias": (False,),
  "use_qk_norm": (True,), "use_qkv_bias": (False,), "use_rmsnorm": (True,),
  "using_split_qkv_in_self_attention": (False,),
}  # fmt: skip


# ---------------------------------------------------------------------------------------------
# Nemotron-Labs-Diffusion: how it was trained says nothing about its three modes of inference.

_NEMOTRON_ONLY = {
  "hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,),
  "sliding_window": (None,), "dlm_type": ("llada",),
  "dlm_paradigm": ("bidirectional", "block_diff", "sbd_block_diff"),
}  # fmt: skip
_NEMOTRON_IRRELEVANT = (
  "ar_loss_weight", "dlm_loss_weight", "dp_varying_mask_ratio", "global_loss_avg",
)  # fmt: skip


# ---------------------------------------------------------------------------------------------
# BD3-LM


def _dit_constants(model: ModelConfig, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
  frequencies = model.rope_base ** -(np.arange(0, model.head_dim, 2) / model.head_dim)
  found = {"backbone.rotary_emb.inv_freq": frequencies.astype(np.float32)}
  if config.get("var_min", True):  # the noise levels it was trained on
    for name, default in (("sampling_eps_min", 1e-3), ("sampling_eps_max", 0.999)):
      found[name] = np.array(config.get(name, default), np.float32)
  return found


# ---------------------------------------------------------------------------------------------
# ModernBERT

_FULL, _SLIDING = "full_attention", "sliding_attention"
_BERT_BASES = {_FULL: ("global_rope_theta", 1.6e5), _SLIDING: ("local_rope_theta", 1e4)}


def _bert_flat(config: Mapping[str, Any]) -> dict[str, Any]:
  """As transformers 4 wrote it: which layers are full by their distance, a key for each rotation.

  Raises:
    ValueError: both say it, differently; layers are not full at equal distances; a rotation is
      scaled.
  """
  flat = dict(config)
  kinds, rotations = flat.pop("layer_types", None), flat.pop("rope_parameters", None) or {}
  if not isinstance(rotations, dict) or not all(isinstance(x, dict) for x in rotations.values()):
    raise ValueError(f"rope_parameters={rotations!r:.200} must hold a table for each kind of layer")
  if kinds is not None:
    layers = flat.get("num_hidden_layers")
    if not isinstance(kinds, list) or type(layers) is not int:
      raise ValueError(f"layer_types={kinds!r:.200} must be a list, {layers=} its length")
    every = kinds[1:].index(_FULL) + 1 if _FULL in kinds[1:] else layers
    if kinds != [_SLIDING if i % every else _FULL for i in range(layers)]:
      raise ValueError(
        f"layer_types={kinds!r:.200} must be {_FULL} at equal distances, and first, in {layers}"
      )
    _agrees(flat, "global_attn_every_n_layers", every)
  for kind, rotation in rotations.items():
    if (
      kind not in _BERT_BASES
      or {*rotation} - {"rope_type", "rope_theta"}
      or (rotation.get("rope_type", "default") != "default")
    ):
      raise ValueError(f"rope_parameters={rotations!r:.200} is not understood")
    if "rope_theta" in rotation:
      _agrees(flat, _BERT_BASES[kind][0], rotation["rope_theta"])
  return flat


def _agrees(flat: dict[str, Any], name: str, value: Any) -> None:
  if flat.setdefault(name, value) != value:
    raise ValueError(f"{name}={flat[name]!r:.80} disagrees with {value!r:.80}")


def _bert_nested(flat: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
  """As transformers 5 reads it; it would not look at all of the older keys."""
  del base
  flat = dict(flat)
  every, layers = flat.pop("global_attn_every_n_layers"), flat["num_hidden_layers"]
  flat["layer_types"] = [_SLIDING if i % every else _FULL for i in range(layers)]
  flat["rope_parameters"] = {
    kind: {"rope_theta": flat.pop(name), "rope_type": "default"}
    for kind, (name, _) in _BERT_BASES.items()
  }
  return flat


def _bert_layers(config: ConfigJson) -> BertConfig:
  local = config.value("local_attention", int, 128)
  every = config.value("global_attn_every_n_layers", int, 3)
  return BertConfig(every, local // 2, config.value("local_rope_theta", float, 1e4))


def _bert_said(model: ModelConfig) -> dict[str, Any]:
  bert = model.bert
  return {
    "global_attn_every_n_layers": bert.full_every,
    "local_attention": 2 * bert.reach,
    "local_rope_theta": bert.local_rope_base,
  }


# ---------------------------------------------------------------------------------------------
# DiffusionGemma

_TEXT_TYPE = "diffusion_gemma_text"
_PROPORTIONAL = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6}
_ROTATIONS = {_SLIDING: {"rope_type": "default", "rope_theta": 1e4}, _FULL: _PROPORTIONAL}
_NOT_TEXT = ("architectures", "canvas_length", "model_type", "torch_dtype", "transformers_version")


def _gemma_flat(config: Mapping[str, Any]) -> dict[str, Any]:
  """`text_config` beside the other keys; what differs by the kind of layer in keys of our own.

  What the authors' class takes where a key is missing is filled in.

  Raises:
    ValueError: both say a key, differently; rotations or sizes of a layer are not of its kind.
  """
  text = config.get("text_config")
  if not isinstance(text, Mapping) or "num_hidden_layers" not in text:
    raise ValueError(f"text_config={text!r:.80} must be a table with num_hidden_layers")
  text = dict(text)
  if text.pop("model_type", _TEXT_TYPE) != _TEXT_TYPE:
    raise ValueError(f"text_config: model_type={config['text_config']['model_type']!r:.80}")
  beside = {name: x for name, x in config.items() if name != "text_config"}
  for name in text.keys() & beside.keys():
    if text[name] != beside[name]:
      raise ValueError(
        f"{name}={beside[name]!r:.80} disagrees with {text[name]!r:.80} of text_config"
      )
  flat = {"final_logit_softcapping": 30.0, "global_head_dim": 512, **beside, **text}
  layers, kinds = flat["num_hidden_layers"], flat.pop("layer_types", None)
  if type(layers) is not int:
    raise ValueError(f"num_hidden_layers={layers!r:.80} must be a whole number")
  if kinds is None:
    kinds = [_SLIDING if (i + 1) % 6 and i + 1 < layers else _FULL for i in range(layers)]
  if not isinstance(kinds, list) or len(kinds) != layers or {*kinds} - {_FULL, _SLIDING}:
    raise ValueError(f"layer_types={kinds!r:.200} must name a kind for each of {layers} layers")
  flat["full_layers"] = [i for i, kind in enumerate(kinds) if kind == _FULL]
  _same_sizes(flat)
  rotations = flat.pop("rope_parameters", None) or _ROTATIONS
  if not isinstance(rotations, Mapping) or not all(
    isinstance(x, Mapping) for x in rotations.values()
  ):
    raise ValueError(f"rope_parameters={rotations!r:.300} must hold a table for each kind of layer")
  sliding, full = (dict(rotations.get(kind, {})) for kind in (_SLIDING, _FULL))
  flat["rope_theta"] = sliding.pop("rope_theta", 1e4)
  flat["global_rope_theta"] = full.pop("rope_theta", 1e6)
  flat["global_rotary_factor"] = full.pop("partial_rotary_factor", 1.0)
  plain = {"rope_type": "default"}, {"rope_type": "proportional"}
  if rotations.keys() - {_FULL, _SLIDING} or (sliding, full) != plain:
    raise ValueError(f"rope_parameters={rotations!r:.300} is not understood")
  return flat


def _same_sizes(flat: dict[str, Any]) -> None:
  """Takes the sizes of full layers from where transformers 5.24 writes them, layer by layer."""
  layers = flat.pop("per_layer_config", None)
  if layers is None:
    return
  names = {"head_dim": "global_head_dim", "num_key_value_heads": "num_global_key_value_heads"}
  sizes = [*layers.values()] if isinstance(layers, Mapping) else []
  if (
    not sizes
    or {*layers} != {str(i) for i in flat["full_layers"]}
    or any(each != sizes[0] for each in sizes)
    or not isinstance(sizes[0], Mapping)
    or sizes[0].keys() - names.keys()
  ):
    raise ValueError(f"per_layer_config={layers!r:.200} must give all full layers the same sizes")
  flat |= {names[name]: size for name, size in sizes[0].items()}


def _gemma_nested(flat: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
  """What `_gemma_flat` reads; a key stands where `base` has it."""
  flat = dict(flat)
  full, layers = {*flat.pop("full_layers")}, flat["num_hidden_layers"]
  flat["layer_types"] = [_FULL if i in full else _SLIDING for i in range(layers)]
  rotations = {kind: dict(_ROTATIONS[kind]) for kind in (_SLIDING, _FULL)}
  rotations[_SLIDING]["rope_theta"] = flat.pop("rope_theta")
  rotations[_FULL]["rope_theta"] = flat.pop("global_rope_theta")
  rotations[_FULL]["partial_rotary_factor"] = flat.pop("global_rotary_factor")
  flat["rope_parameters"] = rotations
  beside = {*_NOT_TEXT, "vision_config", *base}
  text = {
    name: x for name, x in flat.items() if name not in beside or name in base.get("text_config", {})
  }
  config = {name: x for name, x in flat.items() if name in beside}
  # Both classes tie their own.
  tied = {"tie_word_embeddings": flat["tie_word_embeddings"]}
  return {**config, **tied, "text_config": {**text, **tied, "model_type": _TEXT_TYPE}}


def _gemma_layers(config: ConfigJson) -> GemmaConfig:
  return GemmaConfig(
    full=tuple(config["full_layers"]),
    window=config.need("sliding_window", int),
    kv_heads=config.need(("num_global_key_value_heads", "num_key_value_heads"), int),
    head_dim=config.need("global_head_dim", int),
    rope_base=config.need("global_rope_theta", float),
    rotated=config.need("global_rotary_factor", float),
  )


def _gemma_said(model: ModelConfig) -> dict[str, Any]:
  gemma = model.gemma
  return {
    "full_layers": list(gemma.full),
    "sliding_window": gemma.window,
    "num_global_key_value_heads": gemma.kv_heads,
    "global_head_dim": gemma.head_dim,
    "global_rope_theta": gemma.rope_base,
    "global_rotary_factor": gemma.rotated,
  }


# Of two that claim a config.json the first is meant.
FAMILIES: dict[str, Family] = {
  "llada_moe": Family(
    model_type="lladamoe",
    architecture="LLaDAMoEModelLM",
    table=names.LLADA_MOE,
    fields={
      **_SIZES,
      "mlp": ("dense_intermediate_size", "expert_intermediate_size"),
      "rotary_dim": Derived(
        _rotary_dim(1.0), lambda m: {"partial_rotary_factor": _rotated(m) / m.head_dim}
      ),
    },
    defaults={"rope_base": 5e4, "norm_eps": 1e-5, "tied": False, "qk_norm": True},
    moe={
      **_EXPERTS,
      "mlp": "expert_intermediate_size",
      "shared": Derived(
        lambda c: c.value("shared_expert_intermediate_size", int, 0),
        lambda m: {"shared_expert_intermediate_size": m.moe.shared or None},
      ),
      "bias": "moe_router_enable_expert_bias",
      # It adds the bias, and keeps it.
      "bias_in_weight": Derived(lambda c: c.value("moe_router_enable_expert_bias", bool, False)),
      "dense_layers": Derived(_dense_layers, _layer_freq),
    },
    moe_defaults={"bias": False},
    only={
      "hidden_act": ("silu",), "attention_bias": (False,), "qk_layernorm": (True,),
      "clip_qkv": (None,), "moe_router_score_function": ("softmax",),
    },
    # The class ignores how its config scales, groups and renormalises.
    irrelevant=(
      *_BALANCE, "norm_topk_prob", "routed_scaling_factor", "router_num_group",
      "router_topk_group",
    ),
    claims=_is_llada_moe,
    published=Published((157184,), mask=156895, eos=(156892,), pad=156892),
  ),
  "llada": Family(
    model_type="llada",
    architecture="LLaDAModelLM",
    table=names.LLADA,
    fields=_LLADA_FIELDS,
    defaults={"rope_base": 5e5, "norm_eps": 1e-5, "tied": False},
    only=_LLADA_ONLY,
    irrelevant=_LLADA_IRRELEVANT,
    length_field="max_sequence_length",
    published=Published((126464,), mask=126336, eos=(126081, 126348), pad=126081),
  ),
  "llada22_moe": Family(
    model_type="llada2_moe",
    architecture="LLaDA2MoeModelLM",
    table=names.LLADA2_MOE,
    fields=_LLADA2_FIELDS,
    defaults=_LLADA2,
    moe={
      **_LLADA2_EXPERTS,
      "admitted": "expert_capacity",
      "pool": Derived(lambda c: c.value("block_size", int, 32)),  # a block of its attention
    },
    moe_defaults=_LLADA2_ROUTER,
    only=_LLADA2_ONLY,
    # Still there, and of no effect: blocks admit experts in the place of groups.
    irrelevant=(*_QWEN_IRRELEVANT, *_BALANCE, "n_group", "topk_group"),
    claims=_is_llada22,
    attention="block_causal",
    block_field="block_size",
    block=32,
    insert_field="split_token_id",
    delete_field="delete_token_id",
    published=Published((157184,), mask=156895, eos=(156892, 156900), pad=156892),
  ),
  "llada2_moe": Family(
    model_type="llada2_moe",
    architecture="LLaDA2MoeModelLM",
    table=names.LLADA2_MOE,
    fields=_LLADA2_FIELDS,
    defaults=_LLADA2,
    moe={**_LLADA2_EXPERTS, "groups": "n_group", "top_groups": "topk_group"},
    moe_defaults={**_LLADA2_ROUTER, "groups": 8, "top_groups": 4},
    only=_LLADA2_ONLY,
    irrelevant=(*_QWEN_IRRELEVANT, *_BALANCE),
    attention="block_causal",
    block_field="block_size",
    block=32,
    published=Published((157184,), mask=156895, eos=(156892,), pad=156892),
  ),
  "dream_reasoner": Family(
    model_type="Dream",
    architecture="DreamForCausalLM",
    table=names.QWEN,
    fields=_QWEN_FIELDS,
    defaults=_QWEN3,
    only=_QWEN3_ONLY,
    irrelevant=_QWEN_IRRELEVANT,
    claims=_is_dream_reasoner,
    attention="block_causal",
    block_field="block_size",
    block=32,
    published=_SDAR_IDS,
  ),
  "dream": Family(
    model_type="Dream",
    architecture="DreamModel",
    table=names.QWEN,
    fields=_QWEN_FIELDS,
    defaults=_QWEN2,
    only=_QWEN_ONLY,
    irrelevant=_QWEN2_IRRELEVANT,
    shift=1,
    published=Published((152064,), mask=151666, eos=(151643, 151645), pad=151643),
  ),
  "fast_dllm_v2": Family(
    model_type="Fast_dLLM_Qwen",
    architecture="Fast_dLLM_QwenForCausalLM",
    table=names.QWEN,
    fields=_QWEN_FIELDS,
    defaults=_QWEN2,
    only=_QWEN_ONLY,
    irrelevant=_QWEN2_IRRELEVANT,
    claims=_is_fast_dllm_v2,
    attention="block_causal",
    shift=1,
    block_field="bd_size",
    block=32,
    published=Published((151936, 152064), mask=151665, eos=(151645,), pad=151643),
  ),
  "qwen2": Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    table=names.QWEN,
    fields=_QWEN_FIELDS,
    defaults=_QWEN2,
    only={**_class("Qwen2"), **_QWEN_ONLY},
    irrelevant=_QWEN2_IRRELEVANT,
    attention=_IS_CAUSAL,
    shift=1,
    qwen2_tokenizer=True,
  ),
  "dflash": Family(
    model_type="qwen3",
    architecture="DFlashDraftModel",
    table=names.DFLASH,
    fields={
      **{ours: theirs for ours, theirs in _QWEN_FIELDS.items() if ours != "tied"},
      "drafter": Derived(_drafter, _drafter_said),
    },
    defaults={"rope_base": 1e6, "norm_eps": 1e-6, "qk_norm": True},
    only={"architectures": (["DFlashDraftModel"],), **_QWEN3_ONLY},
    irrelevant=(*_QWEN_IRRELEVANT, "tie_word_embeddings"),  # it has no table
    claims=_is_dflash,
    block_field="block_size",
    block=16,
    mask_field=None,
  ),
  "qwen3": Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    table=names.QWEN,
    fields=_QWEN_FIELDS,
    defaults=_QWEN3,
    only={**_class("Qwen3"), **_QWEN3_ONLY},
    irrelevant=_QWEN_IRRELEVANT,
    attention=_IS_CAUSAL,
    shift=1,
  ),
  "stable_diffcoder": Family(
    model_type="llama",
    architecture="StableDiffcoderForCausalLM",
    table=names.LLAMA,
    fields=_LLAMA_FIELDS,
    defaults=_LLAMA,
    only={"architectures": (["StableDiffcoderForCausalLM"],), **_LLAMA_ONLY},
    irrelevant=_LLAMA_IRRELEVANT,
    claims=_is_stable_diffcoder,
    attention="block_causal",
    block_field="block_size",
    block=4,
    published=Published((155136,), mask=5, eos=(2,), pad=1),
  ),
  "llama": Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    table=names.LLAMA,
    fields=_LLAMA_FIELDS,
    defaults=_LLAMA,
    only={**_class("Llama"), **_LLAMA_ONLY},
    irrelevant=_LLAMA_IRRELEVANT,
    attention=_IS_CAUSAL,
    shift=1,
  ),
  "mistral": Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    table=names.QWEN,
    fields=_QWEN_FIELDS,
    defaults=_LLAMA,
    only={
      **_class("Mistral"), "hidden_act": ("silu",), "attention_bias": (False,),
      "sliding_window": (None,),
    },
    named=("sliding_window",),
    attention=_IS_CAUSAL,
    shift=1,
  ),
  "sdar": Family(
    model_type="sdar",
    architecture="SDARForCausalLM",
    table=names.QWEN,
    fields=_QWEN_FIELDS,
    defaults=_QWEN3,
    only=_QWEN3_ONLY,
    irrelevant=_SDAR_IRRELEVANT,
    attention="block_causal",
    block_field="block_size",
    block=4,
    published=_SDAR_IDS,
  ),
  "sdar_moe": Family(
    model_type="sdar_moe",
    architecture="SDARMoeForCausalLM",
    table=names.QWEN_MOE,
    fields=_QWEN_MOE_FIELDS,
    defaults=_QWEN3,
    moe=_QWEN_MOE,
    moe_defaults={"renormalise": True},
    only=_QWEN_MOE_ONLY,
    irrelevant=(*_SDAR_IRRELEVANT, *_BALANCE),
    attention="block_causal",
    block_field="block_size",
    block=4,
    published=_SDAR_IDS,
  ),
  "wedlm": Family(
    model_type="wedlm",
    architecture="WeDLMForCausalLM",
    table=names.QWEN,
    fields={**_QWEN_FIELDS, "qkv_bias": "attention_bias", "qk_norm": "qk_norm"},
    defaults={
      "rope_base": 1e4, "norm_eps": 1e-6, "tied": False, "qkv_bias": True, "qk_norm": False,
    },
    only=_QWEN_ONLY,
    irrelevant=_QWEN_IRRELEVANT,
    attention="causal",
    published=Published((151936, 152064), mask=151665, eos=(151645, 151643), pad=151643),
  ),
  "rnd1": Family(
    model_type="rnd1",
    architecture="RND1LM",
    table=names.QWEN_MOE,
    fields=_QWEN_MOE_FIELDS,
    defaults=_QWEN3,
    moe=_QWEN_MOE,
    moe_defaults={"renormalise": True},
    only={**_QWEN_MOE_ONLY, "is_causal": (False,)},
    irrelevant=(*_QWEN_IRRELEVANT, *_BALANCE, "moe_backend", "num_diffusion_steps"),
    shift=1,
    published=Published((151936,), mask=151669, eos=(151645,), pad=151643),
  ),
  "nemotron_labs_diffusion": Family(
    model_type="nemotron_labs_diffusion",
    architecture="NemotronLabsDiffusionModel",
    table=names.NEMOTRON_LABS,
    fields={
      **_QWEN_FIELDS, "rope_scaling": Derived(scaling.read_with_queries, scaling.said_in_full),
    },
    defaults={"rope_base": 1e6, "norm_eps": 1e-5, "tied": False},
    only=_NEMOTRON_ONLY,
    irrelevant=_NEMOTRON_IRRELEVANT,
    attention="causal_context",
    block_field="block_size",
    block=32,
  ),
  "diffusion_gemma": Family(
    model_type="diffusion_gemma",
    architecture="DiffusionGemmaForBlockDiffusion",
    table=names.DIFFUSION_GEMMA,
    fields={
      **{name: said for name, said in _QWEN_FIELDS.items() if name != "rope_scaling"},
      "kv_heads": "num_key_value_heads",
      "head_dim": "head_dim",
      "soft_cap": Derived(
        lambda c: c.value("final_logit_softcapping", float),
        lambda m: {"final_logit_softcapping": m.soft_cap},
      ),
      "gemma": Derived(_gemma_layers, _gemma_said),
    },
    defaults={"norm_eps": 1e-6, "tied": True, "qk_norm": True},
    moe={
      "experts": "num_experts",
      "per_token": "top_k_experts",
      "mlp": "moe_intermediate_size",
      "renormalise": Derived(lambda _: True),
    },
    only={
      "hidden_activation": ("gelu_pytorch_tanh",), "attention_bias": (False,),
      "use_bidirectional_attention": ("vision",),  # images alone; there are none
    },
    irrelevant=("vision_config", "boi_token_id", "eoi_token_id", "image_token_id"),
    attention="canvas",
    block_field="canvas_length",
    block=256,
    unread_below=("model.encoder.vision_tower.", "model.encoder.embed_vision."),
    flat=_gemma_flat,
    nested=_gemma_nested,
  ),
  "bd3lm": Family(
    model_type="bd3lm",
    architecture="BD3LM",
    table=names.BD3LM,
    fields={
      "vocab": "vocab_size",
      "width": "hidden_dim",
      "layers": "n_blocks",
      "heads": "n_heads",
      "dit": "cond_dim",
      "kv_heads": Derived(lambda config: config.need("n_heads", int)),
      "head_dim": _width_per_head("hidden_dim", "n_heads"),
      "mlp": Derived(lambda config: 4 * config.need("hidden_dim", int)),
    },
    defaults={"rope_base": 1e4, "norm_eps": 1e-5, "tied": False},
    only={"adaln": (True,), "causal": (False,), "cross_attn": (True,),
          "time_conditioning": (False,)},
    # Kernels, training, and the noise levels that it was trained on.
    irrelevant=("attn_backend", "dropout", "sampling_eps_max", "sampling_eps_min",
                "tie_word_embeddings", "var_min"),
    attention="block_causal",
    block_field="block_size",
    block=1,
    length_field="model_length",
    mask_last=True,
    published=Published((50258,), mask=50257, eos=(50256,), pad=50256),
    unread=(*UNREAD, "sampling_eps_min", "sampling_eps_max"),
    constants=_dit_constants,
  ),
  "modernbert": Family(
    model_type="modernbert",
    architecture="ModernBertForMaskedLM",
    table=names.MODERNBERT,
    fields={
      "vocab": "vocab_size",
      "width": "hidden_size",
      "layers": "num_hidden_layers",
      "heads": "num_attention_heads",
      "kv_heads": Derived(lambda config: config.need("num_attention_heads", int)),
      "head_dim": _width_per_head("hidden_size", "num_attention_heads"),
      "mlp": "intermediate_size",
      "norm_eps": "norm_eps",
      "rope_base": "global_rope_theta",
      "tied": "tie_word_embeddings",
      "bert": Derived(_bert_layers, _bert_said),
    },
    defaults={"norm_eps": 1e-5, "rope_base": 1.6e5, "tied": True},
    only={
      "architectures": (["ModernBertForMaskedLM"],), "hidden_activation": ("gelu",),
      "classifier_activation": ("gelu",), "classifier_bias": (False,), "decoder_bias": (True,),
      "attention_bias": (False,), "mlp_bias": (False,), "norm_bias": (False,),
      "position_embedding_type": ("absolute", "sans_pos"),
    },
    # How it classifies, trains and runs; the class reads norm_eps, not layer_norm_eps.
    irrelevant=(
      "classifier_dropout", "classifier_pooling", "cls_token_id", "deterministic_flash_attn",
      "gradient_checkpointing", "initializer_cutoff_factor", "layer_norm_eps", "mlp_dropout",
      "reference_compile", "repad_logits_with_grad", "sparse_pred_ignore_index",
      "sparse_prediction",
    ),
    published=Published((50368,), mask=50284, eos=(50282,), pad=50283),
    flat=_bert_flat,
    nested=_bert_nested,
  ),
  "a2d-llama": Family(
    model_type="a2d-llama",
    architecture="A2DLlamaLMHeadModel",
    table=names.LLAMA,
    fields=_LLAMA_FIELDS,
    defaults=_LLAMA,
    only=_LLAMA_ONLY,
    irrelevant=_LLAMA_IRRELEVANT,
    shift=_RIGHT_SHIFT,
  ),
  "a2d-qwen2": Family(
    model_type="a2d-qwen2",
    architecture="A2DQwen2LMHeadModel",
    table=names.QWEN,
    fields=_QWEN_FIELDS,
    defaults=_QWEN2,
    only=_QWEN_ONLY,
    irrelevant=_QWEN2_IRRELEVANT,
    shift=_RIGHT_SHIFT,
  ),
  "a2d-qwen3": Family(
    model_type="a2d-qwen3",
    architecture="A2DQwen3LMHeadModel",
    table=names.QWEN,
    fields=_QWEN_FIELDS,
    defaults=_QWEN3,
    only=_QWEN3_ONLY,
    irrelevant=_QWEN_IRRELEVANT,
    shift=_RIGHT_SHIFT,
  ),
}  # fmt: skip


def family_of(config: Mapping[str, Any]) -> str:
  """The key of the family whose config.json it is.

  Raises:
    ValueError: of none.
  """
  for name, family in FAMILIES.items():
    if family.claims(config) if family.claims else config.get("model_type") == family.model_type:
      return name
  known = ", ".join(dict.fromkeys(family.model_type for family in FAMILIES.values()))
  raise ValueError(f"unknown model_type {config.get('model_type')!r:.80}; known: {known}")
