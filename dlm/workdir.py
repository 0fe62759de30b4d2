"""The folder of a run, or of a checkpoint: it explains itself, and belongs to one run.

DIR/config.json, facts.json, tokenizer files    what the parameters are parameters of
DIR/data.json                                   what the run is trained on, to be compared
DIR/checkpoints/STEP/                           the training state: `dlm.checkpoint`
"""

import contextlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from dlm import files
from dlm.facts import ModelFacts

CONFIG, FACTS, DATA = "config.json", "facts.json", "data.json"

# What a resumed run may change: none of it alters what one update computes, save that schedules
# other than "constant" stretch with `steps`; "huggingface" is for the exporter alone.
RESUMABLE = (
  "steps", "log_every", "microbatches", "parallel", "overlap", "mesh", "eval", "sample",
  "checkpoint", "huggingface",
)  # fmt: skip


HUB = re.compile(r"[\w.-]+/[\w.-]+")  # what may be the name of a model of the Hugging Face hub
HINT = "; a model of the Hugging Face hub is fetched first: hf download {0} --local-dir DIR"


class CheckpointError(ValueError):
  """A folder that is another run's, or that cannot be read: the user's to mend, in one line."""


def fill(folder: pathlib.Path, config: dict, facts: ModelFacts, tokenizer: Any) -> None:
  """Writes what explains parameters into a folder that is being made."""
  tokenizer.save(folder)
  files.write_json(folder / FACTS, facts.to_json())
  files.write_json(folder / CONFIG, config)


@contextlib.contextmanager
def claimed(
  directory: str | os.PathLike,
  config: dict,
  facts: ModelFacts,
  tokenizer: Any,
  data: Mapping[str, Mapping[str, str]],
  as_now: Callable[[dict], Mapping] = dict,
) -> Iterator[None]:
  """Makes the folder of a run, or checks that it is this run's; inside, it is this process's alone.

  Process 0 writes and locks.

  Args:
    data: what the run is trained on: of each split `Rows.fingerprint`.
    as_now: the config.json that is there, as today's version would have written it.

  Raises:
    CheckpointError: the folder is another config's or its data have changed (the message lists the
      differences), or is not empty and no checkpoint folder.
    ValueError: another process is training in it.
  """
  directory = pathlib.Path(directory).absolute()
  config = _as_read(config)
  data = {"tokenizer": tokenizer.fingerprint, **data}
  if directory.is_dir() and any(directory.iterdir()):
    _check(directory, config, data, as_now)
  elif jax.process_index() == 0:
    with files.appearing(directory) as folder:
      fill(folder, config, facts, tokenizer)
  if jax.process_index() > 0:
    yield
    return
  with files.locked_folder(directory):
    files.write_json(directory / CONFIG, config)
    files.write_json(directory / DATA, data)
    yield


def _check(
  directory: pathlib.Path, config: dict, data: dict[str, Any], as_now: Callable[[dict], Mapping]
) -> None:
  """CheckpointError where a run with this config and data cannot go on in the folder."""
  found = differences(_as_read(as_now(read_json(directory, CONFIG))), config)
  found = {key: both for key, both in found.items() if key.split(".")[0] not in RESUMABLE}
  if found:
    raise CheckpointError(f"workdir {directory} belongs to another config ({_listed(found)})")
  if not (directory / DATA).exists():  # of a version that did not write it
    return
  found = differences(read_json(directory, DATA), data)
  if found:
    raise CheckpointError(
      f"the data of workdir {directory} changed since its run began ({_listed(found)}): put them "
      "back, or start another run from its checkpoint (init_from)"
    )


def _as_read(config: Mapping) -> dict:
  """As JSON gives it back: tuples are lists."""
  return json.loads(json.dumps(config))


def read_json(directory: str | os.PathLike, name: str) -> dict[str, Any]:
  """The table that one of the folder's JSON files holds; CheckpointError if it holds none."""
  path = pathlib.Path(directory) / name
  try:
    value = files.read_json(path)
  except FileNotFoundError as error:
    why = f"it holds no {name}"
    if not path.parent.exists():
      why = "it is not there" + (HINT.format(directory) if HUB.fullmatch(str(directory)) else "")
    raise CheckpointError(f"{directory} is no checkpoint folder: {why}") from error
  except ValueError as error:
    raise CheckpointError(str(error)) from error
  if not isinstance(value, dict):
    raise CheckpointError(f"{path} must hold a table of fields, not {str(value)!r:.40}")
  return value


def read_facts(directory: str | os.PathLike) -> ModelFacts:
  """facts.json of the folder; CheckpointError where it is none or damaged."""
  values = read_json(directory, FACTS)
  try:
    if values.get("mask_id") is None:
      raise ValueError("field mask_id is missing")
    return ModelFacts.from_json(values)
  except ValueError as error:
    raise CheckpointError(f"{pathlib.Path(directory) / FACTS}: {error}") from error


def differences(old: dict, new: dict) -> dict[str, tuple[Any, Any]]:
  """Dotted field -> (old, new) wherever two configs differ; a field only one has is "absent"."""
  old, new = _flat(old), _flat(new)
  return {
    key: (old.get(key, "absent"), new.get(key, "absent"))
    for key in sorted(old.keys() | new.keys())
    if old.get(key, "absent") != new.get(key, "absent")
  }


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
  flat = {}
  for key, value in tree.items():
    flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
  return flat


def _listed(found: dict[str, tuple[Any, Any]]) -> str:
  return "; ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in found.items())
