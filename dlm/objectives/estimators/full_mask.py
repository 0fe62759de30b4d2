"""d1's estimate: one forward, the whole answer masked. arXiv 2504.12216; its code, and wd1's."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm.objectives.estimators.estimator import Estimator, answer, one_stream, prompt
from dlm.types import Array, Batch, LogitHead, Noisy


@dataclasses.dataclass(frozen=True)
class FullMask(Estimator):
  """d1 (2504.12216): each token given the prompt alone, as if all were written at once.

  One forward and no variance but the prompt's; biased, since no token sees another.

  Args:
    prompt_mask: each token of the prompt is masked with this probability, so that several updates
      on the same rows see different prompts.
    guidance: w > 0: probabilities are those of logits (w + 1) l - w l', l' with the whole prompt
      masked, in a second forward: of a model that is sampled with such guidance. d1's and wd1's
      recipes have 0.
  """

  prompt_mask: float = 0.15
  guidance: float = 0.0

  def __post_init__(self):
    if not 0 <= self.prompt_mask < 1:
      raise ValueError(f"FullMask: prompt_mask={self.prompt_mask} must lie in [0, 1)")
    if self.guidance < 0:
      raise ValueError(f"FullMask: guidance={self.guidance} must not be negative (0: none)")

  @property
  def forwards(self) -> int:
    return 2 if self.guidance else 1

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    """Draws "u_prompt" [B, L]."""
    return {"u_prompt": jax.random.uniform(key, batch.tokens_BxL.shape)}

  def noisy(self, draws: dict[str, Array], batch: Batch, mask_id: int) -> Noisy:
    masked_BxL = answer(batch) | (prompt(batch) & (draws["u_prompt"] < self.prompt_mask))
    masked_BxCxL = masked_BxL[:, None]
    if self.guidance:
      nothing_BxL = answer(batch) | prompt(batch)
      masked_BxCxL = jnp.stack([masked_BxL, nothing_BxL], axis=1)
    return one_stream(batch, masked_BxCxL, jnp.ones((1, 1, 1)), mask_id)

  def mixed(self, head: LogitHead, noisy: Noisy) -> tuple[LogitHead, Noisy]:
    """The head is linear, so that hidden rows are mixed in place of logits."""
    if not self.guidance:
      return head, noisy
    if head.soft_cap is not None:
      raise ValueError(
        f"FullMask: guidance={self.guidance} mixes hidden rows, which a model with soft_cap does "
        "not allow"
      )
    given_BxLxD, free_BxLxD = head.hidden_BxAxD[::2], head.hidden_BxAxD[1::2]
    mixed_BxLxD = given_BxLxD + self.guidance * (given_BxLxD - free_BxLxD)
    one = {name: getattr(noisy, name)[::2] for name in ("targets_BxL", "weight_BxL")}
    return head.replace(hidden_BxAxD=mixed_BxLxD), noisy.replace(**one)

  def tokens(self, logp_BxL: Array, noisy: Noisy) -> Array:
    """As of one copy: `mixed` has left one of each row."""
    return logp_BxL * noisy.weight_BxL
