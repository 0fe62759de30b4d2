"""Likelihoods of answers written block by block: TraceRL's, LightningRL's, Agentic VRPO's."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm import masks
from dlm.diffusion import absorbing
from dlm.objectives import streams
from dlm.objectives.block import answer_block_start, block_start, of_block
from dlm.objectives.estimators.estimator import (
  Estimator,
  answer,
  behind_learned,
  beside_clean,
  by_row,
)
from dlm.objectives.opdlm import step_ranks
from dlm.types import Array, Batch, MaskRule, Noisy

ALIGNS = ("answer", "canvas")
MOST_EXACT = 6  # tokens of a block of which all subsets are asked


@dataclasses.dataclass(frozen=True)
class _InBlocks(Estimator):
  """Of a model that writes block by block, given the clean blocks before.

  Args:
    block: tokens of a block.
    align: blocks count from the answer's first token, both ways, or from the canvas's.
  """

  block: int = dataclasses.field()
  align: str = "canvas"

  def __post_init__(self):
    owner = type(self).__name__
    if self.block < 1:
      raise ValueError(f"{owner}: block={self.block} must be at least 1")
    if self.align not in ALIGNS:
      raise ValueError(f"{owner}: align={self.align!r} is not one of {', '.join(ALIGNS)}")

  @property
  def interleaved(self) -> bool:
    return self.align == "canvas"

  @property
  def attention(self) -> MaskRule:
    return (masks.AnswerBlocks if self.align == "answer" else masks.BlockCausal)(self.block)

  def start(self, batch: Batch) -> Array:
    """First slot of each slot's block, [B, L]."""
    return (answer_block_start if self.align == "answer" else block_start)(batch, self.block)

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    del key, batch
    return {}


@dataclasses.dataclass(frozen=True)
class Trace(_InBlocks):
  """TraceRL (2509.06949): each token given the state in which it was written.

  A forward shows one state of every block: the r-th that it was in. With `shrink` 1 and a token a
  forward the estimate is log p of the way that was taken, exactly; tokens of one forward, or of
  `shrink` merged ones, are taken as independent. Rows are those of `dlm.rollout`.

  Args:
    shrink: so many forwards of a block count as one.
    behind: so many of the slots behind the end that a state writes count, too.
  """

  shrink: int = 1
  behind: int = 0
  traced = True

  def __post_init__(self):
    super().__post_init__()
    if self.shrink < 1:
      raise ValueError(f"Trace: shrink={self.shrink} must be at least 1")
    _check_behind(self)

  @property
  def forwards(self) -> int:
    return -(-self.block // self.shrink)

  def steps(self, batch: Batch) -> Array:
    """The forward that wrote each token, [B, L], of those that count as one the last; else -1."""
    start_BxL = self.start(batch)
    round_BxL = self._rounds(batch, start_BxL)
    together_BxLxb = of_block(round_BxL, batch, start_BxL, self.block, -1) == round_BxL[:, :, None]
    when_BxLxb = of_block(batch.extra["when"], batch, start_BxL, self.block, -1)
    return jnp.where(round_BxL < 0, -1, jnp.where(together_BxLxb, when_BxLxb, -1).max(-1))

  def _rounds(self, batch: Batch, start_BxL: Array) -> Array:
    """The copy that scores each token of the answer, [B, L]; -1 elsewhere."""
    rank_BxL = step_ranks(batch, start_BxL, self.block)[0] // self.shrink
    return jnp.where(answer(batch), rank_BxL, -1)

  def noisy(self, draws: dict[str, Array], batch: Batch, mask_id: int) -> Noisy:
    start_BxL = self.start(batch)
    round_BxL = self._rounds(batch, start_BxL)
    turn_C = jnp.arange(self.forwards)[None, :, None]
    masked_BxCxL = round_BxL[:, None] >= turn_C
    batch, scored_BxCxL = _with_behind(batch, round_BxL[:, None] == turn_C, self.behind)
    weight_BxCxL = scored_BxCxL.astype(jnp.float32)
    return beside_clean(batch, masked_BxCxL, weight_BxCxL, start_BxL, self.block, mask_id)


@dataclasses.dataclass(frozen=True)
class BlockMasks(_InBlocks):
  """TraceRL's code, its other methods (2509.06949): states that are drawn, not those that were met.

  Each token is masked by itself, with a chance that is drawn for it from `share`, so that blocks
  have no common noise level. "random_masking" there; with `complement`, "coupled".

  Args:
    complement: the other tokens are masked in a forward of their own: each token counts once.
    behind: so many of the masked slots behind the end count, too, in each forward.
  """

  share: tuple[float, float] = (0.1, 0.9)
  complement: bool = False
  behind: int = 0

  def __post_init__(self):
    super().__post_init__()
    if not 0 <= self.share[0] <= self.share[1] <= 1:
      raise ValueError(f"BlockMasks: share={self.share} must rise within [0, 1]")
    _check_behind(self)

  @property
  def forwards(self) -> int:
    return 2 if self.complement else 1

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    """Draws "u_share" and "u_mask" [B, L]."""
    key_share, key_mask = jax.random.split(key)
    return {
      "u_share": jax.random.uniform(key_share, batch.tokens_BxL.shape),
      "u_mask": jax.random.uniform(key_mask, batch.tokens_BxL.shape),
    }

  def noisy(self, draws: dict[str, Array], batch: Batch, mask_id: int) -> Noisy:
    start_BxL, (low, high) = self.start(batch), self.share
    first_BxL = draws["u_mask"] <= low + (high - low) * draws["u_share"]
    masked_BxCxL = jnp.stack([first_BxL, ~first_BxL][: self.forwards], axis=1)
    masked_BxCxL &= answer(batch)[:, None]
    batch, scored_BxCxL = _with_behind(batch, masked_BxCxL, self.behind)
    weight_BxCxL = scored_BxCxL.astype(jnp.float32)
    return beside_clean(batch, masked_BxCxL, weight_BxCxL, start_BxL, self.block, mask_id)


def _check_behind(estimator: Trace | BlockMasks) -> None:
  if estimator.behind < 0:
    owner = type(estimator).__name__
    raise ValueError(f"{owner}: behind={estimator.behind} must not be negative")


def _with_behind(batch: Batch, scored_BxCxL: Array, behind: int) -> tuple[Batch, Array]:
  """Of what copies score, up to the end and the first `behind` slots behind it; rows of which
  nothing is learned stay so."""
  if not behind:
    return batch, scored_BxCxL
  learned_BxL = streams.noisable(batch)
  answer_BxL = answer(batch) & learned_BxL.any(-1, keepdims=True)
  behind_Bx1xL = (answer_BxL & ~learned_BxL)[:, None]
  nth_BxCxL = jnp.cumsum(scored_BxCxL & behind_Bx1xL, axis=-1)
  scored_BxCxL &= learned_BxL[:, None] | (behind_Bx1xL & (nth_BxCxL <= behind))
  return batch.replace(noisable_BxL=answer_BxL), scored_BxCxL


@dataclasses.dataclass(frozen=True)
class BlockOneStep(_InBlocks):
  """LightningRL's code (2603.13319): each token given the clean blocks before, its own all masked.

  One forward. What stands behind the end is shown as it is.
  """

  forwards = 1

  def noisy(self, draws: dict[str, Array], batch: Batch, mask_id: int) -> Noisy:
    masked_Bx1xL = streams.noisable(batch)[:, None]
    weight = jnp.ones((1, 1, 1))
    return beside_clean(batch, masked_Bx1xL, weight, self.start(batch), self.block, mask_id)


@dataclasses.dataclass(frozen=True)
class BlockExact(_InBlocks):
  """Of each block log p over all orders in which its tokens may be written, one a forward: exact.

  For a sampler that takes a random masked position of the block each time. Every subset of a
  block's tokens is masked in a copy of its own, all blocks at once; p of a subset is the mean over
  its tokens of p(token) times that of the others. So it costs 2^block - 1 forwards, and has neither
  bias nor variance: what other estimators are held against. A block's tokens share its log p
  evenly.
  """

  def __post_init__(self):
    super().__post_init__()
    if self.block > MOST_EXACT:
      raise ValueError(
        f"BlockExact: block={self.block} must be at most {MOST_EXACT}: 2^block - 1 forwards"
      )

  @property
  def forwards(self) -> int:
    return 2**self.block - 1

  def noisy(self, draws: dict[str, Array], batch: Batch, mask_id: int) -> Noisy:
    start_BxL, learned_BxL = self.start(batch), streams.noisable(batch)
    offset_BxL = streams.slots(batch) - start_BxL
    subset_C = jnp.arange(1, 2**self.block)
    masked_BxCxL = (subset_C[None, :, None] >> offset_BxL[:, None]) % 2 == 1
    masked_BxCxL &= learned_BxL[:, None]
    weight_BxCxL = masked_BxCxL.astype(jnp.float32)
    noisy = beside_clean(batch, masked_BxCxL, weight_BxCxL, start_BxL, self.block, mask_id)
    inside_BxLxb = of_block(learned_BxL, batch, start_BxL, self.block, False)
    return noisy.replace(extra={"start_BxL": start_BxL, "inside_BxLxb": inside_BxLxb})

  def tokens(self, logp_RxL: Array, noisy: Noisy) -> Array:
    logp_BxCxL = by_row(noisy.weight_BxL * logp_RxL, self.forwards)
    start_BxL, inside_BxLxb = noisy.extra["start_BxL"], noisy.extra["inside_BxLxb"]
    slots = start_BxL.shape[1]

    def at_offset(offset: int) -> Array:
      """Of the token at that offset of each slot's block, [B, C, L]."""
      slot_BxL = jnp.clip(start_BxL + offset, 0, slots - 1)
      return jnp.take_along_axis(logp_BxCxL, slot_BxL[:, None], axis=2)

    token_bxBxCxL = [at_offset(offset) for offset in range(self.block)]
    total = {0: jnp.zeros(start_BxL.shape)}
    for subset in range(1, 2**self.block):
      members = [i for i in range(self.block) if subset >> i & 1]
      live_NxBxL = jnp.stack([inside_BxLxb[..., i] for i in members])
      parts_NxBxL = jnp.stack(
        [token_bxBxCxL[i][:, subset - 1] + total[subset & ~(1 << i)] for i in members]
      )
      some_BxL = live_NxBxL.any(0)
      parts_NxBxL = jnp.where(live_NxBxL, parts_NxBxL, jnp.where(some_BxL, -jnp.inf, 0)[None])
      mean_BxL = jax.nn.logsumexp(parts_NxBxL, axis=0) - jnp.log(jnp.maximum(live_NxBxL.sum(0), 1))
      total[subset] = jnp.where(some_BxL, mean_BxL, 0)
    count_BxL = inside_BxLxb.sum(-1)
    learned_BxL = by_row(noisy.weight_BxL > 0, self.forwards).any(1)
    return jnp.where(learned_BxL, total[2**self.block - 1] / jnp.maximum(count_BxL, 1), 0)


@dataclasses.dataclass(frozen=True)
class BlockElbo(_InBlocks):
  """DLLM-Searcher (2602.07035): of each block's n tokens k are masked, and weighed by n / k.

  Unbiased for the sum of the blocks' bounds. What is not learned, as a tool's answer, stays clean,
  and behind a block's last learned token the noisy copy reads the end token.

  Args:
    draws: masks of a row, each with numbers of its own.
    end_id: None: what was written behind the last learned token is shown as it is.
  """

  draws: int = 2
  end_id: int | None = None

  def __post_init__(self):
    super().__post_init__()
    if self.draws < 1:
      raise ValueError(f"BlockElbo: draws={self.draws} must be at least 1")

  @property
  def forwards(self) -> int:
    return self.draws

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    """Draws "u_count" and "u_mask" [B, draws, L]; a block takes the "u_count" of its first slot."""
    key_count, key_mask = jax.random.split(key)
    rows, length = batch.tokens_BxL.shape
    shape = rows, self.draws, length
    return {
      "u_count": jax.random.uniform(key_count, shape),
      "u_mask": jax.random.uniform(key_mask, shape),
    }

  def noisy(self, draws: dict[str, Array], batch: Batch, mask_id: int) -> Noisy:
    start_BxL, learned_BxL = self.start(batch), streams.noisable(batch)
    first_BxL = jnp.maximum(start_BxL, 0)
    inside_BxLxb = of_block(learned_BxL, batch, start_BxL, self.block, False)
    n_BxL = inside_BxLxb.sum(-1)

    def of_draw(u_count_BxL: Array, u_mask_BxL: Array) -> tuple[Array, Array]:
      u_BxL = jnp.take_along_axis(u_count_BxL, first_BxL, axis=1)
      k_BxL = jnp.minimum(jnp.floor(u_BxL * n_BxL) + 1, n_BxL)
      score_BxL = jnp.where(learned_BxL, -u_mask_BxL, -jnp.inf)
      masked_BxL = absorbing.highest_in_blocks(score_BxL, start_BxL, k_BxL)
      return masked_BxL, n_BxL / jnp.maximum(k_BxL, 1) / self.draws

    masked_BxCxL, weight_BxCxL = jax.vmap(of_draw, in_axes=1, out_axes=1)(
      draws["u_count"], draws["u_mask"]
    )
    noisy = beside_clean(batch, masked_BxCxL, weight_BxCxL, start_BxL, self.block, mask_id)
    if self.end_id is None:
      return noisy
    ended_BxL = behind_learned(batch, start_BxL, self.block)
    if "response" in batch.extra:  # a token that was forced stood there from the start
      ended_BxL &= batch.extra["response"] | answer(batch)
    ended_RxL = jnp.repeat(ended_BxL, self.draws, axis=0)
    ended_RxW = jnp.concatenate([ended_RxL, jnp.zeros_like(ended_RxL)], axis=1)
    return noisy.replace(inputs_BxW=jnp.where(ended_RxW, self.end_id, noisy.inputs_BxW))
