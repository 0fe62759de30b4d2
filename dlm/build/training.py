"""A training config becomes a run: `everything` builds it whole, before anything compiles."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from dlm import data, masks, parallel
from dlm.build import tables
from dlm.build.choices import Reading
from dlm.build.models import check_drafter, model
from dlm.build.pretrained import ORIGIN, Pretrained, continued, pretrained, without_origin
from dlm.build.run import RunConfig
from dlm.build.sampling import SamplingConfig, sampling
from dlm.data import Rows, Tokenizer
from dlm.facts import ModelFacts
from dlm.models.bind import Model, bind
from dlm.models.config import DrafterConfig, ModelConfig
from dlm.models.dflash import DFlash
from dlm.objectives import OBJECTIVES, Annealed, ExactCount, Objective, Shifted, Told
from dlm.optimizer import learning_rate
from dlm.rewards import reward
from dlm.types import MaskRule

DRAFT_LAYERS = 5  # of a DFlash drafter (2602.06036)


@dataclasses.dataclass(frozen=True)
class Training:
  """All that `dlm.train` needs."""

  run: RunConfig
  source: Pretrained | None  # what the first parameters are; None: random
  mesh: jax.sharding.Mesh
  tokenizer: Tokenizer
  model: Model | DFlash
  objective: Objective
  rows: Rows | None  # None, and so are those held out: of a run that is `planned`
  eval_rows: Rows | None
  facts: ModelFacts
  teacher: Pretrained | None  # of an objective that is taught

  @property
  def teacher_model(self) -> Model:
    """Computes as the model does."""
    own, theirs = self.model.config, self.teacher.model.config
    return bind(dataclasses.replace(theirs, dtype=own.dtype, implementation=own.implementation))

  @property
  def taught_by_base(self) -> bool:
    """The teacher is the model without its adapters."""
    adds = self.model.config.lora is not None and self.source.model.config.lora is None
    return self.teacher is not None and adds and not self.run.teacher

  def config(self) -> dict[str, Any]:
    """config.json of its folder: the run, and what its source says of where it began."""
    origin = {} if self.source is None else self.source.config
    kept = {ORIGIN: origin[ORIGIN]} if ORIGIN in origin else {}
    return tables.plain(self.run) | kept


def everything(config: RunConfig | Mapping[str, Any]) -> Training:
  """Builds a training run of a config, or of the table of one.

  Raises:
    ValueError: a table, a field, a name or a value is not one that can be.
  """
  run = RunConfig.of(config)
  source, target = None, None
  if run.init_from:
    run, source = continued(run, pretrained(run.init_from))
  elif run.objective.kind.drafts:
    run, target = _of_target(run)
  run = _completed(run)
  words = _words(run, source or target)
  mesh = run.mesh.make()
  share = parallel.feeders(mesh)
  own_rows, eval_rows = (rows(run, words, split, share) for split in ("train", "test"))
  trained = _told(run, objective(run.objective, words), own_rows)
  training = Training(
    run=run,
    source=source,
    mesh=mesh,
    tokenizer=words,
    model=model(run.model, words),
    objective=trained,
    rows=own_rows,
    eval_rows=eval_rows,
    facts=_facts(run, trained, words, source),
    teacher=_teacher(run, trained, words),
  )
  _agree(training)
  return training


@dataclasses.dataclass(frozen=True)
class _Unread:
  """In place of a tokenizer that need not be here: its last ids are the special ones."""

  vocab_size: int

  @property
  def mask_id(self) -> int:
    return self.vocab_size - 1

  @property
  def eos_id(self) -> int:
    return self.vocab_size - 2

  pad_id = eos_id


def planned(config: RunConfig | Mapping[str, Any], devices: Sequence[jax.Device]) -> Training:
  """A run over `devices` that is compiled but not run: neither its data nor its tokenizer is read.

  Raises:
    ValueError: as `everything`; or the run starts from a checkpoint, is taught or writes its rows.
  """
  run = _completed(RunConfig.of(config))
  for field in ("init_from", "teacher", "rollout", "rewards"):
    if getattr(run, field):
      raise ValueError(f"{field}={getattr(run, field)!r} cannot be planned: leave it out")
  vocab = run.model.fields.get("vocab")
  if vocab is None:
    raise ValueError("model.vocab is missing: a plan reads no tokenizer, which would tell it")
  words = _Unread(vocab)
  trained = objective(run.objective, words)
  training = Training(
    run=run,
    source=None,
    mesh=run.mesh.make(devices),
    tokenizer=words,
    model=model(run.model, words),
    objective=trained,
    rows=None,
    eval_rows=None,
    facts=_facts(run, trained, words, None),
    teacher=_teacher(run, trained, words),
  )
  _agree(training)
  return training


def recorded(config: Mapping[str, Any]) -> Mapping[str, Any]:
  """A run's config.json as it would be written now; one that is no run's stays as it is."""
  try:
    return tables.plain(_completed(RunConfig.of(without_origin(config))))
  except ValueError:
    return config


def _completed(run: RunConfig) -> RunConfig:
  """As config.json holds it: the model stays what it is, whatever later versions default to."""
  return dataclasses.replace(run, model=run.model.completed())


def _words(run: RunConfig, source: Pretrained | None) -> Tokenizer:
  """The tokenizer of the config; where it names none, that of `source`.

  Args:
    source: the model that the run starts from; of a drafter that starts from none, its target.
  """
  name = run.data.tokenizer
  if source is None:
    return data.load_tokenizer(name or "byte")
  words = data.load_tokenizer(name) if name else source.tokenizer
  if words.fingerprint != source.tokenizer.fingerprint:
    raise ValueError(
      f"data.tokenizer={name!r} is not that of {source.directory}: leave it out or empty"
    )
  return source.tokenizer  # with the files that came with it


def rows(run: RunConfig, tokenizer: Tokenizer, split: str, share: tuple[int, int] = (0, 1)) -> Rows:
  """The rows of a run, of groups one each; the test split in its own order.

  Args:
    share: which part of each batch, of how many.
  """
  given = dataclasses.asdict(run.data)
  del given["tokenizer"]
  group = 1 if run.rewards is None else run.rewards.group
  if run.batch % group:
    raise ValueError(f"rewards.group={group} must divide batch={run.batch}")
  return data.open_rows(
    **given,
    tokenizer=tokenizer,
    batch=run.batch // group,
    seed=run.seed,
    split=split,
    process_index=share[0],
    process_count=share[1],
    shuffle=split == "train",
  )


def objective(chosen: tables.Named[Objective], tokenizer: Tokenizer) -> Objective:
  """The objective, in what changes its reading of the text: shift and annealing."""
  reading = Reading(**chosen.beside())
  known = {"mask_id": tokenizer.mask_id, "vocab": tokenizer.vocab_size, "end_id": tokenizer.eos_id}
  made = chosen.make(**known)
  if made.shift and chosen.beside().get("shift") == 0:
    raise ValueError(
      f"objective.shift=0 does not go with {chosen.name}, which predicts the next token"
    )
  made = Shifted(made) if reading.shift and not made.shift else made
  return Annealed(made, reading.anneal) if reading.anneal else made


def estimator(
  chosen: tables.Named[Objective], tokenizer: Tokenizer, name: str = "auto"
) -> Objective:
  """What measures the likelihood of a model that was trained by the objective `chosen`.

  "training" is that objective itself; "auto" is the exact-count bound, which varies least, where
  the objective's model can be asked for it, else "training"; any objective goes by its name, in the
  run's blocks and with its shift.

  Raises:
    ValueError: `name` cannot measure what the run trains.
  """
  # It sees all by now, and has learned its lessons.
  fields = {n: v for n, v in chosen.fields.items() if n not in ("anneal", "curriculum")}
  trained = objective(dataclasses.replace(chosen, fields=fields), tokenizer)
  if name == "training" or (name == "auto" and not trained.exact_count):
    return trained
  kind = tables.named("estimator", "exact_count" if name == "auto" else name, OBJECTIVES)
  if kind is ExactCount and not trained.exact_count:
    raise ValueError(f"estimator={name!r} does not go with objective.name={chosen.name!r}")
  block = {} if trained.block is None else {"block": trained.block}
  for field in dataclasses.fields(kind):
    unsaid = field.default is field.default_factory is dataclasses.MISSING
    if unsaid and field.name not in ("mask_id", "vocab", *block):
      raise ValueError(
        f"estimator={name!r} needs a {field.name}, which objective.name={chosen.name!r} has none of"
      )
  made = tables.Named(name, kind, block).make(mask_id=tokenizer.mask_id, vocab=tokenizer.vocab_size)
  if made.shift > trained.shift:
    raise ValueError(f"estimator={name!r} asks for next tokens, which the model does not predict")
  return Shifted(made) if made.shift < trained.shift else made


def asked_by(run: RunConfig, trained: Objective) -> dict[str, Any]:
  """All that an objective sets, as JSON holds it: by what its teacher is asked."""
  bare = trained.objective if isinstance(trained, Shifted) else trained
  said = {"name": run.objective.name, "shift": trained.shift} | tables.plain(bare)
  return json.loads(json.dumps(said))


def _told(run: RunConfig, trained: Objective, rows: Rows) -> Objective:
  """The objective, which takes what rows tell of its teacher, where they tell any."""
  if rows.told is None:
    return trained
  said, ours = rows.told["objective"], asked_by(run, trained)
  if not trained.tellable:
    raise ValueError(
      f"objective.name={run.objective.name!r} asks a teacher while it learns, or none: targets in "
      f"data.sources are for objective.name={said['name']!r}"
    )
  for name in sorted({*said, *ours} - {*trained.own_fields}):
    if said.get(name) != ours.get(name):
      raise ValueError(
        f"objective.{name}={ours.get(name)!r} must be {said.get(name)!r}, by which the targets of "
        "data.sources were written"
      )
  return Told(trained)


def _facts(
  run: RunConfig, trained: Objective, tokenizer: Tokenizer, source: Pretrained | None
) -> ModelFacts:
  """What a sampler must know about the trained model."""
  stops = [tokenizer.eos_id, *([] if source is None else source.facts.eos_ids)]
  known = (None, None) if source is None else (source.facts.insert_id, source.facts.delete_id)
  insert_id, delete_id = trained.edit_ids or known
  return ModelFacts(
    mask_id=tokenizer.mask_id,
    eos_ids=tuple(dict.fromkeys(stops)),
    pad_id=tokenizer.pad_id,
    shift=trained.shift,
    attention=trained.attention,
    block=trained.block,
    vocab=tokenizer.vocab_size,
    length=run.data.length,
    insert_id=insert_id,
    delete_id=delete_id,
  )


def _teacher(run: RunConfig, trained: Objective, tokenizer: Tokenizer) -> Pretrained | None:
  """With a mask row, as a model that starts from it has; the target of a drafter as it is."""
  if not trained.taught:
    if run.teacher:
      raise ValueError(
        f"teacher={run.teacher!r} does not go with objective.name={run.objective.name!r}"
      )
    return None
  if not (run.teacher or run.init_from):
    raise ValueError(f"objective.name={run.objective.name!r} needs teacher, or init_from")
  teacher = pretrained(run.teacher or run.init_from)
  if not trained.teacher_shift:
    own, theirs = (_over(each, run.data.length) for each in (trained, teacher.facts))
    if (own, trained.shift) != (theirs, teacher.facts.shift):
      raise ValueError(
        f"teacher {teacher.directory} must be such a model as objective.name="
        f"{run.objective.name!r} trains, not of attention {teacher.facts.attention_name!r} and "
        f"shift={teacher.facts.shift}: name another by `teacher`"
      )
  elif not isinstance(teacher.facts.attention, masks.Causal):
    raise ValueError(
      f"teacher {teacher.directory} must be autoregressive, not of attention "
      f"{teacher.facts.attention_name!r}: name another by `teacher`"
    )
  if teacher.tokenizer.fingerprint != tokenizer.fingerprint:
    raise ValueError(f"teacher {teacher.directory} has another tokenizer than the run")
  return teacher.adapted() if trained.teacher_shift and not trained.drafts else teacher


def _over(model: Objective | ModelFacts, length: int) -> MaskRule:
  """Its attention in rows of `length`: where a block is as long as they are, all see all."""
  rule = model.attention
  return masks.Full() if isinstance(rule, masks.BlockCausal) and rule.block >= length else rule


def _of_target(run: RunConfig) -> tuple[RunConfig, Pretrained]:
  """A drafter's run with what its table leaves out, and its target.

  Five layers of the target's sizes, and taps that are spread evenly.
  """
  if not run.teacher:
    raise ValueError(f"objective.name={run.objective.name!r} needs teacher: what it drafts for")
  target = pretrained(run.teacher)
  own, given = target.model.config, run.model.fields
  sizes = ("vocab", "width", "heads", "kv_heads", "head_dim", "mlp", "rope_base", "norm_eps")
  layers = given.get("layers", DRAFT_LAYERS)
  fields = {
    **{name: getattr(own, name) for name in (*sizes, "soft_cap")},
    "layers": layers,
    "qk_norm": True,
    **given,
  }
  if "drafter" not in given:
    fields["drafter"] = DrafterConfig.of(own.layers, layers)
  return dataclasses.replace(run, model=tables.Partial(ModelConfig, fields)), target


def _agree_on_rollout(training: Training) -> None:
  """What the model writes by itself takes the run's own mesh, seed, rows and length."""
  run = training.run
  learned, told = training.objective, (training.rows, training.eval_rows)
  if run.rollout is None:
    if learned.traced and (learned.rewarded or not all(rows.traced for rows in told)):
      raise ValueError(
        f"objective.name={run.objective.name!r} learns from what the model writes: it needs "
        "`rollout`" + ("" if learned.rewarded else ", or data.sources of traces:FILE alone")
      )
    return
  unsaid = SamplingConfig()
  for name in ("slots", "seed", "batch", "row_tile", "parallel", "mesh", "bos", "implementation"):
    if getattr(run.rollout, name) != getattr(unsaid, name):
      value = getattr(run.rollout, name)
      raise ValueError(f"rollout.{name}={value!r} is not for roll-outs: leave it out")
  for rows in (training.rows, training.eval_rows):
    if not rows.alone:
      raise ValueError("rollout needs one prompt a row: data.mode='pad', per_row=1 in every source")
  sampling(run.rollout, training.model, training.facts)


def _agree_on_pairs(training: Training) -> None:
  """Pairs of a file are learned from as they are, by who learns from pairs."""
  run, trained = training.run, training.objective
  if not trained.paired:
    raise ValueError(
      f"objective.name={run.objective.name!r} does not learn from data.sources of pairs: that does "
      "'preference'"
    )
  for name in ("rollout", "rewards"):
    if getattr(run, name) is not None:
      raise ValueError(f"{name} does not go with data.sources of pairs, whose answers are there")
  if run.objective.fields["estimator"].kind.traced:
    raise ValueError(
      f"objective.estimator={run.objective.fields['estimator'].name!r} needs to know which forward "
      "wrote each token, which data.sources of pairs do not tell"
    )
  shards = parallel.batch_shards(training.mesh)
  if run.batch % (2 * shards * run.microbatches):
    raise ValueError(
      f"batch={run.batch} must divide by 2 x {shards} shards x microbatches={run.microbatches}: "
      "pairs stay together"
    )
  _agree_on_estimate(training)


def _agree_on_rewards(training: Training) -> None:
  """Who is rewarded learns on from a model that the estimate of log p is about."""
  run, trained, found = training.run, training.objective, training.run.rewards
  if trained.rewarded != (found is not None):
    raise ValueError(
      f"objective.name={run.objective.name!r} "
      + ("needs `rewards`" if trained.rewarded else "learns nothing from `rewards`: leave it out")
    )
  if found is None:
    return
  for name in found.names:
    reward(name)
  if trained.paired and found.group != 2:
    raise ValueError(
      f"rewards.group={found.group} must be 2: objective.name={run.objective.name!r} learns from "
      "pairs"
    )
  if trained.stepwise != (found.advantages.kind == "steps"):
    raise ValueError(
      f"rewards.advantages.kind={found.advantages.kind!r} does not go with objective.name="
      f"{run.objective.name!r}: 'steps' goes with 'mdpo', and with no other"
    )
  if trained.stepwise:
    _agree_on_steps(training)
  if found.group == 1 and found.advantages.kind not in ("none", "batch"):
    raise ValueError(
      f"rewards.group=1 leaves nothing to compare with: advantages.kind={found.advantages.kind!r}"
    )
  shards = parallel.batch_shards(training.mesh)
  groups = shards * (run.microbatches if trained.paired else 1)  # what is compared stays together
  if run.batch % (found.group * groups):
    raise ValueError(
      f"batch={run.batch} must divide by {shards} shards x rewards.group={found.group}"
      + (f" x microbatches={run.microbatches}" if trained.paired else "")
    )
  for field, value in (("steps", run.steps), ("checkpoint.every", run.checkpoint.every)):
    if value % found.updates:
      raise ValueError(
        f"{field}={value} must divide by rewards.updates={found.updates}: rows that are learned "
        "from are not saved"
      )
  if run.checkpoint.keep_best:
    raise ValueError(
      f"checkpoint.keep_best={run.checkpoint.keep_best} goes by the loss, which does not tell what "
      "is rewarded: set it to 0"
    )
  _agree_on_estimate(training)


def _agree_on_estimate(training: Training) -> None:
  """The model that a run goes on from is one that its estimate of log p is about."""
  run, trained = training.run, training.objective
  if training.source is None:
    raise ValueError(f"objective.name={run.objective.name!r} needs init_from: a model that writes")
  facts = training.source.facts
  of = f"objective.name={run.objective.name!r}"
  if "estimator" in run.objective.fields:
    of = f"objective.estimator={run.objective.fields['estimator'].name!r}"
  if facts.attention != trained.attention:
    raise ValueError(
      f"{of} is of models with attention {trained.attention}, not "
      f"{facts.attention} as in init_from={run.init_from!r}; for models that write in blocks there "
      "are trace, block_masks, block_one_step, block_elbo and block_exact, with their block and "
      "align, and for autoregressive ones autoregressive"
    )
  if facts.shift != trained.shift:
    raise ValueError(
      f"objective.shift={trained.shift} is not the shift={facts.shift} of "
      f"init_from={run.init_from!r}"
    )


def _agree_on_steps(training: Training) -> None:
  """Who learns the steps of roll-outs, so many of so many."""
  run, trained = training.run, training.objective
  bare = trained.objective if isinstance(trained, Shifted) else trained
  most, count = run.rollout.max_forwards, run.rewards.updates
  if not 1 <= count <= most:
    raise ValueError(
      f"rewards.updates={count} are the forwards that are learned from, 1 to "
      f"rollout.max_forwards={most}, all of them: name both"
    )
  if run.rollout.temperature != bare.temperature:
    raise ValueError(
      f"objective.temperature={bare.temperature} must be rollout.temperature="
      f"{run.rollout.temperature}"
    )
  if run.rollout.guidance or training.model.config.reads_noise:
    raise ValueError(
      f"objective.name={run.objective.name!r} asks the model alone: rollout.guidance="
      f"{run.rollout.guidance} must be 0, and the model is told no noise level"
    )


def _agree(training: Training) -> None:
  """What no table can check alone."""
  run = training.run
  shards = parallel.batch_shards(training.mesh)
  if run.batch % (shards * run.microbatches):
    raise ValueError(
      f"batch={run.batch} must divide by {shards} shards x microbatches={run.microbatches}"
    )
  if run.microbatches > 1 and not training.objective.summable:
    raise ValueError(
      f"microbatches={run.microbatches} must be 1: objective.name={run.objective.name!r} takes "
      "means over all that a device computes at once"
    )
  if run.parallel == "pmap" and training.mesh.size != training.mesh.shape["data"]:
    raise ValueError(f"parallel='pmap' splits the batch only; mesh={dict(training.mesh.shape)}")
  _agree_on_sequence(training)
  _agree_on_drafter(training)
  block = None if training.objective.drafts else training.objective.block
  if block and run.data.length % block:
    raise ValueError(f"objective.block={block} must divide data.length={run.data.length}")
  moe, attention = training.model.config.moe, training.facts.attention_name
  apart = attention == "block_causal" and moe is not None and moe.pool and block % moe.pool == 0
  if moe is not None and moe.pooled and attention != "full" and not apart:
    # The clean copy of a block, or a later token, would take a place in a pool of masked tokens.
    raise ValueError(
      f"model.moe.choice={moe.choice!r} with attention {attention!r} lets experts depend on tokens "
      f"that others must not see, unless model.moe.pool={moe.pool} divides objective.block={block}"
    )
  partly = training.model.config.lora is not None or run.optimizer.trainable != "all"
  if partly and training.objective.init(training.model.config.width):
    raise ValueError(
      f"objective.name={run.objective.name!r} learns parameters of its own: neither model.lora nor "
      f"optimizer.trainable={run.optimizer.trainable!r} trains them"
    )
  if training.objective.candidates and not run.eval.every:
    raise ValueError("objective.search needs eval.every: it is evaluation that searches")
  if training.model.config.lora is not None:
    _agree_on_adapters(training)
  if run.optimizer.trainable == "router" and training.model.config.moe is None:
    raise ValueError("optimizer.trainable='router' needs model.moe: there is no router else")
  if training.rows is not None and training.rows.paired:
    _agree_on_pairs(training)
  else:
    _agree_on_rollout(training)
    _agree_on_rewards(training)
  learning_rate(run.optimizer, run.steps)


def _agree_on_sequence(training: Training) -> None:
  """ValueError where rows are split and cannot be, or what is asked for needs them whole."""
  run, parts = training.run, training.mesh.shape["sequence"]
  if parts == 1:
    return
  if run.data.length % parts:
    raise ValueError(f"data.length={run.data.length} must divide by mesh.sequence={parts}")
  moe = training.model.config.moe
  choice = "expert" if moe is not None and moe.choice == "expert" else None
  whole = {  # and why
    "model.moe.choice": (choice, "experts choose among whole rows"),
    "model.moe.admitted": (0 if moe is None else moe.admitted, "pools are cut from whole rows"),
    "model.drafter": (training.model.config.drafter, "its keys are those of another model"),
    "rollout": (run.rollout, "sampling takes whole rows"),
    "sample.every": (run.sample.every, "sampling takes whole rows"),
  }
  for field, (value, why) in whole.items():
    if value:
      raise ValueError(f"{field}={value!r} does not go with mesh.sequence={parts}: {why}")


def _agree_on_drafter(training: Training) -> None:
  """ValueError where the run trains no drafter of its teacher, or a drafter as a model."""
  run, drafter = training.run, training.model.config.drafter
  if training.objective.drafts != (drafter is not None):
    raise ValueError(
      f"objective.name={run.objective.name!r} does not go with model.drafter={drafter}: 'dflash' "
      "trains a drafter, and no other does"
    )
  if drafter is None:
    return
  check_drafter(training.model.config, training.teacher.model.config)
  if training.objective.block > run.data.length:
    raise ValueError(
      f"objective.block={training.objective.block} exceeds data.length={run.data.length}"
    )
  if 0 < drafter.window < training.objective.block:
    raise ValueError(
      f"model.drafter.window={drafter.window} must be at least objective.block="
      f"{training.objective.block}: a block sees itself (0: all is seen)"
    )


def _agree_on_adapters(training: Training) -> None:
  """Of a run that trains `model.lora` alone, and saves no other parameters."""
  run, moe = training.run, training.model.config.moe
  if training.source is None:
    raise ValueError("model.lora needs init_from: adapters learn beside a trained model")
  if training.model.config.lora.drafts:
    raise ValueError(
      "model.lora.drafts=True is of adapters that are read; to train some that only draft set "
      "model.lora.gated=True, and objective.next_weight=0 with objective 'nemotron'"
    )
  if run.optimizer.trainable != "all":
    raise ValueError(
      f"optimizer.trainable={run.optimizer.trainable!r} does not go with model.lora: its adapters "
      "alone are trained"
    )
  if run.optimizer.ema is not None:
    raise ValueError(
      f"optimizer.ema={run.optimizer.ema} does not go with model.lora: no average is kept of "
      "adapters; leave it None"
    )
  if moe is not None and moe.bias_rate:
    raise ValueError(
      f"model.moe.bias_rate={moe.bias_rate} does not go with model.lora, which leaves routers as "
      "they are; set it to 0"
    )
