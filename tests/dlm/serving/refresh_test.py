"""Rows that compute their whole canvas beside rows with a window are what they are alone."""

import dataclasses

import jax
import numpy as np
import pytest

from dlm import masks
from dlm.sampling import loop
from dlm.sampling.caching import Decode, Dual, NoCache
from dlm.sampling.canvas import make_canvas
from dlm.serving.engine import Engine, Serving
from dlm.serving.scheduler import Limits
from tests.dlm.serving.engine_test import BYTES, MASK, SLOTS, asks, exact, params, sampler, served

assert params  # a fixture

FULL, WINDOW = 0, 1


def sampler_of(plan):
  own = {"plan": plan, "sees": masks.Full(), "temperature": 1.0, "own_width": True}
  return sampler(**own, refresh_rows=1)


def rows():
  return [each.request for each in asks()[1:5]]


def canvas(live):
  requests = rows()
  made = make_canvas(
    [r.tokens for r in requests], [r.open for r in requests], [r.id for r in requests],
    slots=SLOTS, block=4, align="prompt", mask_id=MASK, seed=3,
  )  # fmt: skip
  return made.replace(done_B=~np.isin(np.arange(4), live))


begin = jax.jit(loop.start, static_argnums=0)


def states(step, own, params, live):
  """Before each turn and at last."""
  found = [begin(own, canvas(live))]
  while not np.asarray(found[-1].canvas.done_B).all():
    found.append(step(own, params, found[-1]))
  return found


def test_a_row_is_what_it_is_alone_and_no_row_waits_for_ever(params):
  step, own = jax.jit(loop.step, static_argnums=0), sampler_of(Dual())
  together = states(step, own, params, live=range(4))
  last = jax.device_get(together[-1].canvas.replace(key_B=None))
  for row in range(4):
    alone = jax.device_get(states(step, own, params, [row])[-1].canvas.replace(key_B=None))
    for name in ("tokens_BxL", "when_BxL", "logp_BxL", "forwards_Bx3", "queries_B"):
      np.testing.assert_array_equal(getattr(last, name)[row], getattr(alone, name)[row])
  forwards_TxBx3 = np.diff([state.canvas.forwards_Bx3 for state in together], axis=0)
  kinds_Tx3 = forwards_TxBx3.sum(1)
  assert kinds_Tx3[:, FULL].max() == 1, "one row at a time"
  assert (kinds_Tx3[:, FULL] * kinds_Tx3[:, WINDOW]).any(), "while others go on"
  assert 0 < max(int(state.waited_B.max()) for state in together) < 4


def test_the_engine_keeps_to_the_budget_and_changes_no_row(params):
  """24 requests over two tiles, in each of which a tick of this budget has one whole canvas."""
  asked = [dataclasses.replace(each, temperature=None) for each in asks()]
  engine = Engine(
    sampler_of(Decode(interval=3)), BYTES, params,
    Serving((SLOTS,), rows=4, row_tile=2, turns=3, fill=0, limits=Limits(budget=1)), align="prompt",
  )  # fmt: skip
  own = engine._canvases[SLOTS]
  decode, spent = own.run.decode, []

  def counted(params, state, *rest):
    before = np.array(state.canvas.forwards_Bx3)
    state, report = decode(params, state, *rest)
    spent.append((np.asarray(report.canvas.forwards_Bx3) - before).sum(0))
    return state, report

  alone = [exact(engine.run([each]))[0] for each in asked[:8]]
  own.run = dataclasses.replace(own.run, decode=counted)
  events = served(engine, asked, concurrency=7)
  assert exact(each[-1].completion for each in events[:8]) == alone
  most, both = max(each[FULL] for each in spent), any(each[FULL] * each[WINDOW] for each in spent)
  assert most == 1 and both
  assert engine.compiles == 0


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"plan": NoCache()}, "refresh_rows=1 needs a cache"),
    ({"plan": Dual(), "guidance": 1.0}, "no guidance"),
    ({"plan": Dual(), "refresh_rows": -1}, "refresh_rows=-1 must not be negative"),
  ],
)
def test_what_cannot_be_put_together_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    sampler(**{"sees": masks.Full(), "refresh_rows": 1} | fields)
