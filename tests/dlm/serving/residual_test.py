"""A server whose cache holds codes of groups: pages hold those, and rows what waits beside them."""

import jax
import numpy as np
import pytest

from dlm import masks
from dlm.data import ByteTokenizer
from dlm.generate import Request
from dlm.models import ModelConfig, bind
from dlm.sampling.caching import ExactBlock
from dlm.sampling.policies import Threshold
from dlm.sampling.sampler import Sampler
from dlm.serving.asks import Ask
from dlm.serving.engine import Engine, Serving
from dlm.serving.memory import nbytes
from dlm.serving.scheduler import Limits

BYTES, SLOTS, BLOCK, FILL = ByteTokenizer(), 96, 4, 32
MODEL = bind(
  ModelConfig(vocab=260, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp=16, tied=False)
)


def engine(**own):
  sampler = Sampler(
    MODEL, Threshold(0.05), ExactBlock(), masks.BlockCausal(BLOCK), block=BLOCK, max_forwards=64,
    mask_id=BYTES.mask_id, forbidden=tuple(range(256, 260)), cache_format="kivi2",
  )  # fmt: skip
  params = jax.jit(MODEL.init)(jax.random.key(0))
  limits = Limits(waiting=30, waiting_slots=30 * SLOTS, budget=40)
  own = {"rows": 2, "row_tile": 1, "turns": 4, "prefixes": 3, "fill": FILL, "limits": limits} | own
  return Engine(sampler, BYTES, params, Serving((SLOTS,), **own), align="canvas")


def test_a_prompt_that_is_found_in_pages_is_as_one_that_is_computed():
  made, rng = engine(), np.random.default_rng(0)
  shared = rng.integers(97, 123, 80)
  prompts = [np.concatenate([shared[:n], rng.integers(97, 123, 80 - n)]) for n in (80, 70, 40)]
  asked = [
    Ask(Request.from_ids(i, "", ids, BYTES.mask_id, slots=SLOTS, max_new_tokens=16), seed=i)
    for i, ids in enumerate(prompts)
  ]
  found = made.run(asked)
  hits = made.prefixes.hits
  again = [made.run([ask])[0] for ask in asked]
  assert hits < made.prefixes.hits and made.compiles == 0
  for one, other in zip(found, again, strict=True):
    assert (one.tokens, one.logprobs) == (other.tokens, other.logprobs)
  # Of a row the residual counts, of a page the codes alone: 2 bits, and two numbers for 32 keys of
  # a channel, or for the 8 channels of a value.
  run = made._canvases[SLOTS].run
  numbers = SLOTS * MODEL.config.head_dim
  codes = 2 * numbers // 4 + 8 * numbers // 32 + 8 * numbers // 8
  recent = 2 * 4 * (FILL - BLOCK) * MODEL.config.head_dim
  assert nbytes(run.row.cache) == codes + recent + SLOTS + 4
  assert made.memory.pages == 3 * codes * FILL // SLOTS
  assert made.memory.row[SLOTS] == nbytes(run.row) > nbytes(run.row.cache)


def test_a_page_ends_with_a_group():
  with pytest.raises(ValueError, match=r"fill=8, the slots of a page.*must be a multiple of 32"):
    engine(fill=8)
