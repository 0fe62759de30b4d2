"""What a policy sees, written out by hand."""

import jax
import jax.numpy as jnp

from dlm.types import Array, TokenStats, View

MASK = 99


def view_of(prob, masked, *, entropy=None, top2=None, token=None, **fields) -> View:
  """One row a list of candidates' probabilities; every slot is open, scored and in the block."""
  prob_BxA, masked_BxA = jnp.asarray(prob, jnp.float32), jnp.asarray(masked, bool)
  batch, width = prob_BxA.shape
  everywhere_BxA = jnp.ones((batch, width), bool)
  token_BxA = jnp.broadcast_to(jnp.arange(width), (batch, width)) if token is None else token
  zero_B = jnp.zeros(batch, jnp.int32)
  logit_BxA = jnp.log(prob_BxA)
  stats = TokenStats(
    token=jnp.asarray(token_BxA, jnp.int32),
    logit=logit_BxA,
    top1=logit_BxA,
    lse=jnp.zeros_like(logit_BxA),
    top2=None if top2 is None else jnp.log(jnp.asarray(top2, jnp.float32)),
    entropy=None if entropy is None else jnp.asarray(entropy, jnp.float32),
  )
  view = View(
    slot_BxA=jnp.broadcast_to(jnp.arange(width), (batch, width)),
    tokens_BxA=jnp.where(masked_BxA, MASK, 0),
    masked_BxA=masked_BxA,
    later_BxA=~everywhere_BxA,
    open_BxA=everywhere_BxA,
    inside_BxA=everywhere_BxA,
    scored_BxA=everywhere_BxA,
    stats=stats,
    start_B=zero_B,
    step_B=zero_B,
    turn_B=zero_B,
    mask_id=MASK,
  )
  return view.replace(**fields)


def keys(batch: int) -> Array:
  return jax.random.split(jax.random.key(0), batch)
