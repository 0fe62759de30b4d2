"""hackable_diffusion's discrete losses: masks or random ids as noise. google/hackable_diffusion."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm.diffusion import uniform
from dlm.diffusion.schedules import LINEAR, MaskSchedule
from dlm.objectives import streams
from dlm.objectives.row import RowTraining
from dlm.types import Array, Batch, Noisy

NOISES = ("mask", "uniform")


@dataclasses.dataclass(frozen=True)
class Hackable(RowTraining):
  """hackable_diffusion (google/hackable_diffusion): noise is masks or random ids.

  One level a row. The cross-entropy of all tokens or of the noised ones alone, over all noisable
  ones. With masks, the weight and the noised ones alone it is the loss of MD4 (2406.04329, Eq. 5).
  The mask id gets no probability.

  Args:
    vocab: random ids are below it, and never the mask id.
    noise: "mask" or "uniform", its `masking_process` and `uniform_process`.
    schedule: noise schedule; its cosine is "mdlm_cosine" with eps=0.
    weighted: by -alpha' / (1 - alpha), its `MD4Loss`; else alike, its `NoWeightDiscreteLoss`.
    noised_only: its `use_mask`. A token that the noise left as it was by chance counts as noised.
    safety: times are drawn from [safety, 1 - safety].
  """

  vocab: int = dataclasses.field(kw_only=True)
  noise: str = "mask"
  schedule: MaskSchedule = LINEAR
  weighted: bool = True
  noised_only: bool = True
  safety: float = 1e-3

  def __post_init__(self):
    super().__post_init__()
    if self.vocab < 2:
      raise ValueError(f"Hackable: vocab={self.vocab} must be at least 2")
    if self.noise not in NOISES:
      raise ValueError(f"Hackable: noise={self.noise!r} is not one of {', '.join(NOISES)}")
    if not 0 <= self.safety < 0.5:
      raise ValueError(f"Hackable: safety={self.safety} must lie in [0, 0.5)")

  @property
  def exact_count(self) -> bool:
    return self.noise == "mask"

  @property
  def forbidden(self) -> tuple[int, ...]:
    return (self.mask_id,)

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    """Adds "random" [B, L]: the ids that noise puts."""
    key_noise, key_ids = jax.random.split(key)
    random = uniform.random_ids(key_ids, batch.tokens_BxL.shape, self.vocab, self.mask_id)
    return super().draw(key_noise, batch) | {"random": random}

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    del step
    t_Bx1 = (self.safety + (1 - 2 * self.safety) * self.times_of(draws))[:, None]
    level_BxL = jnp.broadcast_to(self.schedule.masked(t_Bx1), batch.tokens_BxL.shape)
    noisable_BxL = streams.noisable(batch)
    noised_BxL = (draws["u_mask"] < level_BxL) & noisable_BxL
    noisy = streams.one_stream(
      batch,
      masked_BxL=noised_BxL if self.noised_only else noisable_BxL,
      weight_BxL=self.schedule.weight(t_Bx1) if self.weighted else jnp.ones_like(t_Bx1),
      level_BxL=level_BxL,
      count_B=noisable_BxL.sum(-1),
      mask_id=self.mask_id,
    )
    noise_BxL = self.mask_id if self.noise == "mask" else draws["random"]
    return noisy.replace(inputs_BxW=jnp.where(noised_BxL, noise_BxL, batch.tokens_BxL))

  def not_a_likelihood(self) -> str | None:
    if self.noise != "mask":
      return "the weighted cross-entropy of random ids is no bound; objective 'duo' has one"
    if not (self.weighted and self.noised_only):
      return f"weighted={self.weighted}, noised_only={self.noised_only}: it is a bound with both"
    return None if self.schedule.bound else f"{self.schedule} bounds nothing"
