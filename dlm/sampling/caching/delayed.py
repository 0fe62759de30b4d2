"""dKV-Cache: keys are kept once a token is decided, one forward late. arXiv 2505.15781."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm.sampling import select, sizes
from dlm.sampling.caching.plan import CachePlan
from dlm.sampling.policy import Policy
from dlm.types import Array, MaskRule, Progress

SHIFT_RULES = ("un_right", "un")
CENTRES = ("next", "last")


@dataclasses.dataclass(frozen=True)
class _Delayed(CachePlan):
  """What Decode and PD share: 3.3, "one-step delayed caching".

  A forward computes every slot that is not cached, and keeps the keys of those that were decided
  before it: a fresh token is computed once more, as itself, before it is cached.

  Args:
    interval: forwards of a block from one refresh to the next (LLaDA 8, Dream 4 in the paper).
    shift_rule: which slots are cached of a model whose logits predict the next slot. "un_right":
      those that are decided and whose successor is; most accurate in the paper. "un": those whose
      successor is decided, though they may be masks themselves, as in the authors' scripts.
  """

  interval: int = 8
  shift_rule: str = "un_right"

  def __post_init__(self):
    _positive(self)
    if self.shift_rule not in SHIFT_RULES:
      raise ValueError(f"shift_rule={self.shift_rule!r} is not one of {', '.join(SHIFT_RULES)}")

  def window_BxL(self, at: Progress) -> Array:
    window_BxL = ~at.filled_BxL | ~self._settled_BxL(at)
    if at.shift and self.shift_rule == "un":
      return window_BxL
    return window_BxL | at.wrote_BxL  # a policy may write again what was cached

  def widths(self, block: int, slots: int) -> tuple[int, ...]:
    """Windows shrink slot by slot."""
    return sizes.widths(slots)

  def keep_BxL(self, at: Progress) -> Array:
    return self._settled_BxL(at)

  def _settled_BxL(self, at: Progress) -> Array:
    """Slots that may be cached: their query predicts nothing any more, and they are decided."""
    if at.shift == 0:
      return ~at.masked_BxL
    if self.shift_rule == "un":
      return ~_successor(at.masked_BxL, last_BxL=at.masked_BxL)
    return ~at.masked_BxL & ~_successor(at.masked_BxL)


@dataclasses.dataclass(frozen=True)
class Decode(_Delayed):
  """dKV-Cache-Decode (2505.15781): keep decided tokens, refresh all every `interval` forwards.

  Algorithm 1. A refresh is a forward over the whole canvas.

  In 2 or 4 bits keys are kept at refreshes alone: what is decided after one is computed anew, at
  full precision, until the next.

  Args:
    second_full: the second forward of a block is over the whole canvas too, and the first keeps
      nothing: the authors' code for LLaDA. Their code for Dream goes without.
  """

  packs = "canvas"
  second_full: bool = False

  def refresh_B(self, at: Progress) -> Array:
    refresh_B = at.step_B % self.interval == 0
    return refresh_B | (at.step_B == 1) if self.second_full else refresh_B

  def keep_BxL(self, at: Progress) -> Array:
    settled_BxL = self._settled_BxL(at)
    return settled_BxL & (at.step_B > 0)[:, None] if self.second_full else settled_BxL


@dataclasses.dataclass(frozen=True)
class PD(_Delayed):
  """dKV-Cache-PD (2505.15781): keep the prompt for good; what follows, as Decode does.

  Their appendix. One forward of a row is over the whole canvas; a refresh is over the active block
  and all behind it. Finished blocks are prompt: Dream, which the authors run it on, has one block.
  (Their "prefill" is cache "prefix" with one block.)
  """

  def refresh_B(self, at: Progress) -> Array:
    return at.turn_B == 0

  def window_BxL(self, at: Progress) -> Array:
    behind_BxL = at.slot_L[None, :] >= at.start_B[:, None]
    refresh_BxL = behind_BxL & (at.step_B % self.interval == 0)[:, None]
    return super().window_BxL(at) | refresh_BxL


@dataclasses.dataclass(frozen=True)
class Greedy(CachePlan):
  """dKV-Cache-Greedy (2505.15781): compute what was just written, what is next, and a few masks.

  Their 3.4. All keys are cached at a refresh; each windowed forward replaces those that it
  computes. It needs a policy that knows what it writes next.

  Args:
    interval: forwards of a block from one refresh to the next.
    window: masked slots computed around each centre: the nearest that no other has taken, on the
      left first. The paper draws one contiguous window; this is the authors' code.
    centre: "next": what is written next (the code); "last": what was just written (which 3.4 finds
      better).
  """

  interval: int = 2
  window: int = 4
  centre: str = "next"

  def __post_init__(self):
    _positive(self)
    if self.window < 0:
      raise ValueError(f"window={self.window} must not be negative")
    if self.centre not in CENTRES:
      raise ValueError(f"centre={self.centre!r} is not one of {', '.join(CENTRES)}")

  def check(self, sees: MaskRule, block: int, policy: Policy) -> None:
    """Refuses policies that cannot say what they write next."""
    if not policy.foresees:
      raise ValueError(
        "cache 'dkv_greedy' computes only what is written next, and must know it before the "
        f"forward: policy 'planned' can say, {policy} cannot. Use cache 'dkv_decode'."
      )

  def refresh_B(self, at: Progress) -> Array:
    return at.step_B % self.interval == 0

  def window_BxL(self, at: Progress) -> Array:
    coming_BxL = at.next_BxL > 0
    window_BxL = at.wrote_BxL | coming_BxL
    if at.shift:  # they are predicted one slot earlier
      window_BxL |= _successor(coming_BxL)
    if not self.window:
      return window_BxL
    place_BxL = at.next_BxL
    if self.centre == "last":
      place_BxL = jnp.where(at.wrote_BxL, at.slot_L[None, :] + 1, 0)
    return _with_neighbours(window_BxL, place_BxL, at.masked_BxL, self.window)

  def widths(self, block: int, slots: int) -> tuple[int, ...]:
    """Doubling from 8: windows hold a few slots a token of the forward, however long the canvas."""
    return (*(width for width in (8, 16, 32, 64, 128) if width < slots), slots)

  def keep_BxL(self, at: Progress) -> Array:
    return jnp.ones_like(at.inside_BxL)


def _positive(plan: _Delayed | Greedy) -> None:
  if plan.interval < 1:
    raise ValueError(f"interval={plan.interval} must be at least 1")


def _successor(x_BxL: Array, last_BxL: Array | None = None) -> Array:
  """x of the next slot; the last slot has none: False, or its own `last`."""
  end_Bx1 = jnp.zeros_like(x_BxL[:, :1]) if last_BxL is None else last_BxL[:, -1:]
  return jnp.concatenate([x_BxL[:, 1:], end_Bx1], axis=1)


def _with_neighbours(window_BxL: Array, place_BxL: Array, masked_BxL: Array, size: int) -> Array:
  """The window and, centre by centre, the `size` nearest masked slots that are not yet in it.

  Args:
    place_BxL: 0 where there is no centre; centres take their turn from the lowest place up.
  """
  centre_BxL = place_BxL > 0
  order_BxL = select.rank(-place_BxL.astype(jnp.float32), centre_BxL)
  count_B = centre_BxL.sum(-1)
  slot_1xL = jnp.arange(place_BxL.shape[1])[None, :]

  def add(i: Array, window_BxL: Array) -> Array:
    at_Bx1 = jnp.argmax(order_BxL == i, axis=-1)[:, None]
    away_BxL = slot_1xL - at_Bx1
    nearness_BxL = -2.0 * jnp.abs(away_BxL) + (away_BxL < 0)
    free_BxL = masked_BxL & ~window_BxL
    return window_BxL | select.top(nearness_BxL, free_BxL, jnp.where(i < count_B, size, 0))

  return jax.lax.fori_loop(0, count_B.max(), add, window_BxL)
