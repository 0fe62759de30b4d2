"""Several blocks at once: the next begins before the last is finished."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from dlm.sampling.policy import Policy
from dlm.sampling.score import confidence, margin
from dlm.types import Array, Decision, StatSpec, View

SCORES = ("confidence", "margin", "entropy")


@struct.dataclass
class Pipeline:
  """Blocks of the answer, counted from its first slot; one axis, K, as long as the canvas."""

  origin_B: Array  # first slot of the answer
  blocks_B: Array  # begun so far
  eager_BxK: Array  # bool: the block before is far enough for this one to write in any case
  ended_B: Array  # a stop id was written: no block is begun any more


@dataclasses.dataclass(frozen=True)
class Pipelined(Policy):
  """D2F (2508.09192): begin the next block before the last is finished, and write in all of them.

  As its code does it (`_generate_block_single`). A block is begun when `begin` of the last one is
  written, at most one a forward. Every block begun writes what is surer than `threshold`; one whose
  predecessor is written to `eager` writes at least its best token. Blocks that are finished from
  the left are cached by the forward after.

  Args:
    block: the sampler's block.
    begin, eager: shares of a block; the paper's tau_add, and tau_act 0.95. All 1: block by block.
    score: by what the best token is found: its probability, the margin to the second best, or the
      lowest "entropy". `threshold` is one of probabilities in any case.
    end_ids: ids after which no block is begun; those of the checkpoint by default.
  """

  scope = "canvas"
  works_ahead = True
  block: int
  threshold: float = 0.9
  begin: float = 0.7
  eager: float = 0.95
  score: str = "confidence"
  end_ids: tuple[int, ...] = ()

  def __post_init__(self):
    name = type(self).__name__.lower()
    if self.block < 1:
      raise ValueError(f"{name}: block={self.block} must be at least 1")
    for field in ("begin", "eager"):
      if not 0 <= getattr(self, field) <= 1:
        raise ValueError(f"{name}: {field}={getattr(self, field)} must lie in [0, 1]")
    if not self.threshold >= 0:
      raise ValueError(f"{name}: threshold={self.threshold} must not be negative")
    if self.score not in SCORES:
      raise ValueError(f"{name}: score={self.score!r} is not one of {', '.join(SCORES)}")

  def needs(self) -> StatSpec:
    return StatSpec(top2=self.score == "margin", entropy=self.score == "entropy")

  def enter(self, masked_BxA: Array, state: Pipeline | None) -> Pipeline:
    if state is not None:
      return state
    batch, width = masked_BxA.shape
    first_K = jnp.arange(-(-width // self.block)) == 0
    return Pipeline(
      origin_B=jnp.argmax(masked_BxA, axis=1),
      blocks_B=jnp.ones(batch, jnp.int32),
      eager_BxK=jnp.broadcast_to(first_K, (batch, len(first_K))),
      ended_B=jnp.zeros(batch, bool),
    )

  def reach(self, state: Pipeline) -> Array:
    return state.origin_B + state.blocks_B * self.block

  def decide(self, view: View, state: Pipeline, key_B: Array) -> tuple[Decision, Pipeline]:
    sure_BxA = confidence(view.stats)
    best_BxA = self._score(view, sure_BxA)
    forced_BxA = self._best(view, state, best_BxA) & self._at(state, state.eager_BxK, view)
    above_BxA = sure_BxA > self.threshold
    none_BxK = ~self._any(view, state, above_BxA & view.masked_BxA)
    write_BxA = view.masked_BxA & (above_BxA | (forced_BxA & self._at(state, none_BxK, view)))
    return self._decided(view, state, write_BxA)

  def _score(self, view: View, sure_BxA: Array) -> Array:
    if self.score == "margin":
      return margin(view.stats)
    return -view.stats.entropy if self.score == "entropy" else sure_BxA

  def _decided(self, view: View, state: Pipeline, write_BxA: Array) -> tuple[Decision, Pipeline]:
    """What to write, and which blocks are begun and eager before the next forward."""
    token_BxA = view.stats.token
    wrote_BxA = write_BxA & (token_BxA != view.mask_id)
    stops_BxA = wrote_BxA & jnp.isin(token_BxA, jnp.array(self.end_ids, jnp.int32))
    left_BxK = self._count(view, state, (view.masked_BxA | view.later_BxA) & ~wrote_BxA)
    written_BxK = 1 - left_BxK / self.block
    ended_B = state.ended_B | stops_BxA.any(-1)
    last_Bx1 = state.blocks_B[:, None] - 1
    share_B = jnp.take_along_axis(written_BxK, last_Bx1, axis=1)[:, 0]
    left_B = jnp.take_along_axis(left_BxK, last_Bx1, axis=1)[:, 0]
    more_B = state.blocks_B < left_BxK.shape[1]
    blocks_B = state.blocks_B + (more_B & ~ended_B & ((share_B >= self.begin) | (left_B == 0)))
    before_BxK = jnp.pad(written_BxK[:, :-1], ((0, 0), (1, 0)), constant_values=1.0)
    begun_BxK = jnp.arange(left_BxK.shape[1])[None, :] < blocks_B[:, None]
    open_B = (jnp.where(begun_BxK, left_BxK, 0) > 0).any(-1)
    state = state.replace(
      blocks_B=blocks_B,
      eager_BxK=state.eager_BxK | (before_BxK >= self.eager),
      ended_B=ended_B,
    )
    return Decision(write_BxA, token_BxA, stop_B=ended_B & ~open_B), state

  def _block(self, view: View, state: Pipeline) -> Array:
    """Which block each slot belongs to; -1 before the answer."""
    return jnp.floor_divide(view.slot_BxA - state.origin_B[:, None], self.block)

  def _count(self, view: View, state: Pipeline, flag_BxA: Array) -> Array:
    """How many slots of each block [B, K] have the flag."""
    block_BxA, blocks = self._block(view, state), state.eager_BxK.shape[1]

    def counted(block_A: Array, flag_A: Array) -> Array:
      return jnp.zeros(blocks, jnp.int32).at[block_A].add(flag_A, mode="drop")

    inside_BxA = jnp.where(flag_BxA & (block_BxA >= 0), block_BxA, blocks)
    return jax.vmap(counted)(inside_BxA, flag_BxA.astype(jnp.int32))

  def _any(self, view: View, state: Pipeline, flag_BxA: Array) -> Array:
    return self._count(view, state, flag_BxA) > 0

  def _at(self, state: Pipeline, x_BxK: Array, view: View) -> Array:
    """The value of each slot's block."""
    block_BxA = jnp.clip(self._block(view, state), 0, x_BxK.shape[1] - 1)
    return jnp.take_along_axis(x_BxK, block_BxA, axis=1)

  def _best(self, view: View, state: Pipeline, score_BxA: Array) -> Array:
    """Bool: the first of each block's masked slots with the highest score."""
    block_BxA, blocks = self._block(view, state), state.eager_BxK.shape[1]
    score_BxA = jnp.where(view.masked_BxA, jnp.nan_to_num(score_BxA, nan=-1e30), -jnp.inf)

    def highest(block_A: Array, score_A: Array) -> Array:
      return jnp.full(blocks, -jnp.inf).at[block_A].max(score_A, mode="drop")

    top_BxK = jax.vmap(highest)(jnp.where(block_BxA < 0, blocks, block_BxA), score_BxA)
    ties_BxA = view.masked_BxA & (score_BxA == self._at(state, top_BxK, view))
    before_BxA = jnp.cumsum(ties_BxA, axis=1) - ties_BxA
    start_BxA = jnp.maximum(state.origin_B[:, None] + block_BxA * self.block, 0)
    there_BxA = jnp.take_along_axis(before_BxA, start_BxA, axis=1)
    return ties_BxA & (before_BxA == there_BxA)


@dataclasses.dataclass(frozen=True)
class Distilled(Pipelined):
  """d3LLM (2601.07568): several blocks at once, as D2F; tokens of low entropy are written.

  Its code's multi-block decoding. As `Pipelined`, but tokens go by entropy over all blocks begun:
  those of at most `threshold` nats are written, and the lowest of the leftmost eager block with
  masks if that block got nothing.

  Args:
    always: the lowest of all is written in any case, as in its code for LLaDA; False: as in that
      for Dream, where entropies must also be below the threshold, not at it.
    threshold: nats; 0.5 for LLaDA, 0.4 for Dream. begin is 0.1, eager 0.95 in its evaluations.
  """

  always: bool = True

  def needs(self) -> StatSpec:
    return StatSpec(entropy=True)

  def enter(self, masked_BxA: Array, state: Pipeline | None) -> Pipeline:
    """A block is begun before the first forward too, if the first one's share is enough."""
    if state is not None:
      return state
    state = super().enter(masked_BxA, None)
    share_B = 1 - masked_BxA.sum(-1) / self.block
    second_K = jnp.arange(state.eager_BxK.shape[1]) == 1
    return state.replace(
      blocks_B=state.blocks_B + ((share_B >= self.begin) & second_K.any()),
      eager_BxK=state.eager_BxK | (second_K[None, :] & (share_B >= self.eager)[:, None]),
    )

  def decide(self, view: View, state: Pipeline, key_B: Array) -> tuple[Decision, Pipeline]:
    entropy_BxA = jnp.where(jnp.isnan(view.stats.entropy), jnp.inf, view.stats.entropy)
    if self.always:
      lowest_Bx1 = jnp.argmin(jnp.where(view.masked_BxA, entropy_BxA, jnp.inf), axis=1)[:, None]
      index_BxA = jnp.arange(entropy_BxA.shape[1])[None, :]
      write_BxA = (entropy_BxA <= self.threshold) | (index_BxA == lowest_Bx1)
    else:
      write_BxA = entropy_BxA < self.threshold
    write_BxA &= view.masked_BxA
    waits_BxK = self._any(view, state, view.masked_BxA) & state.eager_BxK
    first_BxK = waits_BxK & (jnp.cumsum(waits_BxK, axis=1) == 1)
    starved_BxK = first_BxK & ~self._any(view, state, write_BxA)
    forced_BxA = self._best(view, state, -entropy_BxA) & self._at(state, starved_BxK, view)
    return self._decided(view, state, write_BxA | forced_BxA)
