"""What a pass over the vocabulary gathers from each tile, and how it merges with the tiles before.

Tiles come in the order of their ids, and a later one must be strictly better: ties go to the
lowest id.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels_pallas import vocabulary
from kernels_pallas.token_stats.cut import finite
from kernels_pallas.token_stats.noise import gumbel
from kernels_pallas.token_stats.spec import Inputs, StatSpec

Array = jax.Array


class Seen(NamedTuple):
  """The logits of one tile; -inf where the id is forbidden or was in an earlier tile."""

  plain_RxT: Array
  z_RxT: Array  # plain ones at first, and what later is made of them
  eligible_RxT: Array  # the same, NaN as -inf: what may be chosen
  ids_T: Array

  def without(self, ids: tuple[int, ...]) -> "Seen":
    keep_1xT = vocabulary.allowed(self.ids_T, ids)[None, :]
    return self._replace(
      z_RxT=jnp.where(keep_1xT, self.z_RxT, -jnp.inf),
      eligible_RxT=jnp.where(keep_1xT, self.eligible_RxT, -jnp.inf),
    )

  def shaped(self, divisor: float, cut_R: Array | None) -> "Seen":
    """Tempered, and without what lies below the cut. NaN stays: such a row is undefined."""
    z_RxT, eligible_RxT = self.z_RxT / divisor, self.eligible_RxT / divisor
    if cut_R is not None:
      kept_RxT = self.eligible_RxT >= cut_R[:, None]
      z_RxT = jnp.where(kept_RxT | jnp.isnan(z_RxT), z_RxT, -jnp.inf)
      eligible_RxT = jnp.where(kept_RxT, eligible_RxT, -jnp.inf)
    return self._replace(z_RxT=z_RxT, eligible_RxT=eligible_RxT)


class Mass(NamedTuple):
  """The best logit, and the logsumexp of (logit - finite(best)): exact differences at any scale."""

  top1_R: Array
  log_R: Array

  def lse(self) -> Array:
    return finite(self.top1_R) + self.log_R


class Stats(NamedTuple):
  """Statistics of the ids so far, None where they are not asked for."""

  mass: Mass
  top2_R: Array | None
  entropy_R: Array | None
  soft_RxD: Array | None
  current_R: Array | None
  gathered_RxJ: Array | None
  outside: Mass | None


class Candidate(NamedTuple):
  """The best score so far (noisy where the candidate is drawn), whose it is, and its logit."""

  score_R: Array
  token_R: Array
  logit_R: Array


def no_stats(lowest_R: Array, spec: StatSpec, inputs: Inputs) -> Stats:
  """Before the first tile; `lowest` is -inf."""

  def filled(value_R: Array, like: Array) -> Array:
    return jnp.broadcast_to(value_R[:, None], (value_R.size, like.shape[1]))

  zero_R = jnp.zeros_like(lowest_R)
  return Stats(
    mass=Mass(lowest_R, lowest_R),
    top2_R=lowest_R if spec.top2 else None,
    entropy_R=zero_R if spec.entropy else None,
    soft_RxD=filled(zero_R, inputs.embed_VxD) if spec.soft else None,
    current_R=lowest_R if spec.current else None,
    gathered_RxJ=filled(lowest_R, inputs.gather_id_RxJ) if spec.gather else None,
    outside=Mass(lowest_R, lowest_R) if spec.outside else None,
  )


def no_candidate(lowest_R: Array, first_allowed: int) -> Candidate:
  """Before the first tile. A row without any finite logit keeps this one."""
  return Candidate(lowest_R, jnp.full_like(lowest_R, first_allowed, dtype=jnp.int32), lowest_R)


def mass_of(seen: Seen) -> Mass:
  top1_R = seen.eligible_RxT.max(1)
  return Mass(top1_R, jnp.log(jnp.exp(seen.z_RxT - finite(top1_R)[:, None]).sum(1)))


def merge(old: Mass, new: Mass) -> tuple[Mass, Array, Array]:
  """The mass of both, and the log of either's share of it."""
  top1_R = jnp.maximum(old.top1_R, new.top1_R)
  log_old_R = old.log_R + (finite(old.top1_R) - finite(top1_R))
  log_new_R = new.log_R + (finite(new.top1_R) - finite(top1_R))
  log_R = jnp.logaddexp(log_old_R, log_new_R)
  return Mass(top1_R, log_R), log_old_R - log_R, log_new_R - log_R


def add_mass(mass: Mass, seen: Seen) -> Mass:
  return merge(mass, mass_of(seen))[0]


def add_stats(so_far: Stats, seen: Seen, spec: StatSpec, inputs: Inputs) -> Stats:
  """The statistics of those ids and of a tile."""
  tile = mass_of(seen)
  mass, log_old_R, log_new_R = merge(so_far.mass, tile)
  log_p_RxT = (seen.z_RxT - finite(tile.top1_R)[:, None]) - tile.log_R[:, None]
  start = seen.ids_T[0]
  stats = so_far._replace(mass=mass)
  if spec.top2:
    lower_R = jnp.minimum(so_far.mass.top1_R, tile.top1_R)
    tile_top2_R = _second(seen.eligible_RxT, tile.top1_R)
    top2_R = jnp.maximum(lower_R, jnp.maximum(so_far.top2_R, tile_top2_R))
    stats = stats._replace(top2_R=top2_R)
  if spec.entropy:
    tile_entropy_R = -_expect(log_p_RxT, log_p_RxT).sum(1)
    # Entropy of a mixture: that of the choice of tile, plus the mean of those within tiles.
    entropy_R = _expect(log_old_R, so_far.entropy_R - log_old_R)
    entropy_R += _expect(log_new_R, tile_entropy_R - log_new_R)
    stats = stats._replace(entropy_R=entropy_R)
  if spec.soft:
    embed_TxD = jax.lax.dynamic_slice_in_dim(inputs.embed_VxD, start, seen.ids_T.size)
    p_RxT = _expect(log_p_RxT, jnp.ones_like(log_p_RxT))
    tile_RxD = jnp.einsum("rt,td->rd", p_RxT, embed_TxD, preferred_element_type=jnp.float32)
    soft_RxD = _expect(log_old_R[:, None], so_far.soft_RxD)
    stats = stats._replace(soft_RxD=soft_RxD + _expect(log_new_R[:, None], tile_RxD))
  if spec.current:
    current_Rx1 = so_far.current_R[:, None]
    current_Rx1 = _add_at_ids(current_Rx1, seen.z_RxT, start, inputs.current_R[:, None])
    stats = stats._replace(current_R=current_Rx1[:, 0])
  if spec.gather:
    gathered_RxJ = _add_at_ids(so_far.gathered_RxJ, seen.plain_RxT, start, inputs.gather_id_RxJ)
    stats = stats._replace(gathered_RxJ=gathered_RxJ)
  if spec.outside:
    stats = stats._replace(outside=add_mass(so_far.outside, seen.without(spec.outside)))
  return stats


def _second(z_RxT: Array, best_R: Array) -> Array:
  """The second best, which equals the best where two ids share it."""
  best_RxT = z_RxT == best_R[:, None]
  second_R = jnp.where(best_RxT, -jnp.inf, z_RxT).max(1)
  return jnp.where(best_RxT.sum(1) > 1, best_R, second_R)


def _expect(log_p: Array, value: Array) -> Array:
  """p * value, and 0 where p is 0 (or undefined), whatever the value is."""
  p = jnp.exp(log_p)
  return jnp.where(p > 0, p * value, 0)


def _add_at_ids(so_far_RxJ: Array, z_RxT: Array, start: Array, id_RxJ: Array) -> Array:
  """The logits of each row's ids, as far as tiles have met them."""
  inside_RxJ, z_RxJ = vocabulary.at_ids(z_RxT, id_RxJ, start)
  # A clamped last tile meets some ids again, and there they are -inf.
  return jnp.where(inside_RxJ & (z_RxJ != -jnp.inf), z_RxJ, so_far_RxJ)


def add_candidate(
  found: Candidate, shaped: Seen, told: Seen, key_data_Rx2: Array | None
) -> Candidate:
  """The better of that and the tile's best of `shaped`, whose logit is the one in `told`."""
  score_RxT = shaped.eligible_RxT
  if key_data_Rx2 is not None:
    score_RxT = score_RxT + gumbel(key_data_Rx2, shaped.ids_T)
  index_R = jnp.argmax(score_RxT, axis=1)
  score_R = jnp.take_along_axis(score_RxT, index_R[:, None], axis=1)[:, 0]
  logit_R = jnp.take_along_axis(told.eligible_RxT, index_R[:, None], axis=1)[:, 0]
  better_R = score_R > found.score_R
  return Candidate(
    score_R=jnp.where(better_R, score_R, found.score_R),
    token_R=jnp.where(better_R, shaped.ids_T[index_R], found.token_R),
    logit_R=jnp.where(better_R, logit_R, found.logit_R),
  )
