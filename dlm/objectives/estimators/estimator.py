"""What an estimator of log p(completion) is, for those who learn from rewards or preferences."""

import abc
import dataclasses

import jax
import jax.numpy as jnp

from dlm import masks
from dlm.objectives import streams
from dlm.objectives.block import of_block
from dlm.types import Array, Batch, LogitHead, MaskRule, Noisy


@dataclasses.dataclass(frozen=True)
class Estimator(abc.ABC):
  """Estimates log p(completion | prompt) of a diffusion model, token by token.

  Each forward reads a copy of the row with other tokens masked. An estimate is a sum over a row's
  tokens; most are weighted sums of log-probabilities, whose weights `noisy` gives. Draws come in,
  so that the policy that learns, the one that wrote the rows, and a reference see the same masks.

  The completion is what `Batch.noisable_BxL` marks; its `answer` may go on behind the end.
  """

  traced = False  # it reads which forward wrote each token
  shift = 0  # 1: it asks logits at i for token i + 1
  block = None  # of a model that sees clean blocks before its own; None: it sees all
  interleaved = False  # given text may stand between what was written, and tells nothing before it

  @property
  @abc.abstractmethod
  def forwards(self) -> int:
    """Copies of a row, each of which costs a forward."""

  @property
  def attention(self) -> MaskRule:
    """What the model must see while it is sampled, for the estimate to be about that."""
    return masks.Full()

  @abc.abstractmethod
  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    """All random numbers of one estimate, for the global batch."""

  @abc.abstractmethod
  def noisy(self, draws: dict[str, Array], batch: Batch, mask_id: int) -> Noisy:
    """The copies, [B * forwards, ...], those of a row side by side, weights as in the estimate."""

  def mixed(self, head: LogitHead, noisy: Noisy) -> tuple[LogitHead, Noisy]:
    """What log-probabilities are taken of: here of every copy."""
    return head, noisy

  def tokens(self, logp_RxL: Array, noisy: Noisy) -> Array:
    """The estimate, [B, L]: `logp` holds log p(target) of all copies, 0 where not asked."""
    return by_row(noisy.weight_BxL * logp_RxL, self.forwards).sum(1)


def by_row(x_RxL: Array, forwards: int) -> Array:
  """[B, forwards, L] of all copies of rows."""
  return x_RxL.reshape(-1, forwards, x_RxL.shape[1])


def answer(batch: Batch) -> Array:
  """Bool [B, L]: what the model wrote, with the rest of its last block; else what is learned."""
  when_BxL = batch.extra.get("when")
  return streams.noisable(batch) if when_BxL is None else when_BxL >= 0


def prompt(batch: Batch) -> Array:
  """Bool [B, L]: text that was given."""
  return (batch.segment_BxL > 0) & ~answer(batch)


def copies(batch: Batch, forwards: int) -> Batch:
  """Every row so many times, side by side."""
  return jax.tree.map(lambda x: jnp.repeat(x, forwards, axis=0), batch)


def one_stream(batch: Batch, masked_BxCxL: Array, weight_BxCxL: Array, mask_id: int) -> Noisy:
  """Copies of the rows that see all of themselves; prompts are never asked.

  Args:
    masked_BxCxL: what copy c of a row does not see, prompt or answer.
    weight_BxCxL: of masked tokens of the completion; elsewhere it is set to 0.
  """
  rows, forwards, length = masked_BxCxL.shape
  learned_Bx1xL = streams.noisable(batch)[:, None]
  answer_Bx1xL = answer(batch)[:, None]
  hidden_BxCx1 = (masked_BxCxL & answer_Bx1xL).sum(-1, keepdims=True)
  level_BxCx1 = hidden_BxCx1 / jnp.maximum(answer_Bx1xL.sum(-1, keepdims=True), 1)

  def flat(x_BxCxL: Array) -> Array:
    return jnp.broadcast_to(x_BxCxL, masked_BxCxL.shape).reshape(rows * forwards, length)

  return streams.one_stream(
    copies(batch, forwards),
    masked_BxL=flat(masked_BxCxL),
    weight_BxL=flat(jnp.where(learned_Bx1xL, weight_BxCxL, 0)),
    level_BxL=flat(level_BxCx1),
    count_B=flat(learned_Bx1xL).sum(-1),
    mask_id=mask_id,
  )


def beside_clean(
  batch: Batch,
  masked_BxCxL: Array,
  weight_BxCxL: Array,
  start_BxL: Array,
  block: int,
  mask_id: int,
) -> Noisy:
  """Copies of the rows as [noisy; clean]: noisy blocks, from `start`, see clean ones before them.

  A tool's response behind all that a block learns was not there yet when the block was written:
  masks stand in its place in the noisy block, where `Batch.extra` tells of "response".

  Args:
    masked_BxCxL, weight_BxCxL: see `one_stream`.
    start_BxL: first slot of each slot's block.
  """
  noisy = one_stream(batch, masked_BxCxL, weight_BxCxL, mask_id)
  start_RxL = jnp.repeat(start_BxL, masked_BxCxL.shape[1], axis=0)
  if "response" in batch.extra:
    later_BxL = behind_learned(batch, start_BxL, block) & batch.extra["response"]
    later_RxL = jnp.repeat(later_BxL, masked_BxCxL.shape[1], axis=0)
    noisy = noisy.replace(inputs_BxW=jnp.where(later_RxL, mask_id, noisy.inputs_BxW))
  return streams.noisy_and_clean(noisy, masks.noisy_clean_from(start_RxL, block))


def behind_learned(batch: Batch, start_BxL: Array, block: int) -> Array:
  """Bool [B, L]: slots behind the last learned one of their block, of blocks that have one."""
  inside_BxLxb = of_block(streams.noisable(batch), batch, start_BxL, block, False)
  last_BxL = start_BxL + jnp.where(inside_BxLxb, jnp.arange(block), -1).max(-1)
  return inside_BxLxb.any(-1) & (streams.slots(batch) > last_BxL)
