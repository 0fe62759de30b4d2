"""From a logit head to the statistics that a policy reads: the only door to the vocabulary."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm.sampling.canvas import at_slot
from dlm.sampling.state import Held, Served
from dlm.types import Array, LogitHead, StatSpec, TokenStats
from kernels_pallas.token_stats import token_stats

NEVER = -1e9  # a logit


def score(
  head: LogitHead,
  spec: StatSpec,
  *,
  current_BxA: Array,
  key_B: Array,
  slot_BxA: Array,
  temperature_B: Array | None = None,
  gather_BxAxJ: Array | None = None,
  bars: tuple[tuple[int, ...], Array | None] = ((), None),
  served: Served | None = None,
) -> TokenStats:
  """Statistics [B, A] of the head's positions; [B, A, V] logits never exist.

  Noise belongs to (row key, canvas slot, token id): it is the same whichever window asks. With
  `temperature` a row's logits are divided by it, after the soft cap and before all else.

  Args:
    bars: ids, and bool [B]: the rows in which none of them may be chosen.
    served: what rows have of their own, in place of the spec's.
  """
  if bars[0]:
    head = _without(head, *bars)
  batch, asked, width = head.hidden_BxAxD.shape
  key_R, own = None, {}
  if served is not None and served.temperature_B is not None:
    spec = dataclasses.replace(spec, temperature=0.0, per_row=True)
    own["temperature_R"] = jnp.repeat(served.temperature_B, asked)
    own["top_p_R"] = jnp.repeat(served.top_p_B, asked)
    if served.held is not None:
      spec = dataclasses.replace(spec, entropy=True)
      words_BxAxU = _allowed(served.held, slot_BxA, len(head.unembed_VxD))
      own["allowed_RxU"] = words_BxAxU.reshape(batch * asked, -1)
  if spec.draws:
    key_R = jax.vmap(lambda key, slot_A: jax.vmap(lambda s: jax.random.fold_in(key, s))(slot_A))(
      key_B, slot_BxA
    ).reshape(-1)
  stats = token_stats(
    head.hidden_BxAxD.reshape(batch * asked, width),
    head.unembed_VxD,
    spec,
    current_R=current_BxA.reshape(-1) if spec.current else None,
    key_R=key_R,
    gather_id_RxJ=gather_BxAxJ.reshape(batch * asked, -1) if spec.gather else None,
    embed_VxD=head.embed_VxD,
    soft_cap=head.soft_cap,
    divide_R=None if temperature_B is None else jnp.repeat(temperature_B, asked),
    implementation=head.implementation,
    **own,
  )
  if spec.outside:  # confidences are taken as if these ids did not exist
    among_R = jnp.isin(stats.token, jnp.array(spec.outside, jnp.int32))
    stats.logit = jnp.where(among_R, -jnp.inf, stats.logit)
    stats.lse = stats.lse_outside
  return jax.tree.map(lambda x: x.reshape(batch, asked, *x.shape[1:]), stats)


def _allowed(held: Held, slot_BxA: Array, vocab: int) -> Array:
  """uint32 [B, A, ceil(vocab / 32)]: the set that holds at each slot."""
  set_BxA = at_slot(held.set_BxL, slot_BxA)
  word_BxAxU = jnp.take_along_axis(held.sets_BxKxU, jnp.maximum(set_BxA, 0)[:, :, None], axis=1)
  more = -(-vocab // 32) - word_BxAxU.shape[2]  # the model may know more ids than the tokenizer
  word_BxAxU = jnp.pad(word_BxAxU, [(0, 0), (0, 0), (0, more)])
  return jnp.where(set_BxA[:, :, None] < 0, jnp.uint32(0xFFFFFFFF), word_BxAxU)


def _without(head: LogitHead, ids: tuple[int, ...], rows_B: Array) -> LogitHead:
  """In `rows` the ids have no probability: one more column of the head, and of hidden rows."""
  if head.soft_cap is not None:
    raise ValueError("a policy bars ids by rows, which a model with soft_cap does not allow")
  hidden_BxAxD, unembed_VxD = head.hidden_BxAxD, head.unembed_VxD
  is_barred_V = jnp.isin(jnp.arange(len(unembed_VxD)), jnp.array(ids))
  column_Vx1 = jnp.where(is_barred_V, NEVER, 0).astype(unembed_VxD.dtype)[:, None]
  one_BxAx1 = jnp.broadcast_to(rows_B[:, None, None], (*hidden_BxAxD.shape[:2], 1))
  return head.replace(
    hidden_BxAxD=jnp.concatenate([hidden_BxAxD, one_BxAx1.astype(hidden_BxAxD.dtype)], axis=2),
    unembed_VxD=jnp.concatenate([unembed_VxD, column_Vx1], axis=1),
  )


def confidence(stats: TokenStats) -> Array:
  """Probability of the candidate, untempered. NaN (a broken model) counts as no confidence."""
  return jnp.nan_to_num(jnp.exp(stats.logit - stats.lse), nan=0.0)


def margin(stats: TokenStats) -> Array:
  """Probability of the best id minus that of the second best."""
  return jnp.exp(stats.top1 - stats.lse) - jnp.exp(stats.top2 - stats.lse)
