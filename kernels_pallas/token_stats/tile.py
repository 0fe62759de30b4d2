"""What is gathered from a tile of logits, and how two such states merge: for XLA and for kernels.

Written so that Mosaic can compile it: 2-D arrays, one column [R, 1] a statistic, only maxima,
minima and sums over the lanes. `result` makes statistics of the state of all ids.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels_pallas import mass as masses
from kernels_pallas import vocabulary
from kernels_pallas.mass import Mass, finite
from kernels_pallas.token_stats.noise import gumbel_of
from kernels_pallas.token_stats.spec import Inputs, StatSpec, TokenStats

Array = jax.Array

_NO_ID = 2**31 - 1


class Asked(NamedTuple):
  """What each row brings along, None where the spec does not ask for it."""

  key0_Rx1: Array | None  # uint32, the words of its key
  key1_Rx1: Array | None
  temperature_Rx1: Array | None  # float32
  cut_Rx1: Array | None  # float32: the lowest plain logit that top-k and top-p keep
  current_Rx1: Array | None  # int32
  gather_J: tuple[Array, ...]  # int32 [R, 1] each
  divide_Rx1: Array | None = None  # float32: for kernels, which make the logits themselves


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
  soft_RxD: Array | None = None  # sum of exp(logit - finite(best)) * embedding; in XLA alone
  best_RxJ: tuple[Array, Array] | None = None  # the highest logits and their ids; in XLA alone


def asked(spec: StatSpec, inputs: Inputs, cut_R: Array | None) -> Asked:
  """The columns that a kernel reads beside hidden and unembedding."""
  key_data_Rx2 = inputs.key_data_Rx2 if spec.draws else None
  return Asked(
    key0_Rx1=None if key_data_Rx2 is None else key_data_Rx2[:, :1],
    key1_Rx1=None if key_data_Rx2 is None else key_data_Rx2[:, 1:],
    temperature_Rx1=inputs.temperature_Rx1 if spec.per_row else None,
    cut_Rx1=None if cut_R is None else cut_R[:, None],
    current_Rx1=inputs.current_R[:, None].astype(jnp.int32) if spec.current else None,
    gather_J=tuple(
      inputs.gather_id_RxJ[:, j : j + 1].astype(jnp.int32)
      for j in range(inputs.gather_id_RxJ.shape[1] if spec.gather else 0)
    ),
    divide_Rx1=None if inputs.divide_R is None else inputs.divide_R[:, None],
  )


def asked_of_kernel(spec: StatSpec, inputs: Inputs) -> Asked:
  """`asked`, without a cut.

  Raises:
    NotImplementedError: bits of allowed ids, or the spec asks for the mean embedding or `best`.
  """
  if inputs.allowed_RxU is not None:
    raise NotImplementedError("the kernel reads no bits of allowed ids")
  if spec.soft:
    raise NotImplementedError("the kernel averages no embeddings (spec.soft)")
  if spec.best:
    raise NotImplementedError("the kernel finds the best id alone (spec.best)")
  return asked(spec, inputs, None)


def empty(
  lowest_Rx1: Array, first_allowed: int, spec: StatSpec, gathered: int, embed_width: int = 0
) -> State:
  """Before the first tile; `lowest` is -inf. A row without any finite logit keeps this token."""
  nothing = masses.empty(lowest_Rx1)
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
    soft_RxD=jnp.repeat(nothing.sum_Rx1, embed_width, axis=1) if spec.soft else None,
    best_RxJ=_none_best(lowest_Rx1, first_allowed, spec.best) if spec.best else None,
  )


def of_tile(
  z_RxT: Array,
  ids_1xT: Array,
  start: Array | int,
  rows: Asked,
  spec: StatSpec,
  end: Array | int,
  embed_TxD: Array | None = None,
) -> State:
  """The state of one tile alone.

  Args:
    z_RxT: float32 logits of ids `start .. start + T`; those from `end` on may be anything.
    ids_1xT: int32 `start + 0 .. T`, [1, T] or [R, T].
    embed_TxD: embeddings of the ids, needed iff `spec.soft`.
  """
  dead_1xT = (ids_1xT >= end) | vocabulary.among(ids_1xT, spec.forbidden)
  plain_RxT = jnp.where(dead_1xT, -jnp.inf, z_RxT)
  undefined_RxT = plain_RxT != plain_RxT
  eligible_RxT = jnp.where(undefined_RxT, -jnp.inf, plain_RxT)
  scored_RxT = tempered_RxT = _divided(eligible_RxT, spec.divisor(rows.temperature_Rx1))
  if rows.cut_Rx1 is not None:
    scored_RxT = jnp.where(eligible_RxT >= rows.cut_Rx1, tempered_RxT, -jnp.inf)
  told_RxT = spec.told(eligible_RxT, tempered_RxT, scored_RxT)

  noisy_RxT = scored_RxT
  if rows.key0_Rx1 is not None:
    gumbel_RxT = gumbel_of(rows.key0_Rx1, rows.key1_Rx1, ids_1xT)
    if rows.temperature_Rx1 is not None:
      gumbel_RxT = jnp.where(rows.temperature_Rx1 > 0, gumbel_RxT, 0.0)
    noisy_RxT = scored_RxT + gumbel_RxT
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
    soft_RxD=_average(weight_RxT, embed_TxD) if spec.soft else None,
    best_RxJ=_best(told_RxT, ids_1xT, spec.best) if spec.best else None,
  )


def merge(old: State, new: State) -> State:
  """The state of both; the ids of `new` are higher, and ties go to the lower ones."""
  better_Rx1 = new.score_Rx1 > old.score_Rx1
  mass, (old_scale, new_scale) = masses.merged(old.mass, new.mass)
  moment_Rx1 = soft_RxD = None
  if old.moment_Rx1 is not None:
    moment_Rx1 = _moment(old_scale, old) + _moment(new_scale, new)
  if old.soft_RxD is not None:
    soft_RxD = old_scale.factor_Rx1 * old.soft_RxD + new_scale.factor_Rx1 * new.soft_RxD
  top2_Rx1 = None
  if old.top2_Rx1 is not None:
    lower_Rx1 = jnp.minimum(old.mass.top1_Rx1, new.mass.top1_Rx1)
    top2_Rx1 = jnp.maximum(lower_Rx1, jnp.maximum(old.top2_Rx1, new.top2_Rx1))
  current_Rx1 = None
  if old.current_Rx1 is not None:
    current_Rx1 = _found(old.current_Rx1, new.current_Rx1)
  best_RxJ = None
  if old.best_RxJ is not None:
    both = jax.tree.map(lambda *each: jnp.concatenate(each, axis=1), old.best_RxJ, new.best_RxJ)
    best_RxJ = _best(*both, old.best_RxJ[0].shape[1])
  outside = None
  if old.outside is not None:
    outside = masses.merge(old.outside, new.outside)
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
    soft_RxD=soft_RxD,
    best_RxJ=best_RxJ,
  )


def result(state: State) -> TokenStats:
  """The statistics, [R] each, of the state of all ids."""
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
  if state.best_RxJ is not None:
    stats.best_logit, stats.best = state.best_RxJ
  if state.soft_RxD is not None:
    soft_RxD = state.soft_RxD / state.mass.sum_Rx1
    stats.soft = jnp.where(jnp.isfinite(lse_Rx1), soft_RxD, jnp.nan)
  return stats


def _divided(z_RxT: Array, divisor: float | Array) -> Array:
  return z_RxT if isinstance(divisor, float) and divisor == 1 else z_RxT / divisor


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
  inside_1xT = vocabulary.among(ids_1xT, ids)
  top1_Rx1 = jnp.where(inside_1xT, -jnp.inf, told_RxT).max(1, keepdims=True)
  weight_RxT = jnp.exp(jnp.where(inside_1xT, -jnp.inf, z_RxT) - finite(top1_Rx1))
  return Mass(top1_Rx1, weight_RxT.sum(1, keepdims=True))


def _none_best(lowest_Rx1: Array, first_allowed: int, count: int) -> tuple[Array, Array]:
  logit_RxJ = jnp.repeat(lowest_Rx1, count, axis=1)
  return logit_RxJ, jnp.full_like(logit_RxJ, first_allowed, dtype=jnp.int32)


def _best(z_RxN: Array, id_RxN: Array, count: int) -> tuple[Array, Array]:
  """The highest logits and their ids, the first of equals first; fewer where N is less."""
  best_RxJ, at_RxJ = jax.lax.top_k(z_RxN, min(count, z_RxN.shape[1]))
  id_RxN = jnp.broadcast_to(id_RxN, z_RxN.shape)
  return best_RxJ, jnp.take_along_axis(id_RxN, at_RxJ, axis=1)


def _average(weight_RxT: Array, embed_TxD: Array) -> Array:
  return jnp.einsum("rt,td->rd", weight_RxT, embed_TxD, preferred_element_type=jnp.float32)


def _moment(scale: masses.Scale, state: State) -> Array:
  return scale.factor_Rx1 * (state.moment_Rx1 + scale.shift_Rx1 * state.mass.sum_Rx1)
