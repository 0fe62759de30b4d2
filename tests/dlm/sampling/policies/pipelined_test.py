"""D2F and d3LLM: when blocks begin, and what is written if nothing is sure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm.sampling import loop
from dlm.sampling.policies import Distilled, Pipelined
from tests.dlm.sampling.loop_test import MASK, VOCAB, canvas_of, sampler
from tests.dlm.sampling.policies.views import keys, view_of
from tests.dlm.sampling.table import random_table

start, step = (jax.jit(f, static_argnums=0) for f in (loop.start, loop.step))


def pipelines(policy, forwards=3):
  """The policy's state before each of the first forwards, of a row of three blocks of 4."""
  s, params = sampler(policy), random_table(0, 12, VOCAB)
  state, found = start(s, canvas_of([[MASK] * 12], slots=12)), []
  for _ in range(forwards):
    found.append(state.policy)
    state = step(s, params, state)
  return found


@pytest.mark.parametrize(
  ("policy", "blocks"),
  [
    (Distilled(4, threshold=0.0, begin=0.0), [2, 3, 3]),
    (Distilled(4, threshold=0.0, begin=0.1), [1, 2, 2]),
    (Pipelined(4, threshold=1.0, begin=0.0), [1, 2, 3]),
  ],
  ids=str,
)
def test_blocks_in_play_at_each_forward(policy, blocks):
  """A forward writes one slot of block 1: a quarter of it, and nothing of block 2."""
  assert [int(p.blocks_B[0]) for p in pipelines(policy)] == blocks


@pytest.mark.parametrize(("eager", "second"), [(0.0, True), (0.25, False)])
def test_a_block_begun_before_the_first_forward_is_eager_if_the_one_before_is_far_enough(
  eager, second
):
  first, then, _ = pipelines(Distilled(4, threshold=0.0, begin=0.0, eager=eager))
  assert np.asarray(first.eager_BxK[0, :2]).tolist() == [True, second]
  assert np.asarray(then.eager_BxK[0, :2]).tolist() == [True, True]


@pytest.mark.parametrize(
  ("score", "threshold", "written"),
  [
    ("confidence", 0.9, [True, False, False, False]),
    ("margin", 0.9, [False, True, False, False]),
    ("margin", 0.35, [True, True, False, False]),
  ],
)
def test_by_margin_the_best_token_is_another_one_and_the_threshold_stays_one_of_probability(
  score, threshold, written
):
  """Probabilities 0.5 and 0.4 with second ones of 0.4 and 0.05: margins of 0.1 and 0.35."""
  best, second = jnp.array([[0.5, 0.4, 0.3, 0.2]]), jnp.array([[0.4, 0.05, 0.2, 0.1]])
  view = view_of(best, np.ones((1, 4)), top2=second)
  policy = Pipelined(4, threshold, score=score)
  decision, _ = policy.decide(view, policy.enter(view.masked_BxA, None), keys(1))
  assert np.asarray(decision.write_BxA[0]).tolist() == written
