"""A training config becomes a run: `everything` builds it whole, before anything compiles."""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import jax

from dlm import data, parallel
from dlm.build import tables
from dlm.build.models import model, tokenizer
from dlm.build.pretrained import Pretrained, continued, pretrained
from dlm.checkpoint import Retention
from dlm.data import Rows, Tokenizer
from dlm.data.rows import LAYOUT_OPTIONS
from dlm.facts import ModelFacts
from dlm.models.bind import Model
from dlm.objectives import OBJECTIVES, Annealed, ExactCount, Objective, Shifted
from dlm.objectives.diffullama import check_shift
from dlm.optimizer import OptimizerConfig, learning_rate
from dlm.seeds import check_seed


@dataclasses.dataclass(frozen=True)
class Run:
  """The config's own fields, those outside its tables.

  Args:
    batch: global rows an update.
    init_from: a checkpoint folder or Hugging Face directory whose parameters the run starts from;
      empty: from random ones.
  """

  seed: int
  steps: int
  batch: int
  microbatches: int = 1
  parallel: str = "shard_map"
  log_every: int = 10
  init_from: str = ""

  def __post_init__(self):
    for field in ("steps", "batch", "microbatches", "log_every"):
      if getattr(self, field) < 1:
        raise ValueError(f"{field}={getattr(self, field)} must be at least 1")
    check_seed(self.seed)
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
class Reading:
  """What goes around objectives that allow it, see `dlm.objectives.diffullama`.

  Args:
    shift: 1: logits at i predict token i + 1, as in the model of `init_from`.
    anneal: updates over which the attention opens from causal to what it will be; 0: at once.
  """

  shift: int = 0
  anneal: int = 0

  def __post_init__(self):
    check_shift(self.shift)
    if self.anneal < 0:
      raise ValueError(f"objective.anneal={self.anneal} must not be negative")


@dataclasses.dataclass(frozen=True)
class Training:
  """All that `dlm.train` needs."""

  config: dict[str, Any]  # the whole config, plain: what the checkpoint folder keeps
  source: Pretrained | None  # what the first parameters are; None: random
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
  facts: ModelFacts


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
  source = None
  if run.init_from:
    config, source = continued(config, pretrained(run.init_from))
  words = _words(config, source)
  saving = dict(tables.table(config, "checkpoint"))
  save_every = saving.pop("every", 0)
  if not isinstance(save_every, int) or save_every < 0:
    raise ValueError(f"checkpoint.every={save_every!r} must be a number of updates, 0 or more")
  training = Training(
    config=config,
    source=source,
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
    facts=facts(config, words, source),
  )
  _agree(training)
  return training


def _words(config: Mapping[str, Any], source: Pretrained | None) -> Tokenizer:
  """The tokenizer of the config; where it names none, that of the model the run starts from."""
  if source is None:
    return tokenizer(config)
  words = tokenizer(config) if tables.table(config, "data").get("tokenizer") else source.tokenizer
  if words.fingerprint != source.tokenizer.fingerprint:
    raise ValueError(
      f"data.tokenizer={config['data']['tokenizer']!r} is not that of init_from "
      f"{source.directory}: leave it out or empty"
    )
  return words


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


def objective(config: Mapping[str, Any], tokenizer: Tokenizer) -> Objective:
  """The objective, in what changes its reading of the text: shift and annealing."""
  given = dict(tables.table(config, "objective"))
  name = given.pop("name", None)
  make = tables.named("objective.name", name, OBJECTIVES)
  if "schedule" in given:
    given["schedule"] = tables.schedule("objective.schedule", given["schedule"])
  own = inspect.signature(make).parameters
  around = {key: given.pop(key) for key in ("shift", "anneal") if key in given and key not in own}
  reading = tables.call("objective", Reading, around)
  also = ("name", "anneal", "shift")
  made = tables.call("objective", make, given, also=also, **_ids(make, tokenizer))
  if around.get("shift") == 0 and made.shift:
    raise ValueError(f"objective.shift=0 does not go with {name}, which predicts the next token")
  made = Shifted(made) if reading.shift and not made.shift else made
  return Annealed(made, reading.anneal) if reading.anneal else made


def _ids(make: type[Objective], tokenizer: Tokenizer) -> dict[str, int]:
  """What an objective takes from the tokenizer."""
  known = {"mask_id": tokenizer.mask_id, "vocab": tokenizer.vocab_size}
  return {name: known[name] for name in known if name in inspect.signature(make).parameters}


def optimizer(config: Mapping[str, Any]) -> OptimizerConfig:
  return tables.call("optimizer", OptimizerConfig, tables.table(config, "optimizer"))


def estimator(config: Mapping[str, Any], tokenizer: Tokenizer, name: str = "auto") -> Objective:
  """What measures the likelihood of a trained model.

  "training" is the run's own objective; "auto" is the exact-count bound, which varies least, where
  the objective's model can be asked for it, else "training"; any objective goes by its name, in the
  run's blocks and with its shift.

  Raises:
    ValueError: `name` cannot measure what the run trains.
  """
  own = dict(tables.table(config, "objective"))
  own.pop("anneal", None)  # a trained model sees all that it will
  trained = objective({"objective": own}, tokenizer)
  if name == "training" or (name == "auto" and not trained.exact_count):
    return trained
  make = tables.named("estimator", "exact_count" if name == "auto" else name, OBJECTIVES)
  if make is ExactCount and not trained.exact_count:
    raise ValueError(f"estimator={name!r} does not go with objective.name={own['name']!r}")
  in_blocks = trained.block and "block" in inspect.signature(make).parameters
  made = make(**_ids(make, tokenizer), **({"block": trained.block} if in_blocks else {}))
  if made.shift > trained.shift:
    raise ValueError(f"estimator={name!r} asks for next tokens, which the model does not predict")
  return Shifted(made) if made.shift < trained.shift else made


def mesh(
  config: Mapping[str, Any], devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
  """The mesh of a config over `devices`; None: over all there are."""
  return tables.call("mesh", parallel.make_mesh, tables.table(config, "mesh"), devices=devices)


def facts(
  config: Mapping[str, Any], tokenizer: Tokenizer, source: Pretrained | None = None
) -> ModelFacts:
  """What a sampler must know about the trained model."""
  trained = objective(config, tokenizer)
  stops = [tokenizer.eos_id, *([] if source is None else source.facts.eos_ids)]
  return ModelFacts(
    mask_id=tokenizer.mask_id,
    eos_ids=tuple(dict.fromkeys(stops)),
    pad_id=tokenizer.pad_id,
    shift=trained.shift,
    attention=trained.attention,
    block=trained.block,
    vocab=tokenizer.vocab_size,
    length=tables.table(config, "data")["length"],
  )


def _agree(training: Training) -> None:
  """What no table can check alone."""
  run = training.run
  shards = parallel.batch_shards(training.mesh)
  if run.batch % (shards * run.microbatches):
    raise ValueError(
      f"batch={run.batch} must divide by {shards} shards x microbatches={run.microbatches}"
    )
  if run.parallel == "pmap" and training.mesh.size != training.mesh.shape["data"]:
    raise ValueError(f"parallel='pmap' splits the batch only; mesh={dict(training.mesh.shape)}")
  block = training.objective.block
  if block and training.length % block:
    raise ValueError(f"objective.block={block} must divide data.length={training.length}")
  moe, attention = training.model.config.moe, training.facts.attention_name
  apart = attention == "block_causal" and moe is not None and moe.pool and block % moe.pool == 0
  if moe is not None and moe.choice == "expert" and attention != "full" and not apart:
    # The clean copy of a block, or a later token, would take a place in a pool of masked tokens.
    raise ValueError(
      f"model.moe.choice='expert' with attention {attention!r} lets tokens compete with those "
      f"they must not see, unless model.moe.pool={moe.pool} divides objective.block={block}"
    )
  if training.retention.keep_best and not training.eval.every:
    raise ValueError("checkpoint.keep_best needs eval.every: nothing else tells the best")
  if training.objective.candidates and not training.eval.every:
    raise ValueError("objective.search needs eval.every: it is evaluation that searches")
  if training.optimizer.trainable == "router" and training.model.config.moe is None:
    raise ValueError("optimizer.trainable='router' needs model.moe: there is no router else")
  anneal = tables.table(training.config, "objective").get("anneal", 0)
  if anneal > run.steps:
    raise ValueError(f"objective.anneal={anneal} must end within steps={run.steps}")
  learning_rate(training.optimizer, run.steps)
