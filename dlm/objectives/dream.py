"""Dream: context-adaptive weights for shifted logits. arXiv 2508.15487; Dream-Coder's trainer."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm.objectives import streams
from dlm.objectives.diffullama import check_shift
from dlm.objectives.row import RowTraining
from dlm.types import Array, Aux, Batch, Denoiser, Noisy, Params

WEIGHTS = ("cart", "inverse", "linear", "none")


@dataclasses.dataclass(frozen=True)
class DreamSft(RowTraining):
  """Dream (2508.15487): predict masked tokens of the answer, weighed by the clean ones near them.

  A weighted mean of the cross-entropy of masked tokens, its softmax with the mask id; the prompt
  stays clean.

  Args:
    weight: "cart": by how near clean tokens are, see `cart_weights`; "inverse": 1/t, the trainer's
      default; "linear": 1 - t; "none".
    cart_p: p of "cart": 0.1 in Dream-Coder's configuration, 0.3 in dllm's.
    shift: 1: the input before a token predicts it, and a document's first token its own.
    focal: tokens are weighed by alpha (1 - p(token))^gamma besides.
    focal_alpha, focal_gamma: those two, read where `focal` is.
    tie_ends: a document's last token and those like it right before (its EOS padding) are masked
      all together or not at all.
  """

  weight: str = "cart"
  cart_p: float = 0.1
  shift: int = 1
  focal: bool = False
  focal_alpha: float = 0.25
  focal_gamma: float = 2.0
  tie_ends: bool = False
  annealable = True
  exact_count = True

  def __post_init__(self):
    super().__post_init__()
    check_shift(self.shift)
    if self.weight not in WEIGHTS:
      raise ValueError(f"DreamSft: weight={self.weight!r} is not one of {', '.join(WEIGHTS)}")
    if not 0 < self.cart_p < 1:
      raise ValueError(f"DreamSft: cart_p={self.cart_p} must lie in (0, 1)")
    if not self.focal_alpha > 0:
      raise ValueError(f"DreamSft: focal_alpha={self.focal_alpha} must be positive")
    if self.focal_gamma < 0:
      raise ValueError(f"DreamSft: focal_gamma={self.focal_gamma} must not be negative")

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    del step
    t_BxL = jnp.broadcast_to(self.times_of(draws)[:, None], batch.tokens_BxL.shape)
    u_BxL = of_last_runs(draws["u_mask"], batch) if self.tie_ends else draws["u_mask"]
    masked_BxL = (u_BxL < t_BxL) & streams.noisable(batch)
    if self.weight == "cart":
      weight_BxL = cart_weights(masked_BxL, streams.first_of_document(batch), self.cart_p)
    else:
      ones_BxL = jnp.ones_like(t_BxL)
      weight_BxL = {"inverse": 1 / t_BxL, "linear": 1 - t_BxL, "none": ones_BxL}[self.weight]
    noisy = streams.one_stream(
      batch, masked_BxL, weight_BxL, t_BxL, masked_BxL.sum(-1), self.mask_id
    )
    if not self.shift:
      return noisy
    slot_BxL = jnp.broadcast_to(jnp.arange(t_BxL.shape[1]), t_BxL.shape)
    return noisy.replace(ask_BxL=slot_BxL - ~streams.first_of_document(batch))

  def losses(self, denoise: Denoiser, params: Params, noisy: Noisy) -> tuple[Array, Array, Aux]:
    loss_BxL, ce_BxL, aux = super().losses(denoise, params, noisy)
    if self.focal:
      loss_BxL *= self.focal_alpha * (1 - jnp.exp(-ce_BxL)) ** self.focal_gamma
    return loss_BxL, ce_BxL, aux

  def not_a_likelihood(self) -> str | None:
    return "it divides by the number of masked tokens"


def cart_weights(masked_BxL: Array, first_BxL: Array, p: float) -> Array:
  """CART: masked tokens by the clean ones of their document, a half of a geometric law each way.

  0.5 p (1 - p)^(d - 1) for every clean token d places away; 0 where not masked. Of order 1 - t
  within a long text, and 0 where all is masked.

  Args:
    first_BxL: bool, first tokens of documents.
  """
  clean_BxL = jnp.where(masked_BxL, 0.0, 0.5 * p)

  def decayed(near_BxL: Array, starts_BxL: Array) -> Array:
    """x_n = (1 - p) x_(n-1) + near_(n-1), from 0 at every start."""
    keep_BxL = jnp.where(starts_BxL, 0.0, 1 - p)
    add_BxL = jnp.where(starts_BxL, 0.0, jnp.roll(near_BxL, 1, axis=1))

    def then(one, two):
      return one[0] * two[0], one[1] * two[0] + two[1]

    return jax.lax.associative_scan(then, (keep_BxL, add_BxL), axis=1)[1]

  last_BxL = jnp.roll(first_BxL, -1, axis=1)
  before_BxL = decayed(clean_BxL, first_BxL)
  after_BxL = decayed(clean_BxL[:, ::-1], last_BxL[:, ::-1])[:, ::-1]
  return jnp.where(masked_BxL, before_BxL + after_BxL, 0.0)


def of_last_runs(u_BxL: Array, batch: Batch) -> Array:
  """In the run of equal tokens that ends a document, all take the draw of its first."""
  tokens_BxL, first_BxL = batch.tokens_BxL, streams.first_of_document(batch)
  slot_BxL = jnp.broadcast_to(jnp.arange(tokens_BxL.shape[1]), tokens_BxL.shape)
  begins_BxL = first_BxL | (tokens_BxL != jnp.roll(tokens_BxL, 1, axis=1))
  begin_BxL = jax.lax.cummax(jnp.where(begins_BxL, slot_BxL, 0), axis=1)

  def next_one(where_BxL: Array) -> Array:
    """The slot of the next one behind each slot; the row's length where there is none."""
    length = where_BxL.shape[1]
    at_BxL = jnp.where(where_BxL, slot_BxL, length)
    at_BxL = jax.lax.cummin(at_BxL, axis=1, reverse=True)
    return jnp.pad(at_BxL[:, 1:], ((0, 0), (0, 1)), constant_values=length)

  ends_BxL = next_one(begins_BxL) == next_one(first_BxL)
  return jnp.where(ends_BxL, jnp.take_along_axis(u_BxL, begin_BxL, axis=1), u_BxL)
