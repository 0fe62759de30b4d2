"""Where top-k and top-p cut, found by the GPU kernel's own passes over its own logits.

Of a sum in another order the id at the cut might fall just below: with top_k=1 none would be left.
So each pass is `gpu`'s walk with another state. What a pass can keep of a row are a few numbers and
not the k best logits, so top-k is found by counting.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kernels_pallas import hopper, vocabulary
from kernels_pallas.hopper import wide
from kernels_pallas.mass import finite
from kernels_pallas.token_stats import cut
from kernels_pallas.token_stats.spec import Inputs, StatSpec
from kernels_pallas.vocabulary import Held

Array = jax.Array
# The states [P, R] of all parts, from `empty()` by `add(state, z_RxT, ids_RxT, columns)`,
# given the columns and how many ids are added at once.
Fold = Callable[[Callable[[], Any], Callable[..., Any], Any, int], Any]

_LANES = 64  # ids that are added at once: with 32, compiling takes several times as long
_VALUES = 8  # at which a pass measures: a few registers are spilled, and with 16 twice as many
COLUMNS = 4 + _VALUES + _VALUES + 1  # numbers a row of a pass: those it is given, those it finds


class _Best(NamedTuple):
  top1_R: Array
  low_R: Array  # the lowest finite logit; inf: there is none
  count_R: Array  # float32, of the finite ones


class _Asked(NamedTuple):
  value_C: tuple[Array, ...]
  floor_R: Array | None  # ids below it do not count; None: all do
  top1_R: Array | None  # ids weigh as much as their probability over that of this logit; None: 1


def lowest_kept(
  fold: Fold, spec: StatSpec, inputs: Inputs, lowest_R: Array, held: Held
) -> Array | None:
  """See `passes.lowest_kept`. A pass for the best logits, eight more for top-p, and for top-k three
  or four, unless others lie close to the k-th.

  Raises:
    NotImplementedError: top-k of a vocabulary that is split over devices: each would count as often
      as its own rows need, and they have to meet.
  """
  total = held.total
  by_count = 0 < spec.top_k < total
  if spec.cuts(total, inputs) and by_count and held.axis is not None:
    raise NotImplementedError("the kernel finds no top-k of a vocabulary that is split")

  def best() -> _Best:
    def add(state: _Best, z_RxT: Array, ids_RxT: Array, _: Any) -> _Best:
      z_RxT = _eligible(z_RxT, ids_RxT, spec)
      some_RxT = z_RxT > -jnp.inf
      return _Best(
        jnp.maximum(state.top1_R, z_RxT.max(1)),
        jnp.minimum(state.low_R, jnp.where(some_RxT, z_RxT, jnp.inf).min(1)),
        state.count_R + jnp.where(some_RxT, 1.0, 0.0).sum(1),
      )

    return fold(lambda: _Best(_all(-jnp.inf), _all(jnp.inf), _all(0.0)), add, (), _LANES)

  def above(floor_R: Array | None, top1_R: Array | None, value_CxR: Array) -> tuple[Array, Array]:
    def add(state: tuple[Array, ...], z_RxT: Array, ids_RxT: Array, asked: _Asked):
      z_RxT = _eligible(z_RxT, ids_RxT, spec)
      if asked.top1_R is None:
        weight_RxT = jnp.where(z_RxT > -jnp.inf, 1.0, 0.0)
      else:
        weight_RxT = jnp.exp((z_RxT - wide(asked.top1_R, z_RxT)) / spec.divisor(None))
      if asked.floor_R is not None:
        weight_RxT = jnp.where(z_RxT >= wide(asked.floor_R, z_RxT), weight_RxT, 0.0)
      reach = [jnp.where(z_RxT >= wide(x_R, z_RxT), weight_RxT, 0.0) for x_R in asked.value_C]
      return tuple(
        sum_R + each_RxT.sum(1) for sum_R, each_RxT in zip(state, [*reach, weight_RxT], strict=True)
      )

    asked = _Asked(tuple(value_CxR), floor_R, top1_R)
    parts = fold(lambda: (_all(0.0),) * (_VALUES + 1), add, asked, _LANES)
    own = [x_PxR.sum(0) for x_PxR in parts]
    *above_C, all_R = vocabulary.of_all(lambda a, b: jax.tree.map(jnp.add, a, b), own, held)
    return jnp.stack(above_C), all_R

  def find() -> Array:
    parts = best()
    top1_R = vocabulary.of_all(jnp.maximum, parts.top1_R.max(0), held)
    base_R, cut_R, floor_R = finite(top1_R), lowest_R, None
    if by_count:
      low_R = parts.low_R.min(0)
      if spec.top_k <= len(parts.top1_R):  # the best of so many parts are so many ids
        best_RxK = jax.lax.top_k(parts.top1_R.T, spec.top_k)[0]
        low_R = jnp.maximum(low_R, best_RxK[:, -1])
      enough_R = parts.count_R.sum(0) >= spec.top_k
      low_R = jnp.where(enough_R, low_R, base_R)
      count = functools.partial(above, None, None)
      cut_R = jnp.where(
        enough_R, cut.k_best_cut(count, _VALUES, base_R, low_R, spec.top_k), -jnp.inf
      )
      floor_R = cut_R if spec.top_p_of == "top_k" else None
    if spec.top_p < 1 or inputs.top_p_R is not None:
      mass = functools.partial(above, floor_R, base_R)
      share_R, rule = spec.share(inputs, lowest_R.size), spec.top_p_rule
      by_mass_R = cut.top_p_cut(mass, _VALUES, top1_R, total, share_R, rule, spec.divisor(None))
      cut_R = jnp.maximum(cut_R, by_mass_R)
    return cut_R

  return cut.if_any(find, spec, inputs, lowest_R, total)


def _eligible(z_RxT: Array, ids_RxT: Array, spec: StatSpec) -> Array:
  """What may be chosen, -inf elsewhere: forbidden ids may not, and NaN is no logit."""
  dead_RxT = vocabulary.among(ids_RxT, spec.forbidden) | (z_RxT != z_RxT)
  return jnp.where(dead_RxT, -jnp.inf, z_RxT)


def _all(value: float) -> Array:
  return jnp.full(hopper.ROWS, value, jnp.float32)
