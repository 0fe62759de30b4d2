"""The keys by which config.json says how rotary positions are stretched <-> `RopeScaling`."""

from collections.abc import Mapping
from typing import Any

from dlm.models.config import ModelConfig
from dlm.models.rope import KINDS, RopeScaling
from dlm.weights.fields import ConfigJson, typed

_ORIGINAL, _QUERIES = "original_max_position_embeddings", "llama_4_scaling_beta"
_TYPES = {_ORIGINAL: int, "truncate": bool}  # of keys in rope_scaling; others: float


def read(config: ConfigJson, *, queries: bool = False) -> RopeScaling | None:
  """As transformers 5.24 reads it: what that fills in is filled in, what it ignores is refused.

  Args:
    queries: the class scales its queries too, where the table says so.
  """
  rope, length = config.get("rope_scaling"), config.value("max_position_embeddings", int)
  if rope is None:
    return None
  try:
    if _QUERIES in rope and not queries:
      raise ValueError(f"{_QUERIES} of {rope['rope_type']} is not understood")
    return _scaling(dict(rope), config.value(_ORIGINAL, int), length)
  except ValueError as error:
    raise ValueError(f"rope_scaling={rope!r:.200}: {error}") from error


def _scaling(rope: dict[str, Any], beside: int | None, length: int | None) -> RopeScaling:
  """Of the table as `spelled` leaves it.

  Args:
    beside: the original length where Phi's config.json has it, outside the table.
    length: the longest text of the model.
  """
  kind = rope.pop("rope_type")
  if kind not in ("default", *KINDS):
    raise ValueError(f"rope_type={kind!r:.80} is not supported; only default, {', '.join(KINDS)}")
  if unknown := sorted(rope.keys() - {*KINDS.get(kind, ())}):
    raise ValueError(f"{', '.join(unknown)} of {kind} is not understood")
  if _ORIGINAL in KINDS[kind]:
    rope.setdefault(_ORIGINAL, beside or length)
    if beside is not None and rope[_ORIGINAL] != beside:
      raise ValueError(f"{_ORIGINAL}={beside} beside it disagrees")
  needed = KINDS["llama3"] if kind == "llama3" else ("factor",)
  if missing := [key for key in needed if key not in rope]:
    raise ValueError(f"{missing[0]} is missing")
  found = {key: typed(key, x, _TYPES.get(key, float)) for key, x in rope.items() if key != "factor"}
  if kind == "yarn" and rope["factor"] is None and found[_ORIGINAL] and length:
    rope["factor"] = length / found[_ORIGINAL]
  return RopeScaling(kind, typed("factor", rope["factor"], float), **found)


def said(model: ModelConfig) -> dict[str, Any]:
  """As transformers 4 and 5 read it: the keys of its kind, those that are off left out."""
  scaling = model.rope_scaling
  if scaling is None:
    return {"rope_scaling": None}
  off = {"attention_factor": None, "mscale": 0, "mscale_all_dim": 0, "truncate": True, _QUERIES: 0}
  keys = {key: getattr(scaling, key) for key in KINDS[scaling.rope_type]}
  keys = {key: value for key, value in keys.items() if key not in off or value != off[key]}
  return {"rope_scaling": {"rope_type": scaling.rope_type, **keys}}


def read_with_queries(config: ConfigJson) -> RopeScaling | None:
  """As `read`, of a class that scales its queries too."""
  return read(config, queries=True)


def said_in_full(model: ModelConfig) -> Mapping[str, Any]:
  """As `said`, and again as `rope_parameters` with the base: where Nemotron's class looks."""
  table = said(model)["rope_scaling"] or {"rope_type": "default"}
  table |= {"rope_theta": model.rope_base}
  return {"rope_scaling": table, "rope_parameters": table}
