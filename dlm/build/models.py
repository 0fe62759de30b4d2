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

  Gated adapters act at the tokenizer's mask token.
  """
  config = fields.make(vocab=tokenizer.vocab_size)
  if config.lora is not None and config.lora.gated:
    if config.lora.mask_id not in (None, tokenizer.mask_id):
      raise ValueError(
        f"model.lora.mask_id={config.lora.mask_id} is not the tokenizer's, {tokenizer.mask_id}"
      )
    lora = dataclasses.replace(config.lora, mask_id=tokenizer.mask_id)
    config = dataclasses.replace(config, lora=lora)
  if tokenizer.mask_id >= config.vocab:
    raise ValueError(f"mask id {tokenizer.mask_id} lies outside the vocabulary, {config.vocab} ids")
  if tokenizer.vocab_size > config.vocab:
    raise ValueError(f"model.vocab={config.vocab} is less than the tokenizer's vocabulary")
  return bind(config)
