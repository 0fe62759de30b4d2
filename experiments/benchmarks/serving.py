"""A server of a random block model against static batches, and against one request at a time.

The server is `experiments/serve.py` in a process of its own, asked over HTTP by the clients of
`load`; the two others are a `Generator` in this process. All get the same mixed requests, with
lengths of prompts and answers drawn from lognormal distributions; what one of them writes in a
forward is fixed, and nothing ends an answer before its length. They take turns, so that what
disturbs the machine disturbs all; CPU seconds are told too, for machines that others share.
"""

import asyncio
import contextlib
import dataclasses
import functools
import pathlib
import statistics
import string
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from dlm import build, checkpoint, masks, workdir
from dlm.build import Pretrained
from dlm.build.tables import plain
from dlm.data import ByteTokenizer
from dlm.facts import ModelFacts
from dlm.generate import Completion, Request, generator
from dlm.models import ModelConfig, bind
from dlm.serving.asks import Ask
from dlm.serving.engine import Serving, engine
from experiments.benchmarks import alone, load, results
from experiments.benchmarks.load import Served
from experiments.benchmarks.results import Row, Spread, Table

BYTES = ByteTokenizer()
CANCELLED = 0.2  # of the requests of the soak
TIMES = ("dlm_tick_seconds_sum", "dlm_device_seconds")  # metrics: all, and those it waits


@dataclasses.dataclass(frozen=True)
class Size:
  model: ModelConfig
  slots: int  # of the server's canvas
  block: int
  steps: int  # forwards a block
  requests: int
  alone: int  # of them, those that are also asked one at a time
  median: int  # tokens of prompts, and of answers
  concurrency: tuple[int, ...]
  rounds: int
  batch: int  # rows of a static batch
  rows: int  # of the server
  row_tile: int
  loose: tuple[int, ...]  # clients of the engine whose rows may round otherwise
  fill: int
  soak: float  # minutes
  deadline: float  # seconds of a request


TINY = Size(
  ModelConfig(vocab=260, width=32, layers=1, heads=2, kv_heads=1, head_dim=16, mlp=32),
  slots=32, block=4, steps=2, requests=2, alone=2, median=8, concurrency=(2,), rounds=1, batch=1,
  rows=2, row_tile=2, loose=(1,), fill=8, soak=0.01, deadline=60.0,
)  # fmt: skip
DEFAULT = Size(
  ModelConfig(vocab=260, width=512, layers=9, heads=8, kv_heads=2, head_dim=64, mlp=1792),
  slots=256, block=4, steps=2, requests=32, alone=6, median=32, concurrency=(1, 4, 16, 64),
  rounds=2, batch=16, rows=16, row_tile=16, loose=(1, 4, 16), fill=32, soak=1.0, deadline=600.0,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Took:
  """What a way of writing took for its requests."""

  tokens: int
  seconds: float
  cpu: float
  firsts: list[float]  # seconds until each request had its first final token

  @property
  def rate(self) -> float:
    return self.tokens / self.seconds


def run(size: str, soak: float = 0.0) -> list[Table]:
  """`soak`: minutes of a soak, and nothing else; 0: all, with a short one."""
  chosen = TINY if size == "tiny" else DEFAULT
  asked, tables = _requests(chosen), []
  with tempfile.TemporaryDirectory() as folder:
    path = _checkpoint(pathlib.Path(folder) / "random", chosen)
    with _server(path, chosen) as wait:
      if soak:
        return [_soak(dataclasses.replace(chosen, soak=soak), wait(), asked)]
      static, single = (_static(path, chosen, batch) for batch in (chosen.batch, 1))
      served = wait()
      tables.append(_side_by_side(chosen, served, asked, static, single))
      tables.append(_prefixes(chosen, served))
      tables.append(_soak(chosen, served, asked))
    tables.append(_exactness(path, chosen, asked))
  return tables


def _checkpoint(folder: pathlib.Path, size: Size) -> pathlib.Path:
  """Random parameters, as a checkpoint."""
  model = bind(size.model)
  facts = ModelFacts(
    BYTES.mask_id, (BYTES.eos_id,), BYTES.pad_id, 0, masks.BlockCausal(size.block),
    BYTES.vocab_size, size.slots, block=size.block,
  )  # fmt: skip
  folder.mkdir()
  objective = {"name": "bd3lm", "block": size.block}
  workdir.fill(folder, {"model": plain(size.model), "objective": objective}, facts, BYTES)
  checkpoint.save_params(folder, 0, jax.jit(model.init)(jax.random.key(0)), {})
  return folder


def _sampling(size: Size) -> dict[str, Any]:
  policy = {"name": "fixed", "steps": size.steps}
  return {"policy": policy, "stop": "never", "temperature": 1.0}


def _serving(size: Size) -> dict[str, Any]:
  return {
    "sizes": (size.slots,), "rows": size.rows, "row_tile": size.row_tile, "fill": size.fill,
    "prefixes": 64, "turns": 2,
  }  # fmt: skip


@contextlib.contextmanager
def _server(path: pathlib.Path, size: Size) -> Iterator[Callable[[], Served]]:
  """A server that has begun to compile; what is yielded waits until it is ready."""
  serving = _serving(size)
  fields = {
    f"sampling.{name}": value for name, value in _sampling(size).items() if name != "policy"
  }
  fields |= {f"sampling.policy.{k}": v for k, v in _sampling(size)["policy"].items()}
  fields |= {f"serving.{name}": value for name, value in serving.items()}
  waits = {"start_within": size.deadline, "end_within": size.deadline}
  given = [f"--config.{name}={value}" for name, value in (fields | waits).items()]
  process = load.start(path, given)
  try:
    yield lambda: load.ready(process)
  finally:
    process.terminate()
    process.wait(60)
    process.stdout.close()


def _requests(size: Size) -> list[tuple[str, int]]:
  """Prompts, and the tokens of their answers."""
  rng = np.random.default_rng(0)
  lengths = rng.lognormal(np.log(size.median), 0.8, (size.requests, 2))
  letters = list(string.ascii_lowercase + " ")
  return [
    ("".join(rng.choice(letters, max(int(prompt), 1))), max(int(answer), 1))
    for prompt, answer in np.minimum(lengths, size.slots // 2)
  ]


def _bodies(served: Served, asked: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
  return [
    {"model": served.name, "prompt": prompt, "max_tokens": new, "seed": i}
    for i, (prompt, new) in enumerate(asked)
  ]


@functools.cache
def _static(
  path: pathlib.Path, size: Size, batch: int
) -> Callable[[Sequence[tuple[str, int]]], Took]:
  """A Generator of batches of so many rows; its programs are compiled."""
  trained: Pretrained = build.pretrained(path)
  write, _ = generator({**_sampling(size), "batch": batch}, trained)
  params, _ = trained.on(write.mesh)

  def took(asked: Sequence[tuple[str, int]]) -> Took:
    requests = [
      Request.from_text(i, prompt, BYTES, slots=size.slots, max_new_tokens=new)
      for i, (prompt, new) in enumerate(asked)
    ]
    began, cpu = time.perf_counter(), time.process_time()
    done: list[Completion] = write(params, requests)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    tokens = sum(len(each.tokens) for each in done)
    return Took(tokens, seconds, cpu, [each.seconds for each in done])

  own = _requests(size)[: size.alone if batch == 1 else None]
  rows = [Request.from_text(0, p, BYTES, slots=size.slots, max_new_tokens=n) for p, n in own]
  write.compile(params, rows)
  return took


def _side_by_side(
  size: Size,
  served: Served,
  asked: Sequence[tuple[str, int]],
  static: Callable[[Sequence[tuple[str, int]]], Took],
  single: Callable[[Sequence[tuple[str, int]]], Took],
) -> Table:
  bodies, texts = _bodies(served, asked), set()

  def over_http(count: int, clients: int, rate: float = 0.0) -> Took:
    began, cpu = time.perf_counter(), served.cpu
    if rate:
      work = load.poisson(served.port, bodies[:count], rate, size.deadline, seed=1)
    else:
      work = load.closed(served.port, bodies[:count], clients, size.deadline)
    replies = asyncio.run(work)
    lost = [reply.error for reply in replies if reply.ended is None]
    if lost:
      raise RuntimeError(f"serving: {len(lost)} requests were lost: {lost[0]}")
    texts.update({(i, reply.text) for i, reply in enumerate(replies)})
    return Took(
      sum(reply.tokens for reply in replies),
      time.perf_counter() - began,
      served.cpu - cpu,
      [reply.first - reply.began for reply in replies],
    )

  def count(clients: int) -> int:
    return size.alone if clients == 1 else len(asked)

  ways: dict[str, Callable[[], Took]] = {
    "static batches": lambda: static(asked),
    "one at a time": lambda: single(asked[: size.alone]),
  }
  for clients in size.concurrency:
    ways[f"served, {clients} clients"] = lambda n=clients: over_http(count(n), n)
  over_http(min(len(asked), 2), 2)  # its pages are touched
  found: dict[str, list[Took]] = {name: [] for name in [*ways, "served, Poisson"]}
  for index in range(size.rounds):
    for name in list(ways)[:: -1 if index % 2 else 1]:
      found[name].append(ways[name]())
    busiest = found[list(ways)[-1]][-1]
    rate = 0.7 * len(asked) / busiest.seconds  # of what it can take
    found["served, Poisson"].append(over_http(len(asked), 0, rate))
  others = len(texts) - len(asked)
  rows = [{**_row(name, took, found), "other texts": others} for name, took in found.items()]
  return Table("serving", f"output tokens/s / those of static batches of {size.batch}", rows)


def _row(name: str, took: Sequence[Took], found: dict[str, list[Took]]) -> Row:
  static, single = found["static batches"], found["one at a time"]

  def rates(took: Sequence[Took]) -> list[float]:
    return [each.rate for each in took]

  def middles(took: Sequence[Took]) -> list[float]:
    return [statistics.median(each.firsts) for each in took]

  return {
    "speed-up": results.ratio(rates(took), rates(static)),
    "way": name,
    "over one at a time": results.ratio(rates(took), rates(single)),
    "tokens/s": Spread.of(rates(took)),
    "tokens/CPU s": Spread.of([each.tokens / each.cpu for each in took]),
    "first token p50": Spread.of(middles(took)),
    "p95": Spread.of([float(np.quantile(each.firsts, 0.95)) for each in took]),
    "static p50 / p50": results.ratio(middles(static), middles(took)),
    "requests": len(took[0].firsts),
  }


def _prefixes(size: Size, served: Served) -> Table:
  """Long prompts of which the first 75 % are known, and of which nothing is known."""
  rng = np.random.default_rng(1)
  letters = list(string.ascii_lowercase)
  long = size.slots - 2 * size.fill

  def words(count: int) -> str:
    return "".join(rng.choice(letters, count))

  def first(prompt: str) -> float:
    body = {"model": served.name, "prompt": prompt, "max_tokens": size.block, "seed": 0}
    reply = asyncio.run(load.ask(served.port, body, size.deadline))
    return reply.first - reply.began

  shared = words(long * 3 // 4)
  first(shared + words(long - len(shared)))
  seconds: dict[str, list[float]] = {"none": [], "no prefix": [], "75 % shared": []}
  for _ in range(4 * size.rounds):
    seconds["none"].append(first(words(1)))
    seconds["no prefix"].append(first(words(long)))
    seconds["75 % shared"].append(first(shared + words(long - len(shared))))
  none, new, known = (statistics.median(each) for each in seconds.values())
  row = {
    "speed-up": results.ratio(seconds["no prefix"], seconds["75 % shared"]),
    "prompt": f"{long} tokens",
    "prefill saved": 1 - (known - none) / (new - none),
    **{name: Spread.of(each) for name, each in seconds.items()},
  }
  return Table("prefix cache", "seconds to the first token, nothing shared / 75 % shared", [row])


def _exactness(path: pathlib.Path, size: Size, asked: Sequence[tuple[str, int]]) -> Table:
  """What it costs that a row is the same to the bit: an engine that is free of it, in its place."""
  trained = build.pretrained(path)
  engines = {
    exact: engine(_sampling(size), trained, Serving(**_serving(size), exact=exact))
    for exact in (True, False)
  }
  rows = []
  for clients in size.loose:
    asks = [
      Ask(Request.from_text(i, prompt, BYTES, slots=size.slots, max_new_tokens=new), seed=i)
      for i, (prompt, new) in enumerate(asked[: size.alone if clients == 1 else None])
    ]
    calls = {
      str(exact): functools.partial(alone.answers, each, asks, clients, 0.0)
      for exact, each in engines.items()
    }
    seconds, ids = results.interleaved(calls, size.rounds)
    same = [ids["True"][i] == ids["False"][i] for i in range(len(asks))]
    rows.append(
      {
        "speed-up": results.ratio(seconds["True"], seconds["False"]),
        "clients": clients,
        "seconds, exact": Spread.of(seconds["True"]),
        "free": Spread.of(seconds["False"]),
        "answers with the same ids": float(np.mean(same)),
        "compiles": sum(each.compiles for each in engines.values()),
      }
    )
  return Table("exactness", "serving.exact=False: seconds of exact tiles / of fewer rows", rows)


def _soak(size: Size, served: Served, asked: Sequence[tuple[str, int]]) -> Table:
  """A closed loop of as many clients as a static batch has rows; of a fifth the client leaves."""
  bodies, ratios, replies = _bodies(served, asked), [], []
  leaves = load.cancelled(len(bodies), CANCELLED, seed=0)
  ticks, waits = (served.metric(name) for name in TIMES)
  start = served.resident
  minutes = max(round(size.soak), 1)
  for _ in range(minutes):
    until = time.perf_counter() + 60 * size.soak / minutes
    replies += asyncio.run(
      load.closed(served.port, bodies, size.batch, size.deadline, leaves, until)
    )
    ratios.append(served.resident / start)
  lost = sum(reply.ended is None for reply in replies)
  left = sum(reply.cancelled for reply in replies)
  ticked, waited = (
    served.metric(name) - before for name, before in zip(TIMES, (ticks, waits), strict=True)
  )
  row = {
    "memory": Spread.of(ratios),
    "at its end": ratios[-1],
    "minutes": size.soak,
    "requests": len(replies),
    "left by clients": left,
    "lost or hung": lost,
    "compiles": int(served.metric("dlm_compiles_while_serving")),
    "host share of a tick": 1 - waited / ticked,
    "tokens/s": sum(reply.tokens for reply in replies) / (60 * size.soak),
  }
  return Table("soak", "resident memory after each minute / at the beginning", [row])
