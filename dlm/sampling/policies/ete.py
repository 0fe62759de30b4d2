"""Beyond the block, and now and then the hardest token first."""

import dataclasses

from dlm.sampling import select
from dlm.sampling.policy import Policy
from dlm.sampling.score import confidence
from dlm.types import Array, Decision, StatSpec, View


@dataclasses.dataclass(frozen=True)
class Ete(Policy):
  """ETE (2511.21103): write all that is sure, even behind the block; else the hardest token.

  Explore-then-exploit: OUR READING of the abstract; no code is public. A sure token carries few
  bits, so whoever writes only sure tokens needs many rounds: at least the text's bits over the bits
  of a round. So (exploit) every token with confidence >= `threshold` is written, in the active
  block and behind it; and where these are fewer than `least`, (explore) the masked token of highest
  entropy in the active block is written too, whose bits make others sure.

  The authors' trigger, measure of uncertainty, reach and numbers are not known to us, nor whether
  they check several candidates in one batch, which this does not.

  Args:
    span: slots from the active block's start on that may be written, at least the block.
    least: explores below so many sure tokens; 1: only where there is none.
  """

  scope = "canvas"
  threshold: float = 0.9
  span: int = 64
  least: int = 1

  def __post_init__(self):
    if not 0 <= self.threshold <= 1:
      raise ValueError(f"ete: threshold={self.threshold} must lie in [0, 1]")
    for name in ("span", "least"):
      if getattr(self, name) < 1:
        raise ValueError(f"ete: {name}={getattr(self, name)} must be at least 1")

  def needs(self) -> StatSpec:
    return StatSpec(entropy=True)

  def decide(self, view: View, state: tuple[()], key_B: Array) -> tuple[Decision, tuple[()]]:
    near_BxA = view.slot_BxA < (view.start_B + self.span)[:, None]
    reach_BxA = view.masked_BxA | (view.later_BxA & view.scored_BxA & near_BxA)
    sure_BxA = reach_BxA & (confidence(view.stats) >= self.threshold)
    explores_B = sure_BxA.sum(-1) < self.least
    hard_BxA = select.top(view.stats.entropy, view.masked_BxA & ~sure_BxA, explores_B)
    return Decision(sure_BxA | hard_BxA, view.stats.token), state
