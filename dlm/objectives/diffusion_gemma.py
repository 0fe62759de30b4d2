"""DiffusionGemma's fine-tuning: canvases of random ids beside text that is read causally."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm import masks
from dlm.diffusion import uniform
from dlm.objectives import streams
from dlm.objectives.block import BlockTraining, answer_block_start, answer_start
from dlm.objectives.cross_entropy import cross_entropy, predict
from dlm.types import Array, Aux, Batch, Denoiser, LogitHead, MaskRule, Noisy, Params
from kernels_pallas.token_stats import StatSpec, token_stats


@dataclasses.dataclass(frozen=True)
class DiffusionGemma(BlockTraining):
  """DiffusionGemma (google-deepmind/gemma, fine-tuning): restore canvases, and predict next tokens.

  Noise is random ids, at one level in [`least`, 1] a row. The model predicts every token of a
  canvas, corrupted or not, all with weight 1; of the clean text, which it reads causally, the next
  token. Each part is a mean over the batch. With probability `conditioned` a row is predicted
  twice: the second time it is given the mean embeddings of its first prediction, through which no
  gradient goes. Else it is given none: zeros, as in the first forward of a canvas that is sampled.

  Canvases are cut from the answer's first token. The authors train one of each row, drawn at
  random; here it is all of them, each behind the clean text before it: the same in expectation.

  Args:
    block: tokens of a canvas.
    vocab: random ids are below it; the mask id is none of them, as in sampling.
    next_weight: of the next tokens' part.
  """

  block: int = dataclasses.field()
  vocab: int
  conditioned: float = 0.5
  next_weight: float = 1.0
  least: float = 1e-4

  def __post_init__(self):
    super().__post_init__()
    if self.vocab < 2:
      raise ValueError(f"DiffusionGemma: vocab={self.vocab} must be at least 2")
    for name in ("conditioned", "least"):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f"DiffusionGemma: {name}={getattr(self, name)} must lie in 0..1")
    if not self.least:
      raise ValueError("DiffusionGemma: least=0.0 must be positive: level 0 means clean text")
    if self.next_weight < 0:
      raise ValueError(f"DiffusionGemma: next_weight={self.next_weight} must not be negative")

  @property
  def attention(self) -> MaskRule:
    return masks.Canvas(self.block)

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    """As other block training; "random" [B, L], what a token becomes, and "u_condition" [B]."""
    key_noise, key_ids, key_condition = jax.random.split(key, 3)
    shape = batch.tokens_BxL.shape
    return super().draw(key_noise, batch) | {
      "random": uniform.random_ids(key_ids, shape, self.vocab, self.mask_id),
      "u_condition": jax.random.uniform(key_condition, shape[:1]),
    }

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    del step
    shape, noisable_BxL = batch.tokens_BxL.shape, streams.noisable(batch)
    level_Bx1 = self.least + (1 - self.least) * draws["u_time"][:, :1]
    noisy = streams.one_stream(
      batch,
      masked_BxL=noisable_BxL,
      weight_BxL=jnp.ones(shape),
      level_BxL=jnp.broadcast_to(level_Bx1, shape),
      count_B=noisable_BxL.sum(-1),
      mask_id=self.mask_id,
    )
    corrupt_BxL = noisable_BxL & (draws["u_mask"] < level_Bx1)
    noisy = noisy.replace(inputs_BxW=jnp.where(corrupt_BxL, draws["random"], batch.tokens_BxL))
    mask = masks.canvases(answer_block_start(batch, self.block), self.block)
    noisy = streams.noisy_and_clean(noisy, mask)
    slot_BxL = jnp.broadcast_to(jnp.arange(shape[1]), shape)
    in_canvas_BxL = slot_BxL >= answer_start(batch)  # a prompt is in none
    segment_BxW = jnp.concatenate(
      [jnp.where(in_canvas_BxL, batch.segment_BxL, 0), batch.segment_BxL], axis=1
    )
    noisy = streams.asking_next(noisy, batch, self.next_weight * noisable_BxL.sum())
    return noisy.replace(
      mask=masks.in_segments(noisy.mask, segment_BxW),
      extra={"conditioned": draws["u_condition"] < self.conditioned},
    )

  def losses(self, denoise: Denoiser, params: Params, noisy: Noisy) -> tuple[Array, Array, Aux]:
    length = noisy.targets_BxL.shape[1] // 2
    canvas = noisy.replace(targets_BxL=noisy.targets_BxL[:, :length], ask_BxL=None)
    first, _ = predict(denoise, jax.lax.stop_gradient(params), canvas)
    soft_BxLxD = mean_embedding(first) * noisy.extra["conditioned"][:, None, None]
    soft_BxWxD = jnp.concatenate([soft_BxLxD, jnp.zeros_like(soft_BxLxD)], axis=1)
    head, aux = predict(denoise, params, noisy, soft_BxWxD)
    ce_BxL = cross_entropy(head, noisy, self.forbidden)
    return noisy.weight_BxL * ce_BxL, ce_BxL, aux

  def not_a_likelihood(self) -> str | None:
    return "it scores tokens that are not corrupted too, all with weight 1"


def mean_embedding(head: LogitHead) -> Array:
  """What the model holds for likely, [B, A, D] in float32, without gradient."""
  batch, asked, width = head.hidden_BxAxD.shape
  embed_VxD = head.unembed_VxD if head.embed_VxD is None else head.embed_VxD
  stats = token_stats(
    head.hidden_BxAxD.reshape(-1, width),
    head.unembed_VxD,
    StatSpec(soft=True),
    embed_VxD=embed_VxD,
    soft_cap=head.soft_cap,
    implementation=head.implementation,
  )
  return jax.lax.stop_gradient(stats.soft.reshape(batch, asked, -1))
