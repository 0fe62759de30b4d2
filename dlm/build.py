"""A config's tables become objects. The only file of `dlm` that reads a config.

Every table is checked strictly - unknown fields and names list the known ones, values must have the
annotated type - and `everything` builds all of it, so a mistake is told before anything compiles.
"""

import dataclasses
import inspect
import json
import os
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import jax

from dlm import data, parallel
from dlm.checkpoint import Retention
from dlm.data import Rows, Tokenizer
from dlm.data.rows import LAYOUT_OPTIONS
from dlm.diffusion.schedules import SCHEDULES
from dlm.models.bind import Model, bind
from dlm.models.presets import PRESETS, ModelConfig
from dlm.objectives import OBJECTIVES
from dlm.optimizer import OptimizerConfig, learning_rate
from dlm.types import Objective

# What a model trained so may attend to when it samples; all other objectives see everything.
ATTENTION = {"ar": "causal", "bd3lm": "block_causal"}
EXACT_COUNT = ("mdlm", "llada", "llada_sft", "bd3lm", "exact_count")  # may be evaluated by it
SHIFT = {"ar": 1}  # logits at i predict token i + 1


@dataclasses.dataclass(frozen=True)
class Run:
  """The config's own fields, those outside its tables. `batch`: global rows an update."""

  seed: int
  steps: int
  batch: int
  microbatches: int = 1
  parallel: str = "shard_map"
  log_every: int = 10

  def __post_init__(self):
    for field in ("steps", "batch", "microbatches", "log_every"):
      if getattr(self, field) < 1:
        raise ValueError(f"{field}={getattr(self, field)} must be at least 1")
    drivers = typing.get_args(parallel.Driver)
    if self.parallel not in drivers:
      raise ValueError(f"parallel={self.parallel!r} is unknown; known: {', '.join(drivers)}")


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Every `every` updates (0: never), `batches` fixed batches of the test split."""

  every: int = 0
  batches: int = 8

  def __post_init__(self):
    if self.every < 0:
      raise ValueError(f"eval.every={self.every} must not be negative")
    if self.batches < 1:
      raise ValueError(f"eval.batches={self.batches} must be at least 1")


@dataclasses.dataclass(frozen=True)
class Samples:
  """Every `every` updates (0: never), what the model makes of `prompts` by a sampling config."""

  every: int = 0
  config: str = "configs/sample/quick.py"
  prompts: tuple[str, ...] = ("",)

  def __post_init__(self):
    if self.every < 0:
      raise ValueError(f"sample.every={self.every} must not be negative")


@dataclasses.dataclass(frozen=True)
class Training:
  """All that `dlm.train` needs."""

  config: dict[str, Any]  # the whole config, plain: what the checkpoint folder keeps
  run: Run
  mesh: jax.sharding.Mesh
  tokenizer: Tokenizer
  model: Model
  objective: Objective
  optimizer: OptimizerConfig
  rows: Rows
  eval_rows: Rows
  length: int  # tokens a row
  eval: Evaluation
  sample: Samples
  save_every: int  # updates; 0: at the end only
  retention: Retention
  facts: dict[str, Any]


TABLES = ("mesh", "model", "objective", "data", "optimizer", "eval", "sample", "checkpoint")


def everything(config: Mapping[str, Any]) -> Training:
  """Builds a training run.

  Raises:
    ValueError: a table, a field, a name or a value is not one that can be.
  """
  config = plain(config)
  _known("config", config, [f.name for f in dataclasses.fields(Run)] + [*TABLES])
  own = {key: value for key, value in config.items() if key not in TABLES}
  run = _call("config", Run, own)
  words = tokenizer(config)
  saving = dict(_table(config, "checkpoint"))
  save_every = saving.pop("every", 0)
  if not isinstance(save_every, int) or save_every < 0:
    raise ValueError(f"checkpoint.every={save_every!r} must be a number of updates, 0 or more")
  training = Training(
    config=config,
    run=run,
    mesh=mesh(config),
    tokenizer=words,
    model=model(config, words),
    objective=objective(config, words),
    optimizer=optimizer(config),
    rows=rows(config, words, "train"),
    eval_rows=rows(config, words, "test"),
    length=config["data"]["length"],
    eval=_call("eval", Evaluation, _table(config, "eval")),
    sample=_call("sample", Samples, _table(config, "sample")),
    save_every=save_every,
    retention=_call("checkpoint", Retention, saving, also=("every",)),
    facts=facts(config, words),
  )
  _agree(training)
  return training


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
  """The config as dicts, tuples and scalars: a ConfigDict, or what a config.json holds."""
  plain = json.loads(json.dumps(config.to_dict() if hasattr(config, "to_dict") else config))
  return _frozen(plain)


def tokenizer(config: Mapping[str, Any]) -> Tokenizer:
  return data.load_tokenizer(_table(config, "data").get("tokenizer", "byte"))


def saved_tokenizer(directory: str | os.PathLike) -> Tokenizer:
  """The tokenizer of a checkpoint folder: the one the model was trained with."""
  return data.load_tokenizer(f"saved:{directory}")


def rows(config: Mapping[str, Any], tokenizer: Tokenizer, split: str) -> Rows:
  """This process's rows; the test split in its own order."""
  given = dict(_table(config, "data"))
  given.pop("tokenizer", None)
  return _call(
    "data",
    data.open_rows,
    given,
    also=("tokenizer", *LAYOUT_OPTIONS),
    tokenizer=tokenizer,
    batch=config["batch"],
    seed=config["seed"],
    split=split,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    shuffle=split == "train",
  )


def model(config: Mapping[str, Any], tokenizer: Tokenizer) -> Model:
  """The model; `model.vocab` may be larger than the tokenizer's, never smaller."""
  given = dict(_table(config, "model"))
  preset = given.pop("preset", None)
  sizes = {} if preset is None else _named("model.preset", preset, PRESETS)
  given = {"vocab": tokenizer.vocab_size, **sizes, **given}
  bound = _call("model", ModelConfig, given, also=("preset",))
  if tokenizer.mask_id >= bound.vocab:
    raise ValueError(f"mask id {tokenizer.mask_id} lies outside the vocabulary, {bound.vocab} ids")
  if tokenizer.vocab_size > bound.vocab:
    raise ValueError(f"model.vocab={bound.vocab} is less than the tokenizer's vocabulary")
  return bind(bound)


def objective(config: Mapping[str, Any], tokenizer: Tokenizer) -> Objective:
  given = dict(_table(config, "objective"))
  make = _named("objective.name", given.pop("name", None), OBJECTIVES)
  if "schedule" in given:
    given["schedule"] = _schedule(given["schedule"])
  return _call("objective", make, given, also=("name",), mask_id=tokenizer.mask_id)


def optimizer(config: Mapping[str, Any]) -> OptimizerConfig:
  return _call("optimizer", OptimizerConfig, _table(config, "optimizer"))


def estimator(config: Mapping[str, Any], tokenizer: Tokenizer, name: str = "auto") -> Objective:
  """What measures the likelihood of a trained model.

  "training" is the run's own objective; "auto" is the exact-count bound, which varies least, where
  the objective's model can be asked for it, else "training"; any objective goes by its name, in the
  run's blocks.
  """
  own = _table(config, "objective")["name"]
  if name == "training" or (name == "auto" and own not in EXACT_COUNT):
    return objective(config, tokenizer)
  make = _named("estimator", "exact_count" if name == "auto" else name, OBJECTIVES)
  block = _table(config, "objective").get("block")
  has_block = "block" in inspect.signature(make).parameters and block is not None
  return make(mask_id=tokenizer.mask_id, **({"block": block} if has_block else {}))


def mesh(config: Mapping[str, Any]) -> jax.sharding.Mesh:
  return _call("mesh", parallel.make_mesh, _table(config, "mesh"))


def facts(config: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
  """What a sampler must know of a model: kept in the checkpoint folder as facts.json."""
  name = _table(config, "objective")["name"]
  return {
    "mask_id": tokenizer.mask_id,
    "eos_ids": [tokenizer.eos_id],
    "shift": SHIFT.get(name, 0),
    "attention": ATTENTION.get(name, "full"),
    "block": _table(config, "objective").get("block"),
    "vocab": tokenizer.vocab_size,
    "length": _table(config, "data")["length"],
  }


def _agree(training: Training) -> None:
  """What no table can check alone."""
  run = training.run
  shards = training.mesh.shape["data"] * training.mesh.shape["fsdp"]
  if run.batch % (shards * run.microbatches):
    raise ValueError(
      f"batch={run.batch} must divide by {shards} shards x microbatches={run.microbatches}"
    )
  if all(training.mesh.shape[name] > 1 for name in ("data", "fsdp", "tensor")):
    # With "data" manual XLA (jax 0.10) aborts the process over an embedding that both others split.
    raise ValueError(f"mesh {dict(training.mesh.shape)}: one of data, fsdp and tensor must be 1")
  block = getattr(training.objective, "block", None)
  if block and training.length % block:
    raise ValueError(f"objective.block={block} must divide data.length={training.length}")
  if training.retention.keep_best and not training.eval.every:
    raise ValueError("checkpoint.keep_best needs eval.every: nothing else tells the best")
  learning_rate(training.optimizer, run.steps)


# ---------------------------------------------------------------------------------------------
# Strictness


def _table(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
  table = config.get(name, {})
  if not isinstance(table, Mapping):
    raise ValueError(f"{name}={table!r} must be a table of fields")
  return table


def _named(field: str, name: Any, table: Mapping[str, Any]) -> Any:
  if name not in table:
    raise ValueError(f"{field}={name!r} is unknown; known: {', '.join(sorted(table))}")
  return table[name]


def _schedule(given: str | Mapping[str, Any]) -> Any:
  """A schedule by name, or {"name": ..., and its own fields}."""
  given = {"name": given} if isinstance(given, str) else dict(given)
  make = _named("objective.schedule", given.pop("name", None), SCHEDULES)
  return _call("objective.schedule", make, given, also=("name",))


def _call(
  table: str, make: Callable, given: Mapping[str, Any], *, also: tuple[str, ...] = (), **fixed: Any
) -> Any:
  """`make(**given, **fixed)`, once the names and types of `given` are those of its parameters."""
  parameters = inspect.signature(make).parameters.values()
  named = [p for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in fixed]
  _known(table, given, [p.name for p in named] + [*also])
  missing = [p.name for p in named if p.default is p.empty and p.name not in given]
  if missing:
    raise ValueError(f"{table}.{missing[0]} is missing")
  _check_types(table, make, given)
  return make(**given, **fixed)


def _known(table: str, given: Mapping[str, Any], known: list[str]) -> None:
  for name in given:
    if name not in known:
      raise ValueError(f"{table}.{name} is unknown; known: {', '.join(sorted(known))}")


def _check_types(table: str, make: Callable, given: Mapping[str, Any]) -> None:
  hints = typing.get_type_hints(make.__init__ if inspect.isclass(make) else make)
  for name, value in given.items():
    if name in hints and not _fits(value, hints[name]):
      kind = getattr(hints[name], "__name__", str(hints[name]))
      raise ValueError(f"{table}.{name}={value!r} must be of type {kind}")


def _fits(value: Any, hint: Any) -> bool:
  """Is `value` of the annotated type? Only scalars, tuples and unions of them are looked into."""
  origin = typing.get_origin(hint)
  if origin in (types.UnionType, typing.Union):
    return any(_fits(value, part) for part in typing.get_args(hint))
  if hint is float:
    return isinstance(value, int | float) and not isinstance(value, bool)
  if hint is int:
    return isinstance(value, int) and not isinstance(value, bool)
  if hint in (bool, str, type(None)):
    return isinstance(value, hint)
  return not (hint is tuple or origin is tuple) or isinstance(value, tuple)


def _frozen(value: Any) -> Any:
  """JSON's lists as tuples again, so that what is built of them is hashable."""
  if isinstance(value, Mapping):
    return {key: _frozen(part) for key, part in value.items()}
  return tuple(_frozen(part) for part in value) if isinstance(value, list | tuple) else value
