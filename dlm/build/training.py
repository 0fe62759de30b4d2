"""A training config becomes a run: `everything` builds it whole, before anything compiles."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from dlm import data, masks, parallel
from dlm.build import tables
from dlm.build.agreement import agree
from dlm.build.choices import Reading
from dlm.build.models import model
from dlm.build.pretrained import ORIGIN, Pretrained, continued, pretrained, without_origin
from dlm.build.run import RunConfig, ToolConfig
from dlm.data import Rows, Tokenizer
from dlm.facts import ModelFacts, name_of
from dlm.models.bind import Model, bind
from dlm.models.config import DrafterConfig, ModelConfig
from dlm.models.dflash import DFlash
from dlm.objectives import OBJECTIVES, Annealed, ExactCount, Objective, Shifted, Told
from dlm.tools import Tools, open_tools
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
  tools: Tools | None = None  # that its roll-outs call

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
    tools=_tools(run.tools),
  )
  agree(training)
  return training


def _tools(own: ToolConfig | None) -> Tools | None:
  if own is None:
    return None
  return open_tools(own.of, own.corpus, hits=own.hits, seconds=own.seconds)


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
  for field in ("init_from", "teacher", "rollout", "rewards", "tools"):
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
  agree(training)
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
  named = f"teacher {teacher.directory}"
  if not run.teacher:
    named = f"init_from={run.init_from!r}, the teacher where none is named,"
  if not trained.teacher_shift:
    asked, theirs = (
      _over(rule, run.data.length) for rule in (trained.teacher_attention, teacher.facts.attention)
    )
    if (asked, trained.shift) != (theirs, teacher.facts.shift):
      raise ValueError(
        f"{named} must be a model of attention {name_of(asked)!r} and "
        f"shift={trained.shift}, as objective.name={run.objective.name!r} asks it, not of "
        f"{teacher.facts.attention_name!r} and {teacher.facts.shift}: name another by `teacher`"
      )
  elif not isinstance(teacher.facts.attention, masks.Causal):
    raise ValueError(
      f"{named} must be autoregressive, not of attention "
      f"{teacher.facts.attention_name!r}: name another by `teacher`"
    )
  if teacher.tokenizer.fingerprint != tokenizer.fingerprint:
    raise ValueError(f"{named} has another tokenizer than the run")
  return teacher.adapted() if trained.teacher_shift and not trained.drafts else teacher


def _over(rule: MaskRule, length: int) -> MaskRule:
  """The rule in rows of `length`: where a block is as long as they are, all see all."""
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
