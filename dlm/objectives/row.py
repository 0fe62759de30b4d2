"""The frame of objectives that noise a whole row at one level."""

import dataclasses

import jax

from dlm.diffusion import times
from dlm.objectives import streams
from dlm.objectives.objective import Objective
from dlm.types import Array, Batch


@dataclasses.dataclass(frozen=True)
class RowTraining(Objective):
  """One time a row; a paper says in `corrupt_with` what it masks and how it weighs that.

  Args:
    mask_id: id of [MASK].
    times: how the times of a batch are spread, see `dlm.diffusion.times`.
  """

  mask_id: int
  times: str = "iid"

  def __post_init__(self):
    owner = type(self).__name__
    streams.check_mask_id(owner, self.mask_id)
    times.check(owner, self.times)

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    """Draws "u_time", "stratum" [B] and "u_mask" [B, L]."""
    key_time, key_mask = jax.random.split(key)
    rows, length = batch.tokens_BxL.shape
    return times.draw(key_time, rows) | {"u_mask": jax.random.uniform(key_mask, (rows, length))}

  def times_of(self, draws: dict[str, Array]) -> Array:
    """Time of each row, [B] in [0, 1)."""
    return times.TIMES[self.times](draws["u_time"], draws["stratum"])
