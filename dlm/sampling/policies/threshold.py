"""All tokens that are sure enough."""

import dataclasses

from dlm.sampling import select
from dlm.sampling.score import confidence
from dlm.types import Array, Decision, StatSpec, View


@dataclasses.dataclass(frozen=True)
class Threshold:
  """Writes every token with confidence >= `threshold`, and always the surest one.

  Fast-dLLM, arXiv 2505.22618, 3.3. Algorithm 1 prints `>`; the authors' code tests `>=`, as here.
  """

  scope = "block"
  threshold: float = 0.9

  def __post_init__(self):
    if not 0 <= self.threshold <= 1:
      raise ValueError(f"threshold: threshold={self.threshold} must lie in [0, 1]")

  def needs(self) -> StatSpec:
    return StatSpec()

  def enter(self, masked_BxA: Array, state: tuple[()] | None) -> tuple[()]:
    return ()

  def decide(self, view: View, state: tuple[()], key_B: Array) -> tuple[Decision, tuple[()]]:
    write_BxA = select.at_least(confidence(view.stats), view.masked_BxA, self.threshold)
    return Decision(write_BxA, view.stats.token), state
