"""The gradient rule that all implementations in tiles share: logits are computed again, not kept.

It stands outside of the split over devices, as that of `linear_xent` does.
"""

import functools
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from kernels_pallas import shards, vocabulary
from kernels_pallas.linear_distill import tile as tiles
from kernels_pallas.linear_distill.spec import Spec
from kernels_pallas.vocabulary import Held

Array = jax.Array


class Operands(NamedTuple):
  hidden_RxD: Array
  unembed_VxD: Array
  teacher_hidden_RxE: Array
  teacher_unembed_VxE: Array


_SPLIT = Operands("r", "t", "r", "t")


class Passes(Protocol):
  """The passes over both vocabularies; hashable, and static under jit."""

  spec: Spec

  def forward(self, operands: Operands, held: Held) -> tiles.State:
    """Of this device's ids."""

  def backward(
    self,
    operands: Operands,
    sums: tiles.Sums,
    grad_R: Array,
    held: Held,
    dtypes: tuple[jnp.dtype, jnp.dtype],
  ) -> tuple[Array, Array]:
    """The gradients of the student's hidden states and unembedding, this device's share, in those
    types. Rows of gradient 0 have hidden 0, but their sums and the teacher's may be NaN.
    """


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def divergence(passes: Passes, operands: Operands) -> Array:
  """Nats, float32 [R]."""
  return _forward(passes, operands)[0]


def _forward(passes: Passes, operands: Operands) -> tuple[Array, tuple]:
  vocab = operands.unembed_VxD.shape[0]

  def part(own: Operands) -> tuple[Array, tiles.Sums]:
    held = vocabulary.held(own.unembed_VxD, vocab)
    state = vocabulary.of_all(tiles.merge, passes.forward(own, held), held)
    return tiles.result(state, passes.spec)

  nats_R, sums = shards.run(part, (_SPLIT,), "r", operands)
  return nats_R, (operands, sums)


def _backward(passes: Passes, saved: tuple, grad_R: Array) -> tuple[Operands]:
  operands, sums = saved
  hidden_RxD, unembed_VxD = operands[:2]
  vocab, dtypes = unembed_VxD.shape[0], (hidden_RxD.dtype, unembed_VxD.dtype)
  split = shards.axes()

  def part(own: Operands, sums: tiles.Sums, grad_R: Array) -> list[Array]:
    held = vocabulary.held(own.unembed_VxD, vocab)
    shares = functools.partial(passes.backward, own, sums, grad_R, held)
    return vocabulary.summed_gradients(shares, split, dtypes)

  # A row of weight 0 may hold anything, NaN too, and 0 * NaN would spread to every gradient.
  operands = operands._replace(hidden_RxD=jnp.where((grad_R != 0)[:, None], hidden_RxD, 0))
  gradients = shards.run(part, (_SPLIT, "r", "r"), ["r", "t"], operands, sums, grad_R)
  return (Operands(*gradients, None, None),)


divergence.defvjp(_forward, _backward)
