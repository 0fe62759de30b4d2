"""`tile` for the GPU kernel: adds a tile of logits to a state, and merges those of all parts.

Mosaic GPU has no columns [R, 1], no `is_finite`, no `log1p`. So statistics are vectors [R] here,
and a tile is added at once instead of becoming a state of its own: that takes fewer registers.
"""

import jax
import jax.numpy as jnp

from kernels_pallas import vocabulary
from kernels_pallas.hopper import wide
from kernels_pallas.mass import Mass
from kernels_pallas.token_stats.noise import threefry2x32
from kernels_pallas.token_stats.spec import StatSpec
from kernels_pallas.token_stats.tile import Asked, State

Array = jax.Array

_NO_ID = 2**31 - 1


def add(state: State, z_RxT: Array, ids_RxT: Array, asked: Asked, spec: StatSpec) -> State:
  """Adds a tile to the state. Ids must be higher than all before; the logits of others, -inf."""
  plain_RxT = jnp.where(vocabulary.among(ids_RxT, spec.forbidden), -jnp.inf, z_RxT)
  undefined_RxT = plain_RxT != plain_RxT
  eligible_RxT = jnp.where(undefined_RxT, -jnp.inf, plain_RxT)
  divisor = spec.divisor(None)
  scored_RxT = tempered_RxT = eligible_RxT if divisor == 1 else eligible_RxT / divisor
  if asked.cut_Rx1 is not None:
    kept_RxT = eligible_RxT >= wide(asked.cut_Rx1, ids_RxT)
    scored_RxT = jnp.where(kept_RxT, tempered_RxT, -jnp.inf)
  told_RxT = spec.told(eligible_RxT, tempered_RxT, scored_RxT)

  drawn = spec.temperature > 0
  noisy_RxT = scored_RxT
  if drawn:
    noisy_RxT = scored_RxT + _gumbel(asked.key0_Rx1, asked.key1_Rx1, ids_RxT)
  score_R = noisy_RxT.max(1)
  token_R = _lowest(ids_RxT, noisy_RxT == wide(score_R, ids_RxT))
  logit_R = top1_R = score_R
  best_R = token_R
  if drawn:
    logit_R = _at(told_RxT, ids_RxT, token_R)
    top1_R = told_RxT.max(1)
    best_R = _lowest(ids_RxT, told_RxT == wide(top1_R, ids_RxT)) if spec.top2 else None

  # A NaN logit is never chosen, and yet makes the row undefined.
  z_RxT = jnp.where(undefined_RxT, jnp.nan, told_RxT)
  better_R = score_R > state.score_Rx1
  mass, moment_R = _add_mass(state.mass, state.moment_Rx1, z_RxT, top1_R)
  state = state._replace(
    score_Rx1=jnp.where(better_R, score_R, state.score_Rx1),
    token_Rx1=jnp.where(better_R, token_R, state.token_Rx1),
    logit_Rx1=jnp.where(better_R, logit_R, state.logit_Rx1),
    moment_Rx1=moment_R,
    gathered_J=tuple(
      jnp.maximum(so_far_R, _at(plain_RxT, ids_RxT, id_R))
      for so_far_R, id_R in zip(state.gathered_J, asked.gather_J, strict=True)
    ),
  )
  if spec.top2:
    lower_R = jnp.minimum(state.mass.top1_Rx1, top1_R)
    second_R = jnp.where(ids_RxT == wide(best_R, ids_RxT), -jnp.inf, told_RxT).max(1)
    second_R = jnp.maximum(lower_R, jnp.maximum(state.top2_Rx1, second_R))
    state = state._replace(top2_Rx1=second_R)
  if spec.current:
    current_R = _at(z_RxT, ids_RxT, asked.current_Rx1)
    state = state._replace(current_Rx1=jnp.maximum(state.current_Rx1, current_R))
  if spec.outside:
    inside_RxT = vocabulary.among(ids_RxT, spec.outside)
    rest_R = jnp.where(inside_RxT, -jnp.inf, told_RxT).max(1)
    rest_RxT = jnp.where(inside_RxT, -jnp.inf, z_RxT)
    state = state._replace(outside=_add_mass(state.outside, None, rest_RxT, rest_R)[0])
  return state._replace(mass=mass)


def merge(parts: State) -> State:
  """Of [P, R], parts of ids in any order, what `tile` takes from there: [R, 1]."""
  best_PxR = parts.score_Rx1 == parts.score_Rx1.max(0)[None, :]
  token_R = jnp.where(best_PxR, parts.token_Rx1, _NO_ID).min(0)
  chosen_PxR = best_PxR & (parts.token_Rx1 == token_R[None, :])
  mass, moment_R = _merge_mass(parts.mass, parts.moment_Rx1)
  top2_R = None
  if parts.top2_Rx1 is not None:
    best_R = jnp.argmax(parts.mass.top1_Rx1, axis=0)
    others_PxR = jnp.arange(parts.top2_Rx1.shape[0])[:, None] != best_R[None, :]
    second_R = jnp.where(others_PxR, parts.mass.top1_Rx1, -jnp.inf).max(0)
    top2_R = jnp.maximum(second_R, parts.top2_Rx1.max(0))
  state = State(
    score_Rx1=parts.score_Rx1.max(0),
    token_Rx1=token_R,
    logit_Rx1=jnp.where(chosen_PxR, parts.logit_Rx1, -jnp.inf).max(0),
    mass=mass,
    moment_Rx1=moment_R,
    top2_Rx1=top2_R,
    current_Rx1=None if parts.current_Rx1 is None else parts.current_Rx1.max(0),
    outside=None if parts.outside is None else _merge_mass(parts.outside, None)[0],
    gathered_J=tuple(gathered_PxR.max(0) for gathered_PxR in parts.gathered_J),
  )
  return jax.tree.map(lambda x_R: x_R[:, None], state)


def _add_mass(
  mass: Mass, moment_R: Array | None, z_RxT: Array, best_R: Array
) -> tuple[Mass, Array | None]:
  """Adds a tile, whose best is given, to mass and moment; both are rescaled once a tile."""
  top1_R = jnp.maximum(mass.top1_Rx1, best_R)
  base_R = _finite(top1_R)
  shift_R = mass.top1_Rx1 - base_R
  factor_R = jnp.exp(shift_R)  # 0 where there was nothing
  difference_RxT = z_RxT - wide(base_R, z_RxT)
  weight_RxT = jnp.exp(difference_RxT)
  if moment_R is not None:
    moment_R = jnp.where(factor_R > 0, factor_R * (moment_R + shift_R * mass.sum_Rx1), 0.0)
    moment_R += jnp.where(weight_RxT > 0, weight_RxT * difference_RxT, 0.0).sum(1)
  return Mass(top1_R, factor_R * mass.sum_Rx1 + weight_RxT.sum(1)), moment_R


def _merge_mass(mass: Mass, moment_PxR: Array | None) -> tuple[Mass, Array | None]:
  top1_R = mass.top1_Rx1.max(0)
  shift_PxR = mass.top1_Rx1 - _finite(top1_R)[None, :]
  factor_PxR = jnp.exp(shift_PxR)
  moment_R = None
  if moment_PxR is not None:
    moment_PxR = factor_PxR * (moment_PxR + shift_PxR * mass.sum_Rx1)
    moment_R = jnp.where(factor_PxR > 0, moment_PxR, 0.0).sum(0)
  return Mass(top1_R, (factor_PxR * mass.sum_Rx1).sum(0)), moment_R


def _finite(x_R: Array) -> Array:
  return jnp.where(jnp.abs(x_R) < jnp.inf, x_R, 0.0)


def _lowest(ids_RxT: Array, where_RxT: Array) -> Array:
  return jnp.where(where_RxT, ids_RxT, _NO_ID).min(1)


def _at(z_RxT: Array, ids_RxT: Array, id_R: Array) -> Array:
  """The value of each row's id; -inf if it is not in this tile."""
  return jnp.where(ids_RxT == wide(id_R, ids_RxT), z_RxT, -jnp.inf).max(1)


def _gumbel(key0_R: Array, key1_R: Array, ids_RxT: Array) -> Array:
  """`noise.gumbel`, its log1p(-u) by way of log(1 - u) and what 1 - u has lost of u."""
  x0, x1 = threefry2x32(
    wide(key0_R, ids_RxT),
    wide(key1_R, ids_RxT),
    jnp.zeros(ids_RxT.shape, jnp.uint32),
    ids_RxT.astype(jnp.uint32),
  )
  uniform = x0.astype(jnp.float32) * 2.0**-32 + (x1.astype(jnp.float32) * 2.0**-64 + 2.0**-65)
  uniform = jnp.minimum(uniform, 1 - 2.0**-24)
  rest = 1.0 - uniform
  lost = rest == 1.0
  slope = jnp.log(rest) / jnp.where(lost, 1.0, rest - 1.0)
  return -jnp.log(uniform * jnp.where(lost, 1.0, slope))
