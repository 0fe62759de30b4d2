"""DiffuLLaMA: autoregressive models become diffusion models. arXiv 2410.17891; its code.

Two parts of the recipe go with any objective: `Shifted` keeps the habit of predicting the next
token, `Annealed` opens the attention from causal to full. `DiffuLlama` is the authors' own loss.
"""

import dataclasses

import jax
import jax.numpy as jnp

from dlm.diffusion import times
from dlm.objectives import streams
from dlm.objectives.cross_entropy import AllIds
from dlm.types import Array, Batch, Denoiser, LossSum, Noisy, Objective, Params


@dataclasses.dataclass(frozen=True)
class DiffuLlama(AllIds):
  """1/t times the cross-entropy of masked tokens, over the number of masked tokens.

  One time per row. With the shift a document's first token is noised and never scored.

  Args:
    mask_id: id of [MASK]; the softmax keeps it.
    shift: 1: the input before a token predicts it. 0: its own.
    min_time: times are drawn from [min_time, 1].
    times: as in `Mdlm`.
  """

  mask_id: int
  shift: int = 1
  min_time: float = 1e-3
  times: str = "iid"

  def __post_init__(self):
    streams.check_mask_id("DiffuLlama", self.mask_id)
    times.check("DiffuLlama", self.times)
    check_shift(self.shift)
    if not 0 < self.min_time < 1:
      raise ValueError(f"DiffuLlama: min_time={self.min_time} must lie in (0, 1)")

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    """Draws "u_time", "stratum" [B] and "u_mask" [B, L]."""
    return streams.draw(key, batch)

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    del step
    t_B = times.TIMES[self.times](draws["u_time"], draws["stratum"])
    t_B = (1 - self.min_time) * t_B + self.min_time
    noisy = streams.noisy_rows(batch, draws["u_mask"], t_B, 1 / t_B, self.mask_id)
    if self.shift:
      noisy = streams.shifted_in_stream(noisy, batch)
    return noisy.replace(count_B=(noisy.weight_BxL > 0).sum(-1).astype(jnp.float32))

  def corrupt(self, key: Array, batch: Batch, step: Array) -> Noisy:
    return self.corrupt_with(self.draw(key, batch), batch, step)

  def not_a_likelihood(self) -> str | None:
    """Why the loss is no bound on the negative log-likelihood."""
    return "it weighs by 1/t and divides by the number of masked tokens as well"


@dataclasses.dataclass(frozen=True)
class _Around:
  """An objective with something changed in what the model reads or where it is asked."""

  objective: Objective

  @property
  def block(self) -> int | None:
    return getattr(self.objective, "block", None)

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    return self.objective.draw(key, batch)

  def corrupt(self, key: Array, batch: Batch, step: Array) -> Noisy:
    return self.corrupt_with(self.draw(key, batch), batch, step)

  def token_losses(self, denoise: Denoiser, params: Params, noisy: Noisy) -> Array:
    return self.objective.token_losses(denoise, params, noisy)

  def loss(self, denoise: Denoiser, params: Params, noisy: Noisy) -> LossSum:
    return self.objective.loss(denoise, params, noisy)

  def not_a_likelihood(self) -> str | None:
    return self.objective.not_a_likelihood()


@dataclasses.dataclass(frozen=True)
class Shifted(_Around):
  """Logits at i - 1 predict token i, as in the autoregressive model the parameters come from.

  A document's first token has nothing before it: it stays clean and is not counted, so that a
  bound holds given that token, as the likelihood of `Autoregressive` does. In blocks the first
  token of each is predicted from clean text alone, as it is when sampled: the bound is looser.
  """

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    noisable_BxL = batch.noisable_BxL & ~streams.first_of_document(batch)
    noisy = self.objective.corrupt_with(draws, batch.replace(noisable_BxL=noisable_BxL), step)
    return streams.shifted(noisy)


@dataclasses.dataclass(frozen=True)
class Annealed(_Around):
  """Later keys come into sight one by one: each with probability (step + 1) / steps, then all.

  One draw a step, shared by rows, heads, layers and both streams of [noisy; clean].

  Args:
    steps: updates until nothing is hidden; the authors' GPT-2 takes 10000, their LLaMA none.
  """

  steps: int

  def __post_init__(self):
    if self.steps < 1:
      raise ValueError(f"Annealed: steps={self.steps} must be at least 1")

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    """Adds "u_attention" [L, L]."""
    key_noise, key_attention = jax.random.split(key)
    length = batch.tokens_BxL.shape[1]
    u_LxL = jax.random.uniform(key_attention, (length, length))
    return self.objective.draw(key_noise, batch) | {"u_attention": u_LxL}

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    noisy = self.objective.corrupt_with(draws, batch, step)
    rows, window = noisy.inputs_BxW.shape
    index_W = jnp.arange(window) % batch.tokens_BxL.shape[1]
    earlier_WxW = index_W[None, :] <= index_W[:, None]
    drawn_WxW = draws["u_attention"][index_W][:, index_W] < (step + 1) / self.steps
    dense_BxWxW = jnp.broadcast_to(earlier_WxW | drawn_WxW, (rows, window, window))
    return noisy.replace(mask=noisy.mask.replace(dense_BxWxS=dense_BxWxW))


def check_shift(shift: int) -> None:
  """Raises ValueError unless logits predict their own token (0) or the next (1)."""
  if shift not in (0, 1):
    raise ValueError(f"objective.shift={shift} must be 0 or 1")
