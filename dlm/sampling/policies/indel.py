"""Write, replace, insert and delete: a block is edited until it stands still."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from dlm.edits import moved
from dlm.sampling import chance, select, shifts
from dlm.sampling.policy import Policy
from dlm.sampling.score import confidence
from dlm.types import Array, Decision, StatSpec, TokenStats, View

TRIES = 5  # to get out of a cycle, in the checkpoint's code


@struct.dataclass
class InDelState:
  """Of a row's active block; H: forwards that it may take."""

  original_BxA: Array  # bool: what began as the block's masks, wherever it has moved
  count_B: Array  # how many those were
  spent_B: Array  # forwards that found none of them masked
  seen_BxHxA: Array  # the blocks so far, -1: none yet. A block that comes again is a cycle
  written_BxHxA: Array | None = None  # what each forward chose, -1 elsewhere; SGLang's loop alone


@dataclasses.dataclass(frozen=True)
class _Editor(Policy):
  """What both loops are made of."""

  shifts = True
  insert_id: int | None
  delete_id: int | None
  threshold: float = 0.5
  edit: float = 0.0
  most: int = 16

  def __post_init__(self):
    name = type(self).__name__
    if None in (self.insert_id, self.delete_id):
      raise ValueError(
        f"{name}: insert_id={self.insert_id} and delete_id={self.delete_id} must be ids; the "
        "checkpoint names none"
      )
    for field in ("threshold", "edit"):
      if not 0 <= getattr(self, field) <= 1:
        raise ValueError(f"{name}: {field}={getattr(self, field)} must lie in [0, 1]")
    if self.most < 0:
      raise ValueError(f"{name}: most={self.most} must not be negative")

  def needs(self) -> StatSpec:
    return StatSpec(best=self.ids)

  def enter(self, masked_BxA: Array, state: InDelState | None) -> InDelState:
    batch, width = masked_BxA.shape
    return InDelState(
      original_BxA=masked_BxA,
      count_B=masked_BxA.sum(-1),
      spent_B=jnp.zeros(batch, jnp.int32),
      seen_BxHxA=jnp.full((batch, self.most_forwards(width), width), -1, jnp.int32),
    )

  def _replaced(self, view: View, sure_BxA: Array) -> Array:
    """Bool: written slots that get another token."""
    written_BxA = view.open_BxA & view.scored_BxA & (view.tokens_BxA != view.mask_id)
    return written_BxA & (view.stats.token != view.tokens_BxA) & (sure_BxA > self.edit)

  def _carried_out(
    self, view: View, state: InDelState, token_BxA: Array, spent_B: Array
  ) -> tuple[Decision, InDelState, Array]:
    """The decision that each slot holds `token` or is edited by it, and the block after that."""
    edits_BxA = (token_BxA == self.insert_id) | (token_BxA == self.delete_id)
    decision = Decision(
      write_BxA=view.open_BxA & ~edits_BxA & (token_BxA != view.tokens_BxA),
      token_BxA=token_BxA,
      insert_BxA=view.open_BxA & (token_BxA == self.insert_id),
      delete_BxA=view.open_BxA & (token_BxA == self.delete_id),
    )
    source_BxA = shifts.sources(view, decision.insert_BxA, decision.delete_BxA, self.scope)
    after_BxA = jnp.where(decision.write_BxA, token_BxA, view.tokens_BxA)
    after_BxA = moved(after_BxA, source_BxA, view.mask_id)
    original_BxA = moved(state.original_BxA, source_BxA, False)
    return decision, state.replace(original_BxA=original_BxA, spent_B=spent_B), after_BxA


@dataclasses.dataclass(frozen=True)
class InDel(_Editor):
  """LLaDA2.2 (inclusionAI/LLaDA2.X): replace, insert and delete until the block stands still.

  As the checkpoint's own code does it. Every forward writes masks with confidence > `threshold`, if
  those are as many as the schedule wants (the block's masks over `steps`, and all masks that edits
  made), else so many of the surest; from forward `steps` on all. It replaces written tokens whose
  candidate is another with confidence > `edit`. A candidate may be an edit: the slot of `delete_id`
  goes, and before that of `insert_id`, which keeps its token, comes a mask.

  A block ends when a forward finds no mask and changes nothing; or when `most` forwards in a row
  found none of its first masks, of which the last one writes all masks, and no edit (most=0: the
  forward that writes the last of them does). If the text was the same once before, one changed slot
  at random gets another token.

  Args:
    limit: forwards of a block; masks may be left then.
  """

  steps: int = 32
  limit: int = 1000
  ids = 3  # the best one, if it is neither of the edits

  def __post_init__(self):
    super().__post_init__()
    for field in ("steps", "limit"):
      if getattr(self, field) < 1:
        raise ValueError(f"InDel: {field}={getattr(self, field)} must be at least 1")

  def most_forwards(self, slots: int) -> int:
    return self.limit

  def decide(self, view: View, state: InDelState, key_B: Array) -> tuple[Decision, InDelState]:
    stats, masked_BxA, step_B = view.stats, view.masked_BxA, view.step_B
    sure_BxA = confidence(stats)
    original_BxA = masked_BxA & state.original_BxA
    spent_B = jnp.where(original_BxA.any(-1), 0, state.spent_B + 1)

    want_B = state.count_B // self.steps + (step_B < state.count_B % self.steps)
    want_B += (masked_BxA & ~original_BxA).sum(-1)
    fills_BxA = select.above_or_top(sure_BxA, masked_BxA, self.threshold, want_B)
    fills_BxA = jnp.where((step_B >= self.steps)[:, None], masked_BxA, fills_BxA)
    takes_all_B = original_BxA.any(-1) & ~(original_BxA & ~fills_BxA).any(-1)
    last_B = jnp.where(self.most > 0, spent_B >= self.most, takes_all_B)
    writes_BxA = jnp.where(last_B[:, None], masked_BxA, fills_BxA) | self._replaced(view, sure_BxA)

    text_BxA, _ = _another(stats, among=(self.insert_id, self.delete_id))
    chosen_BxA = jnp.where(last_B[:, None], text_BxA, stats.token)
    chosen_BxA = jnp.where(writes_BxA, chosen_BxA, view.tokens_BxA)
    chosen_BxA = self._out_of_cycles(view, state, chosen_BxA, ~last_B, key_B)
    decision, state, after_BxA = self._carried_out(view, state, chosen_BxA, spent_B)
    state = state.replace(seen_BxHxA=_noted(state.seen_BxHxA, step_B, chosen_BxA))

    stands_B = ~masked_BxA.any(-1) & (after_BxA == view.tokens_BxA).all(-1)
    leave_B = stands_B | last_B | (step_B + 1 >= self.limit)
    return decision.replace(leave_B=leave_B, stay_B=~leave_B), state

  def _out_of_cycles(
    self, view: View, state: InDelState, chosen_BxA: Array, rows_B: Array, key_B: Array
  ) -> Array:
    """The choice, in `rows` with another token at one slot and perhaps more if it was seen."""
    first_BxA, second_BxA = view.stats.best[:, :, 0], view.stats.best[:, :, 1]

    def attempt(chosen_BxA: Array, i: Array) -> tuple[Array, None]:
      changed_BxA = chosen_BxA != view.tokens_BxA
      again_B = rows_B & _seen(state.seen_BxHxA, chosen_BxA) & changed_BxA.any(-1)
      coin_BxA = chance.uniform(jax.vmap(jax.random.fold_in, (0, None))(key_B, i), view)
      coin_BxA = jnp.where(changed_BxA, coin_BxA, -1)
      at_Bx1 = jnp.argmax(coin_BxA, axis=1)[:, None]
      one_BxA = at_Bx1 == jnp.arange(coin_BxA.shape[1])[None, :]
      other_BxA = jnp.where(chosen_BxA == first_BxA, second_BxA, first_BxA)
      return jnp.where(one_BxA & again_B[:, None], other_BxA, chosen_BxA), None

    return jax.lax.scan(attempt, chosen_BxA, jnp.arange(TRIES))[0]


@dataclasses.dataclass(frozen=True)
class ServedInDel(_Editor):
  """SGLang for LLaDA2.2 (sgl-project/sglang): its edits, by a loop that is sure to end.

  SGLang's JointThresholdInDel. As `InDel`, but for this. A forward wants one of the block's first
  masks and all masks that edits made; once none of the first is left, it writes all. Forwards that
  find none of the first masked count towards `most` in all, not in a row. Then, or after as many
  forwards as the block has slots and `most` more, the last one writes everything, and neither a
  mask nor an edit. A first mask never stays one by its own candidate. If a forward sees a text
  again, the least sure slot that changes takes the best token that was never chosen for it.

  Args:
    ids: best ones of a slot among which that token is looked for; if all were chosen, the best.
  """

  ids: int = 8

  def __post_init__(self):
    super().__post_init__()
    if self.ids < 4:
      raise ValueError(f"ServedInDel: ids={self.ids} must be at least 4: three may be forbidden")

  def most_forwards(self, slots: int) -> int:
    return slots + self.most + 1

  def enter(self, masked_BxA: Array, state: InDelState | None) -> InDelState:
    state = super().enter(masked_BxA, state)
    return state.replace(written_BxHxA=jnp.full_like(state.seen_BxHxA, -1))

  def decide(self, view: View, state: InDelState, key_B: Array) -> tuple[Decision, InDelState]:
    stats, masked_BxA, mask_id = view.stats, view.masked_BxA, view.mask_id
    original_BxA = masked_BxA & state.original_BxA
    some_B = original_BxA.any(-1)
    spent_B = state.spent_B + ~some_B
    last_B = view.step_B >= masked_BxA.shape[1] + self.most
    last_B |= spent_B >= self.most if self.most else ~some_B

    full_BxA, full_logit_BxA = _another(stats, among=(mask_id,))
    falls_BxA = original_BxA & (stats.token == mask_id) & ~last_B[:, None]
    token_BxA = jnp.where(falls_BxA, full_BxA, stats.token)
    logit_BxA = jnp.where(falls_BxA, full_logit_BxA, stats.logit)
    sure_BxA = jnp.nan_to_num(jnp.exp(logit_BxA - stats.lse), nan=0.0)

    want_B = 1 + (masked_BxA & ~original_BxA).sum(-1)
    fills_BxA = select.above_or_top(sure_BxA, masked_BxA, self.threshold, want_B)
    all_B = last_B | ~some_B
    if not self.most:
      last_B |= some_B & ~(original_BxA & ~fills_BxA).any(-1)
      all_B |= last_B
    fills_BxA = jnp.where(all_B[:, None], masked_BxA, fills_BxA)
    writes_BxA = fills_BxA | self._replaced(view, sure_BxA)

    text_BxA, _ = _another(stats, among=(mask_id, self.insert_id, self.delete_id))
    token_BxA = jnp.where(last_B[:, None], text_BxA, token_BxA)
    chosen_BxA = jnp.where(writes_BxA, token_BxA, view.tokens_BxA)
    again_B = _seen(state.seen_BxHxA, view.tokens_BxA) & ~last_B
    chosen_BxA = self._never_chosen(view, state, chosen_BxA, sure_BxA, original_BxA, again_B)

    step_B, chose_BxA = view.step_B, jnp.where(writes_BxA, chosen_BxA, -1)
    decision, state, _ = self._carried_out(view, state, chosen_BxA, spent_B)
    state = state.replace(
      seen_BxHxA=_noted(state.seen_BxHxA, step_B, view.tokens_BxA),
      written_BxHxA=_noted(state.written_BxHxA, step_B, chose_BxA),
    )
    leave_B = last_B | ~writes_BxA.any(-1)
    return decision.replace(leave_B=leave_B, stay_B=~leave_B), state

  def _never_chosen(
    self,
    view: View,
    state: InDelState,
    chosen_BxA: Array,
    sure_BxA: Array,
    original_BxA: Array,
    rows_B: Array,
  ) -> Array:
    """The choice, in `rows` with another token at the least sure slot that changes."""
    changed_BxA = chosen_BxA != view.tokens_BxA
    at_Bx1 = jnp.argmin(jnp.where(changed_BxA, sure_BxA, jnp.inf), axis=1)[:, None]
    best_Bx1xJ = jnp.take_along_axis(view.stats.best, at_Bx1[:, :, None], axis=1)
    written_BxHx1 = jnp.take_along_axis(state.written_BxHxA, at_Bx1[:, :, None], axis=2)
    banned_BxJ = (written_BxHx1 == best_Bx1xJ).any(1)
    banned_BxJ |= jnp.take_along_axis(original_BxA, at_Bx1, axis=1) & (
      best_Bx1xJ[:, 0] == view.mask_id
    )
    first_Bx1 = jnp.argmin(banned_BxJ, axis=1)[:, None]  # the best of all if all are banned
    other_Bx1 = jnp.take_along_axis(best_Bx1xJ[:, 0], first_Bx1, axis=1)
    one_BxA = at_Bx1 == jnp.arange(changed_BxA.shape[1])[None, :]
    one_BxA &= changed_BxA & rows_B[:, None]
    return jnp.where(one_BxA, other_Bx1, chosen_BxA)


def _another(stats: TokenStats, among: tuple[int, ...]) -> tuple[Array, Array]:
  """The best id of each slot that is not `among` those, and its logit."""
  banned_BxAxJ = jnp.isin(stats.best, jnp.array(among, jnp.int32))
  first_BxAx1 = jnp.argmin(banned_BxAxJ, axis=-1)[:, :, None]

  def taken(x_BxAxJ: Array) -> Array:
    return jnp.take_along_axis(x_BxAxJ, first_BxAx1, axis=-1)[:, :, 0]

  return taken(stats.best), taken(stats.best_logit)


def _seen(seen_BxHxA: Array, block_BxA: Array) -> Array:
  return (seen_BxHxA == block_BxA[:, None]).all(-1).any(-1)


def _noted(noted_BxHxA: Array, step_B: Array, block_BxA: Array) -> Array:
  """With the block of forward `step`."""
  return noted_BxHxA.at[jnp.arange(len(step_B)), step_B].set(block_BxA, mode="drop")
