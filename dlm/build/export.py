"""A `Pretrained` written out: as a checkpoint folder of ours, or as a Hugging Face directory.

What is written appears complete or not at all: it is filled beside its place, then renamed.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from dlm import checkpoint, files, weights, workdir
from dlm.build import tables
from dlm.build.pretrained import ORIGIN, Pretrained
from dlm.weights.families import FAMILIES


def write_checkpoint(directory: str | os.PathLike, made: Pretrained, **reading: Any) -> None:
  """A folder that sample, evaluate and train's init_from take.

  Args:
    reading: arguments of `Pretrained.params`.

  Raises:
    ValueError: the folder exists and is not empty; whatever reading raises.
  """
  with files.appearing(directory) as folder:
    params, step = made.params(**reading)
    workdir.fill(folder, made.config, made.facts, made.tokenizer)
    checkpoint.save_params(folder, step, params, {"from": str(made.directory)})


def write_huggingface(
  directory: str | os.PathLike, made: Pretrained, family: str = "", **reading: Any
) -> str:
  """The layout of one of `weights.FAMILIES`; transformers reads those that it knows.

  Args:
    family: empty: that of the directory the checkpoint was imported from.
    reading: arguments of `Pretrained.params`.

  Returns:
    What transformers would read otherwise, in a sentence; empty: nothing.

  Raises:
    ValueError: the directory exists and is not empty, the family is not known or cannot say what
      the model is; whatever reading raises.
  """
  origin = made.config.get(ORIGIN, {})
  family = family or origin.get("family", "")
  tables.one_of("family", family, FAMILIES)
  facts = made.facts
  if facts.pad_id is None:
    facts = dataclasses.replace(facts, pad_id=made.tokenizer.pad_id)
  base = origin.get("config", {})
  if family != origin.get("family"):
    base = _longest(base, origin.get("family"), family)
  with files.appearing(directory) as folder:
    params, _ = made.params(**reading)
    weights.fill(folder, family, made.model.config, params, facts=facts, config=base)
    made.tokenizer.publish(folder)
  if FAMILIES[family].qwen2_tokenizer and not made.tokenizer.cuts_as_qwen2:
    return (
      f"AutoTokenizer of transformers 5 cuts text as Qwen2 where model_type is {family}; this "
      "tokenizer does not: read it by PreTrainedTokenizerFast.from_pretrained"
    )
  return ""


def _longest(config: Mapping[str, Any], family: str | None, other: str) -> dict[str, Any]:
  """What another family's config.json keeps of one: how long a text may be."""
  length = None if family is None else config.get(FAMILIES[family].length_field)
  return {} if length is None else {FAMILIES[other].length_field: length}
