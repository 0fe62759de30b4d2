"""What a kernel gathers from a tile of logits, and how two such states merge.

Written for Mosaic on TPU and on GPU: 2-D arrays, one column [R, 1] a statistic, only maxima, minima
and sums over the lanes. A state is the kernel's output; `result` makes statistics of it outside.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels_pallas.token_stats.cut import finite
from kernels_pallas.token_stats.noise import gumbel_of
from kernels_pallas.token_stats.spec import Inputs, StatSpec, TokenStats

Array = jax.Array

_NO_ID = 2**31 - 1


class Asked(NamedTuple):
  """What each row brings along, None where the spec does not ask for it."""

  key0_Rx1: Array | None  # uint32, the words of its key
  key1_Rx1: Array | None
  cut_Rx1: Array | None  # float32: the lowest plain logit that top-k and top-p keep
  current_Rx1: Array | None  # int32
  gather_J: tuple[Array, ...]  # int32 [R, 1] each


class Mass(NamedTuple):
  """The best logit, and the sum of exp(logit - finite(best)): exact differences at any scale."""

  top1_Rx1: Array
  sum_Rx1: Array

  def lse(self) -> Array:
    return finite(self.top1_Rx1) + jnp.log(self.sum_Rx1)


class State(NamedTuple):
  """Of the ids so far, [R, 1] each, None where the spec does not ask for it."""

  score_Rx1: Array  # the best one, noisy where the candidate is drawn
  token_Rx1: Array  # int32, whose it is
  logit_Rx1: Array  # and its logit
  mass: Mass
  moment_Rx1: Array | None  # sum of d * exp(d), d = logit - finite(best): never positive
  top2_Rx1: Array | None
  current_Rx1: Array | None
  outside: Mass | None
  gathered_J: tuple[Array, ...]


def asked(spec: StatSpec, inputs: Inputs, cut_R: Array | None) -> Asked:
  """The columns that a kernel reads beside hidden and unembedding."""
  key_data_Rx2 = inputs.key_data_Rx2 if spec.temperature > 0 else None
  return Asked(
    key0_Rx1=None if key_data_Rx2 is None else key_data_Rx2[:, :1],
    key1_Rx1=None if key_data_Rx2 is None else key_data_Rx2[:, 1:],
    cut_Rx1=None if cut_R is None else cut_R[:, None],
    current_Rx1=inputs.current_R[:, None].astype(jnp.int32) if spec.current else None,
    gather_J=tuple(
      inputs.gather_id_RxJ[:, j : j + 1].astype(jnp.int32)
      for j in range(inputs.gather_id_RxJ.shape[1] if spec.gather else 0)
    ),
  )


def empty(lowest_Rx1: Array, first_allowed: int, spec: StatSpec, gathered: int) -> State:
  """Before the first tile; `lowest` is -inf. A row without any finite logit keeps this token."""
  nothing = Mass(lowest_Rx1, jnp.zeros_like(lowest_Rx1))
  return State(
    score_Rx1=lowest_Rx1,
    token_Rx1=jnp.full_like(lowest_Rx1, first_allowed, dtype=jnp.int32),
    logit_Rx1=lowest_Rx1,
    mass=nothing,
    moment_Rx1=nothing.sum_Rx1 if spec.entropy else None,
    top2_Rx1=lowest_Rx1 if spec.top2 else None,
    current_Rx1=lowest_Rx1 if spec.current else None,
    outside=nothing if spec.outside else None,
    gathered_J=(lowest_Rx1,) * gathered,
  )


def of_tile(
  z_RxT: Array, ids_1xT: Array, start: Array, rows: Asked, spec: StatSpec, vocab: int
) -> State:
  """The state of one tile alone.

  Args:
    z_RxT: float32 logits of ids `start .. start + T`; those beyond `vocab` may be anything.
    ids_1xT: int32 `start + 0 .. T`, [1, T] or [R, T].
    start: int32 scalar.
  """
  dead_1xT = (ids_1xT >= vocab) | _among(ids_1xT, spec.forbidden)
  plain_RxT = jnp.where(dead_1xT, -jnp.inf, z_RxT)
  undefined_RxT = plain_RxT != plain_RxT
  eligible_RxT = jnp.where(undefined_RxT, -jnp.inf, plain_RxT)
  scored_RxT = eligible_RxT if spec.divisor == 1 else eligible_RxT / spec.divisor
  if rows.cut_Rx1 is not None:
    scored_RxT = jnp.where(eligible_RxT >= rows.cut_Rx1, scored_RxT, -jnp.inf)
  told_RxT = scored_RxT if spec.shaped else eligible_RxT

  noisy_RxT = scored_RxT
  if rows.key0_Rx1 is not None:
    noisy_RxT = scored_RxT + gumbel_of(rows.key0_Rx1, rows.key1_Rx1, ids_1xT)
  score_Rx1 = noisy_RxT.max(1, keepdims=True)
  token_Rx1 = _lowest(ids_1xT, noisy_RxT == score_Rx1)
  logit_Rx1 = top1_Rx1 = score_Rx1
  best_Rx1 = token_Rx1
  if rows.key0_Rx1 is not None:
    logit_Rx1 = _value(told_RxT, ids_1xT == token_Rx1)
    top1_Rx1 = told_RxT.max(1, keepdims=True)
    best_Rx1 = _lowest(ids_1xT, told_RxT == top1_Rx1) if spec.top2 else None

  # A NaN logit is never chosen, and yet makes the row undefined, whatever is cut.
  z_RxT = jnp.where(undefined_RxT, jnp.nan, told_RxT)
  difference_RxT = z_RxT - finite(top1_Rx1)
  weight_RxT = jnp.exp(difference_RxT)
  return State(
    score_Rx1=score_Rx1,
    token_Rx1=token_Rx1,
    logit_Rx1=logit_Rx1,
    mass=Mass(top1_Rx1, weight_RxT.sum(1, keepdims=True)),
    moment_Rx1=_value(difference_RxT * weight_RxT, weight_RxT > 0) if spec.entropy else None,
    top2_Rx1=_second(told_RxT, ids_1xT == best_Rx1) if spec.top2 else None,
    current_Rx1=_at(rows.current_Rx1, z_RxT, ids_1xT, start) if spec.current else None,
    outside=_outside(z_RxT, told_RxT, ids_1xT, spec.outside) if spec.outside else None,
    gathered_J=tuple(_at(id_Rx1, plain_RxT, ids_1xT, start) for id_Rx1 in rows.gather_J),
  )


def merge(old: State, new: State) -> State:
  """The state of both; the ids of `new` are higher, and ties go to the lower ones."""
  better_Rx1 = new.score_Rx1 > old.score_Rx1
  mass, moment_Rx1 = _merge_mass(old.mass, new.mass, old.moment_Rx1, new.moment_Rx1)
  top2_Rx1 = None
  if old.top2_Rx1 is not None:
    lower_Rx1 = jnp.minimum(old.mass.top1_Rx1, new.mass.top1_Rx1)
    top2_Rx1 = jnp.maximum(lower_Rx1, jnp.maximum(old.top2_Rx1, new.top2_Rx1))
  current_Rx1 = None
  if old.current_Rx1 is not None:
    current_Rx1 = _found(old.current_Rx1, new.current_Rx1)
  outside = None
  if old.outside is not None:
    outside, _ = _merge_mass(old.outside, new.outside, None, None)
  return State(
    score_Rx1=jnp.where(better_Rx1, new.score_Rx1, old.score_Rx1),
    token_Rx1=jnp.where(better_Rx1, new.token_Rx1, old.token_Rx1),
    logit_Rx1=jnp.where(better_Rx1, new.logit_Rx1, old.logit_Rx1),
    mass=mass,
    moment_Rx1=moment_Rx1,
    top2_Rx1=top2_Rx1,
    current_Rx1=current_Rx1,
    outside=outside,
    gathered_J=tuple(map(_found, old.gathered_J, new.gathered_J)),
  )


def result(state: State) -> TokenStats:
  """The statistics, [R] each, of the state of all ids. `soft` is not among them."""
  lse_Rx1 = state.mass.lse()
  entropy_Rx1 = None
  if state.moment_Rx1 is not None:
    sum_Rx1 = state.mass.sum_Rx1
    entropy_Rx1 = jnp.log(sum_Rx1) - state.moment_Rx1 / sum_Rx1
    entropy_Rx1 = jnp.where(jnp.isfinite(lse_Rx1), entropy_Rx1, jnp.nan)
  columns = TokenStats(
    token=state.token_Rx1,
    logit=state.logit_Rx1,
    top1=state.mass.top1_Rx1,
    lse=lse_Rx1,
    top2=state.top2_Rx1,
    entropy=entropy_Rx1,
    current=state.current_Rx1,
    lse_outside=None if state.outside is None else state.outside.lse(),
  )
  stats = jax.tree.map(lambda column_Rx1: column_Rx1[:, 0], columns)
  if state.gathered_J:
    stats.gathered = jnp.concatenate(state.gathered_J, axis=1)
  return stats


def _among(ids_1xT: Array, ids: tuple[int, ...]) -> Array:
  """Whether each is one of `ids`: two comparisons for each run of consecutive ones."""
  among_1xT = ids_1xT < 0
  for i in sorted(set(ids) - {i + 1 for i in ids}):
    end = next(k for k in range(i + 1, i + 2 + len(ids)) if k not in ids)
    among_1xT |= (ids_1xT >= i) & (ids_1xT < end)
  return among_1xT


def _lowest(ids_1xT: Array, where_RxT: Array) -> Array:
  return jnp.where(where_RxT, ids_1xT, _NO_ID).min(1, keepdims=True)


def _value(z_RxT: Array, where_RxT: Array) -> Array:
  """The sum there: exactly the value of a single id, NaN and infinities too."""
  return jnp.where(where_RxT, z_RxT, 0.0).sum(1, keepdims=True)


def _second(z_RxT: Array, best_RxT: Array) -> Array:
  return jnp.where(best_RxT, -jnp.inf, z_RxT).max(1, keepdims=True)


def _at(id_Rx1: Array, z_RxT: Array, ids_1xT: Array, start: Array) -> Array:
  """The logit of each row's id; -inf if it is not in this tile."""
  inside_Rx1 = (id_Rx1 >= start) & (id_Rx1 < start + z_RxT.shape[1])
  return jnp.where(inside_Rx1, _value(z_RxT, ids_1xT == id_Rx1), -jnp.inf)


def _found(old_Rx1: Array, new_Rx1: Array) -> Array:
  return jnp.where(new_Rx1 == -jnp.inf, old_Rx1, new_Rx1)


def _outside(z_RxT: Array, told_RxT: Array, ids_1xT: Array, ids: tuple[int, ...]) -> Mass:
  inside_1xT = _among(ids_1xT, ids)
  top1_Rx1 = jnp.where(inside_1xT, -jnp.inf, told_RxT).max(1, keepdims=True)
  weight_RxT = jnp.exp(jnp.where(inside_1xT, -jnp.inf, z_RxT) - finite(top1_Rx1))
  return Mass(top1_Rx1, weight_RxT.sum(1, keepdims=True))


def _merge_mass(
  old: Mass, new: Mass, old_moment_Rx1: Array | None, new_moment_Rx1: Array | None
) -> tuple[Mass, Array | None]:
  top1_Rx1 = jnp.maximum(old.top1_Rx1, new.top1_Rx1)
  sum_Rx1, moment_Rx1 = 0.0, None if old_moment_Rx1 is None else 0.0
  for mass, part_Rx1 in ((old, old_moment_Rx1), (new, new_moment_Rx1)):
    # Not positive, but for a part without ids (best -inf, nothing to scale) or a best of +inf.
    shift_Rx1 = jnp.minimum(finite(mass.top1_Rx1) - finite(top1_Rx1), 0.0)
    scale_Rx1 = jnp.exp(shift_Rx1)
    sum_Rx1 += scale_Rx1 * mass.sum_Rx1
    if part_Rx1 is not None:
      moment_Rx1 += scale_Rx1 * (part_Rx1 + shift_Rx1 * mass.sum_Rx1)
  return Mass(top1_Rx1, sum_Rx1), moment_Rx1
