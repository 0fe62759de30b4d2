"""A region of the text comes first, framed by tokens that are given."""

import dataclasses
import itertools
from typing import Any

import jax.numpy as jnp
from flax import struct

from dlm.sampling.policy import Policy, Wrapper
from dlm.sampling.state import where_rows
from dlm.types import Array, Decision, TokenStats, View


@struct.dataclass
class RegionState:
  inner: Any
  first_B: Array  # bool: the row is in its first block
  forces_B: Array  # bool: its next decision is the forced tokens


@dataclasses.dataclass(frozen=True)
class Region(Wrapper):
  """P-ReAct (2602.07035): write a region of the text first, framed by given tokens.

  DLLM-Searcher writes a tool call before the thoughts that stand before it, so that the tool runs
  while the model still thinks. The row's first forward writes the `forced` tokens and nothing else;
  at the later ones `inner` sees confidences in the region raised by `bias`: candidate and best
  token are taken to be so much more probable. An order by probability or margin then prefers the
  region, and a threshold is that much lower in it. Orders by chance or by place do not move.

  Offsets count from the row's first open slot (the authors fill prompts up to a whole block), and
  lie in its first block.

  Args:
    inner: decides the rest; the authors' is fixed with k = block // steps.
    first, last: the region, both included. The authors' code ends it with the block (127), their
      text with the closing tag (126).
    bias: 0: tokens are forced and no more.
    forced: pairs of an offset and a token id. Slots that are not open keep what they hold.
  """

  first: int
  last: int
  bias: float = 0.5
  forced: tuple[tuple[int, int], ...] = ()

  def __post_init__(self):
    super().__post_init__()
    inner, needs = self.inner, self.inner.needs()
    self.refuse(inner.draft_span, "drafts in the order of the text, whatever is sure")
    self.refuse(self.forced and inner.renoises, "renoises, and would replace the forced tokens")
    self.refuse(self.bias and needs.entropy, "goes by entropy, and a bias is a probability: bias=0")
    self.refuse(self.bias and needs.gather, "reads logits, and a bias is a probability: bias=0")
    if not 0 <= self.first <= self.last:
      raise ValueError(f"region: first={self.first}, last={self.last} must be 0 <= first <= last")
    if self.bias < 0:
      raise ValueError(f"region: bias={self.bias} must not be negative")
    offsets = [offset for offset, _ in self.forced]
    if len(set(offsets)) < len(offsets) or min(offsets, default=0) < 0:
      raise ValueError(f"region: forced={self.forced} must name offsets from 0 on, each once")

  @property
  def framed(self) -> tuple[int, int] | None:
    """Offsets [begin, end) that the first two forced tokens with room between them enclose."""
    for left, right in itertools.pairwise(sorted(offset for offset, _ in self.forced)):
      if right > left + 1:
        return left + 1, right
    return None

  def enter(self, masked_BxA: Array, state: RegionState | None) -> RegionState:
    batch, width = masked_BxA.shape
    end = max([self.last, *(offset for offset, _ in self.forced)])
    if end >= width:
      raise ValueError(f"region: offset {end} lies behind the {width} slots that the policy sees")
    inner = self.inner.enter(masked_BxA, None if state is None else state.inner)
    first_B = jnp.full(batch, state is None)
    return RegionState(inner, first_B, first_B)

  def inner_state(self, state: RegionState) -> Any:
    return state.inner

  def decide(self, view: View, state: RegionState, key_B: Array) -> tuple[Decision, RegionState]:
    offset_BxA = view.slot_BxA - jnp.take_along_axis(
      view.slot_BxA, jnp.argmax(view.open_BxA, axis=-1)[:, None], axis=1
    )
    region_BxA = (offset_BxA >= self.first) & (offset_BxA <= self.last) & state.first_B[:, None]
    led = view.replace(stats=self._raised(view.stats, region_BxA))
    decision, inner = self.inner.decide(led, state.inner, key_B)
    if self.forced:
      decision = self._forcing(view, offset_BxA, decision, state.forces_B)
      inner = where_rows(state.forces_B, state.inner, inner)
    return decision, state.replace(inner=inner, forces_B=jnp.zeros_like(state.forces_B))

  def _raised(self, stats: TokenStats, region_BxA: Array) -> TokenStats:
    """Statistics with `exp(logit - lse)` of candidate and best token `bias` higher inside."""

    def raised(logit_BxA: Array) -> Array:
      higher_BxA = stats.lse + jnp.log(jnp.exp(logit_BxA - stats.lse) + self.bias)
      return jnp.where(region_BxA, higher_BxA, logit_BxA)

    if not self.bias:
      return stats
    return dataclasses.replace(stats, logit=raised(stats.logit), top1=raised(stats.top1))

  def _forcing(
    self, view: View, offset_BxA: Array, decision: Decision, forces_B: Array
  ) -> Decision:
    """In rows that force: the forced tokens alone, and nothing that `inner` would have ended."""
    forced_BxA = jnp.zeros_like(view.open_BxA)
    token_BxA = decision.token_BxA
    for offset, token in self.forced:
      here_BxA = (offset_BxA == offset) & forces_B[:, None] & view.open_BxA
      forced_BxA |= here_BxA
      token_BxA = jnp.where(here_BxA, token, token_BxA)

    def unless_forcing(flag_B: Array | None) -> Array | None:
      return None if flag_B is None else flag_B & ~forces_B

    return decision.replace(
      write_BxA=jnp.where(forces_B[:, None], forced_BxA, decision.write_BxA),
      token_BxA=token_BxA,
      stop_B=unless_forcing(decision.stop_B),
      leave_B=unless_forcing(decision.leave_B),
    )


def call_of(policy: Policy, tokens: int) -> tuple[int, int]:
  """Offsets [begin, end) of the call that a policy frames in turns of so many tokens.

  Raises:
    ValueError: it frames none, or a turn does not hold it.
  """
  region = region_of(policy)
  framed = None if region is None else region.framed
  if framed is None:
    raise ValueError(
      "tools: the policy must force the tokens around a call: policy.name='region' with `forced` "
      "of two places or more (configs/sample/p_react.py)"
    )
  if framed[1] >= tokens:
    raise ValueError(
      f"tools: a turn of max_new_tokens={tokens} must hold the call, which ends at {framed[1]}"
    )
  return framed


def region_of(policy: Policy) -> Region | None:
  """The region that a policy writes first, whatever wraps it."""
  while isinstance(policy, Wrapper) and not isinstance(policy, Region):
    policy = policy.inner
  return policy if isinstance(policy, Region) else None
