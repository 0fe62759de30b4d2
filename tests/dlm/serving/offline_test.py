"""A file of prompts over the engine: what a Generator makes of it, to the bit, in its order."""

import dataclasses

import jax
import numpy as np
import pytest

from dlm import parallel
from dlm.generate import Generator, Request
from dlm.sampling.caching import ExactBlock
from dlm.serving import offline
from dlm.serving.asks import Ask
from dlm.serving.offline import Offline
from tests.dlm.serving.engine_test import BYTES, MASK, NAN, asks, exact, params, sampler

assert params  # a fixture

SEED = 3


def generator(own, row_tile):
  mesh = parallel.make_mesh(data=1, devices=jax.devices()[:1])
  return Generator(own, BYTES, mesh, batch=4, row_tile=row_tile)


@pytest.fixture
def engines(monkeypatch):
  """Those that are made."""
  made = []

  def make(*args, **kwargs):
    made.append(offline_engine(*args, **kwargs))
    return made[-1]

  offline_engine = offline.Engine
  monkeypatch.setattr(offline, "Engine", make)
  return made


def requests():
  """One of them a text to be filled in, one that the model answers by NaN."""
  made = [dataclasses.replace(ask.request, id=i) for i, ask in enumerate(asks()[:9])]
  made[2] = Request.from_ids(2, "", np.array([97, NAN, 98]), MASK, slots=20)
  made[4] = Request.from_text(4, "[[9]]a[[3]]b[[3]]", BYTES, slots=32, infill=True)
  return made


def without_costs(completions):
  return [dataclasses.replace(c, forwards={}, queries=0, tpf=0.0) for c in exact(completions)]


def test_rows_are_those_of_batches_to_the_bit_and_told_in_their_order(params, engines, capsys):
  batches, told = generator(sampler(temperature=1.0), row_tile=2), []
  want = exact(batches(params, requests(), seed=SEED))
  done = Offline(batches)(params, requests(), seed=SEED, on_batch=told.append)
  assert exact(done) == want, "log-probabilities and forwards too"
  assert [len(part) for part in told] == [4, 4, 1] and [c for part in told for c in part] == done
  assert capsys.readouterr().out == "prompt 2 alone, as the engine says nonfinite_logits\n"
  (engine,) = engines
  assert list(engine._run) == [32] and engine.compiles == 0
  assert Offline(batches)(params, [], seed=SEED) == []
  with pytest.raises(ValueError, match=r"top_p=0\.5 needs a server with serving.own_settings=True"):
    engine.submit(Ask(requests()[0], top_p=0.5))


def test_beginnings_that_prompts_share_are_computed_once(params, engines):
  own = generator(sampler(temperature=1.0, plan=ExactBlock(fill=8)), row_tile=1)
  asked = [each for each in requests() if each.id != 2]
  asked += [dataclasses.replace(asked[0], id=20 + i) for i in range(2)]
  want = own(params, asked, seed=SEED)
  done = Offline(own)(params, asked, seed=SEED)
  assert without_costs(done) == without_costs(want)
  (engine,) = engines
  assert engine.prefixes.hits > 0
  spent = [sum(sum(c.forwards.values()) for c in each) for each in (done, want)]
  assert spent[0] == spent[1] - engine.prefixes.hits, "a forward for each page that was found"


def test_what_the_engine_refuses_goes_in_batches_and_a_line_says_so(monkeypatch, capsys):
  own = generator(sampler(guidance=0.5), row_tile=1)
  monkeypatch.setattr(Generator, "__call__", lambda self, *args, **named: (self, args, named))
  asked = requests()[:2]
  assert Offline(own)({}, asked, seed=SEED, on_batch=print) == (
    own, ({}, asked), {"seed": SEED, "on_batch": print},
  )  # fmt: skip
  assert capsys.readouterr().out == (
    "in batches, as the engine refuses: serving: guidance=0.5 must be 0: it takes two rows a "
    "request\n"
  )
