"""Caches of 2 and 4 bits whose blocks fill no group: KIVI's residual under every plan that commits.

Keys and values are looked up by token and slot, so what a cache must hold is known to the bit.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks
from dlm.models import cache as kv_cache
from dlm.models import packed
from dlm.sampling import loop
from dlm.sampling.caching import Ahead, ExactBlock, Rolling, SubBlock
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policies import Introspective, Parts, Pipelined, Threshold
from dlm.sampling.sampler import Sampler
from dlm.types import LogitHead, ModelOutput

VOCAB, MASK, SLOTS, HEADS, DIM = 9, 8, 80, 1, 8
DRAW = np.random.default_rng(0).normal
LOGITS = DRAW(size=(SLOTS, VOCAB)).astype(np.float32) * 2
TABLE = DRAW(size=(2, SLOTS, VOCAB, HEADS, DIM)).astype(np.float32)  # keys, values
PROMPTS, LENGTHS = (5, 30, 50), (80, 73, 66)


@dataclasses.dataclass(frozen=True)
class Known:
  """Logits of a slot, whatever stands there; keys and values of a token in a slot."""

  width: int = VOCAB

  def __call__(
    self, params, tokens_BxW, *, slot_BxW, mask, cache, write_BxW=None, final_B=None,
    ask_BxA=None, **_,
  ):  # fmt: skip
    at_BxW = jnp.minimum(slot_BxW, SLOTS - 1)
    logits_BxWxV = params["logits"][at_BxW]
    if write_BxW is not None:
      target_BxW = kv_cache.targets(slot_BxW, write_BxW, SLOTS)
      coding = cache.coded_B, kv_cache.coded_to(cache, final_B)
      stored = cache.k_YxBxSxKxH, cache.v_YxBxSxKxH
      k, v = kv_cache.put(
        stored, tuple(params["table"][:, at_BxW, tokens_BxW]), jnp.int32(0), target_BxW, coding
      )
      filled_BxS = kv_cache.filled(cache.filled_BxS, target_BxW)
      cache = cache.replace(k_YxBxSxKxH=k, v_YxBxSxKxH=v, filled_BxS=filled_BxS, coded_B=coding[1])
    if ask_BxA is not None:
      logits_BxWxV = jnp.take_along_axis(logits_BxWxV, ask_BxA[..., None], axis=1)
    return ModelOutput(LogitHead(logits_BxWxV, jnp.eye(VOCAB)), cache, {})

  def empty_cache(self, batch, slots, format):
    return kv_cache.empty(
      layers=1, batch=batch, slots=slots, kv_heads=HEADS, head_dim=DIM, dtype=jnp.float32,
      format=format,
    )  # fmt: skip


def ended(sampler, align):
  """The last state of three ragged rows: a canvas, and what their cache holds by then."""
  rng = np.random.default_rng(1)
  rows = [rng.integers(0, MASK, length).astype(np.int32) for length in LENGTHS]
  canvas = make_canvas(
    rows, [np.arange(n) >= first for n, first in zip(LENGTHS, PROMPTS, strict=True)], [0, 1, 2],
    slots=SLOTS, block=sampler.block, align=align, mask_id=MASK, seed=0,
  )  # fmt: skip
  return jax.device_get(_run(sampler, {"logits": LOGITS, "table": TABLE}, canvas))


@functools.partial(jax.jit, static_argnums=0)
def _run(sampler, params, canvas):
  return jax.lax.while_loop(
    lambda state: ~state.canvas.done_B.all(),
    functools.partial(loop.step, sampler, params),
    loop.start(sampler, canvas),
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def whole(format, values, x_SxKxH):
  """KIVI's rule over a row that is there from the start: codes, scales, zeros by group."""
  count = SLOTS // format.group * format.group
  x = x_SxKxH[:count].reshape(1, -1, format.group, HEADS, DIM)
  return packed.coded(format, values, x, None, jnp.float32)


BLOCKS, CAUSAL = masks.BlockCausal(4), masks.Causal()
CASES = {
  "fused, 4, prompt in parts": (ExactBlock(fill=24), Threshold(0.4), BLOCKS, 4, {}),
  "free, 12, any prompt": (ExactBlock(), Threshold(0.4), CAUSAL, 12, {"commit": "free"}),
  "sub_block, 8": (SubBlock(4), Parts(Threshold(0.4), 4), BLOCKS, 8, {}),
  "ahead, 8": (Ahead(), Pipelined(8, 0.4), BLOCKS, 8, {}),
  "rolling, 4": (Rolling(), Introspective(2), CAUSAL, Introspective(2).draft_span, {"shift": 1}),
}


@pytest.mark.parametrize("name", CASES)
def test_every_group_is_coded_once_it_is_whole_as_if_it_had_been_there_from_the_start(name):
  plan, policy, sees, block, more = CASES[name]
  own = Sampler(
    denoise=Known(), policy=policy, plan=plan, sees=sees, block=block, max_forwards=400,
    mask_id=MASK, cache_format="kivi2", **more,
  )  # fmt: skip
  assert own.kept.group == 32 and 0 < own.kept.recent <= 32 + block
  state = ended(own, "canvas" if sees == BLOCKS else "prompt")
  canvas, cache, slot_S = state.canvas, state.cache, np.arange(SLOTS)
  assert canvas.done_B.all()
  for row in range(3):
    final, coded = int(state.cached_B[row]), int(cache.coded_B[row])
    tokens = canvas.tokens_BxL[row]
    assert coded % 32 == 0 and 32 <= coded <= final < coded + 32 + block
    assert cache.filled_BxS[row, :final].all()
    for values, stored in enumerate((cache.k_YxBxSxKxH, cache.v_YxBxSxKxH)):
      keys_SxKxH = TABLE[values][slot_S, tokens]
      want = jax.device_get(whole(own.kept, bool(values), keys_SxKxH))
      for got, each in zip((stored.code, stored.scale, stored.zero), want, strict=True):
        np.testing.assert_array_equal(got[0, row, : coded // 32], each[0, : coded // 32])
      waits = slot_S[coded:final]
      recent = stored.recent[0, row, waits % own.kept.recent]
      np.testing.assert_array_equal(recent, keys_SxKxH[waits])
