"""A drafter that reads the model changes how many forwards a text takes, never the text."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks
from dlm.models import ModelConfig, bind
from dlm.models.config import DrafterConfig
from dlm.sampling.policies import DFlash, Introspective
from dlm.sampling.sampler import Drafter
from dlm.types import Mask
from tests.dlm.models.small import jitter
from tests.dlm.sampling.policies.introspective_test import (
  MASK,
  ROWS,
  canvas_of,
  distance_to_law,
  params_of,
  run,
  sampler,
)

MODEL = bind(
  ModelConfig(
    vocab=7, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp=24, qk_norm=True,
    drafter=DrafterConfig((0,), 2),
  )
)  # fmt: skip
DRAFTER = Drafter(MODEL, masks.Full(), MASK, taps=MODEL.taps)
COUPLED = sampler(DFlash(3, "coupled"), temperature=1.0, drafter=DRAFTER)


@functools.cache
def both():
  return params_of(), jitter(jax.jit(MODEL.init)(jax.random.key(1)))


CAUSAL = dataclasses.replace(DRAFTER, sees=masks.Causal())  # JetSpec's


@pytest.mark.parametrize(
  "program", [sampler(DFlash(3), drafter=CAUSAL), COUPLED], ids=["greedy causal", "coupled"]
)
def test_the_text_is_that_of_token_by_token_sampling(program):
  plain = sampler(Introspective(1), temperature=program.temperature)
  plain, out = run(plain, params_of(), canvas_of()), run(program, both(), canvas_of())
  np.testing.assert_array_equal(out.tokens_BxL, plain.tokens_BxL)
  assert out.done_B.all() and out.forwards_Bx3.sum() < plain.forwards_Bx3.sum()
  # After the prompt a block of four for each forward of the model, whose window is one longer.
  np.testing.assert_array_equal(out.drafts_B, out.forwards_Bx3[:, 1])
  first, turns = int(out.length_B[0]), int(out.forwards_Bx3[0, 1])
  assert first + 5 * turns < int(out.queries_B[0]) <= first + 8 * turns


def test_the_law_at_temperature_1_is_the_autoregressive_one():
  """Of drafts that are drawn with the model's own noise."""
  distance, chance = distance_to_law(COUPLED, both())
  assert distance < chance.mean() + 5 * chance.std()


def test_a_row_alone_equals_the_row_in_a_batch():
  together = run(COUPLED, both(), canvas_of())
  for i in (0, 3):
    alone = run(COUPLED, both(), canvas_of([ROWS[i]], [i]))
    for name in ("tokens_BxL", "forwards_Bx3", "drafts_B", "queries_B"):
      np.testing.assert_array_equal(getattr(alone, name)[0], getattr(together, name)[i])


@pytest.mark.parametrize("trains", [True, False], ids=["training", "sampling"])
def test_a_window_hides_the_text_further_back_and_nothing_of_the_block(trains):
  """Slots 6 to 8 are the block, and each sees `window` - 1 = 3 slots back, and all of the block."""
  told = dataclasses.replace(MODEL.config.drafter, window=4)
  model = dataclasses.replace(MODEL, config=dataclasses.replace(MODEL.config, drafter=told))
  target, own = both()
  slot = np.arange(6, 9)[None]
  text = np.random.default_rng(0).normal(size=(1, 9, 16)).astype(np.float32)
  seen, key = masks.Full()(slot, 9), slot
  if trains:  # as the objective has it: the text is a range, the block behind it another
    lo, hi = (jnp.tile(jnp.array(each), (1, 3, 1)) for each in ([0, 9], [6, 12]))
    seen, key = Mask(lo, hi), slot + 3

  def hidden(features):
    context = model.context(own, features, np.arange(9)[None])
    live = np.arange(9)[None] < 6
    return model(
      own, target, np.full((1, 3), MASK), slot_BxW=slot, key_BxW=key, mask=seen,
      context=context, live_BxS=live,
    ).head.hidden_BxAxD  # fmt: skip

  grad = jax.jit(jax.jacrev(lambda features: hidden(features).sum((0, 2))))(text)
  # One layer: through its neighbours in the block a query learns nothing more.
  reach = np.abs(np.asarray(grad)[:, 0]).sum(-1) > 0
  np.testing.assert_array_equal(reach, [[3 + q <= slot < 6 for slot in range(9)] for q in range(3)])


def test_bad_values_are_refused():
  with pytest.raises(ValueError, match="dflash: length=0 must be at least 1"):
    DFlash(0)
  with pytest.raises(ValueError, match="dflash: draft='drawn' is not one of best, coupled"):
    DFlash(draft="drawn")
