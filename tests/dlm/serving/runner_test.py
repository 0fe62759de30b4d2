"""The thread and the feeds: what happens when the engine, or who reads, does not go on."""

import asyncio
import threading

import pytest

from dlm.serving import app
from dlm.serving.asks import Event
from dlm.serving.runner import ENGINE_DIED, Runner
from dlm.serving.scheduler import Overloaded


class Still:
  """An engine that takes three asks, and whose ticks do what they are told."""

  def __init__(self, tick):
    self._tick, self.cancelled, self.keys = tick, [], []
    self.go = threading.Event()

  def submit(self, ask):
    if len(self.keys) == 3:
      raise Overloaded("3 wait", 1)
    self.keys.append(len(self.keys))
    return self.keys[-1]

  def cancel(self, key):
    self.cancelled.append(key)

  def wait(self, seconds):
    return self.go.wait(seconds)

  def tick(self):
    self.go.clear()
    return self._tick(self)


def fails(engine):
  raise ArithmeticError("a bug")


def test_an_engine_that_fails_ends_all_that_runs(capsys):
  engine = Still(fails)
  runner = Runner(engine, lambda *_: None)

  async def scene():
    runner.start()
    feed = await runner.submit(["a", "b"])
    engine.go.set()
    return [(i, event.fault) async for i, event in feed.events(2)]

  assert asyncio.run(scene()) == [(0, ENGINE_DIED), (1, ENGINE_DIED)]
  runner.stop()
  assert not runner.alive and not runner.healthy and not runner.busy
  assert "a bug" in capsys.readouterr().err


def test_calls_that_are_given_up_end_at_once():
  engine = Still(lambda engine: [])
  runner = Runner(engine, lambda *_: None)

  async def scene():
    feed = await runner.submit(["a", "b"])
    runner.give_up("shutting_down")
    return [event.fault async for _, event in feed.events(2)]

  assert asyncio.run(scene()) == ["shutting_down"] * 2
  assert engine.cancelled == [0, 1] and not runner.busy


def test_a_call_is_taken_whole_or_not_at_all():
  engine = Still(lambda engine: [Event(key, fault="cancelled") for key in engine.cancelled])
  runner = Runner(engine, lambda *_: None)
  with pytest.raises(Overloaded):
    asyncio.run(runner.submit(["a"] * 4))
  assert engine.cancelled == [0, 1, 2] and not runner.busy
  runner._deliver(engine.tick())  # nobody is told of them


def test_rows_of_nan_again_and_again_are_not_healthy():
  engine = Still(lambda engine: [Event(engine.keys[-1], fault="nonfinite_logits")])
  runner = Runner(engine, lambda *_: None)

  async def scene():
    runner.start()
    for _ in range(3):
      assert runner.healthy
      feed = await runner.submit(["a"])
      engine.go.set()
      assert [event.fault async for _, event in feed.events(1)] == ["nonfinite_logits"]

  asyncio.run(scene())
  assert runner.alive and not runner.healthy
  runner.stop()


def test_who_reads_nothing_is_left():
  engine = Still(lambda engine: [])
  runner = Runner(engine, lambda *_: None)

  async def scene():
    feed = await runner.submit(["a"])

    async def parts():
      yield b"data: 1\n\n"

    async def send(message):
      await asyncio.sleep(3600)

    async def receive():
      await asyncio.sleep(3600)

    scope = {"type": "http", "asgi": {"spec_version": "2.4"}}
    await app._Stream(parts(), feed, 0.01)(scope, receive, send)

  asyncio.run(scene())
  assert engine.cancelled == [0] and not runner.busy
