"""The sampling loop, with a stop every second forward at which samples are compared."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from dlm.sampling import loop
from dlm.sampling.canvas import masked, write
from dlm.sampling.policy import Wrapper
from dlm.sampling.sampler import Sampler
from dlm.sampling.score import confidence
from dlm.sampling.state import LoopState
from dlm.types import Array, Canvas, Decision, Params, View

Agreed = Callable[[np.ndarray, np.ndarray], np.ndarray]  # tokens, masked -> released, all [B, L]


@struct.dataclass
class Proposed:
  inner: Any
  token_BxL: Array  # candidates of the row's last forward
  confidence_BxL: Array  # theirs; -inf where nothing was to be decided


@dataclasses.dataclass(frozen=True)
class Proposing(Wrapper):
  """`inner`, and what the last forward would have written elsewhere."""

  scope = "canvas"

  def enter(self, masked_BxA: Array, state: Proposed | None) -> Proposed:
    inner = self.inner.enter(masked_BxA, None if state is None else state.inner)
    nothing_BxA = jnp.full(masked_BxA.shape, -jnp.inf)
    return Proposed(inner, jnp.zeros(masked_BxA.shape, jnp.int32), nothing_BxA)

  def decide(self, view: View, state: Proposed, key_B: Array) -> tuple[Decision, Proposed]:
    decision, inner = self.inner.decide(view, state.inner, key_B)
    sure_BxA = jnp.where(view.masked_BxA, confidence(view.stats), -jnp.inf)
    return decision, Proposed(inner, view.stats.token, sure_BxA)

  def inner_state(self, state: Proposed) -> Any:
    return state.inner


def sample(
  sampler: Sampler,
  params: Params,
  canvas: Canvas,
  agreed: Agreed,
  *,
  threshold: float = 0.02,
  share: float = 0.0,
  every: int = 2,
) -> Canvas:
  """Denoises the samples of one prompt, one a row. DiffTester, arXiv 2509.24975.

  After the first of every `every` forwards the candidates that `agreed` names are written too, if
  they are sure enough. What stands behind a written stop id is filled with it (`on_eos` "fill").
  Rows need each other, so here a row alone is not the row in a batch.

  Args:
    threshold: least confidence of a candidate that is released.
    share: above 0, confidence is a candidate's share of softmax(confidences / share) over the
      row's masked slots, as the authors' code compares it with alg_temp=share (theirs 0.2).

  Raises:
    ValueError: the sampler caches, or the rows' open slots are more than one block.
  """
  _check(sampler, canvas, threshold=threshold, share=share, every=every)
  sampler = dataclasses.replace(
    # Samples are compared after equally many forwards: none may wait for others.
    sampler,
    policy=Proposing(sampler.policy),
    scope=None,
    on_eos="fill",
    positions=0,
  )
  state = jax.jit(loop.start, static_argnums=0)(sampler, canvas)
  forwards = 1
  while not np.asarray(state.canvas.done_B).all():
    state = _forwards(sampler, params, state, forwards)
    masked_BxL = np.asarray(masked(state.canvas, sampler.mask_id) & ~state.canvas.done_B[:, None])
    tokens_BxL = np.where(masked_BxL, state.policy.token_BxL, state.canvas.tokens_BxL)
    sure_BxL = _confidence(np.asarray(state.policy.confidence_BxL), share) >= threshold
    released_BxL = agreed(tokens_BxL, masked_BxL) & masked_BxL & sure_BxL
    state = _write(sampler, state, released_BxL)
    forwards = every
  return state.canvas


def _check(sampler: Sampler, canvas: Canvas, **positive: float) -> None:
  if sampler.plan.cached:
    raise ValueError("difftester needs cache 'none', since it writes tokens between forwards")
  if positive["every"] < 1:
    raise ValueError(f"difftester: every={positive['every']} must be at least 1")
  for name in ("threshold", "share"):
    if not 0 <= positive[name] < np.inf:
      raise ValueError(f"difftester: {name}={positive[name]} must be finite and not negative")
  slots = np.asarray(canvas.open_BxL)
  last_B = slots.shape[1] - np.argmax(slots[:, ::-1], axis=1)
  if (last_B > np.asarray(canvas.start_B) + sampler.block).any():
    raise ValueError(f"difftester: block={sampler.block} must hold all new tokens of a row")


@functools.partial(jax.jit, static_argnums=0)
def _forwards(sampler: Sampler, params: Params, state: LoopState, n: int) -> LoopState:
  """`n` steps of the loop, fewer where every row is done before."""

  def more(carry: tuple[Array, LoopState]) -> Array:
    return (carry[0] < n) & ~carry[1].canvas.done_B.all()

  def step(carry: tuple[Array, LoopState]) -> tuple[Array, LoopState]:
    return carry[0] + 1, loop.step(sampler, params, carry[1])

  return jax.lax.while_loop(more, step, (jnp.int32(0), state))[1]


def _confidence(sure_BxL: np.ndarray, share: float) -> np.ndarray:
  if not share:
    return sure_BxL
  best_Bx1 = sure_BxL.max(-1, keepdims=True)
  with np.errstate(invalid="ignore"):  # a row in which nothing is masked: -inf - -inf
    weight_BxL = np.nan_to_num(np.exp((sure_BxL - best_Bx1) / share))
  return weight_BxL / np.maximum(weight_BxL.sum(-1, keepdims=True), 1e-30)


@functools.partial(jax.jit, static_argnums=0)
def _write(sampler: Sampler, state: LoopState, released_BxL: Array) -> LoopState:
  canvas = state.canvas
  slot_BxL = jnp.broadcast_to(jnp.arange(released_BxL.shape[1])[None, :], released_BxL.shape)
  canvas = write(canvas, released_BxL, slot_BxL, state.policy.token_BxL, turn_B=canvas.turn_B)
  written_B = ~masked(canvas, sampler.mask_id).any(-1)
  return state.replace(canvas=canvas.replace(done_B=canvas.done_B | written_B))
