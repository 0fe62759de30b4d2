"""config.json of a Hugging Face directory <-> our `ModelConfig` and the facts that samplers ask.

The keys of a GGUF file are read as the config.json that would say the same: `dlm.weights.gguf`.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from dlm.facts import ModelFacts, rule_of
from dlm.models.config import ModelConfig
from dlm.models.moe.config import MoeConfig
from dlm.weights import codes, gguf
from dlm.weights.families import FAMILIES, Derived, Family, Said, family_of
from dlm.weights.fields import LIBRARY_ONLY, ConfigJson, spelled
from dlm.weights.files import WeightsError, read_json

CONFIG, GENERATION, ADAPTER = "config.json", "generation_config.json", "adapter_config.json"
LONGEST = 4096  # slots of a canvas where nobody asks for more

# float16 fits into neither of ours, and into float32 without loss.
DTYPE = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float32"}

# What may read back otherwise: nothing that the model computes.
UNSAID = ("dtype", "implementation", "remat", "length", "vocab", "eos_ids", "pad_id")
TRAINED_WITH = ("capacity_factor", "bias_rate", "z_loss", "balance_loss")  # of experts, unsaid too


@dataclasses.dataclass(frozen=True)
class Source:
  """A Hugging Face directory whose config.json is read, or a GGUF file; and no tensor yet."""

  directory: pathlib.Path  # or the file
  family: str  # a key of FAMILIES
  model: ModelConfig
  facts: ModelFacts  # its mask id is None where only the tokenizer can say it
  config: dict[str, Any]  # config.json, but for how the tensors are quantised
  file: gguf.File | None = None  # None: a directory
  quantised: codes.Quantised | None = None  # how the tensors are; None: they are plain numbers


def is_huggingface(directory: str | pathlib.Path) -> bool:
  """Is there a config.json with a model_type, or an adapter of such a model?"""
  path = pathlib.Path(directory) / CONFIG
  adapter = path.with_name(ADAPTER)
  return adapter.is_file() or (path.is_file() and "model_type" in read_json(path))


def open_source(directory: str | pathlib.Path) -> Source:
  """Reads config.json, and generation_config.json for the stop ids; or the header of a GGUF file.

  `facts.mask_id` is None where neither says it and the vocabulary is not the published one:
  autoregressive models have none, other families' stands in their tokenizer.

  Raises:
    WeightsError: no config.json, a model_type that is not known, a key that is missing, that is not
      understood or that cannot be; the model is an adapter of another, or quantised in a way that
      is not known; a GGUF file is damaged.
  """
  path, file, stops = pathlib.Path(directory), None, []
  if gguf.is_gguf(path):
    file = gguf.open_file(path)
    config, said = file.config, path
  else:
    said = path / CONFIG
    _refuse_adapter(path / ADAPTER)
    if not said.is_file():
      raise WeightsError(f"{path} is no Hugging Face directory: it holds no {CONFIG}")
    config, stops = read_json(said), _stops(path / GENERATION)
  try:
    quantised = codes.of_config(config)
    config = {key: value for key, value in config.items() if key != codes.CONFIG}
    name = family_of(config)
    model, facts = _read(name, config, stops)
  except WeightsError:
    raise
  except ValueError as error:
    raise WeightsError(f"{said}: {error}") from error
  return Source(path, name, model, facts, config, file, quantised)


def _refuse_adapter(path: pathlib.Path) -> None:
  if path.is_file():
    config = read_json(path)
    kind, base = config.get("peft_type"), config.get("base_model_name_or_path")
    raise WeightsError(
      f"{path.parent} is an adapter ({ADAPTER}: peft_type={kind!r:.40}) of {base!r:.200}, and "
      "an adapter is no checkpoint: give the model as checkpoint and this directory as --adapter"
    )


def _stops(path: pathlib.Path) -> list[int]:
  """The ids that end a text, where generation_config.json names some."""
  if not path.is_file():
    return []
  try:
    return _ids("eos_token_id", read_json(path).get("eos_token_id"))
  except WeightsError:
    raise
  except ValueError as error:
    raise WeightsError(f"{path}: {error}") from error


# ---------------------------------------------------------------------------------------------
# Reading


def _read(name: str, config: Mapping[str, Any], stops: list[int]) -> tuple[ModelConfig, ModelFacts]:
  """What a family's config.json means; ValueError where a key is not understood or cannot be."""
  family = FAMILIES[name]
  if missing := [key for key in family.named if key not in config]:
    raise ValueError(
      f"{missing[0]} is missing and must be null: without it the authors' class takes another"
    )
  config = ConfigJson(family.flat(config))
  config.only(LIBRARY_ONLY)
  config.only(family.only)
  model = _model(family, config)
  facts = _facts(family, model, config, stops)
  try:
    config.nothing_else(family.irrelevant)
  except ValueError as error:
    raise ValueError(f"{error} (family {name})") from error
  return model, facts


def _fields(
  config: ConfigJson, said: Mapping[str, Said], defaults: Mapping[str, Any], into: type
) -> dict[str, Any]:
  """Fields of a dataclass, `into`, from the keys of config.json that say them."""
  kinds = {field.name: field.type for field in dataclasses.fields(into)}
  found = dict(defaults)
  for ours, theirs in said.items():
    if isinstance(theirs, Derived):
      found[ours] = theirs.read(config)
    elif ours in defaults:
      found[ours] = config.value(theirs, kinds[ours], defaults[ours])
    else:
      found[ours] = config.need(theirs, kinds[ours])
  return found


def _model(family: Family, config: ConfigJson) -> ModelConfig:
  fields = _fields(config, family.fields, family.defaults, ModelConfig)
  if family.moe:
    fields["moe"] = MoeConfig(**_fields(config, family.moe, family.moe_defaults, MoeConfig))
  stored = config.value("torch_dtype", str, "float32").removeprefix("torch.")
  if stored not in DTYPE:
    raise ValueError(f"torch_dtype={stored!r:.80} must be one of {', '.join(DTYPE)}")
  return ModelConfig(**fields, dtype=DTYPE[stored])


def _ids(name: str, value: Any) -> list[int]:
  """One id or a list of them; null: none."""
  ids = [] if value is None else value if isinstance(value, list) else [value]
  if not all(type(each) is int and each >= 0 for each in ids):
    raise ValueError(f"{name}={value!r:.80} must be an id or a list of ids")
  return ids


def _facts(family: Family, model: ModelConfig, config: ConfigJson, stops: list[int]) -> ModelFacts:
  published = family.published
  if published is not None and model.vocab not in published.vocabs:
    published = None
  mask = None
  if family.mask_field is not None:
    mask = config.value(family.mask_field, int, model.vocab - 1 if family.mask_last else None)
  pad = config.value("pad_token_id", int)
  eos = [*stops, *_ids("eos_token_id", config.get("eos_token_id"))]
  if published is not None:
    mask = published.mask if mask is None else mask
    pad = published.pad if pad is None else pad
    eos += published.eos
  edits = {
    name: config.value(name, int) for name in (family.insert_field, family.delete_field) if name
  }
  told = {"mask_token_id": [mask], "pad_token_id": [pad], "eos_token_id": eos}
  for name, ids in (told | {name: [each] for name, each in edits.items()}).items():
    beyond = [each for each in ids if each is not None and each >= model.vocab]
    if beyond:
      raise ValueError(f"{name}={beyond[0]} lies outside the vocabulary of {model.vocab}")
  if not eos and pad is not None:
    eos = [pad]  # LLaDA2 names its end only as padding
  attention, shift = (
    each.read(config) if isinstance(each, Derived) else each
    for each in (family.attention, family.shift)
  )
  block = None
  if family.block_field is not None:
    block = config.value(family.block_field, int, family.block)
    if block < 1:
      raise ValueError(f"{family.block_field}={block} must be at least 1")
  return ModelFacts(
    mask_id=mask,
    eos_ids=tuple(dict.fromkeys(eos)),
    pad_id=pad,
    shift=shift,
    attention=rule_of(attention, block),
    block=block,
    vocab=model.vocab,
    length=min(config.value(family.length_field, int, LONGEST), LONGEST),
    insert_id=edits.get(family.insert_field),
    delete_id=edits.get(family.delete_field),
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
  if family.mask_field is None:  # the tokenizer's, of which such a model says nothing
    facts = dataclasses.replace(facts, mask_id=None)
  origin, base = base, family.flat(base) if base else base
  fresh = {key: values[0] for key, values in family.only.items()}
  config = {
    "architectures": [family.architecture],
    **({} if "model_type" in base else fresh),
    **spelled(base),
    "model_type": family.model_type,
    "torch_dtype": dtype,
    **_said(family.fields, model, model),
    **(_said(family.moe, model.moe, model) if model.moe is not None else {}),
    "vocab_size": model.vocab,
    **_facts_said(family, facts, base),
  }
  config = family.nested(config, origin)
  reads, reads_facts = _read(name, config, [])
  means = dataclasses.asdict(reads) | reads_facts.to_json()
  wants = dataclasses.asdict(model) | facts.to_json()
  if wants["moe"] is not None and means["moe"] is not None:
    wants["moe"] |= {name: means["moe"][name] for name in TRAINED_WITH}
  for field in means.keys() - set(UNSAID):
    if means[field] != wants[field]:
      raise ValueError(
        f"family {name!r} cannot say {field}={wants[field]!r}: it would mean {means[field]!r}"
      )
  return config


def _said(
  fields: Mapping[str, Said], holder: ModelConfig | MoeConfig, model: ModelConfig
) -> dict[str, Any]:
  """The keys that say the fields of `holder`."""
  keys: dict[str, Any] = {}
  for ours, theirs in fields.items():
    if isinstance(theirs, Derived):
      keys |= theirs.write(model)
    else:
      keys[theirs if isinstance(theirs, str) else theirs[0]] = getattr(holder, ours)
  return keys


def _facts_said(family: Family, facts: ModelFacts, base: Mapping[str, Any]) -> dict[str, Any]:
  eos = list(facts.eos_ids)
  fields = {
    family.mask_field: facts.mask_id,
    "pad_token_id": facts.pad_id,
    "eos_token_id": eos[0] if len(eos) == 1 else eos,
    family.length_field: max(base.get(family.length_field) or 0, facts.length),
    family.block_field: facts.block,
    family.insert_field: facts.insert_id,
    family.delete_field: facts.delete_id,
  }
  for each in (family.attention, family.shift):
    fields |= each.write(facts) if isinstance(each, Derived) else {}
  return {name: value for name, value in fields.items() if name is not None and value is not None}
