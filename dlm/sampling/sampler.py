"""The static half of sampling: a model, a policy, a cache plan and their settings."""

import dataclasses

from dlm.types import CachePlan, Clock, Denoiser, MaskRule, Policy, StatSpec

COMMITS = ("fused", "separate")


@dataclasses.dataclass(frozen=True)
class Sampler:
  """Everything static. Hashable: equal samplers share one compile.

  Args:
    block: tokens per block; the policy sees one block at a time.
    max_forwards: a row ends after so many, whatever the model predicts (NaN, always [MASK]).
    shift: 1 where the logits at slot i predict slot i + 1 (AR models, Dream).
    temperature, top_k, top_p, forbidden: how a candidate is drawn, see StatSpec. The mask id is
      always forbidden.
  """

  denoise: Denoiser
  policy: Policy
  plan: CachePlan
  sees: MaskRule
  block: int
  max_forwards: int
  mask_id: int
  eos_ids: tuple[int, ...] = ()
  shift: int = 0
  commit: str = "fused"
  clock: Clock | None = None
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  forbidden: tuple[int, ...] = ()
  implementation: str | None = None

  def __post_init__(self):
    for name in ("block", "max_forwards"):
      if getattr(self, name) < 1:
        raise ValueError(f"Sampler: {name}={getattr(self, name)} must be at least 1")
    if self.commit not in COMMITS:
      raise ValueError(f"Sampler: commit={self.commit!r} is not one of {', '.join(COMMITS)}")
    if self.shift not in (0, 1):
      raise ValueError(f"Sampler: shift={self.shift} must be 0 or 1")
    if self.shift and self.plan.cached and self.commit != "fused":
      raise ValueError(
        "Sampler: with shift=1 the first token of a block is predicted by the token before it, "
        "which only commit='fused' computes"
      )
    self.plan.check(self.sees, self.block)
    self.spec()  # raises where no candidate can be drawn so

  def spec(self) -> StatSpec:
    """The policy's needs, and how candidates are drawn."""
    return dataclasses.replace(
      self.policy.needs(),
      temperature=self.temperature,
      top_k=self.top_k,
      top_p=self.top_p,
      forbidden=(self.mask_id, *self.forbidden),
    )
