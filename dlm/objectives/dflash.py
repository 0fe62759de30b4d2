"""DFlash: a drafter learns to fill blocks from what its target's layers tell. arXiv 2602.06036."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm import masks
from dlm.objectives import streams
from dlm.objectives.block import at
from dlm.objectives.cross_entropy import cross_entropy, loss_sum
from dlm.objectives.divergence import Divergence, likeliest
from dlm.objectives.objective import Objective
from dlm.types import (
  Array,
  Aux,
  Batch,
  Denoiser,
  FeatureDrafter,
  LogitHead,
  LossSum,
  Mask,
  MaskRule,
  Noisy,
  Params,
)


@dataclasses.dataclass(frozen=True)
class DFlash(Objective):
  """DFlash (2602.06036): a drafter learns to fill blocks from what its target's layers tell.

  The target reads the text as it is, and is not trained. Blocks begin at `anchors` random tokens of
  a row that are followed by `block` - 1 more of their document: an anchor that is shown, then masks
  for what follows. A block sees itself, both ways, and what the target's layers tell of the text
  before its anchor. Each mask learns its token by cross-entropy, weighted exp(-(k - 1) / gamma) k
  tokens behind the anchor and divided by the sum of the weights. The authors' recipe is not public
  yet: this is NeMo Automodel's.

  Rows of targets are the blocks one after the other, [B, anchors * block]. The noise level in the
  metrics is how far behind its anchor a token stands, in blocks.

  Args:
    block: tokens of a block, the shown one included.
    anchors: blocks of a row, Automodel's 512; those that a row has no place for count for nothing.
    gamma: tokens behind the last shown one in which the weight falls to 1/e; None: it does not.
    prefix: D2SD (2606.04446): more than the anchor is shown, l tokens of 2 to `block` - 1, with
      chances that go as prefix^l (0.9); None: the anchor alone.
    causal: JetSpec: of its block a token sees itself and what stands before it.
    temperature: JetSpec: the loss is the divergence from the target's distribution, both at this
      temperature (2), times its square; "right" is then the target's likeliest id. None: the text.
  """

  mask_id: int
  block: int = dataclasses.field()
  anchors: int
  gamma: float | None = 7.0
  prefix: float | None = None
  causal: bool = False
  temperature: float | None = None
  taught = True
  drafts = True

  def __post_init__(self):
    streams.check_mask_id("DFlash", self.mask_id)
    if self.block < 2 or self.anchors < 1:
      raise ValueError(
        f"DFlash: block={self.block} must be at least 2, anchors={self.anchors} at least 1"
      )
    if self.gamma is not None and not self.gamma > 0:
      raise ValueError(f"DFlash: gamma={self.gamma} must be positive (None: weights do not fall)")
    for name in ("prefix", "temperature"):
      value = getattr(self, name)
      if value is not None and not value > 0:
        raise ValueError(f"DFlash: {name}={value} must be positive (None: off)")

  @property
  def attention(self) -> MaskRule:
    return masks.Causal() if self.causal else masks.Full()

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    """ "u_anchor" [B, L]: the lowest of a row become its anchors. "u_prefix" [B, L], where prefixes
    are drawn: the i-th is the i-th block's."""
    shape = batch.tokens_BxL.shape
    draws = {"u_anchor": jax.random.uniform(key, shape)}
    if self.prefix is not None:
      draws["u_prefix"] = jax.random.uniform(jax.random.fold_in(key, 1), shape)
    return draws

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    del step
    text_BxL = streams.noisable(batch)
    anchor_BxN, kept_BxN = self._anchors(draws["u_anchor"], batch, text_BxL)
    rows, offset_1x1xb = len(text_BxL), jnp.arange(self.block)[None, None]

    def flat(x_BxNxb: Array) -> Array:
      return x_BxNxb.reshape(rows, -1)

    slot_BxNxb = anchor_BxN[:, :, None] + offset_1x1xb
    target_BxW = at(batch.tokens_BxL, flat(slot_BxNxb))
    behind_BxNxb = offset_1x1xb - self._prefixes(draws, anchor_BxN)[:, :, None]
    shown_BxNxb = kept_BxN[:, :, None] & (behind_BxNxb < 0)
    asked_BxNxb = kept_BxN[:, :, None] & (behind_BxNxb >= 0)
    fall_BxNxb = jnp.ones_like(behind_BxNxb, jnp.float32)
    if self.gamma is not None:
      fall_BxNxb = jnp.exp(-behind_BxNxb / self.gamma)
    asked_BxW = flat(asked_BxNxb) & at(text_BxL, flat(slot_BxNxb))
    weight_BxW = jnp.where(asked_BxW, flat(fall_BxNxb), 0)
    position_BxN = at(batch.position_BxL, anchor_BxN)
    level_BxNxb = jnp.broadcast_to(offset_1x1xb / self.block, slot_BxNxb.shape)
    return Noisy(
      inputs_BxW=jnp.where(flat(shown_BxNxb), target_BxW, self.mask_id),
      targets_BxL=target_BxW,
      weight_BxL=weight_BxW,
      count_B=weight_BxW.sum(-1) + 1e-6 / rows,  # also where a batch has no place for a block
      slot_BxW=flat(position_BxN[:, :, None] + offset_1x1xb),
      time_BxW=flat(level_BxNxb),
      mask=self._sees(anchor_BxN, position_BxN, kept_BxN, text_BxL.shape[1]),
      extra={
        "tokens_BxL": batch.tokens_BxL,
        "segment_BxL": batch.segment_BxL,
        "position_BxL": batch.position_BxL,
        "before_BxW": jnp.maximum(flat(slot_BxNxb) - 1, 0),
      },
    )

  def _prefixes(self, draws: dict[str, Array], anchor_BxN: Array) -> Array:
    """Shown tokens of each block, [B, N]."""
    if self.prefix is None:
      return jnp.ones_like(anchor_BxN)
    least = min(2, self.block - 1)
    chance_K = self.prefix ** jnp.arange(least, self.block, dtype=jnp.float32)
    until_K = jnp.cumsum(chance_K) / chance_K.sum()
    u_BxNx1 = draws["u_prefix"][:, : anchor_BxN.shape[1], None]
    return least + (u_BxNx1 >= until_K[None, None, :-1]).sum(-1)

  def _anchors(self, u_BxL: Array, batch: Batch, text_BxL: Array) -> tuple[Array, Array]:
    """Slots of the anchors, ascending, and which of them there are; 0 where there is none."""
    length = text_BxL.shape[1]
    end_1xL = jnp.arange(length)[None] + self.block - 1
    ends_BxL = at(batch.segment_BxL, jnp.broadcast_to(end_1xL, text_BxL.shape))
    place_BxL = text_BxL & (end_1xL < length) & (ends_BxL == batch.segment_BxL)
    u_BxL = jnp.where(place_BxL, u_BxL, jnp.inf)
    chosen_BxN = jnp.argsort(u_BxL, axis=1)[:, : self.anchors]
    kept_BxN = at(place_BxL, chosen_BxN)
    anchor_BxN = jnp.sort(jnp.where(kept_BxN, chosen_BxN, length), axis=1)
    kept_BxN = anchor_BxN < length
    return jnp.where(kept_BxN, anchor_BxN, 0), kept_BxN

  def _sees(self, anchor_BxN: Array, position_BxN: Array, kept_BxN: Array, length: int) -> Mask:
    """Keys are the text's, then the blocks'. Blocks that are not there see themselves."""
    own_1xN = length + self.block * jnp.arange(anchor_BxN.shape[1])[None]
    own_BxN = jnp.broadcast_to(own_1xN, anchor_BxN.shape)
    before_BxN = jnp.where(kept_BxN, anchor_BxN, anchor_BxN - position_BxN)
    lo_BxNx2 = jnp.stack([anchor_BxN - position_BxN, own_BxN], axis=-1)
    hi_BxNx2 = jnp.stack([before_BxN, own_BxN + self.block], axis=-1)
    lo_BxWx2, hi_BxWx2 = (jnp.repeat(each, self.block, axis=1) for each in (lo_BxNx2, hi_BxNx2))
    if self.causal:
      own_W = length + 1 + jnp.arange(hi_BxWx2.shape[1])
      hi_BxWx2 = hi_BxWx2.at[..., 1].set(own_W)
    return Mask(lo_BxWx2, hi_BxWx2)

  def losses(
    self, denoise: tuple[FeatureDrafter, Denoiser], params: tuple[Params, Params], noisy: Noisy
  ) -> tuple[Array, Array, Aux]:
    """[B, anchors * block] each. `denoise`, `params`: the drafter's, the target's."""
    nats_BxL = self._nats(*self._heads(denoise, params, noisy), noisy)
    return noisy.weight_BxL * nats_BxL, nats_BxL, ()

  def loss(
    self, denoise: tuple[FeatureDrafter, Denoiser], params: tuple[Params, Params], noisy: Noisy
  ) -> tuple[LossSum, Aux]:
    """With more metrics, sums as all: "right", asked tokens whose likeliest id is the text's;
    "accepted", the shown token and those right in a row behind it, over "blocks" that learn.

    Where the target wrote the text greedily, accepted / blocks is what a forward of it settles.
    """
    head, taught = self._heads(denoise, params, noisy)
    nats_BxL, asked_BxL = self._nats(head, taught, noisy), noisy.weight_BxL > 0
    sums = loss_sum(noisy, noisy.weight_BxL * nats_BxL, nats_BxL)
    right_BxL = noisy.targets_BxL if self.temperature is None else likeliest(taught)
    hit_BxL = jax.lax.stop_gradient(likeliest(head)) == right_BxL
    hit_BxNxb, asked_BxNxb = (
      x_BxL.reshape(len(x_BxL), -1, self.block) for x_BxL in (hit_BxL, asked_BxL)
    )
    run_BxNxb = jnp.cumprod((hit_BxNxb | ~asked_BxNxb)[..., 1:], axis=-1) * asked_BxNxb[..., 1:]
    learns_BxN = asked_BxNxb.any(-1)
    told = {
      "right": (hit_BxL & asked_BxL).sum(),
      "accepted": ((1 + run_BxNxb.sum(-1)) * learns_BxN).sum(),
      "blocks": learns_BxN.sum(),
    }
    metrics = {name: value.astype(jnp.float32) for name, value in told.items()}
    return sums.replace(metrics=sums.metrics | metrics), ()

  def _nats(self, head: LogitHead, taught: LogitHead, noisy: Noisy) -> Array:
    """Of each asked token, float32 [B, anchors * block]."""
    if self.temperature is None:
      return cross_entropy(head, noisy, ())
    distance = Divergence(softened=self.temperature)
    return self.temperature**2 * distance(head, taught, noisy.weight_BxL > 0)

  def _heads(
    self, denoise: tuple[FeatureDrafter, Denoiser], params: tuple[Params, Params], noisy: Noisy
  ) -> tuple[LogitHead, LogitHead]:
    """The drafter's, and the target's where it predicts the same tokens: of none where it does not
    teach."""
    (drafter, target), (own, frozen) = denoise, params
    tokens_BxL, slot_BxL = noisy.extra["tokens_BxL"], noisy.extra["position_BxL"]
    rows, length = tokens_BxL.shape
    ask_BxA = noisy.extra["before_BxW"]
    if self.temperature is None:
      ask_BxA = jnp.zeros((rows, 0), jnp.int32)
    past = masks.Causal()(jnp.broadcast_to(jnp.arange(length), (rows, length)), length)
    out = target(
      frozen,
      tokens_BxL,
      slot_BxW=slot_BxL,
      mask=masks.in_segments(past, noisy.extra["segment_BxL"]),
      time_BxW=jnp.zeros(tokens_BxL.shape),
      ask_BxA=ask_BxA,
      taps=drafter.taps,
    )
    key_W = length + jnp.arange(noisy.inputs_BxW.shape[1])
    drafted = drafter(
      own,
      frozen,
      noisy.inputs_BxW,
      slot_BxW=noisy.slot_BxW,
      key_BxW=jnp.broadcast_to(key_W, noisy.inputs_BxW.shape),
      mask=noisy.mask,
      context=drafter.context(own, jax.lax.stop_gradient(out.features_BxWxF), slot_BxL),
    )
    return drafted.head, jax.lax.stop_gradient(out.head)

  def not_a_likelihood(self) -> str | None:
    return "it is what a drafter says of the tokens behind an anchor"
