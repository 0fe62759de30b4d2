"""The likelihood of who writes from left to right, which needs no estimate."""

import dataclasses

import jax.numpy as jnp

from dlm import masks
from dlm.objectives import streams
from dlm.objectives.estimators.estimator import Estimator
from dlm.types import Array, Batch, MaskRule, Noisy


@dataclasses.dataclass(frozen=True)
class LeftToRight(Estimator):
  """Autoregressive models: log p of each token given those before it, exactly, in one forward.

  Of a model that reads causally and predicts the next token. A document's first token, which
  nothing stands before, counts for nothing.
  """

  shift = 1
  forwards = 1

  @property
  def attention(self) -> MaskRule:
    return masks.Causal()

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    del key, batch
    return {}

  def noisy(self, draws: dict[str, Array], batch: Batch, mask_id: int) -> Noisy:
    del draws, mask_id
    learned_BxL = streams.noisable(batch) & ~streams.first_of_document(batch)
    causal = masks.Causal()(streams.slots(batch), learned_BxL.shape[1])
    noisy = Noisy(
      inputs_BxW=batch.tokens_BxL,
      targets_BxL=batch.tokens_BxL,
      weight_BxL=learned_BxL.astype(jnp.float32),
      count_B=learned_BxL.sum(-1).astype(jnp.float32),
      slot_BxW=batch.position_BxL,
      time_BxW=jnp.zeros(learned_BxL.shape),
      mask=masks.in_segments(causal, batch.segment_BxL),
    )
    return streams.shifted(noisy)
