"""What an objective is: one paper's training recipe, and what may be asked of it."""

import abc
import dataclasses
from typing import Any

from dlm import masks
from dlm.objectives.cross_entropy import cross_entropy, loss_sum, predict
from dlm.types import (
  OBJECTIVE,
  Array,
  Aux,
  Batch,
  Denoiser,
  LogitHead,
  LossSum,
  MaskRule,
  Noisy,
  Params,
)


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
  """One paper's training recipe: how text is corrupted, and what a model's answer to it costs.

  A recipe gives `corrupt_with` and `not_a_likelihood`; `draw` where its noise is random; `losses`
  where the loss of a token is not its weighted cross-entropy. Of what follows it declares what
  differs from here. A field `block` without a default is written `block: int =
  dataclasses.field()`, since a dataclass would take the None below for its default.
  """

  block = None  # tokens that learn to be decided together; None: the row
  shift = 0  # 1: logits at i predict token i + 1
  shiftable = False  # `Shifted` may ask it for the next token
  annealable = False  # `Annealed` may open its attention update by update
  exact_count = False  # `ExactCount` measures the likelihood of its model
  taught = False  # a frozen teacher is asked too: `denoise` and `params` are pairs, its own second
  tellable = False  # what that teacher says of a noise depends on no model that learns: `Told`
  own_fields = ()  # of its fields those that change nothing of what its teacher is asked
  edit_ids = None  # (insert, delete): ids that the model learns to predict, and no text holds
  teacher_shift = 1  # of one: its logits at i predict token i + 1, as autoregressive models' do
  summable = True  # parts of a batch add up to its loss, else a part has means of its own
  drafts = False  # and its model is a drafter of the teacher, told by taps, without a table
  traced = False  # reads `Batch.extra["when"]`: its rows are what the model itself wrote
  rewarded = False  # and `Batch.extra["advantage_B"]`: what they are worth
  interleaved = False  # and these may hold what tools answered meanwhile: `dlm.episodes`
  stepwise = False  # and are states of it, each with what the model made of it: `dlm.stepwise`
  paired = False  # rows 2i and 2i + 1 belong together
  recalls = False  # and, of several updates on the same rows, "old_BxL": see `remembered`

  @property
  def candidates(self) -> tuple[dict[str, Any], ...]:
    """`Batch.extra` of noises among which every evaluation chooses for the updates to come."""
    return ()

  @property
  def attention(self) -> MaskRule:
    """What a token sees while the trained model is sampled."""
    return masks.Full() if self.block is None else masks.BlockCausal(self.block)

  @property
  def teacher_attention(self) -> MaskRule:
    """What a token sees for its teacher, one of `teacher_shift` 0."""
    return self.attention

  @property
  def forbidden(self) -> tuple[int, ...]:
    """Ids that get no probability."""
    return ()

  def init(self, width: int) -> Params:
    """Parameters of its own, learned as the model's are, which no sampler needs; {}: none.

    Losses find them in `params["objective"]`, noise in `Batch.extra`: see `with_own`, `informed`.

    Args:
      width: of what the model's last layer puts out.
    """
    del width
    return {}

  @abc.abstractmethod
  def not_a_likelihood(self) -> str | None:
    """Why the loss is no bound on the negative log-likelihood; None if it is one."""

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    """All random numbers of one corruption, drawn for the global batch; here there are none."""
    del key, batch
    return {}

  @abc.abstractmethod
  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    """The corruption of given draws. `step`: updates done, for what changes as training goes on."""

  def corrupt(self, key: Array, batch: Batch, step: Array) -> Noisy:
    return self.corrupt_with(self.draw(key, batch), batch, step)

  def losses(self, denoise: Denoiser, params: Params, noisy: Noisy) -> tuple[Array, Array, Aux]:
    """Of each target [B, L], in nats: the loss, weighted, and the bare cross-entropy."""
    head, aux = predict(denoise, params, noisy)
    ce_BxL = cross_entropy(head, noisy, self.forbidden)
    return noisy.weight_BxL * ce_BxL, ce_BxL, aux

  def token_losses(self, denoise: Denoiser, params: Params, noisy: Noisy) -> Array:
    """[B, L] in nats; where the loss is a likelihood, the sum over a row estimates its bound."""
    return self.losses(denoise, params, noisy)[0]

  def teacher_head(
    self, teacher: Denoiser, params: Params, noisy: Noisy, student: LogitHead | None = None
  ) -> LogitHead:
    """Where its teacher predicts each target, without gradient, where it is tellable.

    `divergence`, a `dlm.objectives.divergence.Divergence`, is then what it is compared by.

    Args:
      student: where the model that learns does, for a teacher that is asked by its guesses.
    """
    raise NotImplementedError

  def remembered(self, denoise: Any, params: Any, noisy: Noisy) -> dict[str, Array]:
    """What it recalls in `Batch.extra`, [B, L] each: "old_BxL". `denoise`, `params`: see `loss`."""
    raise NotImplementedError

  def loss(self, denoise: Denoiser, params: Params, noisy: Noisy) -> tuple[LossSum, Aux]:
    """Sums over the batch, and what the model told besides."""
    loss_BxL, ce_BxL, aux = self.losses(denoise, params, noisy)
    return loss_sum(noisy, loss_BxL, ce_BxL), aux


def with_own(params: Params, own: Params) -> Params:
  """The model's parameters and the objective's, where it has any, in one tree."""
  return {**params, OBJECTIVE: own} if own else params


def without_own(params: Params) -> Params:
  """The model's parameters alone."""
  return {name: each for name, each in params.items() if name != OBJECTIVE}


def informed(batch: Batch, params: Params) -> Batch:
  """The batch with the objective's own parameters, which its noise may depend on."""
  return batch.replace(extra={**batch.extra, **params.get(OBJECTIVE, {})})
