"""DiffuLLaMA: autoregressive models become diffusion models. arXiv 2410.17891; its code.

Two parts of the recipe go with any objective: `Shifted` keeps the habit of predicting the next
token, `Annealed` opens the attention from causal to full. `DiffuLlama` is the authors' own loss.
"""

import dataclasses
from operator import attrgetter

import jax
import jax.numpy as jnp

from dlm.objectives import streams
from dlm.objectives.objective import Objective
from dlm.objectives.row import RowTraining
from dlm.types import Array, Aux, Batch, Denoiser, LogitHead, LossSum, Noisy, Params


@dataclasses.dataclass(frozen=True)
class DiffuLlama(RowTraining):
  """DiffuLLaMA (2410.17891): an autoregressive model learns to predict masked tokens one ahead.

  1/t times the cross-entropy of masked tokens, over their number; the softmax keeps the mask id.
  With the shift a document's first token is noised and never scored.

  Args:
    shift: 1: the input before a token predicts it. 0: its own.
    min_time: times are drawn from [min_time, 1].
  """

  shift: int = 1
  min_time: float = 1e-3
  annealable = True
  exact_count = True

  def __post_init__(self):
    super().__post_init__()
    check_shift(self.shift)
    if not 0 < self.min_time < 1:
      raise ValueError(f"DiffuLlama: min_time={self.min_time} must lie in (0, 1)")

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    del step
    t_B = (1 - self.min_time) * self.times_of(draws) + self.min_time
    noisy = streams.noisy_rows(batch, draws["u_mask"], t_B, 1 / t_B, self.mask_id)
    if self.shift:
      noisy = streams.shifted_in_stream(noisy, batch)
    return noisy.replace(count_B=(noisy.weight_BxL > 0).sum(-1).astype(jnp.float32))

  def not_a_likelihood(self) -> str | None:
    return "it weighs by 1/t and divides by the number of masked tokens as well"


@dataclasses.dataclass(frozen=True)
class Around(Objective):
  """An objective with something changed in what the model reads or where it is asked."""

  objective: Objective

  candidates = property(attrgetter("objective.candidates"))
  attention = property(attrgetter("objective.attention"))
  teacher_attention = property(attrgetter("objective.teacher_attention"))
  block = property(attrgetter("objective.block"))
  shift = property(attrgetter("objective.shift"))
  forbidden = property(attrgetter("objective.forbidden"))
  shiftable = property(attrgetter("objective.shiftable"))
  annealable = property(attrgetter("objective.annealable"))
  exact_count = property(attrgetter("objective.exact_count"))
  taught = property(attrgetter("objective.taught"))
  tellable = property(attrgetter("objective.tellable"))
  own_fields = property(attrgetter("objective.own_fields"))
  divergence = property(attrgetter("objective.divergence"))
  edit_ids = property(attrgetter("objective.edit_ids"))
  teacher_shift = property(attrgetter("objective.teacher_shift"))
  summable = property(attrgetter("objective.summable"))
  drafts = property(attrgetter("objective.drafts"))
  traced = property(attrgetter("objective.traced"))
  rewarded = property(attrgetter("objective.rewarded"))
  interleaved = property(attrgetter("objective.interleaved"))
  stepwise = property(attrgetter("objective.stepwise"))
  paired = property(attrgetter("objective.paired"))
  recalls = property(attrgetter("objective.recalls"))

  def not_a_likelihood(self) -> str | None:
    return self.objective.not_a_likelihood()

  def init(self, width: int) -> Params:
    return self.objective.init(width)

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    return self.objective.draw(key, batch)

  def losses(self, denoise: Denoiser, params: Params, noisy: Noisy) -> tuple[Array, Array, Aux]:
    return self.objective.losses(denoise, params, noisy)

  def teacher_head(
    self, teacher: Denoiser, params: Params, noisy: Noisy, student: LogitHead | None = None
  ) -> LogitHead:
    return self.objective.teacher_head(teacher, params, noisy, student)

  def remembered(self, denoise: Denoiser, params: Params, noisy: Noisy) -> dict[str, Array]:
    return self.objective.remembered(denoise, params, noisy)

  def loss(self, denoise: Denoiser, params: Params, noisy: Noisy) -> tuple[LossSum, Aux]:
    return self.objective.loss(denoise, params, noisy)


@dataclasses.dataclass(frozen=True)
class Shifted(Around):
  """DiffuLLaMA (2410.17891): logits at i - 1 predict token i, as in an autoregressive model.

  A document's first token has nothing before it: it stays clean and is not counted, so that a
  bound holds given that token, as the likelihood of `Autoregressive` does. In blocks the first
  token of each is predicted from clean text alone, as it is when sampled: the bound is looser.
  """

  shift = 1
  shiftable = False

  def __post_init__(self):
    if not self.objective.shiftable:
      why = "predicts it anyway" if self.objective.shift else "is defined for a token's own logits"
      raise ValueError(f"objective.shift=1 does not go with {_name(self.objective)}, which {why}")

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    noisable_BxL = batch.noisable_BxL & ~streams.first_of_document(batch)
    noisy = self.objective.corrupt_with(draws, batch.replace(noisable_BxL=noisable_BxL), step)
    return streams.shifted(noisy)


@dataclasses.dataclass(frozen=True)
class Annealed(Around):
  """DiffuLLaMA (2410.17891): attention opens from causal to what it will be, update by update.

  Each later key is in sight with probability (step + 1) / steps, until all are.
  One draw a step, shared by rows, heads, layers and both streams of [noisy; clean].

  Args:
    steps: updates until nothing is hidden; the authors' GPT-2 takes 10000, their LLaMA none.
  """

  steps: int
  annealable = False

  def __post_init__(self):
    if not self.objective.annealable:
      raise ValueError(
        f"objective.anneal={self.steps} does not go with {_name(self.objective)}, which is trained "
        "with the same attention from the first update to the last"
      )
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


def _name(objective: Objective) -> str:
  return type(objective).__name__


def check_shift(shift: int) -> None:
  """Raises ValueError unless logits predict their own token (0) or the next (1)."""
  if shift not in (0, 1):
    raise ValueError(f"objective.shift={shift} must be 0 or 1")
