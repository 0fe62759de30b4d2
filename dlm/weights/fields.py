"""The keys of a config.json: each is read, known to say nothing about the model, or refused.

A key that nobody looks at may be another model: a router that groups tokens, a rotation that is
scaled. So `ConfigJson` knows which of its keys nobody has read.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

LARGEST = 2**31 - 1  # of a size: what an int32 index reaches

# transformers 5 -> transformers 4, which we read and write.
RENAMED = {"dtype": "torch_dtype", "num_local_experts": "num_experts"}
ROPE = ("rope_theta", "partial_rotary_factor")  # which transformers 5 keeps in rope_parameters

NULL_SPEAKS = ("factor", "truncate")  # keys of a scaling whose null is not their absence

# What transformers lets every config say, with the only values that mean a model of ours.
LIBRARY_ONLY: Mapping[str, tuple[Any, ...]] = {
  "add_cross_attention": (False,),
  "is_encoder_decoder": (False,),
  "pruned_heads": ({},),
  "tie_encoder_decoder": (False,),
}

# Keys of every family that say nothing about what the model computes.
IRRELEVANT = frozenset((
  # Book-keeping of transformers and of the programs that wrote the file.
  "_attn_implementation_autoset", "_commit_hash", "_name_or_path", "architectures",
  "attn_implementation", "auto_map", "experts_implementation", "model_type", "name_or_path",
  "tokenizer_class", "transformers_version", "unsloth_fixed", "unsloth_version",
  # Which kernels run, in which pieces, and what else they return.
  "chunk_size_feed_forward", "output_attentions", "output_hidden_states", "return_dict",
  "torchscript", "use_bfloat16", "use_cache", "use_return_dict",
  # Training and its first weights.
  "attention_dropout", "embedding_dropout", "initializer_range", "output_dropout",
  # Heads that classify.
  "finetuning_task", "id2label", "label2id", "num_labels", "problem_type", "task_specific_params",
  # The tokenizer's: what a text begins with, and ids of other tasks.
  "bos_token_id", "decoder_start_token_id", "prefix", "sep_token_id",
  # Generation by transformers; ours has its own settings.
  "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping",
  "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id",
  "forced_eos_token_id", "is_decoder", "length_penalty", "max_length", "min_length",
  "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences", "output_scores",
  "remove_invalid_values", "repetition_penalty", "return_dict_in_generate", "suppress_tokens",
  "temperature", "tf_legacy_loss", "top_k", "top_p", "typical_p",
))  # fmt: skip


class ConfigJson(Mapping[str, Any]):
  """A config.json as transformers 4 spells it; null is absent. Knows which keys were never read."""

  def __init__(self, config: Mapping[str, Any]):
    self._values = {name: x for name, x in spelled(config).items() if x is not None}
    self._unread = set(self._values)

  def __getitem__(self, name: str) -> Any:
    self._unread.discard(name)
    return self._values[name]

  def __iter__(self) -> Iterator[str]:
    return iter(self._values)

  def __len__(self) -> int:
    return len(self._values)

  def value(self, names: str | Collection[str], kind: type, default: Any = None) -> Any:
    """The first of `names` that is there, of that type; `default` where none is."""
    names = (names,) if isinstance(names, str) else names
    found = [typed(name, self[name], kind) for name in names if name in self]
    return found[0] if found else default

  def need(self, names: str | Collection[str], kind: type) -> Any:
    """As `value`. ValueError where none is there."""
    found = self.value(names, kind)
    if found is None:
      raise ValueError(f"{names if isinstance(names, str) else next(iter(names))} is missing")
    return found

  def only(self, allowed: Mapping[str, Collection[Any]]) -> None:
    """ValueError where a key holds what is not allowed; true and 1 are not the same."""
    for name, values in allowed.items():
      if name in self and not any(_same(self[name], each) for each in values):
        first = next(iter(values))
        raise ValueError(f"{name}={self[name]!r:.80} is not supported; only {first!r}")

  def nothing_else(self, irrelevant: Collection[str]) -> None:
    """ValueError where a key is left that was not read and is not irrelevant."""
    left = sorted(self._unread - IRRELEVANT - set(irrelevant))
    if left:
      said = ", ".join(f"{name}={self._values[name]!r:.80}" for name in left[:20])
      raise ValueError(f"{said} {'is' if len(left) == 1 else 'are'} not understood")


def spelled(config: Mapping[str, Any]) -> dict[str, Any]:
  """A copy in which everything stands where transformers 4 has it.

  How rotations are scaled, if they are, is then `rope_scaling` with its kind as `rope_type`.

  Raises:
    ValueError: the two spellings disagree, or layers are of another type than full attention.
  """
  config = dict(config)
  moved = {new: config.pop(new) for new in RENAMED if new in config}
  given = [(f"{new}={value!r:.80}", RENAMED[new], value) for new, value in moved.items()]
  for name in ("rope_scaling", "rope_parameters"):
    rope = config.get(name) or {}
    if not isinstance(rope, dict):
      raise ValueError(f"{name}={rope!r:.80} must be a table")
    given += [(f"{key}={rope[key]!r:.80} of {name}", key, rope[key]) for key in ROPE if key in rope]
    if rope:
      given.append((f"{name}={rope!r:.200}", "rope_scaling", _scaling(name, rope)))
  config.pop("rope_parameters", None)
  if "rope_scaling" in config:
    config["rope_scaling"] = None  # which keeps its place in the file
  for said, name, value in given:
    if value is None:
      continue
    if config.get(name) not in (None, value):
      raise ValueError(f"{said} disagrees with {name}={config[name]!r:.80}")
    config[name] = value
  if config.get("rope_scaling") == {"rope_type": "default"}:
    config["rope_scaling"] = None
  layers = config.pop("layer_types", None)
  if layers is not None and not _all_full(layers):
    raise ValueError(f"layer_types={layers!r:.80} is not supported; only 'full_attention'")
  return config


def _scaling(name: str, rope: Mapping[str, Any]) -> dict[str, Any]:
  """What a table of rotations says besides ROPE; older files call the kind `type`."""
  kinds = [
    typed(f"{name}: {key}", rope[key], str) for key in ("rope_type", "type") if key in rope
  ] or ["default"]
  if kinds[0] != kinds[-1]:
    raise ValueError(f"{name}: rope_type={kinds[0]!r:.80} disagrees with type={kinds[1]!r:.80}")
  others = {
    key: x
    for key, x in rope.items()
    if key not in ("rope_type", "type", *ROPE) and (x is not None or key in NULL_SPEAKS)
  }
  return {"rope_type": kinds[0], **others}


def _all_full(layers: Any) -> bool:
  return isinstance(layers, list) and all(each == "full_attention" for each in layers)


def _same(a: Any, b: Any) -> bool:
  return a == b and isinstance(a, bool) == isinstance(b, bool)


def typed(name: str, value: Any, kind: type) -> Any:
  """`value`, if it is what a field of that type may hold."""
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  good, wanted = {
    int: (type(value) is int and 0 <= value <= LARGEST, f"a whole number in 0..{LARGEST}"),
    float: (is_number and 0 < value < 1e38, "a positive number"),
    bool: (isinstance(value, bool), "true or false"),
    str: (isinstance(value, str), "a text"),
    list: (isinstance(value, list), "a list"),
    dict: (isinstance(value, dict), "a table"),
  }[kind]
  if not good:
    raise ValueError(f"{name}={value!r:.80} must be {wanted}")
  return kind(value)
