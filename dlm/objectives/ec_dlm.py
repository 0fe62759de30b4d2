"""EC-DLM: pre-training whose noise level is what was really masked. arXiv 2604.01622; its code."""

import dataclasses

import jax.numpy as jnp

from dlm.diffusion import absorbing
from dlm.objectives import streams
from dlm.objectives.row import RowTraining
from dlm.types import Array, Batch, Noisy


@dataclasses.dataclass(frozen=True)
class EcDlm(RowTraining):
  """EC-DLM (2604.01622): predict masked tokens, weighed by the share that was really masked.

  ce / r over all noisable tokens, r the masked share of a row's: one of them at least.
  The model is told r, and so are its experts. Over t ~ U(0, 1) the number of masked tokens is
  uniform on 0..n, and a row without any gets one: `ExactCount` but for one token too often.

  Args:
    times: the authors' is "iid". "shared_offset" (u + b/B) spreads the levels of a batch most
      evenly: what the experts of a batch compute then hardly varies.
    stable: nothing is weighed by 1 / r (the authors' larger runs).
  """

  stable: bool = False
  annealable = True
  exact_count = True

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    del step
    t_B = self.times_of(draws)
    noisable_BxL, u_BxL = streams.noisable(batch), draws["u_mask"]
    count_B = jnp.maximum(((u_BxL < t_B[:, None]) & noisable_BxL).sum(-1), 1)
    ratio_B = count_B / jnp.maximum(noisable_BxL.sum(-1), 1)
    ratio_BxL = jnp.broadcast_to(ratio_B[:, None], u_BxL.shape)
    return streams.one_stream(
      batch,
      # In a row that has nothing below t the lowest draw is that of a uniformly chosen token.
      masked_BxL=absorbing.lowest(u_BxL, noisable_BxL, count_B),
      weight_BxL=jnp.ones_like(ratio_BxL) if self.stable else 1 / ratio_BxL,
      level_BxL=ratio_BxL,
      count_B=noisable_BxL.sum(-1),
      mask_id=self.mask_id,
    )

  def not_a_likelihood(self) -> str | None:
    if self.stable:
      return "stable=True weighs all noise levels alike"
    return "rows where nothing was drawn mask one token: that level counts twice"
