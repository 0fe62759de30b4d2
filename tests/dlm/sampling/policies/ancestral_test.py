"""When tokens are written: at the rate of the schedule, and never by a forward that writes none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks
from dlm.diffusion.schedules import LogLinear, MdlmCosine
from dlm.sampling import loop
from dlm.sampling.caching import NoCache
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policies import Ancestral
from dlm.sampling.sampler import Sampler
from tests.dlm.sampling.table import Lookup, random_table

MASK, VOCAB, LENGTH, ROWS = 6, 7, 16, 64


@functools.cache
def played(policy):
  """Step of the schedule at which each slot was written [ROWS, LENGTH - 1], and the last canvas."""
  sampler = Sampler(
    Lookup(), policy, NoCache(), masks.Full(), block=LENGTH, max_forwards=99, mask_id=MASK,
    temperature=1.0,
  )  # fmt: skip
  row = np.array([1] + [MASK] * (LENGTH - 1))
  canvas = make_canvas(
    [row] * ROWS, [row == MASK] * ROWS, list(range(ROWS)), slots=LENGTH, block=LENGTH,
    align="canvas", mask_id=MASK, seed=0,
  )  # fmt: skip
  params = random_table(6, LENGTH, VOCAB)
  state = jax.jit(loop.start, static_argnums=0)(sampler, canvas)
  step = jax.jit(loop.step, static_argnums=0)
  at = np.zeros((ROWS, LENGTH), int)
  while not state.canvas.done_B.all():
    before, state = state.canvas, step(sampler, params, state)
    wrote = np.asarray(before.tokens_BxL != state.canvas.tokens_BxL)
    assert (wrote.any(1) | np.asarray(before.done_B)).all(), "a forward that writes nothing"
    at = np.where(wrote, np.asarray(state.policy)[:, None], at)
  return at[:, 1:], state.canvas


@pytest.mark.parametrize(
  "schedule", [LogLinear(eps=0.0), MdlmCosine()], ids=lambda schedule: type(schedule).__name__
)
def test_each_step_writes_its_share(schedule):
  steps = 8
  at, canvas = played(Ancestral(schedule, steps))
  assert not (canvas.tokens_BxL == MASK).any()
  level = np.asarray(1 - schedule.alpha(1 - jnp.arange(steps + 1) / steps), np.float64)
  share = -np.diff(np.append(level[:-1], 0)) / level[0]  # the last step takes what is left
  got = np.bincount(at.ravel(), minlength=steps + 1)[1:] / at.size
  np.testing.assert_allclose(got, share, atol=4 * np.sqrt(0.25 / at.size))
  together = (at[:, :1] == at[:, 1:]).mean()  # slots are independent
  np.testing.assert_allclose(together, (share**2).sum(), atol=4 * np.sqrt(0.25 / ROWS / 4))


def test_forwards_are_the_steps_that_write():
  at, canvas = played(Ancestral(LogLinear(eps=0.0), 8))
  np.testing.assert_array_equal(canvas.forwards_Bx3[:, 0], [len(set(row)) for row in at])
  np.testing.assert_array_equal(canvas.forwards_Bx3[:, 1:], 0)


def test_many_steps_cost_no_more_than_the_tokens():
  """Of a thousand steps about fifteen write, nearly always one token: first-hitting sampling."""
  at, canvas = played(Ancestral(LogLinear(eps=0.0), 1000))
  forwards = np.asarray(canvas.forwards_Bx3[:, 0])
  assert (forwards <= LENGTH - 1).all() and forwards.mean() > LENGTH - 1.5
  assert at.max() > 800


def test_one_step_writes_everything():
  at, canvas = played(Ancestral(LogLinear(eps=0.0), 1))
  assert (at == 1).all() and (canvas.forwards_Bx3[:, 0] == 1).all()
