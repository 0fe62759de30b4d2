"""What a policy is: all that the loop may ask of one, each with the answer of a plain policy."""

import abc
import dataclasses
from typing import ClassVar

from dlm.types import Array, Decision, State, StatSpec, View


@dataclasses.dataclass(frozen=True)
class Policy(abc.ABC):
  """One paper's unmasking rule. State leaves lead with B: rows enter their blocks one by one.

  A rule must say what it decides. Everything else is declared here with the value of a plain
  policy, and overridden where a paper wants more; the loop, the caches and the builder ask for
  these members and for no others.

  Attributes:
    scope: "block": it sees the active block, any at a time; "canvas": it must see all slots.
    foresees: `upcoming` says what it writes next.
    works_ahead: it writes behind its active block too, up to `reach`.
    renoises: its blocks begin as the random ids of `noise`, not as masks; of scope "block".
    levels: `level` says how noisy its block is, in place of the sampler's clock.
    judges: written slots of the active block answer as if they were masked (`dlm.sampling.shadow`).
    adjustable: rows may have a threshold of their own (`View.threshold_B`).
    coupled: a slot's candidates are drawn with the same noise at every forward.
    timed: it ends a block by its own count of forwards, which must all be forwards over the block.
    draft_span: slots that it drafts over (`Decision.advance_B`): the sampler's block, of scope
      "block". 0: it does not draft.
    proposals: drafts that a second model, the sampler's `drafter`, proposes a forward; 0: none.
    best_drafts: they are its likeliest tokens, at any temperature, not drawn as the model's are.
    own_drafts: drafts that the model itself proposes, in a forward of its own before each that
      checks: over masks behind the settled text, which see each other. 0: none.
    least_sure: own drafts whose probability is no higher stay masks.
    part: slots of the parts that it writes a block in, one after the other; 0: the block is one.
    shifts: it inserts and deletes (`dlm.sampling.shifts`): in scope "block" within the block, in
      scope "canvas" rows grow and shrink.
    bars: ids that no candidate may be in rows of which `barred` says so; (): it bars none.
    slides: its block begins at the first slot to write and slides on after every forward, which
      reads what is known of the block before its masks (`dlm.sampling.sliding`).
    spare: slots that a row may grow by, for which its canvas has room.
  """

  scope: ClassVar[str] = "block"
  foresees: ClassVar[bool] = False
  works_ahead: ClassVar[bool] = False
  renoises: ClassVar[bool] = False
  levels: ClassVar[bool] = False
  judges: ClassVar[bool] = False
  adjustable: ClassVar[bool] = False
  coupled: ClassVar[bool] = False
  timed: ClassVar[bool] = False
  draft_span: ClassVar[int] = 0
  proposals: ClassVar[int] = 0
  best_drafts: ClassVar[bool] = False
  own_drafts: ClassVar[int] = 0
  least_sure: ClassVar[float] = 0.0
  part: ClassVar[int] = 0
  shifts: ClassVar[bool] = False
  bars: ClassVar[tuple[int, ...]] = ()
  slides: ClassVar[bool] = False
  spare: ClassVar[int] = 0

  def needs(self) -> StatSpec:
    """The statistics that `decide` reads, besides the candidate and its confidence."""
    return StatSpec()

  def most_forwards(self, slots: int) -> int:
    """Forwards that a block of so many slots may take; a token in each, unless a policy counts."""
    return slots

  def enter(self, masked_BxA: Array, state: State | None) -> State:
    """State of rows that enter a block with these masks; `state`: the last block's, None: first."""
    return ()

  @abc.abstractmethod
  def decide(self, view: View, state: State, key_B: Array) -> tuple[Decision, State]:
    """What to write after a forward."""

  def upcoming(self, state: State, step_B: Array) -> Array | None:
    """Int [B, L] if it `foresees`: 1, 2, ..., what it writes next, in order; 0: all else."""
    return None

  def reach(self, state: State) -> Array | None:
    """[B] if it `works_ahead`: one past the last slot that it may write now."""
    return None

  def noise(self, key_B: Array, width: int, mask_id: int) -> Array | None:
    """Int [B, width] if it `renoises`: random ids that take the place of a block's masks.

    They come when a row enters the block, count as not yet written, and the row stays in the block
    while `Decision.stay_B` says so.
    """
    return None

  def gather_ids(self, state: State) -> Array | None:
    """Int [B, A, J] if it needs `gather`: the ids whose logits it reads."""
    return None

  def barred(self, state: State) -> Array | None:
    """Bool [B] if it `bars`: rows that may not choose those ids in the next forward."""
    return None

  def soft_weight(self, turn_B: Array) -> Array | None:
    """[B] if it needs `soft`: what undecided slots in scope carry of their last prediction.

    The mean embedding, times the weight of forward `turn`, which predicted it. The model is given
    it beside their tokens; of scope "block" a new block carries nothing yet.
    """
    return None

  def temperature(self, step_B: Array) -> Array | None:
    """[B]: what logits are divided by at forward `step` of a block; None: they stay."""
    return None

  def level(self, step_B: Array) -> Array | None:
    """[B] if it `levels`: the noise level at forward `step` of a block, told to all of the row."""
    return None


@dataclasses.dataclass(frozen=True)
class Wrapper(Policy):
  """A policy that lets `inner` decide and changes something about it: all else is `inner`'s.

  Every power is handed on. A wrapper overrides what it changes, builds its decision by
  `decision.replace`, and refuses in `__post_init__` what it cannot keep. With a state of its own,
  it says by `inner_state` where that of `inner` is.
  """

  inner: Policy

  def __post_init__(self):
    if self.scope == "canvas":
      self.refuse(self.inner.draft_span, "drafts, which needs scope 'block', not 'canvas'")
      self.refuse(self.inner.renoises, "renoises, which needs scope 'block', not 'canvas'")
    self.refuse(self.shifts, "inserts and deletes, and what is known of a slot would stand still")
    self.refuse(self.slides, "slides on, and what is known of a slot would stand still")

  def refuse(self, lost: object, why: str) -> None:
    """Raises ValueError if a power of the inner policy would be lost: which one, and why."""
    if lost:
      raise ValueError(f"{type(self).__name__.lower()}: inner={self.inner} {why}")

  def inner_state(self, state: State) -> State:
    return state

  @property
  def scope(self) -> str:
    return self.inner.scope

  @property
  def foresees(self) -> bool:
    return self.inner.foresees

  @property
  def works_ahead(self) -> bool:
    return self.inner.works_ahead

  @property
  def renoises(self) -> bool:
    return self.inner.renoises

  @property
  def levels(self) -> bool:
    return self.inner.levels

  @property
  def judges(self) -> bool:
    return self.inner.judges

  @property
  def adjustable(self) -> bool:
    return self.inner.adjustable

  @property
  def coupled(self) -> bool:
    return self.inner.coupled

  @property
  def timed(self) -> bool:
    return self.inner.timed

  @property
  def draft_span(self) -> int:
    return self.inner.draft_span

  @property
  def proposals(self) -> int:
    return self.inner.proposals

  @property
  def best_drafts(self) -> bool:
    return self.inner.best_drafts

  @property
  def own_drafts(self) -> int:
    return self.inner.own_drafts

  @property
  def least_sure(self) -> float:
    return self.inner.least_sure

  @property
  def part(self) -> int:
    return self.inner.part

  @property
  def shifts(self) -> bool:
    return self.inner.shifts

  @property
  def bars(self) -> tuple[int, ...]:
    return self.inner.bars

  @property
  def slides(self) -> bool:
    return self.inner.slides

  @property
  def spare(self) -> int:
    return self.inner.spare

  def needs(self) -> StatSpec:
    return self.inner.needs()

  def most_forwards(self, slots: int) -> int:
    return self.inner.most_forwards(slots)

  def enter(self, masked_BxA: Array, state: State | None) -> State:
    return self.inner.enter(masked_BxA, state)

  def decide(self, view: View, state: State, key_B: Array) -> tuple[Decision, State]:
    return self.inner.decide(view, state, key_B)

  def upcoming(self, state: State, step_B: Array) -> Array | None:
    return self.inner.upcoming(self.inner_state(state), step_B)

  def reach(self, state: State) -> Array | None:
    return self.inner.reach(self.inner_state(state))

  def noise(self, key_B: Array, width: int, mask_id: int) -> Array | None:
    return self.inner.noise(key_B, width, mask_id)

  def gather_ids(self, state: State) -> Array | None:
    return self.inner.gather_ids(self.inner_state(state))

  def barred(self, state: State) -> Array | None:
    return self.inner.barred(self.inner_state(state))

  def soft_weight(self, turn_B: Array) -> Array | None:
    return self.inner.soft_weight(turn_B)

  def temperature(self, step_B: Array) -> Array | None:
    return self.inner.temperature(step_B)

  def level(self, step_B: Array) -> Array | None:
    return self.inner.level(step_B)
