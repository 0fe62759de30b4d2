"""The gradient rule that all implementations in tiles share: logits are computed again, not kept.

On a mesh of several devices each has its rows and its ids (`kernels_pallas.shards`). The rule
stands outside of that split, so that operands which several devices hold get exact gradients.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from kernels_pallas import shards, vocabulary
from kernels_pallas.token_stats.spec import Inputs, StatSpec, TokenStats
from kernels_pallas.vocabulary import Held

Array = jax.Array


class Passes(Protocol):
  """The two passes over the vocabulary; hashable, and static under jit."""

  def forward(
    self, hidden_RxD: Array, unembed_VxD: Array, target_R: Array, held: Held
  ) -> tuple[Array, Array]:
    """The logsumexp of each row's logits and its target's (-inf: there is none), of all devices."""

  def backward(
    self,
    hidden_RxD: Array,
    unembed_VxD: Array,
    target_R: Array,
    lse_R: Array,
    grad_R: Array,
    held: Held,
    dtypes: tuple[jnp.dtype, jnp.dtype],
  ) -> tuple[Array, Array]:
    """The gradients of `sum(grad * (lse - target logit))`, this device's share, in those types.

    Rows of gradient 0 have hidden 0, but their lse may be NaN.
    """


def by_statistics(
  token_stats: Callable[..., TokenStats],
  forbidden: tuple[int, ...],
  hidden_RxD: Array,
  unembed_VxD: Array,
  target_R: Array,
  **how: Any,
) -> tuple[Array, Array]:
  """`Passes.forward` by an implementation of `token_stats`, told `how` as it is."""
  spec = StatSpec(current=True, forbidden=forbidden)
  stats = token_stats(hidden_RxD, unembed_VxD, spec, Inputs(current_R=target_R), **how)
  return stats.lse, stats.current


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def cross_entropy(passes: Passes, hidden_RxD: Array, unembed_VxD: Array, target_R: Array) -> Array:
  """The logsumexp minus the target's logit, float32 [R]."""
  return _forward(passes, hidden_RxD, unembed_VxD, target_R)[0]


def _forward(
  passes: Passes, hidden_RxD: Array, unembed_VxD: Array, target_R: Array
) -> tuple[Array, tuple[Array, ...]]:
  vocab = unembed_VxD.shape[0]

  def part(hidden_RxD: Array, unembed_VxD: Array, target_R: Array) -> tuple[Array, Array]:
    held = vocabulary.held(unembed_VxD, vocab)
    return passes.forward(hidden_RxD, unembed_VxD, target_R, held)

  operands = hidden_RxD, unembed_VxD, target_R
  lse_R, target_z_R = shards.run(part, ("r", "t", "r"), ("r", "r"), *operands)
  return lse_R - target_z_R, (*operands, lse_R)


def _backward(passes: Passes, saved: tuple[Array, ...], grad_R: Array) -> tuple[Array, Array, None]:
  hidden_RxD, unembed_VxD, target_R, lse_R = saved
  vocab, dtypes = unembed_VxD.shape[0], (hidden_RxD.dtype, unembed_VxD.dtype)
  own = shards.axes()

  def part(hidden_RxD: Array, unembed_VxD: Array, *by_row: Array) -> list[Array]:
    held = vocabulary.held(unembed_VxD, vocab)
    shares = functools.partial(passes.backward, hidden_RxD, unembed_VxD, *by_row, held)
    return vocabulary.summed_gradients(shares, own, dtypes)

  # A row of weight 0 may hold anything, NaN too, and 0 * NaN would spread to every gradient.
  hidden_RxD = jnp.where((grad_R != 0)[:, None], hidden_RxD, 0)
  operands = hidden_RxD, unembed_VxD, target_R, lse_R, grad_R
  return *shards.run(part, ("r", "t", "r", "r", "r"), ["r", "t"], *operands), None


cross_entropy.defvjp(_forward, _backward)
