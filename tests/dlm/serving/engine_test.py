"""Rows that come and go: each is what it would be alone, and what a Generator makes of it."""

import dataclasses
import math
import re
import threading
import types

import jax
import numpy as np
import pytest

from dlm import masks, parallel
from dlm.data import ByteTokenizer
from dlm.facts import ModelFacts
from dlm.generate import Generator, Request
from dlm.models import ModelConfig, bind
from dlm.sampling import relay
from dlm.sampling.caching import ExactBlock, NoCache
from dlm.sampling.policies import Fixed, Threshold
from dlm.sampling.sampler import Sampler
from dlm.serving.asks import Ask
from dlm.serving.engine import Engine, Serving, engine
from dlm.serving.scheduler import Limits, Overloaded
from tests.dlm.sampling.table import Lookup, random_table

BYTES = ByteTokenizer()
MASK = BYTES.mask_id
MODEL = bind(
  ModelConfig(vocab=260, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp=16, tied=False)
)
SLOTS, NAN = 32, BYTES.pad_id
ENDS = (8, 45, 232)
LIMITS = Limits(waiting=30, waiting_slots=30 * SLOTS, budget=40)


def sampler(**fields):
  specials = range(256, 259)
  own = {"policy": Threshold(0.05), "plan": ExactBlock(), "sees": masks.BlockCausal(4)} | fields
  return Sampler(
    MODEL, block=4, max_forwards=64, mask_id=MASK, eos_ids=ENDS, forbidden=tuple(specials), **own
  )


@pytest.fixture(scope="module")
def params():
  """Random and sure of itself; what follows id NAN is not a number."""
  params = jax.jit(MODEL.init)(jax.random.key(0))
  embed_VxD = params["embed"].at[NAN].set(math.nan)
  return params | {"final_norm": {"scale": 3 * params["final_norm"]["scale"]}, "embed": embed_VxD}


class Clock:
  now = 0.0

  def __call__(self):
    return self.now


def settings(**own):
  return Serving((SLOTS,), rows=4, turns=3, fill=8, limits=LIMITS, **own)


@pytest.fixture(scope="module")
def by_two(params):
  """Finished blocks are cached by forwards of their own, as `engine` has it in tiles."""
  own, apart = settings(row_tile=2, constraints=True), sampler(commit="separate")
  assert relay.of_one_width(sampler()) == apart
  return Engine(apart, BYTES, params, own, align="canvas")


@pytest.fixture(scope="module")
def by_one(params):
  """Of a checkpoint and a config, with a prefix cache that is too small for all."""
  facts = ModelFacts(MASK, ENDS, None, 0, masks.BlockCausal(4), 256, SLOTS, block=4)
  checkpoint = types.SimpleNamespace(
    model=MODEL, facts=facts, tokenizer=BYTES, on=lambda mesh, weights: (params, 0)
  )
  config = {"policy": {"name": "threshold", "threshold": 0.05}, "max_forwards": 64}
  made = engine(config, checkpoint, settings(row_tile=1, prefixes=5))
  assert made.sampler.commit == "fused"
  made._clock = Clock()
  return made


@pytest.fixture(params=["by_one", "by_two"])
def either(request):
  return request.getfixturevalue(request.param)


def asks():
  """24 prompts of 0 to 26 tokens, some alike at their beginning, at temperature 0 and 1."""
  rng, made = np.random.default_rng(1), []
  shared = rng.integers(97, 123, 26)
  for i in range(24):
    n = int(rng.integers(0, 27))
    prompt = np.concatenate([shared[: n // 2 * (i % 3 > 0)], rng.integers(97, 123, 40)])[:n]
    new = int(rng.integers(max(17 - n, 1), SLOTS - n + 1))
    request = Request.from_ids(i, "", prompt, MASK, slots=SLOTS, max_new_tokens=new)
    made.append(Ask(request, seed=i % 5, temperature=float(i % 2), offline=i % 7 == 0))
  return made


@pytest.fixture(scope="module")
def alone(params):
  """What a Generator makes of each of the 24, without parts of prompts and without neighbours."""
  mesh, done = parallel.make_mesh(data=1, devices=jax.devices()[:1]), []
  runs = [
    Generator(sampler(temperature=temperature), BYTES, mesh, row_tile=1)
    for temperature in (0.0, 1.0)
  ]
  for ask in asks():
    done += runs[int(ask.temperature)](params, [ask.request], seed=ask.seed)
  assert len({c.reason for c in done}) == 2 and len({len(c.tokens) for c in done}) > 8
  return done


def served(either, asked, concurrency, cancel=()):
  """Events of each ask, so many of them in the engine at a time; some are cancelled early."""
  left, keys, events = list(enumerate(asked))[::-1], {}, [[] for _ in asked]
  while left or keys:
    while left and len(keys) < concurrency:
      i, ask = left.pop()
      keys[either.submit(ask)] = i
    for event in either.tick():
      events[keys[event.key]].append(event)
      if event.completion or event.fault:
        del keys[event.key]
    for key, i in list(keys.items()):
      if i in cancel and either._live[key].job.row >= 0:
        either.cancel(key)
  return events


def told(events):
  tokens = [token for event in events for token in event.tokens]
  logprobs = [logprob for event in events for logprob in event.logprobs]
  return tokens, logprobs, "".join(event.text for event in events)


@pytest.mark.parametrize("concurrency", [1, 4, 12])
def test_a_row_that_is_served_is_the_row_alone(either, alone, concurrency):
  asked, cancel = asks(), {2, 7, 11, 16, 21}
  for i, events in enumerate(served(either, asked, concurrency, cancel)):
    if i in cancel and events[-1].fault:
      assert events[-1].fault == "cancelled"
      continue
    done = events[-1].completion
    assert (done.tokens, done.when, done.reason) == (
      alone[i].tokens,
      alone[i].when,
      alone[i].reason,
    )
    assert told(events) == (done.tokens, done.logprobs, done.text)
    np.testing.assert_allclose(done.logprobs, alone[i].logprobs, rtol=1e-4, atol=1e-6)
  assert either.idle and either.compiles == 0
  assert not either.scheduler.running and len(either.scheduler._free[SLOTS]) == 4


def test_fewer_rows_are_computed_where_texts_may_round_otherwise(params, alone):
  engine = Engine(sampler(), BYTES, params, settings(exact=False), align="canvas")
  canvases, sizes = engine._canvases[SLOTS], []

  def counted(size, run):
    return lambda *given: (sizes.append(size), run(*given))[1]

  run = canvases.run
  assert [*run.fewer] == [1, 2]
  fewer = {size: counted(size, each) for size, each in run.fewer.items()}
  canvases.run = dataclasses.replace(run, fewer=fewer, decode=counted(4, run.decode))
  for concurrency in (1, 2, 4):
    sizes.clear()
    for i, events in enumerate(served(engine, asks()[:12], concurrency)):
      assert events[-1].completion.tokens == alone[i].tokens
    assert max(sizes) == concurrency
  assert engine.compiles == 0


def exact(completions):
  return [dataclasses.replace(each, seconds=0.0) for each in completions]


def test_it_is_so_to_the_bit_whoever_runs_beside_it_and_whatever_is_cached(by_one, by_two):
  for each in (by_one, by_two):
    asked = asks()
    together = exact(each.run(asked))
    one_by_one = [exact(each.run([ask]))[0] for ask in asked]
    for a, b in zip(together, one_by_one, strict=True):
      # Forwards that filled the prompt are not run again where it is cached.
      assert dataclasses.replace(a, forwards={}, queries=0, tpf=0.0) == dataclasses.replace(
        b, forwards={}, queries=0, tpf=0.0
      )
  assert by_two.prefixes.hits == 0 < by_one.prefixes.hits
  assert by_one.prefixes.misses > 0, "five pages are too few for all"


def test_other_tenants_find_none_of_the_pages(by_one):
  (ask,) = [each for each in asks() if len(each.request.tokens) - each.request.open.sum() >= 24][:1]
  hits = []
  for tenant in ("a", "a", "b", "a"):
    before = by_one.prefixes.hits
    by_one.run([dataclasses.replace(ask, tenant=tenant)])
    hits.append(by_one.prefixes.hits - before)
  assert hits[0] == hits[2] == 0 < hits[1]


def test_a_stop_string_ends_the_row_where_the_text_is_final(either, alone):
  i = max(range(24), key=lambda i: len(alone[i].text))
  text = alone[i].text
  stop = text[5:7]
  (events,) = served(either, [dataclasses.replace(asks()[i], stops=("\0", stop))], 1)
  done = events[-1].completion
  assert done.reason == "stop_string" and done.text == text[: text.index(stop)]
  assert told(events)[2] == done.text
  assert sum(done.forwards.values()) < sum(alone[i].forwards.values())


def test_a_threshold_of_its_own(either, alone):
  i = max(range(0, 24, 2), key=lambda i: len(alone[i].tokens) - len(set(alone[i].when)))
  (done,) = either.run([dataclasses.replace(asks()[i], threshold=1.0)])
  written = [when for when in done.when if when > 0]
  assert len(written) == len(set(written)), "one token a forward"
  assert len(set(alone[i].when)) < len(alone[i].tokens)


def constrained(words):
  """Asks whose holes are held to something, and what becomes of each must match."""
  choice = words.choice(("yes", "no", "maybe"))
  number = words.choice(tuple(str(n) for n in range(100, 1000, 7)))
  vowels = words.tokens([*"aeiou"])
  made = []
  for text, holes, expected in (
    ("f([[3]])", (choice,), r"f\(yes\)"),
    ("a[[5]]b[[3]]c[[2]]d", (choice, number, vowels), r"amaybeb(\d{3})c[aeiou]{2}d"),
    ("[[4]], [[3]]!", (None, number), r".{1,4}, \d{3}!"),
  ):
    request = Request.from_text(len(made), text, BYTES, slots=SLOTS, infill=True)
    made += [
      (Ask(request, seed=s, temperature=t, holes=holes), expected) for s, t in ((1, 0.0), (2, 1.0))
    ]
  answer = Request.from_ids(9, "", BYTES.encode("say: "), MASK, slots=SLOTS, max_new_tokens=9)
  made += [
    (Ask(answer, seed=s, temperature=1.0, holes=(choice,)), "yes|no|maybe") for s in range(4)
  ]
  return made


def test_holes_say_what_they_may_and_nobody_else_notices(by_two, alone):
  held, others = constrained(by_two.words), asks()
  mixed = [ask for pair in zip(others, [ask for ask, _ in held] * 3, strict=False) for ask in pair]
  expected = {id(ask): text for ask, text in held}
  events, texts = served(by_two, mixed, 7, cancel={5, 16}), set()
  for i, ask in enumerate(mixed):
    end = events[i][-1]
    if end.fault:
      assert i in {5, 16} and end.fault == "cancelled"
      continue
    assert exact([end.completion]) == exact(by_two.run([ask])), "to the bit what it is alone"
    if not ask.holes:
      assert end.completion.tokens == alone[end.completion.id].tokens and end.holes is None
      continue
    text = end.completion.text
    assert re.fullmatch(expected[id(ask)], text, re.DOTALL), text
    assert all(hole.logprob <= 0 and hole.entropy >= 0 for hole in end.holes)
    if ask.request.continues:
      assert end.completion.reason == "stop_id" and end.holes[0].text == text
      assert math.isclose(end.holes[0].logprob, sum(end.completion.logprobs), abs_tol=1e-6)
    texts.add(text)
  assert by_two.idle and by_two.compiles == 0 and len(texts) > 5


def test_a_top_p_of_its_own(either, params):
  """As with that of the sampling config, whatever the others have."""
  mesh = parallel.make_mesh(data=1, devices=jax.devices()[:1])
  narrow = Generator(sampler(temperature=1.0, top_p=0.6), BYTES, mesh, row_tile=1)
  own = [dataclasses.replace(ask, temperature=1.0, top_p=0.6) for ask in asks()[:8]]
  mixed = [ask for pair in zip(own, asks()[8:16], strict=True) for ask in pair]
  ends = either.run(mixed)[::2]
  want = [narrow(params, [ask.request], seed=ask.seed)[0] for ask in own]
  assert [(end.tokens, end.when) for end in ends] == [(each.tokens, each.when) for each in want]
  wide = either.run([dataclasses.replace(ask, top_p=1.0) for ask in own])
  assert [end.tokens for end in wide] != [end.tokens for end in ends]
  assert either.compiles == 0


def test_a_row_of_nan_ends_alone(either, alone):
  asked = asks()[:6]
  bad = Request.from_ids(9, "", np.array([97, NAN, 98]), MASK, slots=SLOTS)
  events = served(either, [*asked[:3], Ask(bad), *asked[3:]], 7)
  assert events.pop(3)[-1].fault == "nonfinite_logits"
  ends = [each[-1].completion.tokens for each in events]
  assert ends == [alone[i].tokens for i in range(6)]
  assert [c.tokens for c in either.run(asked)] == ends, "and rows that follow it are as before"


def test_models_that_see_all_slots_are_served_too():
  """Without a cache, by a policy with a state; what may still change is not told."""
  table = random_table(seed=0, slots=SLOTS, vocab=23)
  own = Sampler(
    Lookup(23), Fixed(steps=3), NoCache(), masks.Full(),
    block=8, max_forwards=64, mask_id=22, scope="canvas", temperature=1.0,
  )  # fmt: skip
  requests = [
    Request.from_ids(i, "", np.arange(i), 22, slots=SLOTS, max_new_tokens=20 - i) for i in range(6)
  ]
  mesh = parallel.make_mesh(data=1, devices=jax.devices()[:1])
  want = Generator(own, BYTES, mesh, align="prompt", row_tile=2)(table, requests, seed=3)
  both = Engine(own, BYTES, table, Serving((SLOTS,), rows=2, turns=2, fill=0), align="prompt")
  events = served(both, [Ask(request, seed=3) for request in requests], 4)
  assert all(len(each) == 1 for each in events), "nothing is told before a row is done"
  assert exact(each[0].completion for each in events) == exact(want)


def test_requests_may_come_from_another_thread_than_the_one_that_serves(by_one, alone):
  asked, ends, over = asks(), {}, threading.Event()

  def serve():
    while not over.is_set() or not by_one.idle:
      if by_one.wait(0.01):
        ends.update({event.key: event.completion for event in by_one.tick() if event.completion})

  server = threading.Thread(target=serve)
  server.start()
  keys = [by_one.submit(ask) for ask in asked]
  over.set()
  server.join()
  assert [ends[key].tokens for key in keys] == [each.tokens for each in alone]
  assert by_one.compiles == 0


def test_who_waits_or_takes_too_long_is_told_so(by_one):
  quick = asks()[1]
  slow = dataclasses.replace(quick, start_within=5.0, end_within=8.0)
  keys = [by_one.submit(ask) for ask in (*[slow] * 4, slow)]
  by_one.tick()
  by_one._clock.now += 6.0
  assert {(e.key, e.fault) for e in by_one.tick() if e.fault} == {(keys[4], "queue_timeout")}
  by_one._clock.now += 3.0
  ended = {e.key: e.fault for e in by_one.tick() if e.fault}
  assert set(ended.values()) <= {"request_timeout"} and set(ended) <= set(keys[:4])
  while not by_one.idle:
    by_one.tick()
  assert not by_one.wait(0.0)


def test_a_full_queue_refuses_and_takes_again(by_one):
  ask = asks()[1]
  keys = [by_one.submit(ask) for _ in range(30)]
  with pytest.raises(Overloaded):
    by_one.submit(ask)
  ends = set()
  while not by_one.idle:
    ends |= {event.key for event in by_one.tick() if event.completion}
  assert ends == set(keys)
  assert by_one.run([ask])[0].tokens


def test_a_program_that_fails_ends_what_was_on_the_device_and_nothing_else(by_one, alone):
  def fails(*_):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

  asked = asks()[:6]
  keys = [by_one.submit(ask) for ask in asked]
  canvases = by_one._canvases[SLOTS]
  canvases.run = dataclasses.replace(canvases.run, decode=fails)
  ends = {}
  while not ends:
    ends = {event.key: event for event in by_one.tick()}
  assert {event.fault for event in ends.values()} == {"engine_restarted"}
  while not by_one.idle:
    ends |= {event.key: event for event in by_one.tick() if event.completion or event.fault}
  assert set(ends) == set(keys)
  kept = [i for i, key in enumerate(keys) if ends[key].completion]
  assert kept and all(ends[keys[i]].completion.tokens == alone[i].tokens for i in kept)


def test_what_it_keeps_is_what_it_said_it_would(by_two):
  plan, canvases = by_two.memory, by_two._canvases[SLOTS]
  held = sum(leaf.nbytes for leaf in jax.tree.leaves(canvases.tiles))
  assert held == plan.rows * plan.row[SLOTS] and plan.rows == 4
  assert plan.temporaries > 0 and plan.weights > 4 * MODEL.config.n_params() - 1
  tight = dataclasses.replace(plan, limit=math.ceil((plan.total - plan.row[SLOTS]) / 0.95))
  assert tight.fitting == 3
  with pytest.raises(ValueError, match=r"rows=4 of 32 slots need .*: 3 rows would fit"):
    tight.check()
  assert dataclasses.replace(plan, limit=0).fitting == 0


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"temperature": -1.0}, r"temperature=-1\.0 must be finite"),
    ({"temperature": math.nan}, "temperature=nan must be finite"),
    ({"top_p": 0.0}, r"top_p=0\.0 must lie in \(0, 1\]"),
    ({"holes": (None,)}, "serving.constraints=True"),
    ({"threshold": 1.5}, r"threshold=1\.5 must lie in \[0, 1\]"),
    ({"stops": ("",)}, "a stop string must not be empty"),
    ({"seed": -1}, "seed=-1"),
    ({"request": Request(0, "", np.zeros(33, int), np.ones(33, bool))}, "33 tokens.*32 slots"),
    ({"request": Request(0, "", np.zeros(3, int), np.zeros(3, bool))}, "nothing to write"),
    (
      {"request": Request.from_text(0, "a[[1]]b", BYTES, slots=8, infill=True), "stops": ("c",)},
      "filled in has no stop strings",
    ),
  ],
)
def test_what_cannot_be_served_is_refused_at_once(by_one, changes, message):
  with pytest.raises(ValueError, match=message):
    by_one.submit(dataclasses.replace(asks()[0], **changes))
  assert by_one.idle


@pytest.mark.parametrize(
  ("settings", "fields", "message"),
  [
    ({"rows": 0}, {}, "rows=0 must be at least 1"),
    ({"fill": -1}, {}, "fill=-1 must not be negative"),
    ({"sizes": ()}, {}, r"sizes=\(\) must name"),
    ({"prefixes": 3, "fill": 0}, {}, "pages of fill=0 slots"),
    ({"limits": Limits(waiting_slots=8)}, {}, "waiting_slots=8 must hold a canvas"),
    ({}, {"plan": NoCache()}, "fill=8 needs cache 'block'"),
    ({}, {"guidance": 1.0}, r"guidance=1\.0 must be 0"),
    ({"own_settings": False, "constraints": True}, {}, "constraints=True needs own_settings=True"),
    ({"fill": 6}, {}, "fill=6 to be a multiple of block=4"),
  ],
)
def test_engines_that_cannot_be_are_refused(settings, fields, message):
  with pytest.raises(ValueError, match=message):
    serving = Serving(**{"sizes": (SLOTS,), "fill": 8} | settings)
    Engine(sampler(**fields), BYTES, {}, serving, align="canvas")
