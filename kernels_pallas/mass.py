"""How much of a softmax some ids have, as columns [R, 1] that XLA and kernels merge."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Mass(NamedTuple):
  """The best logit, and the sum of exp(logit - finite(best)): exact differences at any scale."""

  top1_Rx1: Array
  sum_Rx1: Array

  def lse(self) -> Array:
    return finite(self.top1_Rx1) + jnp.log(self.sum_Rx1)


class Scale(NamedTuple):
  """What sums relative to one best logit are multiplied by to be relative to a better one."""

  shift_Rx1: Array
  factor_Rx1: Array


def empty(lowest_Rx1: Array) -> Mass:
  """Of no ids; `lowest` is -inf."""
  return Mass(lowest_Rx1, jnp.zeros_like(lowest_Rx1))


def of_tile(z_RxT: Array) -> Mass:
  """Of logits without NaN."""
  top1_Rx1 = z_RxT.max(1, keepdims=True)
  return Mass(top1_Rx1, jnp.exp(z_RxT - finite(top1_Rx1)).sum(1, keepdims=True))


def merge(old: Mass, new: Mass) -> Mass:
  return merged(old, new)[0]


def merged(old: Mass, new: Mass) -> tuple[Mass, tuple[Scale, Scale]]:
  """The mass of both, and what other sums of each are multiplied by."""
  top1_Rx1 = jnp.maximum(old.top1_Rx1, new.top1_Rx1)

  def scale(mass: Mass) -> Scale:
    # Not positive, but for a part without ids (best -inf, nothing to scale) or a best of +inf.
    shift_Rx1 = jnp.minimum(finite(mass.top1_Rx1) - finite(top1_Rx1), 0.0)
    return Scale(shift_Rx1, jnp.exp(shift_Rx1))

  scales = scale(old), scale(new)
  sum_Rx1 = scales[0].factor_Rx1 * old.sum_Rx1 + scales[1].factor_Rx1 * new.sum_Rx1
  return Mass(top1_Rx1, sum_Rx1), scales


def finite(top1_R: Array) -> Array:
  """What logits are compared with: their best one, or 0 where that is infinite."""
  return jnp.where(jnp.isfinite(top1_R), top1_R, 0)
