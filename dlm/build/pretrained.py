"""Trained parameters and all that must be known to use them: a checkpoint folder or a Hugging Face
directory becomes one `Pretrained`, so that no command asks which of the two it was given."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dlm import checkpoint, masks, parallel, weights, workdir
from dlm.build import models
from dlm.build.run import ModelRecord, RunConfig
from dlm.build.tables import Named, Partial, plain
from dlm.checksums import checksums
from dlm.data import BpeTokenizer, Tokenizer, gguf_tokenizer
from dlm.data.tokenizers import SAVED_NAME
from dlm.facts import ModelFacts
from dlm.models import lora, quantised
from dlm.models.bind import Model, bind
from dlm.models.config import ModelConfig
from dlm.models.layouts import laid
from dlm.models.lora import LoraConfig
from dlm.models.moe.config import MoeConfig
from dlm.objectives import Objective
from dlm.types import Params
from dlm.weights import Source, peft
from dlm.weights.adapt import TABLES, with_mask_row
from dlm.weights.families import FAMILIES
from dlm.weights.peft import Adapter

ORIGIN = "huggingface"  # of config.json: the family and the config.json of where it all began
WEIGHTS = "weights"  # of config.json: how the folder keeps its kernels, see `models.quantised`

DRAFTING = {"name": "dflash", "anchors": 512}  # of a drafter of others, which no one measures
# What a run that goes on from a checkpoint may choose for itself: none changes a parameter.
FREE = ("dtype", "remat", "implementation")
# Of experts (`model.moe`) it may choose how they are routed, all but what parameters there are.
EXPERTS = ("experts", "mlp", "shared", "dense_layers", "bias")
# Beside these the fields that mean the same whoever chooses; others are of one choice alone.
BOTH = ("per_token", "score", "renormalise", "scale", "match_shared", "z_loss", "balance_loss")


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A checkpoint that is described, and not read yet."""

  directory: pathlib.Path  # or a GGUF file
  model: Model
  facts: ModelFacts  # a mask id always, for it marks the slots to be written
  tokenizer: Tokenizer
  objective: Named[Objective]  # of its training; of others' weights: what measures them
  config: dict[str, Any]  # config.json: that of the run, or model, objective and "huggingface"
  which: str | int  # step of a checkpoint folder
  source: Source | None  # of a Hugging Face directory or a GGUF file
  needs_mask_row: bool  # the parameters, as they are stored, have none
  base: "Pretrained | None" = None  # of a run that trained adapters, and saved no other parameters
  adapter: Adapter | None = None  # of PEFT's layout; gated ones stand beside the parameters
  weights: str = ""  # how a folder keeps its kernels; empty: as numbers

  def __post_init__(self):
    facts, rows = self.facts, self.model.config.vocab
    if facts.mask_id != self.tokenizer.mask_id:
      raise ValueError(
        f"{self.directory}: mask_id={facts.mask_id} of facts.json is not the tokenizer's, "
        f"{self.tokenizer.mask_id}"
      )
    if facts.vocab > rows:
      raise ValueError(
        f"{self.directory}: vocab={facts.vocab} of facts.json exceeds the model's {rows}"
      )

  def params(
    self,
    shardings: Any = None,
    dtype: str | None = None,
    progress: Callable | None = None,
    *,
    objective: bool = False,
    weights: str = "",
  ) -> tuple[Params, int]:
    """The parameters and the step they are from, 0 if from a Hugging Face directory.

    Args:
      shardings: tree like the parameters; None: all on the first device.
      dtype: None: as stored; scales of codes are always float32.
      progress: see `weights.load`.
      objective: with its objective's own, where it has any: what measures it by that may need them.
      weights: how kernels are kept, see `models.quantised`; of files of others each is quantised as
        soon as it is read, else all are read first. Empty: as they are stored.

    Raises:
      ValueError: the folder keeps its kernels otherwise; whatever reading raises.
    """
    if self.weights:
      return self._codes(shardings, dtype, objective, weights or self.weights)
    kept = quantised.quantise(weights) if weights else None
    at_once = kept is not None and self.base is None and self.adapter is None and self.source
    if at_once:
      params, step = self._stored(shardings, dtype, progress, objective, kept)
    elif self.base is not None:
      params, step = self._on_base(shardings, dtype, progress)
    else:
      params, step = self._stored(shardings, dtype, progress, objective)
    if self.needs_mask_row:
      params = with_mask_row(params, self.facts.mask_id)
    if kept is not None and not at_once:
      params = quantised.quantised(params, kept)
    return params, step

  def _codes(
    self, shardings: Any, dtype: str | None, objective: bool, weights: str
  ) -> tuple[Params, int]:
    """Of a folder that keeps its kernels as codes."""
    own = quantised.Format.of(self.weights)
    if not quantised.Format.of(weights).reads(own):
      raise ValueError(
        f"weights={weights!r}: {self.directory} keeps its kernels as {self.weights}, rounded once; "
        "leave weights empty"
      )
    shapes, shardings = quantised.as_kept(self.weights, self.model.abstract(), shardings)
    params, step = checkpoint.restore_params(
      self.directory, self.which, model=shapes, shardings=shardings, objective=objective
    )
    params = quantised.from_dicts(params, weights)
    if dtype is not None:
      params = quantised.map_numbers(lambda x: x.astype(dtype), params)
    return params, step

  def _stored(
    self,
    shardings: Any,
    dtype: str | None,
    progress: Callable | None,
    objective: bool,
    kept: Callable | None = None,
  ) -> tuple[Params, int]:
    """As the directory has them, with the adapter."""
    whole, adapter = shardings, self.adapter
    if adapter is not None and adapter.beside and shardings is not None:
      shardings = lora.frozen(shardings)
    if self.source is None:
      params, step = checkpoint.restore_params(
        self.directory,
        self.which,
        model=lora.frozen(self.model.abstract()),
        shardings=shardings,
        dtype=dtype,
        objective=objective,
      )
    else:
      step = 0
      # The row of an added mask token is made at once; an adapter is merged into those stored.
      spare = self.model.config.vocab - self.source.model.vocab if adapter is None else 0
      params = weights.load(
        self.source,
        shardings=shardings,
        dtype=dtype,
        progress=progress,
        spare=spare,
        kept=kept,
      )
    if adapter is None:
      return params, step
    model = dataclasses.replace(self.model.config, vocab=params["embed"].shape[0], lora=None)
    if not adapter.beside:
      return peft.merged(adapter, _family(self), model, params), step
    _, own = peft.separate(adapter, _family(self), model)
    own = jax.tree.map(lambda x: x.astype(jnp.dtype(dtype or x.dtype)), own)
    here = jax.local_devices()[0] if whole is None else lora.adapters(whole)
    return lora.joined(params, jax.device_put(own, here)), step

  def _on_base(
    self, shardings: Any, dtype: str | None, progress: Callable | None
  ) -> tuple[Params, int]:
    """The adapters of a run on the parameters that it began with, which are float32 there."""
    own, step = self.adapters(None if shardings is None else lora.adapters(shardings))
    if shardings is not None and self.base.model.config.lora is None:
      shardings = lora.frozen(shardings)
    under, _ = self.base.params(shardings, "float32", progress)
    under = lora.frozen(under)
    said = workdir.read_json(self.directory, workdir.DATA).get("base")
    if said != {"parameters": self.base.digest(under)}:
      raise ValueError(
        f"{self.directory} holds adapters of other parameters than {self.base.directory} has now"
      )
    params = lora.joined(under, own)
    return params if dtype is None else jax.tree.map(lambda x: x.astype(dtype), params), step

  def adapters(self, shardings: Any = None) -> tuple[Params, int]:
    """The adapters of a run that trained them, and the step they are from; its base is not read."""
    return checkpoint.restore_params(
      self.directory,
      self.which,
      model=lora.adapters(self.model.abstract()),
      shardings=shardings,
    )

  def digest(self, params: Params) -> str:
    """What tells these parameters, of `params`, from others; adapters are not looked at.

    Nor is a mask row that `params` made: its last bits are those of the device.
    """
    params = lora.frozen(params)
    if self.needs_mask_row:
      rows = slice(self.facts.mask_id)
      params |= {name: params[name][rows] for name in TABLES if name in params}
    return hashlib.sha256(json.dumps(checksums(params)).encode()).hexdigest()[:16]

  def on(self, mesh: jax.sharding.Mesh, weights: str = "") -> tuple[Params, int]:
    """`params` to sample with, split over a mesh and laid as its devices read them."""
    shardings = parallel.shard_params(self.model.abstract(), mesh)
    params, step = self.params(shardings, weights=weights)
    return laid(params), step

  def adapted(self) -> "Pretrained":
    """An autoregressive checkpoint as the start of a diffusion model: `weights.adapt`.

    ValueError: it is none.
    """
    if not isinstance(self.facts.attention, masks.Causal):
      raise ValueError(
        f"{self.directory} is no autoregressive checkpoint: attention={self.facts.attention_name!r}"
      )
    facts = dataclasses.replace(self.facts, attention=masks.Full())
    config = self.config | {"objective": _objective(facts)}
    objective = ModelRecord.of(_record(config)).objective
    return dataclasses.replace(
      self, facts=facts, objective=objective, config=config, needs_mask_row=True
    )

  def run(self) -> RunConfig | None:
    """The config of the training it comes from; None: weights of others."""
    return RunConfig.of(without_origin(self.config)) if "data" in self.config else None


def pretrained(
  directory: str | os.PathLike,
  which: str | int = "best",
  adapter: str | os.PathLike | None = None,
  words: Tokenizer | None = None,
  draft_adapter: str | os.PathLike | None = None,
) -> Pretrained:
  """Reads what describes a checkpoint, and none of its parameters.

  Args:
    directory: a folder that training or `import_weights` made, a Hugging Face directory, a GGUF
      file, or package:NAME, which is the GGUF file of an installed package.
    which: of the steps of a checkpoint folder: best, latest, or a number, also as text.
    adapter: a directory in PEFT's layout, see `dlm.weights.peft`: merged into the parameters, or
      beside them if it is gated. What a run of ours trained it for is then the model's purpose.
    words: the tokenizer of a directory that has none: a DFlash drafter's, whose target has it.
    draft_adapter: another such directory, whose adapter is on while the model drafts for itself.

  Raises:
    CheckpointError, WeightsError, ValueError: it is neither, or damaged, or lacks a tokenizer; the
      adapter is none, or of another model.
  """
  made = _alone(directory, which, words)
  if draft_adapter is None:
    return made if adapter is None else _with_adapter(made, peft.open_adapter(adapter))
  if adapter is not None or not isinstance(made.facts.attention, masks.CausalContext):
    raise ValueError(
      f"draft_adapter={str(draft_adapter)!r} is for a checkpoint that drafts for itself (attention "
      f"causal_context), without another adapter; {made.directory} has attention "
      f"{made.facts.attention_name!r}, adapter={adapter}"
    )
  return _with_adapter(made, dataclasses.replace(peft.open_adapter(draft_adapter), drafts=True))


def _alone(
  directory: str | os.PathLike, which: str | int, words: Tokenizer | None = None
) -> Pretrained:
  directory = weights.located(directory)
  which = int(which) if isinstance(which, str) and which.isdigit() else which
  if weights.is_gguf(directory) or (
    not (directory / "facts.json").exists() and weights.is_huggingface(directory)
  ):
    return _of_source(weights.open_source(directory), words)
  config = workdir.read_json(directory, "config.json")
  record = ModelRecord.of(_record(config))
  tokenizer = models.saved_tokenizer(directory)
  model, base = models.model(record.model, tokenizer), None
  if model.config.lora is not None:
    run = RunConfig.of(without_origin(config))
    _, base = continued(run, pretrained(run.init_from))
  kept = config.get(WEIGHTS, "")
  try:
    quantised.Format.of(kept) if kept else None
  except (ValueError, TypeError) as error:
    raise workdir.CheckpointError(f"{directory / workdir.CONFIG}: {error}") from error
  return Pretrained(
    directory=directory,
    model=model,
    facts=workdir.read_facts(directory),
    tokenizer=tokenizer,
    objective=record.objective,
    config=config,
    which=which,
    source=None,
    needs_mask_row=False,
    base=base,
    weights=kept,
  )


def _with_adapter(made: Pretrained, adapter: Adapter) -> Pretrained:
  """ValueError where the checkpoint has adapters or codes, or the modules of no known family."""
  check_numbers(made)
  if made.model.config.lora is not None:
    raise ValueError(f"{made.directory} has adapters of its own, and takes no other beside them")
  family, ours = _family(made), adapter.ours
  if ours is not None:
    record = ModelRecord.of(_record(made.config | {"objective": ours["objective"]}))
    if isinstance(made.facts.attention, masks.Causal) and record.objective.name != "ar":
      made = made.adapted()
    made = dataclasses.replace(
      made,
      facts=ModelFacts.from_json(ours["facts"]),
      objective=record.objective,
      config=made.config | {"objective": plain(record.objective)},
    )
  model = made.model
  if adapter.beside:
    own, _ = peft.separate(adapter, family, model.config)
    own = dataclasses.replace(own, mask_id=made.facts.mask_id, drafts=adapter.drafts)
    model = bind(dataclasses.replace(model.config, lora=own))
  config = made.config | {"model": plain(model.config)}
  return dataclasses.replace(made, model=model, config=config, adapter=adapter)


def _family(made: Pretrained) -> str:
  """How its modules are named; ValueError where nobody named them."""
  family = made.config.get(ORIGIN, {}).get("family")
  if family is None:
    raise ValueError(
      f"{made.directory}: adapters go by the names of modules, and this model was trained here, "
      "from no checkpoint that named them"
    )
  return family


def without_origin(config: Mapping[str, Any]) -> dict[str, Any]:
  """A config.json of ours without what it keeps of the Hugging Face directory it began with, and
  of how the folder keeps its kernels: what the run's config says."""
  return {name: value for name, value in config.items() if name not in (ORIGIN, WEIGHTS)}


def check_numbers(made: Pretrained) -> None:
  """ValueError where its kernels are codes: they are not trained, merged or written as numbers."""
  if made.weights:
    raise ValueError(
      f"{made.directory} keeps its kernels as {made.weights}, to sample, evaluate and serve; to "
      "train, merge or export take the checkpoint that it was made from"
    )


def _record(config: Mapping[str, Any]) -> dict[str, Any]:
  """What config.json says of the model, but for the kernels of the machine that it came from."""
  record = {name: config[name] for name in ("model", "objective") if name in config}
  if isinstance(record.get("model"), Mapping):
    record["model"] = {n: v for n, v in record["model"].items() if n != "implementation"}
  return record


def _of_source(source: Source, words: Tokenizer | None) -> Pretrained:
  drafts = source.model.drafter is not None
  tokenizer = words if drafts and words is not None else _tokenizer(source)
  facts = dataclasses.replace(
    source.facts,
    mask_id=tokenizer.mask_id,
    eos_ids=source.facts.eos_ids or (tokenizer.eos_id,),
    pad_id=tokenizer.pad_id,
    vocab=tokenizer.vocab_size,
  )
  grows = tokenizer.mask_id == source.model.vocab  # an added mask token may be one row too many
  config = {
    "model": plain(source.model) | {"vocab": source.model.vocab + grows},
    "objective": DRAFTING | {"block": facts.block} if drafts else _objective(facts),
    ORIGIN: {"family": source.family, "config": source.config},
  }
  record = ModelRecord.of(_record(config))
  return Pretrained(
    directory=source.directory,
    model=models.model(record.model, tokenizer),
    facts=facts,
    tokenizer=tokenizer,
    objective=record.objective,
    config=config,
    which=0,
    source=source,
    needs_mask_row=grows and not drafts,  # which has no rows
  )


def _tokenizer(source: Source) -> Tokenizer:
  """With the special ids that config.json names.

  A mask token is added for autoregressive models, and where the authors do so (BD3-LM, over GPT-2).
  """
  facts = source.facts
  if source.file is not None:
    extend = isinstance(facts.attention, masks.Causal)
    tokenizer = gguf_tokenizer.of_keys(source.file.keys, source.directory, extend=extend)
  elif (source.directory / SAVED_NAME).is_file():
    tokenizer = models.saved_tokenizer(source.directory)
  else:
    named = {
      "mask": facts.mask_id,
      "pad": facts.pad_id,
      "eos": (facts.eos_ids or (None,))[0],
    }
    added = FAMILIES[source.family].mask_last
    if added:  # the file ends before it
      named["mask"] = None
    named = {role: id for role, id in named.items() if id is not None}
    extend = added or isinstance(facts.attention, masks.Causal)
    tokenizer = BpeTokenizer.from_file(source.directory, extend=extend, **named)
  _check_rows(source, tokenizer)
  if facts.mask_id not in (None, tokenizer.mask_id):
    raise ValueError(
      f"{source.directory}: mask id {facts.mask_id} of config.json is not the tokenizer's, "
      f"{tokenizer.mask_id}"
    )
  return tokenizer


def _check_rows(source: Source, tokenizer: Tokenizer) -> None:
  """ValueError where the tokenizer has ids that the embedding lacks, all but a mask we add."""
  rows = source.model.vocab
  known = {id: spelling for spelling, id in tokenizer.specials().items()}
  beyond = [id for id in range(rows, tokenizer.vocab_size) if id != tokenizer.mask_id]
  if beyond:
    named = ", ".join(f"{id} ({known.get(id) or tokenizer.decode([id])})" for id in beyond[:8])
    raise ValueError(
      f"{source.directory}: the tokenizer has {len(beyond)} ids that the embedding of {rows} rows "
      f"lacks: {named}{', ...' if len(beyond) > 8 else ''}; tokens were added without resizing it"
    )


def _objective(facts: ModelFacts) -> dict[str, Any]:
  """What measures the likelihood of a model of which only the facts are known."""
  if isinstance(facts.attention, masks.Causal | masks.CausalContext):
    return {"name": "ar"}
  block = {} if facts.block is None else {"block": facts.block}
  return {"name": "exact_count", **block, **({"shift": 1} if facts.shift else {})}


def continued(run: RunConfig, source: Pretrained) -> tuple[RunConfig, Pretrained]:
  """A training config with what it leaves to `source` filled in, and `source` made ready for it.

  The model table may name fields of the source's model, and choose those in FREE and how experts
  are routed: what `model.moe` does not name stays, or, if experts choose where tokens chose,
  stays where both read it. Logits stay shifted where the source's are, unless objective.shift says
  otherwise. Adapters (`model.lora`) are the config's where the source has none, else the source's.

  Raises:
    ValueError: the model table describes another model, or the source keeps codes.
  """
  check_numbers(source)
  objective, estimator = run.objective, run.objective.fields.get("estimator")
  left_to_right = objective.name == "ar" or (estimator is not None and estimator.kind.shift)
  if not left_to_right:
    if source.facts.shift:
      objective = dataclasses.replace(objective, fields={"shift": 1, **objective.fields})
    if isinstance(source.facts.attention, masks.Causal):
      source = source.adapted()
  own, given = _fields(source.model.config), dict(run.model.fields)
  adds = own["lora"] is None and given.get("lora") is not None
  if own["lora"] is not None and given.get("lora") is not None:
    kept = {**_fields(own["lora"]), **given["lora"].fields, "mask_id": own["lora"].mask_id}
    given["lora"] = Partial(LoraConfig, kept)
  if own["moe"] is not None and given.get("moe") is not None:
    given["moe"] = _rerouted(own["moe"], given["moe"])
  free = (*FREE, "lora") if adds else FREE
  asked = {name: value for name, value in given.items() if name not in free}
  found = workdir.differences(_fixed({name: own[name] for name in asked}), _fixed(asked))
  if found:
    lines = "; ".join(f"{name}: {ours!r} -> {asked!r}" for name, (ours, asked) in found.items())
    raise ValueError(f"init_from {source.directory} holds another model than the config: {lines}")
  model = Partial(ModelConfig, {**own, **given})
  return dataclasses.replace(run, model=model, objective=objective), source


def _fields(config: ModelConfig | MoeConfig | LoraConfig) -> dict[str, Any]:
  return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def _rerouted(own: MoeConfig, given: Partial[MoeConfig]) -> Partial[MoeConfig]:
  """The source's experts with what the config says of them."""
  kept = _fields(own)
  if given.fields.get("choice", own.choice) != own.choice:
    kept = {name: kept[name] for name in EXPERTS + BOTH}
  return Partial(MoeConfig, {**kept, **given.fields})


def _fixed(model: dict[str, Any]) -> dict[str, Any]:
  """The fields of a model table that parameters depend on, FREE ones left out before."""
  model = plain(model)
  moe = model.get("moe")
  return model if moe is None else model | {"moe": {name: moe.get(name) for name in EXPERTS}}
