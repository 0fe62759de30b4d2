"""What a sampler must know of a model besides its parameters: facts.json of a checkpoint folder."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from dlm import masks
from dlm.types import MaskRule

# By the name that facts.json uses.
ATTENTION = {
  "full": masks.Full,
  "causal": masks.Causal,
  "block_causal": masks.BlockCausal,
  "prompt_blocks": masks.PromptBlocks,
  "answer_blocks": masks.AnswerBlocks,
  "causal_context": masks.CausalContext,
  "canvas": masks.Canvas,
}


def rule_of(name: str, block: int | None) -> MaskRule:
  """The attention of that name, one of ATTENTION, over blocks of `block` where it has any."""
  rule = ATTENTION[name]
  if all(field.name != "block" for field in dataclasses.fields(rule)):
    return rule()
  _whole("block", block, least=1)
  return rule(block)


def name_of(attention: MaskRule) -> str:
  """The one of ATTENTION that `rule_of` takes."""
  return next(name for name, rule in ATTENTION.items() if type(attention) is rule)


@dataclasses.dataclass(frozen=True)
class ModelFacts:
  """What a model sees and predicts, and the ids that mean more than text.

  Args:
    mask_id: marks the slots to be written; None: only the tokenizer can say (an autoregressive
      checkpoint of others, before its tokenizer is read).
    eos_ids: ids that end a text.
    pad_id: id of padding; None: there is none.
    shift: 1: logits at i predict token i + 1.
    attention: which slots a token sees.
    vocab: ids that spell something; the embedding may have more rows.
    length: slots of a canvas where nobody asks for another number.
    block: tokens that were trained to be decided together; None: the whole row.
    insert_id, delete_id: predicted where a mask is to come in, or a token to go; None: never.
  """

  mask_id: int | None
  eos_ids: tuple[int, ...]
  pad_id: int | None
  shift: int
  attention: MaskRule
  vocab: int
  length: int
  block: int | None = None
  insert_id: int | None = None
  delete_id: int | None = None

  def __post_init__(self):
    for name in ("vocab", "length"):
      _whole(name, getattr(self, name), least=1)
    if self.block is not None:
      _whole("block", self.block, least=1)
    if type(self.shift) is not int or self.shift not in (0, 1):
      raise ValueError(f"shift={self.shift!r} must be 0 or 1")
    for name in ("mask_id", "pad_id", "insert_id", "delete_id"):
      if getattr(self, name) is not None:
        _whole(name, getattr(self, name), least=0)
    for each in self.eos_ids:
      _whole("eos_ids", each, least=0)
      if each >= self.vocab:
        raise ValueError(f"eos_ids={self.eos_ids} must lie below vocab={self.vocab}")

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> Self:
    """Raises ValueError, naming the field, where the values cannot be facts."""
    fields = {field.name for field in dataclasses.fields(cls)}
    late = {"pad_id", "insert_id", "delete_id"}  # older folders leave them out
    missing = sorted(fields - late - values.keys())
    if missing:
      raise ValueError(f"field {', '.join(missing)} is missing")
    values = {name: values.get(name) for name in fields}
    name, eos = values["attention"], values["eos_ids"]
    if not isinstance(name, str) or name not in ATTENTION:
      raise ValueError(f"attention={name!r} is unknown; known: {', '.join(ATTENTION)}")
    if not isinstance(eos, list | tuple):
      raise ValueError(f"eos_ids={eos!r} must be a list of ids")
    attention = rule_of(name, values["block"])
    return cls(**values | {"attention": attention, "eos_ids": tuple(eos)})

  def to_json(self) -> dict[str, Any]:
    """What `from_json` reads."""
    return {
      **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
      "eos_ids": list(self.eos_ids),
      "attention": self.attention_name,
    }

  @property
  def attention_name(self) -> str:
    """As facts.json says it."""
    return name_of(self.attention)


def _whole(name: str, value: Any, *, least: int) -> None:
  if type(value) is not int or value < least:
    raise ValueError(f"{name}={value!r} must be a whole number, at least {least}")
