"""LLaDA2.2: a draft learns which of its tokens to replace, to delete, or to insert before."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm import edits
from dlm.objectives import streams
from dlm.objectives.block import BlockTraining, at, block_start, document_start
from dlm.objectives.cross_entropy import cross_entropy, predict
from dlm.types import Array, Aux, Batch, Denoiser, LogitHead, Noisy, Params
from kernels_pallas.token_stats import StatSpec, token_stats


@dataclasses.dataclass(frozen=True)
class Llada22(BlockTraining):
  """LLaDA2.2 (inclusionAI/LLaDA2.X): learn to edit one's own drafts, labelled by what they lack.

  No training code is public; this is the text of the technical report. The first round is that of
  LLaDA2.0 fine-tuning: masked tokens, one noise level a document. Each later one asks about what a
  sampler would make of the round before: masks are written where the model is surer than
  `threshold`, other tokens replaced, edits carried out. Every slot that may be written is then
  asked for its label, see `labels`. All tokens that are asked weigh alike.

  Ours: a mask matches any token in every round (the report: in early ones); of alignments that keep
  equally many tokens the one whose early tokens stay.

  Args:
    insert_id, delete_id: what stands for an edit; no text holds them.
    window: noise levels are drawn from [lo, hi].
    rounds: forwards over the noisy text.
  """

  insert_id: int
  delete_id: int
  window: tuple[float, float] = (0.3, 0.8)
  rounds: int = 2
  threshold: float = 0.5

  def __post_init__(self):
    super().__post_init__()
    ids = (self.insert_id, self.delete_id, self.mask_id)
    if min(ids) < 0 or len(set(ids)) < len(ids):
      raise ValueError(
        f"Llada22: insert_id={self.insert_id}, delete_id={self.delete_id} and "
        f"mask_id={self.mask_id} must be three ids"
      )
    lo, hi = self.window
    if not 0 < lo <= hi <= 1:
      raise ValueError(f"Llada22: window={self.window} must hold 0 < lo <= hi <= 1")
    if self.rounds < 1 or not 0 <= self.threshold <= 1:
      raise ValueError(
        f"Llada22: rounds={self.rounds} must be at least 1, threshold={self.threshold} in [0, 1]"
      )

  @property
  def edit_ids(self) -> tuple[int, int]:
    return self.insert_id, self.delete_id

  def not_a_likelihood(self) -> str:
    return "it asks for edits of drafts"

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    del step
    lo, hi = self.window
    level_BxL = lo + (hi - lo) * at(draws["u_time"], document_start(batch))
    open_BxL = streams.noisable(batch)
    masked_BxL = (draws["u_mask"] < level_BxL) & open_BxL
    noisy = streams.one_stream(
      batch,
      masked_BxL=masked_BxL,
      weight_BxL=jnp.ones_like(level_BxL),
      level_BxL=level_BxL,
      count_B=masked_BxL.sum(-1) + (self.rounds - 1) * open_BxL.sum(-1),
      mask_id=self.mask_id,
    )
    start_BxL = block_start(batch, self.block)
    begins_BxL = start_BxL == jnp.arange(start_BxL.shape[1])[None, :]
    first_BxL, _ = edits.holes(open_BxL, begins_BxL)
    noisy = noisy.replace(extra={"hole": jnp.where(open_BxL, first_BxL, -1)})
    return self.beside_clean(noisy, batch)

  def losses(self, denoise: Denoiser, params: Params, noisy: Noisy) -> tuple[Array, Array, Aux]:
    """The loss of all rounds; the cross-entropy of the first, of masked tokens."""
    text_BxL, loss_BxL, ces, told = noisy.targets_BxL, 0.0, [], ()
    for i in range(self.rounds):
      head, aux = predict(denoise, params, noisy)
      ces.append(cross_entropy(head, noisy, self.forbidden))
      loss_BxL += noisy.weight_BxL * ces[-1]
      told += aux
      if i + 1 < self.rounds:
        noisy = self._next_round(head, noisy, text_BxL)
    return loss_BxL, ces[0], told

  def _next_round(self, head: LogitHead, noisy: Noisy, text_BxL: Array) -> Noisy:
    """The draft that the model makes of the one it read, and the labels of that."""
    (batch, length), hole_BxL = text_BxL.shape, noisy.extra["hole"]
    open_BxL, draft_BxL = hole_BxL >= 0, noisy.inputs_BxW[:, :length]
    stats = token_stats(
      jax.lax.stop_gradient(head.hidden_BxAxD).reshape(batch * length, -1),
      jax.lax.stop_gradient(head.unembed_VxD),
      StatSpec(forbidden=(self.mask_id,)),
      soft_cap=head.soft_cap,
      implementation=head.implementation,
    )
    sure_BxL = jnp.exp(stats.logit - stats.lse).reshape(batch, length)
    writes_BxL = open_BxL & ((draft_BxL != self.mask_id) | (sure_BxL > self.threshold))
    chosen_BxL = jnp.where(writes_BxL, stats.token.reshape(batch, length), draft_BxL)
    insert_BxL, delete_BxL = (writes_BxL & (chosen_BxL == each) for each in self.edit_ids)
    chosen_BxL = jnp.where(insert_BxL | delete_BxL, draft_BxL, chosen_BxL)

    slot_1xL = jnp.arange(length)[None, :]
    first_BxL, end_BxL = edits.holes(open_BxL, hole_BxL == slot_1xL)
    source_BxL = edits.sources(insert_BxL, delete_BxL, first_BxL, end_BxL)
    draft_BxL = edits.moved(chosen_BxL, source_BxL, self.mask_id)

    # Of each slot its whole hole: holes begin anywhere.
    slot_BxLxb = jnp.minimum(first_BxL[:, :, None] + jnp.arange(self.block)[None, None], length - 1)

    def of_hole(x_BxL: Array) -> Array:
      return at(x_BxL, slot_BxLxb.reshape(batch, -1)).reshape(batch * length, -1)

    label_Nxb = labels(
      of_hole(draft_BxL),
      of_hole(text_BxL),
      (end_BxL - first_BxL).reshape(-1),
      mask_id=self.mask_id,
      insert_id=self.insert_id,
      delete_id=self.delete_id,
    )
    own_Nx1 = (slot_1xL - first_BxL).reshape(-1, 1)
    label_BxL = at(label_Nxb, own_Nx1).reshape(batch, length)
    return noisy.replace(
      inputs_BxW=noisy.inputs_BxW.at[:, :length].set(draft_BxL),
      targets_BxL=jnp.where(open_BxL, label_BxL, text_BxL),
      weight_BxL=open_BxL.astype(jnp.float32),
    )


def labels(
  draft_Nxm: Array,
  text_Nxm: Array,
  length_N: Array,
  *,
  mask_id: int,
  insert_id: int,
  delete_id: int,
) -> Array:
  """What each token of a draft is to become, that the draft may become the text; int [N, m].

  A longest common subsequence aligns them; a mask fits any token. Its tokens are anchors, and stay
  (a mask becomes the token it stands for). Before an anchor, the draft's tokens take the places of
  the text's as far as there are any, and the others go. Where the text has more, the anchor asks
  for an insertion instead. What stands behind the last anchor goes: masks take its place.

  Args:
    length_N: how many of the m count, from the first on.
  """
  width = draft_Nxm.shape[1]
  place_1xm = jnp.arange(width)[None, :]
  inside_Nxm = place_1xm < length_N[:, None]

  def fits(token_N: Array, live_N: Array) -> Array:
    """Tokens of the text that one of the draft may stand for."""
    same_Nxm = (token_N[:, None] == text_Nxm) | (token_N == mask_id)[:, None]
    return same_Nxm & inside_Nxm & live_N[:, None]

  def longest(below_Nxk: Array, token: tuple[Array, Array]) -> tuple[Array, Array]:
    """Lengths for the draft from one token on, by where the text begins, from those behind it."""
    own_Nxm = jnp.where(fits(*token), 1 + below_Nxk[:, 1:], below_Nxk[:, :-1])
    own_Nxm = jax.lax.cummax(own_Nxm, axis=1, reverse=True)
    return jnp.pad(own_Nxm, ((0, 0), (0, 1))), below_Nxk

  tokens = draft_Nxm.T, inside_Nxm.T
  nothing_Nxk = jnp.zeros((len(draft_Nxm), width + 1), jnp.int32)
  first_Nxk, below_mxNxk = jax.lax.scan(longest, nothing_Nxk, tokens, reverse=True)
  whole_mxNxk = jnp.concatenate([first_Nxk[None], below_mxNxk[:-1]])

  def match(used_N: Array, at_token: tuple[Array, ...]) -> tuple[Array, Array]:
    """The first token of the text that the draft's may stand for, if that costs no other match."""
    token_N, live_N, whole_Nxk, below_Nxk = at_token
    best_Nx1 = jnp.take_along_axis(whole_Nxk, used_N[:, None], axis=1)
    good_Nxm = fits(token_N, live_N) & (place_1xm >= used_N[:, None])
    good_Nxm &= 1 + below_Nxk[:, 1:] == best_Nx1
    found_N, place_N = good_Nxm.any(1), jnp.argmax(good_Nxm, axis=1)
    return jnp.where(found_N, place_N + 1, used_N), jnp.where(found_N, place_N, -1)

  used_N = jnp.zeros_like(length_N)
  _, match_mxN = jax.lax.scan(match, used_N, (*tokens, whole_mxNxk, below_mxNxk))
  match_Nxm = match_mxN.T

  anchor_Nxm = match_Nxm >= 0
  past_Nxm = jax.lax.cummax(jnp.where(anchor_Nxm, place_1xm, -1), axis=1)
  past_Nxm = jnp.pad(past_Nxm[:, :-1], ((0, 0), (1, 0)), constant_values=-1)  # the anchor before
  next_Nxm = jax.lax.cummin(jnp.where(anchor_Nxm, place_1xm, width), axis=1, reverse=True)
  after_Nxm = jnp.where(past_Nxm >= 0, at(match_Nxm, jnp.maximum(past_Nxm, 0)), -1) + 1
  room_Nxm = at(match_Nxm, jnp.minimum(next_Nxm, width - 1)) - after_Nxm  # of the text, in the gap
  before_Nxm = place_1xm - past_Nxm - 1  # of the draft, in the gap
  aligned_Nxm = at(text_Nxm, jnp.clip(after_Nxm + before_Nxm, 0, width - 1))
  replaced_Nxm = (next_Nxm < width) & (before_Nxm < room_Nxm)
  kept_Nxm = jnp.where(room_Nxm > before_Nxm, insert_id, at(text_Nxm, jnp.maximum(match_Nxm, 0)))
  return jnp.where(anchor_Nxm, kept_Nxm, jnp.where(replaced_Nxm, aligned_Nxm, delete_id))
