"""What a config may choose by name, for each kind of thing that is chosen."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dlm.diffusion.schedules import SCHEDULES, MaskSchedule
from dlm.models.config import ModelConfig
from dlm.models.presets import PRESETS as MODELS
from dlm.objectives import OBJECTIVES, Objective
from dlm.objectives.diffullama import check_shift
from dlm.objectives.estimators import ESTIMATORS, Estimator
from dlm.sampling.caching import PLANS
from dlm.sampling.caching.plan import CachePlan
from dlm.sampling.policies import POLICIES
from dlm.sampling.policy import Policy
from dlm.types import Schedule


@dataclasses.dataclass(frozen=True)
class Auto:
  """The exact cache of the model and the policy; where there is none, no cache."""


@dataclasses.dataclass(frozen=True)
class Reading:
  """What an objective's table may say besides, see `dlm.objectives.diffullama`.

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
class Choices:
  """Frozen dataclasses by name.

  Args:
    known: fields that are no config's to set: the tokenizer, the checkpoint or the sampler decides.
    beside: a dataclass whose fields stand in the same table.
  """

  classes: Mapping[str, Any]
  known: tuple[str, ...] = ()
  beside: Any = None


CHOICES: dict[Any, Choices] = {
  Policy: Choices(POLICIES, known=("block", "end_ids", "vocab", "insert_id", "delete_id")),
  CachePlan: Choices({"auto": Auto, **PLANS}),
  Objective: Choices(OBJECTIVES, known=("mask_id", "vocab", "end_id"), beside=Reading),
  Estimator: Choices(ESTIMATORS, known=("end_id",)),
  Schedule: Choices(SCHEDULES),
  MaskSchedule: Choices(SCHEDULES),
}

# Tables that may start from a named one, by their field `preset`.
PRESETS: dict[Any, Mapping[str, Any]] = {ModelConfig: MODELS}
