"""A training config becomes a run: `everything` builds it whole, before anything compiles."""

import dataclasses
import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import jax

from dlm import data, parallel
from dlm.building import tables
from dlm.checkpoint import Retention
from dlm.data import Rows, Tokenizer
from dlm.data.rows import LAYOUT_OPTIONS
from dlm.models.bind import Model, bind
from dlm.models.presets import PRESETS, ModelConfig
from dlm.objectives import OBJECTIVES
from dlm.optimizer import OptimizerConfig, learning_rate
from dlm.types import Objective

# What a model trained so may attend to when it samples; any other sees the blocks up to its own, or
# everything where its objective has no blocks.
ATTENTION = {"ar": "causal"}
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
    tables.one_of("parallel", self.parallel, get_args(parallel.Driver))


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
  config: str = "configs/sample/default.py"
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
  config = tables.plain(config)
  tables.known("config", config, [f.name for f in dataclasses.fields(Run)] + [*TABLES])
  own = {key: value for key, value in config.items() if key not in TABLES}
  run = tables.call("config", Run, own)
  words = tokenizer(config)
  saving = dict(tables.table(config, "checkpoint"))
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
    eval=tables.call("eval", Evaluation, tables.table(config, "eval")),
    sample=tables.call("sample", Samples, tables.table(config, "sample")),
    save_every=save_every,
    retention=tables.call("checkpoint", Retention, saving, also=("every",)),
    facts=facts(config, words),
  )
  _agree(training)
  return training


def tokenizer(config: Mapping[str, Any]) -> Tokenizer:
  return data.load_tokenizer(tables.table(config, "data").get("tokenizer", "byte"))


def saved_tokenizer(directory: str | os.PathLike) -> Tokenizer:
  """The tokenizer of a checkpoint folder: the one the model was trained with."""
  return data.load_tokenizer(f"saved:{directory}")


def rows(config: Mapping[str, Any], tokenizer: Tokenizer, split: str) -> Rows:
  """This process's rows; the test split in its own order."""
  given = dict(tables.table(config, "data"))
  given.pop("tokenizer", None)
  return tables.call(
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
  given = dict(tables.table(config, "model"))
  preset = given.pop("preset", None)
  sizes = {} if preset is None else tables.named("model.preset", preset, PRESETS)
  given = {"vocab": tokenizer.vocab_size, **sizes, **given}
  bound = tables.call("model", ModelConfig, given, also=("preset",))
  if tokenizer.mask_id >= bound.vocab:
    raise ValueError(f"mask id {tokenizer.mask_id} lies outside the vocabulary, {bound.vocab} ids")
  if tokenizer.vocab_size > bound.vocab:
    raise ValueError(f"model.vocab={bound.vocab} is less than the tokenizer's vocabulary")
  return bind(bound)


def objective(config: Mapping[str, Any], tokenizer: Tokenizer) -> Objective:
  given = dict(tables.table(config, "objective"))
  make = tables.named("objective.name", given.pop("name", None), OBJECTIVES)
  if "schedule" in given:
    given["schedule"] = tables.schedule("objective.schedule", given["schedule"])
  return tables.call("objective", make, given, also=("name",), mask_id=tokenizer.mask_id)


def optimizer(config: Mapping[str, Any]) -> OptimizerConfig:
  return tables.call("optimizer", OptimizerConfig, tables.table(config, "optimizer"))


def estimator(config: Mapping[str, Any], tokenizer: Tokenizer, name: str = "auto") -> Objective:
  """What measures the likelihood of a trained model.

  "training" is the run's own objective; "auto" is the exact-count bound, which varies least, where
  the objective's model can be asked for it, else "training"; any objective goes by its name, in the
  run's blocks.
  """
  own = tables.table(config, "objective")["name"]
  if name == "training" or (name == "auto" and own not in EXACT_COUNT):
    return objective(config, tokenizer)
  make = tables.named("estimator", "exact_count" if name == "auto" else name, OBJECTIVES)
  block = tables.table(config, "objective").get("block")
  has_block = "block" in inspect.signature(make).parameters and block is not None
  return make(mask_id=tokenizer.mask_id, **({"block": block} if has_block else {}))


def mesh(
  config: Mapping[str, Any], devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
  """The mesh of a config over `devices`; None: over all there are."""
  return tables.call("mesh", parallel.make_mesh, tables.table(config, "mesh"), devices=devices)


def facts(config: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
  """What a sampler must know of a model: kept in the checkpoint folder as facts.json."""
  own = tables.table(config, "objective")
  name, block = own["name"], own.get("block")
  return {
    "mask_id": tokenizer.mask_id,
    "eos_ids": [tokenizer.eos_id],
    "shift": SHIFT.get(name, 0),
    "attention": ATTENTION.get(name, "full" if block is None else "block_causal"),
    "block": block,
    "vocab": tokenizer.vocab_size,
    "length": tables.table(config, "data")["length"],
  }


def _agree(training: Training) -> None:
  """What no table can check alone."""
  run = training.run
  shards = training.mesh.shape["data"] * training.mesh.shape["fsdp"]
  if run.batch % (shards * run.microbatches):
    raise ValueError(
      f"batch={run.batch} must divide by {shards} shards x microbatches={run.microbatches}"
    )
  if run.parallel == "pmap" and training.mesh.size != training.mesh.shape["data"]:
    raise ValueError(f"parallel='pmap' splits the batch only; mesh={dict(training.mesh.shape)}")
  block = getattr(training.objective, "block", None)
  if block and training.length % block:
    raise ValueError(f"objective.block={block} must divide data.length={training.length}")
  if training.retention.keep_best and not training.eval.every:
    raise ValueError("checkpoint.keep_best needs eval.every: nothing else tells the best")
  learning_rate(training.optimizer, run.steps)
