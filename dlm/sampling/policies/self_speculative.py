"""One model drafts a block as a diffusion model and checks it as an autoregressive one."""

import dataclasses

from dlm.sampling.policies.introspective import settled
from dlm.sampling.policy import Policy
from dlm.types import Array, Decision, View


@dataclasses.dataclass(frozen=True)
class SelfSpeculative(Policy):
  """Nemotron-Labs-Diffusion (nvidia/Nemotron-Labs-Diffusion-8B): draft at masks, check causally.

  Its linear self-speculation.

  Two forwards of the same weights in turn. One reads the last settled token and masks, which see
  each other, and fills them; one reads the drafts causally, and settles the leading run of right
  ones and one token more. A draft is right iff it is the token that the check draws itself. Both
  draw a slot with the same noise (`coupled`): the text is that of token by token sampling with the
  same key, at any temperature. The authors' draws are independent, so fewer of them agree; the law
  is the same.

  Args:
    block: the last settled token and the drafts behind it; 32 in the published models.
    threshold: drafts whose probability is no higher stay masks, which no check bears out.
  """

  coupled = True
  block: int
  threshold: float = 0.0

  def __post_init__(self):
    if self.block < 2:
      raise ValueError(f"self_speculative: block={self.block} must be at least 2")
    if not 0 <= self.threshold <= 1:
      raise ValueError(f"self_speculative: threshold={self.threshold} must lie in [0, 1]")

  @property
  def own_drafts(self) -> int:
    return self.block - 1

  @property
  def least_sure(self) -> float:
    return self.threshold

  @property
  def draft_span(self) -> int:
    """The last settled token, the drafts, and one more."""
    return self.block + 1

  def decide(self, view: View, state: tuple[()], key_B: Array) -> tuple[Decision, tuple[()]]:
    return settled(view, view.stats.token == view.tokens_BxA), state
