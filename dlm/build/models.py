"""The model and the tokenizer that a config or a checkpoint folder names."""

import dataclasses
import os

from dlm import data
from dlm.build.tables import Partial
from dlm.data import Tokenizer
from dlm.models.bind import Model, bind
from dlm.models.config import ModelConfig


def saved_tokenizer(directory: str | os.PathLike) -> Tokenizer:
  """The tokenizer of a checkpoint folder: the one the model was trained with."""
  return data.load_tokenizer(f"saved:{directory}")


def model(fields: Partial[ModelConfig], tokenizer: Tokenizer) -> Model:
  """The model; `vocab` may be larger than the tokenizer's, never smaller.

  Gated adapters act at the tokenizer's mask token, and a drafter fills such.
  """
  config = fields.make(vocab=tokenizer.vocab_size)
  if config.lora is not None and config.lora.gated:
    if config.lora.mask_id not in (None, tokenizer.mask_id):
      raise ValueError(
        f"model.lora.mask_id={config.lora.mask_id} is not the tokenizer's, {tokenizer.mask_id}"
      )
    lora = dataclasses.replace(config.lora, mask_id=tokenizer.mask_id)
    config = dataclasses.replace(config, lora=lora)
  if config.drafter is not None and config.drafter.mask_id is None:
    told = dataclasses.replace(config.drafter, mask_id=tokenizer.mask_id)
    config = dataclasses.replace(config, drafter=told)
  if tokenizer.mask_id >= config.vocab:
    raise ValueError(f"mask id {tokenizer.mask_id} lies outside the vocabulary, {config.vocab} ids")
  if tokenizer.vocab_size > config.vocab:
    raise ValueError(f"model.vocab={config.vocab} is less than the tokenizer's vocabulary")
  return bind(config)


def check_drafter(drafter: ModelConfig, target: ModelConfig) -> None:
  """Raises ValueError where a DFlash drafter is not one of this target."""
  for name, ours, theirs in (
    ("model.drafter.target_layers", drafter.drafter.target_layers, target.layers),
    ("model.width", drafter.width, target.width),
    ("model.soft_cap", drafter.soft_cap, target.soft_cap),
  ):
    if ours != theirs:
      raise ValueError(f"the drafter's {name}={ours} must be its target's {theirs}")
