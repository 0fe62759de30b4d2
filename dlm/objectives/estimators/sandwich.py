"""SPG's estimate: a bound from below for what was good, from above for the rest."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm.diffusion import absorbing
from dlm.objectives import streams
from dlm.objectives.estimators.estimator import Estimator, answer, by_row, one_stream, prompt
from dlm.types import Array, Batch, Noisy

MASKS = ("all", "random", "block_all", "block_random")
BOUNDS = ("lower", "upper", "mix", "zero")


@dataclasses.dataclass(frozen=True)
class Sandwich(Estimator):
  """SPG (facebookresearch/SPG): means over tokens, of log p or of a bound from above.

  Rows of positive advantage get the mean of log p of their masked tokens, the others `bound`. The
  upper bound of a token is log(mean over copies of p^power / share masked) / power; it is low by
  what the log of a mean of few copies is low, and without the paper's constant it bounds nothing.

  Args:
    masks: what a copy hides. "all": the answer. "random": so many tokens of the completion. "block_
      all": a block of the answer and all behind it. "block_random": so many tokens of a block, and
      all behind it. What stands behind the end is hidden always.
    copies: of each row.
    size: tokens of a block.
    share: of the tokens that may be hidden, between these are.
    prompt_mask: probability that a token of the prompt, or any before the block, is masked.
    bound: of rows whose advantage is not positive; "mix": `upper_share` of the upper bound.
    power: at least 1.
  """

  masks: str = "block_random"
  copies: int = 2
  size: int = 32
  share: tuple[float, float] = (0.0, 1.0)
  prompt_mask: float = 0.15
  bound: str = "mix"
  power: float = 1.5
  upper_share: float = 0.5

  def __post_init__(self):
    for name, known in (("masks", MASKS), ("bound", BOUNDS)):
      if getattr(self, name) not in known:
        raise ValueError(
          f"Sandwich: {name}={getattr(self, name)!r} is not one of {', '.join(known)}"
        )
    for name in ("copies", "size"):
      if getattr(self, name) < 1:
        raise ValueError(f"Sandwich: {name}={getattr(self, name)} must be at least 1")
    if self.masks == "all" and self.copies > 1:
      raise ValueError(f"Sandwich: copies={self.copies} are all the same with masks='all'")
    if not 0 <= self.share[0] < self.share[1] <= 1:
      raise ValueError(f"Sandwich: share={self.share} must rise within [0, 1]")
    if not 0 <= self.prompt_mask < 1:
      raise ValueError(f"Sandwich: prompt_mask={self.prompt_mask} must lie in [0, 1)")
    if not self.power >= 1:
      raise ValueError(f"Sandwich: power={self.power} must be at least 1")
    if not 0 <= self.upper_share <= 1:
      raise ValueError(f"Sandwich: upper_share={self.upper_share} must lie in [0, 1]")

  @property
  def forwards(self) -> int:
    return self.copies

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    """Draws "u_block" [B, L], "u_count" [B, copies], "u_mask" and "u_prompt" [B, copies, L]."""
    key_block, key_count, key_mask, key_prompt = jax.random.split(key, 4)
    rows, length = batch.tokens_BxL.shape
    return {
      "u_block": jax.random.uniform(key_block, (rows, length)),
      "u_count": jax.random.uniform(key_count, (rows, self.copies)),
      "u_mask": jax.random.uniform(key_mask, (rows, self.copies, length)),
      "u_prompt": jax.random.uniform(key_prompt, (rows, self.copies, length)),
    }

  def noisy(self, draws: dict[str, Array], batch: Batch, mask_id: int) -> Noisy:
    answer_BxL, learned_BxL = answer(batch), streams.noisable(batch)
    rows, length = answer_BxL.shape
    among_BxCxL = jnp.broadcast_to(learned_BxL[:, None], (rows, self.copies, length))
    hidden_BxCxL = jnp.broadcast_to((answer_BxL & ~learned_BxL)[:, None], among_BxCxL.shape)
    before_BxCxL = jnp.broadcast_to(prompt(batch)[:, None], among_BxCxL.shape)
    if self.masks.startswith("block"):
      offset_Bx1xL = (jnp.arange(length)[None] - jnp.argmax(answer_BxL, axis=1)[:, None])[:, None]
      first_BxCx1 = self.size * self._blocks(draws["u_block"], answer_BxL, learned_BxL)[:, :, None]
      before_BxCxL = (batch.segment_BxL > 0)[:, None] & (offset_Bx1xL < first_BxCx1)
      hidden_BxCxL |= answer_BxL[:, None] & (offset_Bx1xL >= first_BxCx1 + self.size)
      among_BxCxL &= (offset_Bx1xL >= first_BxCx1) & (offset_Bx1xL < first_BxCx1 + self.size)
    if self.masks.endswith("random"):
      size_BxC = among_BxCxL.sum(-1)
      least_BxC = jnp.maximum(jnp.floor(size_BxC * self.share[0]), 1)
      most_BxC = jnp.minimum(jnp.floor(size_BxC * self.share[1]), size_BxC)
      count_BxC = least_BxC + jnp.floor(draws["u_count"] * (most_BxC - least_BxC + 1))
      hidden_BxCxL |= absorbing.lowest(draws["u_mask"], among_BxCxL, count_BxC)
    else:
      hidden_BxCxL |= among_BxCxL
    masked_BxCxL = hidden_BxCxL | (before_BxCxL & (draws["u_prompt"] < self.prompt_mask))
    scored_BxC = (masked_BxCxL & learned_BxL[:, None]).sum(-1)
    weight_BxC = 1 / (self.copies * jnp.maximum(scored_BxC, 1))
    noisy = one_stream(batch, masked_BxCxL, weight_BxC[:, :, None], mask_id)
    return noisy.replace(extra={"tokens_B": learned_BxL.sum(-1)})

  def _blocks(self, u_BxL: Array, answer_BxL: Array, learned_BxL: Array) -> Array:
    """Index of the block of every copy, [B, copies]: of a permutation of the answer's blocks, each
    modulo how many the completion has, so that early ones come more often, and some twice."""
    blocks_Bx1 = -(-answer_BxL.sum(-1, keepdims=True) // self.size)
    held_Bx1 = jnp.maximum(-(-learned_BxL.sum(-1, keepdims=True) // self.size), 1)
    index_L = jnp.arange(u_BxL.shape[1])
    order_BxL = jnp.argsort(jnp.where(index_L[None] < blocks_Bx1, u_BxL, jnp.inf), axis=1)
    copy_C = jnp.arange(self.copies)[None] % jnp.maximum(blocks_Bx1, 1)
    return jnp.take_along_axis(order_BxL, copy_C, axis=1) % held_Bx1

  def tokens(self, logp_RxL: Array, noisy: Noisy) -> Array:
    lower_BxL = super().tokens(logp_RxL, noisy)
    if self.bound == "lower":
      return lower_BxL
    scored_BxCxL = by_row(noisy.weight_BxL > 0, self.copies)
    share_BxCx1 = scored_BxCxL.sum(-1, keepdims=True) / noisy.extra["tokens_B"][:, None, None]
    power_BxCxL = jnp.exp(self.power * by_row(logp_RxL, self.copies)) * scored_BxCxL
    mean_BxL = (power_BxCxL / jnp.maximum(share_BxCx1, 1e-8)).mean(1)
    live_BxL = mean_BxL > 0
    log_BxL = jnp.where(live_BxL, jnp.log(jnp.where(live_BxL, mean_BxL, 1)), 0) / self.power
    upper_BxL = log_BxL / jnp.maximum(live_BxL.sum(-1, keepdims=True), 1)
    of_upper = {"upper": 1.0, "mix": self.upper_share, "zero": 0.0}[self.bound]
    of_lower = {"upper": 0.0, "mix": 1 - self.upper_share, "zero": 0.0}[self.bound]
    other_BxL = of_upper * upper_BxL + of_lower * lower_BxL
    return jnp.where(noisy.extra["advantage_B"][:, None] > 0, lower_BxL, other_BxL)
