"""The model and the tokenizer that a config or a checkpoint folder names."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from dlm import data
from dlm.build import tables
from dlm.data import Tokenizer
from dlm.models.bind import Model, bind
from dlm.models.config import ModelConfig
from dlm.models.moe.config import MoeConfig
from dlm.models.presets import PRESETS


def tokenizer(config: Mapping[str, Any]) -> Tokenizer:
  return data.load_tokenizer(tables.table(config, "data").get("tokenizer", "byte"))


def saved_tokenizer(directory: str | os.PathLike) -> Tokenizer:
  """The tokenizer of a checkpoint folder: the one the model was trained with."""
  return data.load_tokenizer(f"saved:{directory}")


def model(config: Mapping[str, Any], tokenizer: Tokenizer) -> Model:
  """The model; `model.vocab` may be larger than the tokenizer's, never smaller."""
  given = {"vocab": tokenizer.vocab_size, **sizes(config)}
  if given.get("moe") is not None:
    given["moe"] = tables.call("model.moe", MoeConfig, tables.table(given, "moe"))
  bound = tables.call("model", ModelConfig, given)
  if tokenizer.mask_id >= bound.vocab:
    raise ValueError(f"mask id {tokenizer.mask_id} lies outside the vocabulary, {bound.vocab} ids")
  if tokenizer.vocab_size > bound.vocab:
    raise ValueError(f"model.vocab={bound.vocab} is less than the tokenizer's vocabulary")
  return bind(bound)


def sizes(config: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of the model table, those of its preset among them."""
  given = dict(tables.table(config, "model"))
  name = given.pop("preset", None)
  preset = {} if name is None else dict(tables.named("model.preset", name, PRESETS))
  if "moe" in preset:
    preset["moe"] = dataclasses.asdict(preset["moe"])
  return preset | given
