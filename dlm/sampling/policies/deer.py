"""A diffusion model drafts, an autoregressive one verifies."""

import dataclasses

from dlm.sampling.policies.introspective import settled
from dlm.sampling.policy import Policy
from dlm.types import Array, Decision, View


@dataclasses.dataclass(frozen=True)
class Deer(Policy):
  """DEER (2512.15176): a diffusion model drafts, the autoregressive model checks.

  Algorithm 1. The sampler's drafter proposes `length` tokens in one forward, each from its own
  distribution; the model checks them in one causal forward and settles the leading run of right
  ones and one token more. A draft is right iff it is the token that the model draws itself; drafter
  and model draw a slot with the same noise (`coupled`), so the text is that of token by token
  sampling with the same key, at any temperature. The paper tests p / q and resamples; that law is
  the same. No code is public: what the drafter sees, and the token after a full run, are our
  reading.

  Args:
    length: drafts a forward; the paper's blocks hold 32.
  """

  coupled = True
  length: int = 32

  def __post_init__(self):
    if self.length < 1:
      raise ValueError(f"{type(self).__name__.lower()}: length={self.length} must be at least 1")

  @property
  def proposals(self) -> int:
    return self.length

  @property
  def draft_span(self) -> int:
    """The last settled token, the drafts, and one more."""
    return self.length + 2

  def decide(self, view: View, state: tuple[()], key_B: Array) -> tuple[Decision, tuple[()]]:
    return settled(view, view.stats.token == view.tokens_BxA), state
