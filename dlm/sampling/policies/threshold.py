"""All tokens that are sure enough."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from dlm.sampling import select
from dlm.sampling.policy import Policy
from dlm.sampling.score import confidence
from dlm.types import Array, Decision, View


@dataclasses.dataclass(frozen=True)
class Threshold(Policy):
  """Fast-dLLM (2505.22618): write every token that is sure enough, and always the surest one.

  Those with confidence >= `threshold` (3.3). Algorithm 1 prints `>`; the authors' code tests `>=`,
  as here. A slot for which [MASK] is predicted is no candidate.

  Args:
    band: tokens that are less surer by at most this than the surest are written with it; 1e-5 in
      dInfer's code (arXiv 2510.08666).
    decay: the threshold starts at 1 and falls by this with every forward of the row, down to
      `threshold`; 0.02 in dInfer, beside iteration smoothing. 0: it is constant.
    steps: forwards of a block at most, after which what is masked stays so (Nemotron-Labs-
      Diffusion); 0: as many as it takes.
  """

  adjustable: ClassVar[bool] = True

  threshold: float = 0.9
  band: float = 0.0
  decay: float = 0.0
  steps: int = 0

  def __post_init__(self):
    if not 0 <= self.threshold <= 1:
      raise ValueError(f"threshold: threshold={self.threshold} must lie in [0, 1]")
    for field in ("band", "decay", "steps"):
      if getattr(self, field) < 0:
        raise ValueError(f"threshold: {field}={getattr(self, field)} must not be negative (0: off)")

  @property
  def timed(self) -> bool:
    return self.steps > 0

  def decide(self, view: View, state: tuple[()], key_B: Array) -> tuple[Decision, tuple[()]]:
    candidate_BxA = view.masked_BxA & (view.stats.token != view.mask_id)
    threshold = self.threshold
    if view.threshold_B is not None:
      threshold = jnp.where(jnp.isnan(view.threshold_B), threshold, view.threshold_B)
    threshold = select.falling(threshold, self.decay, view.turn_B)
    write_BxA = select.at_least(confidence(view.stats), candidate_BxA, threshold, self.band)
    leave_B = view.step_B + 1 >= self.steps if self.steps else None
    return Decision(write_BxA, view.stats.token, leave_B=leave_B), state
