"""A `Pretrained` written out: as a checkpoint folder of ours, a Hugging Face directory, an adapter.

What is written appears complete or not at all: it is filled beside its place, then renamed. Of
several processes all call these functions: each reads and hands over its shards, the first writes.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from dlm import checkpoint, files, parallel, weights, workdir
from dlm.build import tables
from dlm.build.pretrained import ORIGIN, WEIGHTS, Pretrained, check_numbers
from dlm.models import lora, quantised
from dlm.models.bind import bind
from dlm.types import Params
from dlm.weights import peft
from dlm.weights.families import FAMILIES


def write_checkpoint(directory: str | os.PathLike, made: Pretrained, **reading: Any) -> None:
  """A folder that sample, evaluate and train's init_from take; with `weights`, all but the last.

  Args:
    reading: arguments of `Pretrained.params`. The folder keeps kernels as `weights` has them, and
      is read so from then on. With a `dtype` its model computes in that, too, as an export's does.

  Raises:
    ValueError: the folder exists and is not empty; adapters are gated, else they are merged;
      whatever reading raises.
  """
  kept = reading.get("weights") or made.weights
  if kept:
    quantised.check(kept, made.model.abstract())
  with _appearing(directory) as folder:
    made, params, step = _merged(made, **reading)
    config = made.config | ({WEIGHTS: kept} if kept else {})
    if dtype := reading.get("dtype"):
      config |= {"model": tables.plain(dataclasses.replace(made.model.config, dtype=dtype))}
    if jax.process_index() == 0:
      workdir.fill(folder, config, made.facts, made.tokenizer)
    params = quantised.as_dicts(params)
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
    ValueError: the directory exists and is not empty, the checkpoint keeps codes, the family is not
      known or cannot say what the model is; adapters are gated, else they are merged; whatever
      reading raises.
  """
  check_numbers(made)
  origin = made.config.get(ORIGIN, {})
  family = _family(family, made)
  facts = made.facts
  if facts.pad_id is None:
    facts = dataclasses.replace(facts, pad_id=made.tokenizer.pad_id)
  base = origin.get("config", {})
  if family != origin.get("family"):
    base = _longest(base, origin.get("family"), family)
  with _appearing(directory) as folder:
    made, params, _ = _merged(made, **reading)
    weights.fill(folder, family, made.model.config, params, facts=facts, config=base)
    if jax.process_index() == 0:
      made.tokenizer.publish(folder)
  if FAMILIES[family].qwen2_tokenizer and not made.tokenizer.cuts_as_qwen2:
    return (
      f"AutoTokenizer of transformers 5 cuts text as Qwen2 where model_type is {family}; this "
      "tokenizer does not: read it by PreTrainedTokenizerFast.from_pretrained"
    )
  return ""


def write_adapter(
  directory: str | os.PathLike, made: Pretrained, family: str = "", dtype: str | None = None
) -> int:
  """The adapters of a run in PEFT's layout, see `dlm.weights.peft`; returns how many numbers.

  Args:
    family: whose modules they are named after; empty: that of the checkpoint the run began with.
    dtype: of the tensors; None: as trained.

  Raises:
    ValueError: the directory exists and is not empty, the checkpoint is of no run that trained
      adapters, the family is not known or has no such modules; whatever reading raises.
  """
  if made.base is None:
    raise ValueError(f"{made.directory} is of no run that trained adapters (model.lora)")
  family = _family(family, made)
  with _appearing(directory) as folder:
    own, _ = made.adapters()
    ours = {"facts": made.facts.to_json(), "objective": tables.plain(made.objective)}
    base = made.run().init_from
    if jax.process_index() == 0:
      peft.fill(folder, family, made.model.config, own, base=base, ours=ours, dtype=dtype)
  return sum(leaf.size for leaf in jax.tree.leaves(own))


@contextlib.contextmanager
def _appearing(directory: str | os.PathLike) -> Iterator[pathlib.Path]:
  """As `files.appearing`: the first process makes the folder, and renames it when all are done.

  It is there when any of them goes on.
  """
  first = jax.process_index() == 0
  with files.appearing(directory) if first else contextlib.nullcontext() as folder:
    (path,) = parallel.joined([str(folder)] if first else [])
    yield pathlib.Path(path)
    parallel.joined([])
  parallel.joined([])


def _merged(made: Pretrained, **reading: Any) -> tuple[Pretrained, Params, int]:
  """Without adapters: they are in the parameters; with the step these are from."""
  own = made.model.config.lora
  if own is not None and own.gated:
    raise ValueError(
      f"{made.directory}: its adapters are gated: they act on mask tokens alone and cannot be "
      "merged into weights; --export_adapter writes them as they are"
    )
  if own is not None and own.drafts:
    raise ValueError(
      f"{made.directory}: its adapter only drafts, and is off in all that is written"
    )
  params, step = made.params(**reading)
  if own is None:
    return made, params, step
  plain = dataclasses.replace(made.model.config, lora=None)
  config = made.config | {"model": tables.plain(plain)}
  return dataclasses.replace(made, model=bind(plain), config=config), lora.merged(params, own), step


def _family(named: str, made: Pretrained) -> str:
  """ValueError: it is not known, or none is named of a model that was trained from nothing."""
  family = named or made.config.get(ORIGIN, {}).get("family", "")
  if not family:
    raise ValueError(
      f"{made.directory} was not imported, so --family must name a layout: {', '.join(FAMILIES)}"
    )
  tables.one_of("family", family, FAMILIES)
  return family


def _longest(config: Mapping[str, Any], family: str | None, other: str) -> dict[str, Any]:
  """What another family's config.json keeps of one: how long a text may be."""
  length = None if family is None else config.get(FAMILIES[family].length_field)
  return {} if length is None else {FAMILIES[other].length_field: length}
