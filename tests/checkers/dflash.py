"""DFlash: the recorded runs of tests/conformance/families_short, drafter, target and loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dlm import masks, weights
from dlm.models import bind
from dlm.sampling import drafts
from dlm.sampling.caching import Rolling
from dlm.sampling.policies import DFlash
from dlm.sampling.sampler import Drafter, Sampler
from tests.checkers.decoding import Case, canvas_of, play

ATOL = 1e-4  # of logits and features
propose = jax.jit(drafts.propose, static_argnums=0)


@functools.cache
def models_of(folder):
  """Target and drafter, and the parameters of both."""
  sources = [weights.open_source(folder / name) for name in ("dflash_target", "dflash_draft")]
  return [bind(each.model) for each in sources], [weights.load(each) for each in sources]


@functools.partial(jax.jit, static_argnums=0)
def features(target_and_taps, params, tokens_1xL):
  target, taps = target_and_taps
  slot_1xL = jnp.arange(tokens_1xL.shape[1])[None]
  mask = masks.Causal()(slot_1xL, tokens_1xL.shape[1])
  return target(params, tokens_1xL, slot_BxW=slot_1xL, mask=mask, taps=taps).features_BxWxF


@functools.partial(jax.jit, static_argnums=0)
def logits(drafter, params, target, block_1xW, start, cache):
  """Of the drafts, by what the sampler remembers of the text before."""
  slot_1xW = start + jnp.arange(block_1xW.shape[1])[None]
  mask = masks.Full()(slot_1xW, cache.filled_BxS.shape[1] + block_1xW.shape[1])
  head = drafter(
    params, target, block_1xW, slot_BxW=slot_1xW, key_BxW=slot_1xW, mask=mask,
    context=(cache.k_YxBxSxKxH, cache.v_YxBxSxKxH), live_BxS=cache.filled_BxS,
  ).head  # fmt: skip
  return head.hidden_BxAxD[0, 1:] @ head.unembed_VxD.T


def generate(case: Case) -> None:
  """What the drafter is told, what it drafts in each turn, what of it stays, the text."""
  (target, drafter), params = models_of(case.folder)
  block, mask_id, want = case.arg("block_size"), case.arg("mask_token_id"), case.expected
  assert drafter.taps == tuple(case.arg("target_layer_ids")) and not case.arg("temperature")
  canvas, prompts = canvas_of(case, case.arg("max_new_tokens") + 2 * block, mask_id, block + 1)
  sampler = Sampler(
    target, DFlash(block - 1), Rolling(), masks.Causal(), block=block + 1,
    max_forwards=want["target_forwards"], mask_id=mask_id, shift=1,
    drafter=Drafter(drafter, masks.Full(), drafter.config.drafter.mask_id, taps=drafter.taps),
  )  # fmt: skip
  states = play(sampler, params, canvas, prompts).states
  assert len(want["steps"]) == want["draft_forwards"] == int(states[-1].canvas.drafts_B[0])
  assert len(states) == 1 + want["target_forwards"]

  stored, index = np.load(case.folder / "logits.npz"), case.name.removeprefix("dflash_")
  told = features((target, drafter.taps), params[0], jnp.asarray([prompts[0]]))
  np.testing.assert_allclose(told[0], stored[f"dflash/{index}/first_target_hidden"], atol=ATOL)
  known = 0
  for turn, (step, state) in enumerate(zip(want["steps"], states[1:], strict=False)):
    start, cache = int(state.canvas.start_B[0]), state.cache.drafts
    assert start == known + step["new_context"] == int(cache.filled_BxS.sum())
    assert step["draft_positions"] == list(range(known, start + block))
    proposed = propose(sampler, params, state, ~state.canvas.done_B, state.canvas.key_B).canvas
    np.testing.assert_array_equal(proposed.tokens_BxL[0, start + 1 : start + block], step["draft"])
    if turn < 2:
      row = jnp.full((1, block), mask_id).at[0, 0].set(state.canvas.tokens_BxL[0, start])
      got = logits(drafter, params[1], params[0], row, start, cache)
      name = f"dflash/{index}/{('first', 'second')[turn]}_draft_logits"
      np.testing.assert_allclose(got, stored[name], atol=ATOL)
    known = start
  text = want["tokens"][0]
  np.testing.assert_array_equal(states[-1].canvas.tokens_BxL[0, : len(text)], text)


METHODS = {"dflash_generate": generate}
