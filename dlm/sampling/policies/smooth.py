"""What was predicted stays in the input: masked slots that lean to their last prediction."""

import dataclasses

import jax.numpy as jnp

from dlm.sampling.policy import Wrapper
from dlm.types import Array, StatSpec


@dataclasses.dataclass(frozen=True)
class Smooth(Wrapper):
  """dInfer, smoothing (2510.08666): masked slots carry their last prediction; `inner` decides.

  As its code does it: the mean embedding of that prediction is added to the mask's. The mean is
  over the model's whole distribution, and its weight grows with the row's forwards: `start`, then
  `growth` more each time, `limit` in the end. A slot outside the window keeps what it had. The
  authors let the threshold fall meanwhile: `decay` of policies "threshold" and "hierarchy".
  """

  scope = "canvas"
  start: float = 0.15
  growth: float = 0.02
  limit: float = 0.3

  def __post_init__(self):
    super().__post_init__()
    self.refuse(self.inner.needs().soft, "smooths already, by a weight of its own")
    self.refuse(self.inner.judges, "judges by a shadow block, which carries no prediction")

  def needs(self) -> StatSpec:
    return dataclasses.replace(self.inner.needs(), soft=True)

  def soft_weight(self, turn_B: Array) -> Array:
    return jnp.minimum(self.start + self.growth * turn_B, self.limit)
