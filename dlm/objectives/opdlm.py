"""OPDLM: a block model is taught on texts of its own. arXiv 2606.06712; its code."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm import masks
from dlm.objectives import streams
from dlm.objectives.block import BlockTraining, answer_block_start, at, of_block
from dlm.objectives.cross_entropy import predict
from dlm.objectives.divergence import Divergence, likeliest
from dlm.types import Array, Aux, Batch, Denoiser, LogitHead, MaskRule, Noisy, Params

STATES = ("trace", "random")
FILLS = ("text", "guess")


@dataclasses.dataclass(frozen=True)
class Opdlm(BlockTraining):
  """OPDLM (2606.06712): a block model is told by its autoregressive teacher how to go on from where
  it came itself.

  Rows are the model's own answers, and how it wrote them: `dlm.rollout`. Of each block one state is
  shown that the block was in before one of its forwards, and all its masks are learned: a mean over
  a row's masks of the divergence from the teacher's distribution, then over rows. Blocks count from
  the answer's first token, both ways.

  The teacher reads the same [noisy; clean] with the masks filled in, causally: within its block it
  sees what is filled in before, and the clean blocks before that. Its distribution of a token is
  what it predicts at the input before, for a block's first token the clean one.

  The bare "cross-entropy" of the metrics is the divergence here.

  Args:
    states: "trace": before a forward of the block, each as likely. "random": each token masked with
      a probability drawn for its block, one at least; rows may then be any text.
    fill: what stands for a mask when the teacher reads: "text", what was written there in the end,
      or "guess", what the model holds for likeliest now.
    learn_end: the end token is learned too.
  """

  states: str = "trace"
  fill: str = "text"
  divergence: Divergence = dataclasses.field(default_factory=Divergence)
  learn_end: bool = True
  taught = True
  shiftable = True

  def __post_init__(self):
    super().__post_init__()
    for name, known in (("states", STATES), ("fill", FILLS)):
      if getattr(self, name) not in known:
        raise ValueError(f"Opdlm: {name}={getattr(self, name)!r} is not one of {', '.join(known)}")

  @property
  def tellable(self) -> bool:
    return self.states == "random" and self.fill == "text"

  @property
  def traced(self) -> bool:
    return self.states == "trace"

  @property
  def attention(self) -> MaskRule:
    return masks.AnswerBlocks(self.block)

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    del step
    start_BxL = answer_block_start(batch, self.block)
    u_BxL = at(draws["u_time"], jnp.maximum(start_BxL, 0))
    if self.traced:
      rank_BxL, steps_BxL = step_ranks(batch, start_BxL, self.block)
      masked_BxL = rank_BxL >= jnp.floor(u_BxL * steps_BxL)
      masked_BxL &= batch.extra["when"] >= 0
    else:
      masked_BxL = self._at_random(batch, start_BxL, u_BxL, draws["u_mask"])
    learned_BxL = masked_BxL & streams.noisable(batch)
    if not self.learn_end and "end" in batch.extra:
      learned_BxL &= ~batch.extra["end"]
    noisy = streams.one_stream(
      batch,
      masked_BxL,
      weight_BxL=learned_BxL / jnp.maximum(learned_BxL.sum(-1, keepdims=True), 1),
      level_BxL=of_block(masked_BxL, batch, start_BxL, self.block, False).mean(-1),
      count_B=jnp.ones(len(masked_BxL)),
      mask_id=self.mask_id,
    )
    return streams.noisy_and_clean(noisy, masks.noisy_clean_from(start_BxL, self.block))

  def _at_random(self, batch: Batch, start_BxL: Array, level_BxL: Array, u_BxL: Array) -> Array:
    """The lowest draw of a block is a mask always: the only one where none is below the level."""
    text_BxL = streams.noisable(batch)
    u_BxL = jnp.where(text_BxL, u_BxL, jnp.inf)
    lowest_BxL = of_block(u_BxL, batch, start_BxL, self.block, jnp.inf).min(-1)
    return text_BxL & ((u_BxL < level_BxL) | (u_BxL == lowest_BxL))

  def losses(
    self, denoise: tuple[Denoiser, Denoiser], params: tuple[Params, Params], noisy: Noisy
  ) -> tuple[Array, Array, Aux]:
    """Divergences [B, L], weighted and bare. `denoise`, `params`: the student's, the teacher's."""
    (student, teacher), (own, frozen) = denoise, params
    head, aux = predict(student, own, noisy)
    taught = self.teacher_head(teacher, frozen, noisy, head)
    nats_BxL = self.divergence(head, taught, noisy.weight_BxL > 0)
    return noisy.weight_BxL * nats_BxL, nats_BxL, aux

  def teacher_head(
    self, teacher: Denoiser, params: Params, noisy: Noisy, student: LogitHead | None = None
  ) -> LogitHead:
    asked, _ = predict(teacher, params, self.teacher_inputs(noisy, student))
    return jax.lax.stop_gradient(asked)

  def teacher_inputs(self, noisy: Noisy, student: LogitHead | None) -> Noisy:
    """What the teacher reads, causally in each stream, and where it is asked.

    Args:
      student: whose guesses stand for masks, if they do.
    """
    filled_BxL = noisy.targets_BxL if self.fill == "text" else likeliest(student)
    shown_BxL, clean_BxL = jnp.split(noisy.inputs_BxW, 2, axis=1)
    filled_BxL = jnp.where(shown_BxL == self.mask_id, filled_BxL, shown_BxL)
    return streams.shifted(noisy).replace(
      inputs_BxW=jnp.concatenate([filled_BxL, clean_BxL], axis=1),
      time_BxW=jnp.zeros_like(noisy.time_BxW),
      mask=masks.own_past(noisy.mask),
    )

  def not_a_likelihood(self) -> str | None:
    return "it is the distance from a teacher"


def step_ranks(batch: Batch, start_BxL: Array, block: int) -> tuple[Array, Array]:
  """Trajectories by block: TraceRL (2509.06949).

  Returns:
    How many forwards wrote other tokens of its block before each token was written, [B, L], and how
    many wrote any. `Batch.extra["when"]` says which forward wrote a token, -1: it was given.
  """
  when_BxL = batch.extra["when"]
  when_BxLxb = of_block(when_BxL, batch, start_BxL, block, -1)
  offset_BxL = jnp.arange(when_BxL.shape[1])[None] - start_BxL
  before_BxLxb = jnp.arange(block)[None, None] < offset_BxL[:, :, None]
  repeats_BxL = (before_BxLxb & (when_BxLxb == when_BxL[:, :, None])).any(-1)
  new_BxL = (when_BxL >= 0) & ~repeats_BxL
  new_BxLxb = of_block(new_BxL, batch, start_BxL, block, False)
  return (new_BxLxb & (when_BxLxb < when_BxL[:, :, None])).sum(-1), new_BxLxb.sum(-1)
