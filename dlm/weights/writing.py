"""Parameters -> a directory in Hugging Face layout: what `reading` reads, bit for bit."""

import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from safetensors import SafetensorError
from safetensors.numpy import save_file

from dlm import files
from dlm.checksums import not_finite
from dlm.facts import ModelFacts
from dlm.models.config import DTYPES, ModelConfig
from dlm.types import Params
from dlm.weights import names
from dlm.weights.configs import CONFIG, config_of
from dlm.weights.families import FAMILIES
from dlm.weights.files import INDEX, SINGLE, WeightsError
from dlm.weights.reading import FLOAT32_ONLY


def export(
  directory: str | os.PathLike, family: str, model: ModelConfig, params: Params, **options: Any
) -> None:
  """Writes config.json and the tensors. The directory appears complete or not at all.

  Of several processes the first writes.

  Args:
    options: of `fill`.

  Raises:
    ValueError: the directory is not empty; whatever `fill` raises.
  """
  if jax.process_index() == 0:
    with files.appearing(directory) as folder:
      fill(folder, family, model, params, **options)


def fill(
  folder: pathlib.Path,
  family: str,
  model: ModelConfig,
  params: Params,
  *,
  facts: ModelFacts,
  config: Mapping[str, Any] | None = None,
  dtype: str | None = None,
  shard_bytes: int = 5 * 2**30,
) -> None:
  """Writes config.json and the tensors into a folder that is being made.

  The host holds one shard at a time. Of several processes that share the parameters all call this,
  and the first writes.

  Args:
    family: a key of FAMILIES; its config.json must be able to say what `model` and `facts` say.
    config: of the checkpoint that `params` come from, whose other fields are kept.
    dtype: of the tensors, "float32" or "bfloat16"; None: as they are. Router biases: float32.
    shard_bytes: a file's most bytes of tensors, where it holds more than one.

  Raises:
    ValueError: the family cannot say what the model is, or cannot name one of its parameters.
    WeightsError: a parameter is not finite.
  """
  if dtype is not None and dtype not in DTYPES:
    raise ValueError(f"dtype={dtype!r} must be one of {', '.join(DTYPES)}, or None for as they are")
  leaves = names.paths(params)
  kind = dtype or str(leaves["final_norm/scale" if model.drafter else "embed"].dtype)
  written = config_of(family, model, facts, config or {}, kind)
  tensors = _tensors(family, model, leaves)
  made_of_config = FAMILIES[family].constants
  constants = {} if made_of_config is None else made_of_config(model, written)
  if leaf := not_finite(params):
    raise WeightsError(f"parameter {leaf} is not finite; nothing is written")
  _write_tensors(folder, tensors, leaves, dtype, shard_bytes, constants)
  if jax.process_index() == 0:
    files.write_json(folder / CONFIG, written)


def _tensors(
  family: str, model: ModelConfig, leaves: Mapping[str, jax.Array]
) -> dict[str, list[names.TensorPart]]:
  """What each tensor is made of, from its first row on."""
  table = FAMILIES[family].table
  nameless = [path for path in leaves if names.rule(table, path) is None]
  if nameless:
    raise ValueError(f"family {family!r} has no tensor for {', '.join(nameless)}")
  shapes = {path: leaf.shape for path, leaf in leaves.items()}
  tensors: dict[str, list[names.TensorPart]] = {}
  for part in names.parts(table, shapes, model):
    tensors.setdefault(part.name, []).append(part)
  for of_it in tensors.values():
    if of_it[0].experts:
      of_it.sort(key=lambda part: part.at[-1])
  return tensors


def _write_tensors(
  directory: pathlib.Path,
  tensors: Mapping[str, list[names.TensorPart]],
  leaves: Mapping[str, jax.Array],
  dtype: str | None,
  shard_bytes: int,
  constants: Mapping[str, np.ndarray],
) -> None:
  def kind(part: names.TensorPart) -> np.dtype:
    wanted = "float32" if part.path.endswith(FLOAT32_ONLY) else dtype or leaves[part.path].dtype
    return jnp.dtype(wanted)

  shards: list[list[str]] = [[]]
  total = in_shard = 0
  for name, parts in tensors.items():
    size = sum(math.prod(part.layout.stored) * kind(part).itemsize for part in parts)
    if shards[-1] and in_shard + size > shard_bytes:
      shards.append([])
      in_shard = 0
    shards[-1].append(name)
    in_shard, total = in_shard + size, total + size

  host = _Host(leaves)
  count = len(shards)
  total += sum(tensor.nbytes for tensor in constants.values())
  where = {}
  for number, shard in enumerate(shards, 1):
    file = SINGLE if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"
    made = {}
    for name in shard:
      pieces = [_stored(host, part).astype(kind(part)) for part in tensors[name]]
      made[name] = np.ascontiguousarray(np.concatenate(pieces))
      if experts := tensors[name][0].experts:
        made[name] = made[name].reshape(experts, -1, *made[name].shape[1:])
      where[name] = file
    if number == count:  # few and small
      made |= constants
      where |= dict.fromkeys(constants, file)
    if jax.process_index():
      continue
    try:
      save_file(made, directory / file, metadata={"format": "pt"})
    except SafetensorError as error:
      raise files.of_system(error, directory / file) or error from error
  if count > 1 and jax.process_index() == 0:
    index = {"metadata": {"total_size": total}, "weight_map": where}
    files.write_json(directory / INDEX, index)


class _Host:
  """Layers of parameters on the host; the last one is kept, for its experts are asked in turn."""

  def __init__(self, leaves: Mapping[str, jax.Array]):
    self._leaves = leaves
    self._key: tuple[str, int] | None = None
    self._layer: np.ndarray | None = None

  def __call__(self, path: str, at: tuple[int, ...]) -> np.ndarray:
    if not at:
      return _fetched(self._leaves[path])
    if self._key != (path, at[0]):
      leaf = self._leaves[path]
      here = isinstance(leaf, jax.Array) and leaf.is_fully_addressable
      if here and {each.platform for each in leaf.devices()} == {"cpu"}:
        leaf = np.asarray(leaf)  # a view
      self._key, self._layer = (path, at[0]), _fetched(leaf[at[0]])
    return self._layer[at[1:]]


def _fetched(leaf: jax.Array) -> np.ndarray:
  """The array, whole; all processes that hold a part of it ask for it together."""
  if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
    return multihost_utils.process_allgather(leaf, tiled=True)
  return jax.device_get(leaf)


def _stored(host: _Host, part: names.TensorPart) -> np.ndarray:
  """A parameter's slice on the axes of its tensor."""
  ours, layout = host(part.path, part.at), part.layout
  return ours.reshape(layout.stored[::-1]).T if layout.flip else ours.reshape(layout.stored)
