"""Values and protocols that cross folders. Read this file first: all others speak these words.

Shape letters, fixed once: B batch row, L canvas length, W window of queries, A asked positions,
S cache slots, R key ranges, N heads, K kv heads, H head dim, D width, F mlp width, V vocabulary,
Y layers. Arrays carry them as a suffix: `tokens_BxL`. `key_B` holds one random key per row.
"""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from kernels_pallas.block_attention import Mask
from kernels_pallas.token_stats import StatSpec, TokenStats

Array = jax.Array
Params = Any
State = Any

OBJECTIVE = "objective"  # where a run's parameters hold those of its objective, beside the model's

__all__ = ["Mask", "StatSpec", "TokenStats"]  # the kernels' own words, spoken by all


# ---------------------------------------------------------------------------------------------
# Text and noise


@struct.dataclass
class Batch:
  """Clean text, as the rows of `dlm.data` give it."""

  tokens_BxL: Array
  noisable_BxL: Array  # bool: False on prompt and padding
  segment_BxL: Array  # 1, 2, ... by packed document; 0 on padding
  position_BxL: Array  # restarts in every segment
  extra: dict[str, Array] = struct.field(default_factory=dict)


@struct.dataclass
class Noisy:
  """One draw of the forward process: all that a loss needs.

  `inputs` may be longer than `targets` ([noisy; clean] training): the first L inputs are asked,
  unless `ask` says which input predicts each target.
  """

  inputs_BxW: Array
  targets_BxL: Array
  weight_BxL: Array  # float32, the paper's w(t); 0 where nothing is asked
  count_B: Array  # float32, what each row adds to the denominator of the loss
  slot_BxW: Array  # rotary position of each input
  time_BxW: Array  # float32 noise level in [0, 1] of each input: blocks may differ; clean text: 0
  mask: Mask
  ask_BxL: Array | None = None
  extra: dict[str, Array] = struct.field(default_factory=dict)


@struct.dataclass
class LossSum:
  """Sums, so that shards and microbatches add up; one division after the last of them.

  `metrics` holds sums too, and is divided by `count` as the total is.
  """

  total: Array
  count: Array
  metrics: dict[str, Array]


# ---------------------------------------------------------------------------------------------
# The model, as everybody else sees it


@struct.dataclass
class Ring:
  """Keys and values of layers that see the last S positions alone: position p is at p modulo S."""

  k_YxBxSxKxH: Array
  v_YxBxSxKxH: Array
  slot_BxS: Array  # the position held; -1: none


@dataclasses.dataclass(frozen=True)
class Choice:
  """How a sparse cache chooses among the keys that it is offered: see `models.cache.choose`.

  Args:
    ratio: of the offered keys, how many are kept, rounded down.
    by_head: every key head keeps its own; False: all of a layer keep the same.
    least: as many are kept at least, if they are offered.
  """

  ratio: float
  by_head: bool = False
  least: int = 0

  def kept(self, offered: int) -> int:
    return min(max(self.least, int(offered * self.ratio)), offered)


@dataclasses.dataclass(frozen=True)
class CacheFormat:
  """How keys and values are kept in fewer bits than they are computed in: `models.packed`.

  Args:
    bits: 8: a scale for each token and head; 2 or 4: as KIVI has them.
    group: slots that are coded together, the first at a multiple of it; of 8 bits 1.
    recent: KIVI's residual: so many slots are kept as they are computed, until their group is whole
      and final; 0: groups are written whole by one forward.
  """

  bits: int
  group: int = 1
  recent: int = 0


@struct.dataclass
class KVCache:
  """Keys and values by canvas position: slot s holds position s, rotary already applied.

  An empty slot (`filled` False) is never attended to, whatever it holds. With a `choice` a slot
  holds any position, another in each layer. Of a `CacheFormat`, keys and values are
  `models.packed.Packed` that stand for such arrays: all leaves lead with [Y, B]. Of one with a
  residual, slots before `coded` are read from their codes, the `recent` from there on from it.

  `read`: False: the window is all there is of its rows. It is written to the cache and attends to
  nothing else; of other rows nothing may be asked.
  """

  k_YxBxSxKxH: Array | Any
  v_YxBxSxKxH: Array | Any
  filled_BxS: Array
  drafts: "KVCache | None" = None  # of a second model, that drafts: what it keeps of the same text
  ring: Ring | None = None  # of sliding layers, which the arrays above then leave out
  coded_B: Array | None = None  # a multiple of the format's group; None: there is no residual
  choice: Choice | None = struct.field(pytree_node=False, default=None)
  read: bool = struct.field(pytree_node=False, default=True)


@struct.dataclass
class LogitHead:
  """Logits that need not exist: `hidden @ unembed.T`, soft-capped if `soft_cap`."""

  hidden_BxAxD: Array
  unembed_VxD: Array
  embed_VxD: Array | None = None  # the input side, of which `StatSpec.soft` takes the mean
  soft_cap: float | None = struct.field(pytree_node=False, default=None)
  implementation: str | None = struct.field(pytree_node=False, default=None)  # of the ops over it


@struct.dataclass
class ModelOutput:
  head: LogitHead  # asked positions only
  cache: KVCache | None
  aux: dict[str, Array]  # what routers tell of themselves: losses, load of experts; {}: no routers
  features_BxWxF: Array | None = None  # outputs of the tapped layers, side by side


Aux = tuple[dict[str, Array], ...]  # `ModelOutput.aux` of every forward that a loss took


class Denoiser(Protocol):
  """A bound linen module, or a table in a test. Hashable: equal denoisers share one compile."""

  width: int  # of an embedding

  def __call__(
    self,
    params: Params,
    tokens_BxW: Array,
    *,
    slot_BxW: Array,
    mask: Mask,
    time_BxW: Array | None = None,
    soft_BxWxD: Array | None = None,
    cache: KVCache | None = None,
    write_BxW: Array | None = None,
    final_B: Array | None = None,
    ask_BxA: Array | None = None,
    place_BxW: Array | None = None,
    taps: tuple[int, ...] = (),
  ) -> ModelOutput:
    """Runs the window. `ask` indexes the window (None: all of it); `soft` is added to embeddings.

    `place`: where each input stands in the order that the mask speaks of, which uses the window's
    slots in another order; None: at its own slot.
    `taps`: layers, from 0, whose outputs are told besides.

    With a cache the window attends to filled slots outside itself and to itself; the returned cache
    holds the window's keys where `write`, and is otherwise unchanged.
    `final`: of a cache with a residual: slots before this are written for good by then, and those
    of whole groups are coded; what is written lies less than the residual behind these.
    """
    ...

  def empty_cache(self, batch: int, slots: int, format: CacheFormat | None = None) -> KVCache:
    """`format`: None: keys and values are kept as they are. ValueError: it does not fit."""
    ...

  def embedding(self, params: Params) -> Array:
    """What each id is before the first layer, [V, D]: for objectives that mix ids."""
    ...


class FeatureDrafter(Protocol):
  """A drafter that reads what another model's layers told of the settled text, not the text."""

  taps: tuple[int, ...]  # those layers

  def __call__(
    self,
    params: Params,
    target: Params,
    tokens_BxW: Array,
    *,
    slot_BxW: Array,
    key_BxW: Array,
    mask: Mask,
    context: tuple[Array, Array],
    live_BxS: Array | None = None,
  ) -> ModelOutput:
    """Runs blocks of tokens and masks; all are asked. `target`: parameters of the other model.

    `mask` finds the window's keys at `key`, those of the text at 0, 1, ...: `context` holds them,
    [Y, B, S, K, H] each, where `live`.
    """
    ...

  def context(self, params: Params, features_BxCxF: Array, slot_BxC: Array) -> tuple[Array, Array]:
    """Keys and values of the text at `slot`, of which the other model's layers told `features`."""
    ...

  def remember(
    self,
    params: Params,
    features_BxWxF: Array,
    *,
    slot_BxW: Array,
    write_BxW: Array,
    cache: KVCache,
  ) -> KVCache:
    """The cache with the context of the slots where `write`, and otherwise unchanged."""
    ...

  def empty_cache(self, batch: int, slots: int) -> KVCache: ...


class Schedule(Protocol):
  """Survival of a token: `alpha(t)` falls from about 1 at t=0 to about 0 at t=1."""

  def alpha(self, t: Array) -> Array: ...
  def dalpha(self, t: Array) -> Array:
    """d alpha / dt, negative."""
    ...


class MaskRule(Protocol):
  """What a model's attention may see at inference: `masks.Full()`, `masks.BlockCausal(32)`."""

  def __call__(
    self, slot_BxW: Array, slots: int, answer_B: Array, start_B: Array | None = None
  ) -> Mask:
    """`answer_B`: each row's first open slot, where the prompt is a block of its own.

    `start_B`: where the block begins that is decided; None: all is text.
    """
    ...


# ---------------------------------------------------------------------------------------------
# Sampling


@struct.dataclass
class Canvas:
  """All that denoising changes; a row is a request."""

  tokens_BxL: Array
  open_BxL: Array  # bool: where the sampler may write
  when_BxL: Array  # the row's forward (1, 2, ...) of the last write; -1 before: the trajectory
  logp_BxL: Array  # log-probability that it gave what it wrote; NaN: not written, or no candidate
  start_B: Array  # first slot of the row's active block
  length_B: Array  # slots from here on are padding: never seen, never written
  key_B: Array
  done_B: Array
  forwards_Bx3: Array  # whole canvas, window, commit: see FORWARD_KINDS
  drafts_B: Array  # forwards that only draft, of a second model or its own; no part of `forwards`
  queries_B: Array  # query positions that this row needed of those forwards
  computed_B: Array  # float32: that they computed for it, its share of padding and idle rows too
  remasked_B: Array  # written tokens that were masked again

  @property
  def turn_B(self) -> Array:
    """Deciding forwards so far. Commits are not counted: fused and separate then draw the same."""
    return self.forwards_Bx3[:, :2].sum(-1)

  @property
  def answer_B(self) -> Array:
    """The row's first open slot."""
    return jnp.argmax(self.open_BxL, axis=1)


FORWARD_KINDS = ("full", "window", "commit")  # a commit decides nothing


@struct.dataclass
class View:
  """What a policy sees: the row's active block, or, for a policy of scope "canvas", every slot."""

  slot_BxA: Array
  tokens_BxA: Array
  masked_BxA: Array  # bool: to be decided, may be decided now; ends with the active block
  later_BxA: Array  # bool: masked, but behind the active block or without statistics
  open_BxA: Array  # bool: may be written at all
  inside_BxA: Array  # bool: a slot of the row, not padding
  scored_BxA: Array  # bool: the forward computed it; elsewhere `stats` mean nothing
  stats: TokenStats  # leaves are [B, A]; `soft` is [B, A, D], `gathered` and `best` [B, A, J]
  start_B: Array  # first slot of the active block
  step_B: Array  # forwards already spent on the row's active block
  turn_B: Array  # forwards already spent on the row; commits are not counted
  mask_id: int = struct.field(pytree_node=False)
  threshold_B: Array | None = None  # of rows that have one of their own; NaN: the policy's


@struct.dataclass
class Decision:
  """Covers commit, remask (write the mask id), edit, re-noise, all-in and early stop.

  A policy that `shifts` also says where text is inserted and deleted, after it is written: see
  `dlm.sampling.shifts`.
  """

  write_BxA: Array
  token_BxA: Array
  stop_B: Array | None = None  # the row ends here, whatever is still masked
  stay_B: Array | None = None  # the row stays in its block, though nothing in it is masked
  leave_B: Array | None = None  # the row leaves its block for good, whatever is still masked
  advance_B: Array | None = None  # of a policy that drafts: slots that are settled from here on
  insert_BxA: Array | None = None  # bool: a masked slot comes in before this one
  delete_BxA: Array | None = None  # bool: this slot goes

  @property
  def changes_BxA(self) -> Array:
    """Bool: where the decision touches the canvas, if the slot is open."""
    changes_BxA = self.write_BxA
    for edits_BxA in (self.insert_BxA, self.delete_BxA):
      changes_BxA = changes_BxA if edits_BxA is None else changes_BxA | edits_BxA
    return changes_BxA


@struct.dataclass
class Progress:
  """Where each row stands before a forward: what a cache plan goes by."""

  answer_B: Array  # the row's first open slot
  start_B: Array
  step_B: Array
  turn_B: Array
  reach_B: Array  # one past the last slot that the policy may write now
  cached_B: Array  # slots before this are cached for good; those from here to `start` are final
  commits_B: Array  # this forward is over those alone, for their keys
  windows_B: Array  # windowed forwards already spent on the row
  renewed_B: Array  # the row's last forward was the whole canvas
  masked_BxL: Array
  when_BxL: Array  # the turn of the last write; -1 before
  wrote_BxL: Array  # written after the row's last forward
  next_BxL: Array | None  # 1, 2, ...: what the policy writes next, in order; 0: what it does not
  filled_BxL: Array  # cached
  inside_BxL: Array  # slots of the row, not padding
  block: int = struct.field(pytree_node=False)
  shift: int = struct.field(pytree_node=False)

  @property
  def slot_L(self) -> Array:
    return jnp.arange(self.masked_BxL.shape[1])

  @property
  def active_BxL(self) -> Array:
    """Bool: the active block."""
    offset_BxL = self.slot_L[None, :] - self.start_B[:, None]
    return (offset_BxL >= 0) & (offset_BxL < self.block)


class Clock(Protocol):
  """The noise level that a model is told while sampling, if it reads one."""

  def __call__(
    self, masked_BxL: Array, open_BxL: Array, inside_BxL: Array, slot_BxW: Array
  ) -> Array:
    """Level [B, W] at `slot`. `inside`: slots of the row, not padding."""
    ...
