"""A drafter that reads the model changes how many forwards a text takes, never the text."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from dlm import masks
from dlm.models import ModelConfig, bind
from dlm.models.config import DrafterConfig
from dlm.sampling.policies import DFlash, Introspective
from dlm.sampling.sampler import Drafter
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


def test_bad_values_are_refused():
  with pytest.raises(ValueError, match="dflash: length=0 must be at least 1"):
    DFlash(0)
  with pytest.raises(ValueError, match="dflash: draft='drawn' is not one of best, coupled"):
    DFlash(draft="drawn")
