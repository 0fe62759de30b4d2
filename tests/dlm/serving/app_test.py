"""What a client is told when an engine cannot answer: no process, no model, no socket."""

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
import types
from json import dumps

import pytest

from dlm.data import ByteTokenizer
from dlm.serving import app
from dlm.serving.asks import Event
from dlm.serving.doors import Doors
from dlm.serving.metrics import Metrics
from dlm.serving.protocol import Reader
from dlm.serving.runner import Runner
from tests.dlm.serving.runner_test import Still, fails

BYTES = ByteTokenizer()
BODY = {"prompt": "a", "max_tokens": 2}


class Told(Still):
  """Each request ends as it is told to, at once."""

  compiles = waited = 0
  scheduler = types.SimpleNamespace(queued=list, running={})
  prefixes = types.SimpleNamespace(hits=0, misses=0)

  def submit(self, ask):
    self.go.set()
    return super().submit(ask)


@dataclasses.dataclass
class Reply:
  status_code: int
  headers: dict[str, str]
  text: str = ""

  def json(self):
    return json.loads(self.text)


class Client:
  """Calls an application as a web server does."""

  def __init__(self, called):
    self._called = called

  async def get(self, path):
    return await self._ask("GET", path, b"")

  async def post(self, path, json):
    return await self._ask("POST", path, dumps(json).encode())

  async def _ask(self, method, path, body):
    messages, replies = [{"type": "http.request", "body": body}], []

    async def receive():
      return messages.pop() if messages else await asyncio.Event().wait()

    async def send(message):
      if message["type"] == "http.response.start":
        headers = {name.decode(): value.decode() for name, value in message["headers"]}
        replies.append(Reply(message["status"], headers))
      else:
        replies[0].text += message.get("body", b"").decode()

    scope = {
      "type": "http", "asgi": {"spec_version": "2.4"}, "http_version": "1.1", "method": method,
      "path": path, "query_string": b"", "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip
    with contextlib.suppress(ArithmeticError):  # which a web server writes to its log
      await self._called(scope, receive, send)
    return replies[0]


def ends(**said):
  return lambda engine: [Event(key, **said) for key in engine.keys]


@contextlib.asynccontextmanager
async def served(tick, **doors):
  """A client of a server over an engine that does as it is told."""
  engine = Told(tick)
  metrics = Metrics(engine)
  runner = Runner(engine, metrics.tick)
  reader = Reader(
    model="m", tokenizer=BYTES, template=None, slots=16, new=0, bos=False, words=None,
    start_within=1.0, end_within=1.0,
  )  # fmt: skip
  server = app.Server(reader, runner, metrics, Doors(**doors))
  runner.start()
  yield Client(server.app), server
  if runner.alive:
    runner.stop()


def parts(reply):
  """What stands behind "data: " in a stream."""
  return [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]


@pytest.mark.parametrize(
  ("fault", "status"),
  [
    ("queue_timeout", 503),
    ("request_timeout", 504),
    ("nonfinite_logits", 500),
    ("engine_restarted", 503),
  ],
)
def test_a_fault_has_a_status_or_ends_the_stream(fault, status):
  async def scene():
    async with served(ends(fault=fault)) as (client, _):
      whole = await client.post("/v1/completions", json=BODY)
      stream = await client.post("/v1/completions", json=BODY | {"stream": True})
      return whole, stream

  whole, stream = asyncio.run(scene())
  error = whole.json()["error"]
  assert whole.status_code == status and error["code"] == fault
  assert set(error) == {"message", "type", "param", "code"} and error["type"] == "server_error"
  assert ("retry-after" in whole.headers) == (status == 503)
  said, done = parts(stream)
  assert stream.status_code == 200 and done == "[DONE]" and json.loads(said)["error"] == error
  assert whole.headers["x-request-id"] != stream.headers["x-request-id"]


def test_a_row_that_made_no_progress_is_an_answer():
  done = types.SimpleNamespace(
    text="x", tokens=[120], logprobs=[None], reason="max_forwards", forwards={"full": 3}, tpf=0.3,
    queries=9, computed=9.0, spans=["x"],
  )  # fmt: skip

  async def scene():
    async with served(ends(completion=done)) as (client, _):
      return await client.post("/v1/completions", json=BODY)

  (choice,) = asyncio.run(scene()).json()["choices"]
  assert choice["finish_reason"] == "length" and choice["dlm"]["reason"] == "max_forwards"


def test_an_engine_that_died_is_said_at_once(capsys):
  async def scene():
    async with served(fails) as (client, _):
      first = await client.post("/v1/completions", json=BODY)
      later = await client.post("/v1/completions", json=BODY)
      return first, later, await client.get("/ready"), await client.get("/health")

  first, later, ready, health = asyncio.run(scene())
  for reply in (first, later):
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_died")
    assert int(reply.headers["retry-after"]) > 0
  assert (ready.status_code, health.status_code) == (503, 200)
  assert "a bug" in capsys.readouterr().err


def test_what_runs_when_the_time_to_drain_is_over_is_ended():
  """And nothing new is let in meanwhile."""

  async def scene():
    async with served(lambda engine: [], drain=0.2) as (client, server):
      whole = asyncio.create_task(client.post("/v1/completions", json=BODY))
      stream = asyncio.create_task(client.post("/v1/completions", json=BODY | {"stream": True}))
      while len(server.runner.engine.keys) < 2:
        await asyncio.sleep(0.01)
      drained = asyncio.create_task(server.drained())
      await asyncio.sleep(0)
      new = await client.post("/v1/completions", json=BODY)
      ready = await client.get("/ready")
      await drained
      return await whole, await stream, new, ready

  whole, stream, new, ready = asyncio.run(scene())
  for error in (whole.json(), json.loads(parts(stream)[0]), new.json()):
    assert error["error"]["code"] == "shutting_down"
  assert (whole.status_code, new.status_code, ready.status_code) == (503, 503, 503)
  assert parts(stream)[-1] == "[DONE]"


def test_a_fault_of_ours_tells_nothing_of_itself():
  def breaks(body, tenant):
    raise ArithmeticError("a secret")

  async def scene():
    async with served(lambda engine: []) as (client, server):
      server.reader = types.SimpleNamespace(completion=breaks)
      return await client.post("/v1/completions", json=BODY)

  reply = asyncio.run(scene())
  assert reply.status_code == 500 and reply.json()["error"]["code"] == "internal_error"
  assert "secret" not in reply.text and reply.headers["x-request-id"]


@pytest.mark.parametrize(
  ("number", "codes"), [(signal.SIGTERM, [143]), (signal.SIGINT, [130, 130])], ids=["TERM", "INT"]
)
def test_a_second_signal_ends_at_once(monkeypatch, number, codes):
  """SIGINT is one, the first time too."""
  exits = []
  monkeypatch.setattr(app.os, "_exit", exits.append)

  async def scene():
    async with served(lambda engine: []) as (_, server):
      feed = await server.runner.submit(["a"])  # something runs, so it drains
      server.runner.start = lambda: None
      up = asyncio.Event()
      sockets = app.bound("127.0.0.1", 0)
      serving = asyncio.create_task(app.serve(server, sockets, lambda port: up.set()))
      await up.wait()
      for _ in range(2):
        os.kill(os.getpid(), number)
        await asyncio.sleep(0.05)
      feed.close()
      if number == signal.SIGINT:
        os.kill(os.getpid(), signal.SIGTERM)
      await serving

  asyncio.run(scene())
  assert exits == codes


def test_an_address_is_taken_before_anything_is_compiled():
  """Nobody is let in until the server is ready; who comes second is told at once."""
  (taken,) = app.bound("127.0.0.1", 0)
  with taken:
    port = taken.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
      socket.create_connection(("127.0.0.1", port))
    taken.listen()
    with pytest.raises(ValueError, match=f"http://127.0.0.1:{port} cannot be served: Address"):
      app.bound("127.0.0.1", port)
  with pytest.raises(ValueError, match=r"http://192\.0\.2\.1:8000 cannot be served"):  # of nobody
    app.bound("192.0.2.1", 8000)
  with pytest.raises(ValueError, match="there is no such address"):
    app.bound("no such host", 8000)
