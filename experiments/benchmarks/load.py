"""A load generator: clients of a server on 127.0.0.1, all in one asyncio loop.

It speaks HTTP by itself, so that what is measured is the server and no client library.
"""

import asyncio
import dataclasses
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
BEGINS = 600.0  # seconds that a server may take to compile


@dataclasses.dataclass
class Reply:
  """What became of a request. Seconds of `time.perf_counter`."""

  began: float
  first: float | None = None  # its first final token came
  ended: float | None = None  # None: it is lost, or hung
  tokens: int = 0
  text: str = ""
  cancelled: bool = False
  error: str = ""


@dataclasses.dataclass(frozen=True)
class Served:
  """A server process.

  Args:
    name: of its model.
  """

  process: subprocess.Popen
  port: int
  name: str

  @property
  def resident(self) -> int:
    """Bytes of memory that the process holds."""
    pages = pathlib.Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")

  @property
  def cpu(self) -> float:
    """Seconds of CPU time that it has taken."""
    after_name = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2]
    user, system = after_name.split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

  def metric(self, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=60) as reply:
      found = re.search(rf"^{re.escape(name)} (\S+)$", reply.read().decode(), re.MULTILINE)
    return float(found[1])


def start(checkpoint: pathlib.Path, arguments: Sequence[str]) -> subprocess.Popen:
  """`experiments/serve.py`, which is not ready yet."""
  main = [sys.executable, "experiments/serve.py", f"--checkpoint={checkpoint}", "--port=0"]
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  return subprocess.Popen(
    [*main, *arguments], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
  )


def ready(process: subprocess.Popen) -> Served:
  """Waits until it takes requests."""
  said = []
  for line in process.stdout:
    if found := re.match(r"(\S+) at http://127\.0\.0\.1:(\d+)/v1", line):
      return Served(process, int(found[2]), found[1])
    said.append(line)
  process.kill()
  raise RuntimeError(f"serving: the server did not start; it said {''.join(said)!r}")


async def ask(
  port: int, body: Mapping[str, Any], deadline: float, cancel_after: int | None = None
) -> Reply:
  """One streamed completion. `cancel_after`: the client goes away after so many events."""
  reply = Reply(time.perf_counter())
  streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
  content, writer = json.dumps(streamed).encode(), None
  head = (
    "POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n"
    f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
  )
  try:
    async with asyncio.timeout(deadline):
      reader, writer = await asyncio.open_connection("127.0.0.1", port)
      writer.write(head.encode() + content)
      status = (await reader.readline()).decode().split()[1]
      if status != "200":
        reply.error = f"status {status}"
        return reply
      events = 0
      async for line in reader:
        if not line.startswith(b"data: "):
          continue
        if line.startswith(b"data: [DONE]"):
          reply.ended = time.perf_counter()
          return reply
        said, events = json.loads(line[6:]), events + 1
        if "error" in said:
          reply.error = said["error"]["message"]
          return reply
        reply.first = reply.first or time.perf_counter()
        if said["usage"]:
          reply.tokens = said["usage"]["completion_tokens"]
        for choice in said["choices"]:
          reply.text += choice["text"]
        if events == cancel_after:
          reply.cancelled, reply.ended = True, time.perf_counter()
          return reply
  except (TimeoutError, OSError) as error:
    reply.error = repr(error)
  finally:
    if writer is not None:
      writer.close()
  return reply


def cancelled(count: int, share: float, seed: int) -> list[int | None]:
  """For each of `count` requests the events after which its client goes away; None: it stays."""
  rng = random.Random(seed)
  leave = set(rng.sample(range(count), round(share * count)))
  return [rng.randint(1, 4) if i in leave else None for i in range(count)]


async def closed(
  port: int,
  bodies: Sequence[Mapping[str, Any]],
  clients: int,
  deadline: float,
  leaves: Sequence[int | None] | None = None,
  until: float | None = None,
) -> list[Reply]:
  """So many clients, each of which asks again when it is answered; replies by request.

  Args:
    leaves: see `cancelled`.
    until: they go round the requests until this time; None: once.
  """
  replies: list[Reply | None] = [None] * len(bodies)

  def numbers() -> Iterator[int]:
    yield from range(len(bodies))
    while until is not None and time.perf_counter() < until:
      replies.extend([None] * len(bodies))
      yield from range(len(replies) - len(bodies), len(replies))

  left = numbers()

  async def client() -> None:
    for i in left:
      if until is not None and time.perf_counter() > until:
        return
      own = i % len(bodies)
      replies[i] = await ask(port, bodies[own], deadline, leaves[own] if leaves else None)

  await asyncio.gather(*[client() for _ in range(clients)])
  return [reply for reply in replies if reply is not None]


async def poisson(
  port: int, bodies: Sequence[Mapping[str, Any]], rate: float, deadline: float, seed: int
) -> list[Reply]:
  """Requests that arrive by themselves, `rate` a second on average."""
  rng, tasks = random.Random(seed), []
  for body in bodies:
    tasks.append(asyncio.create_task(ask(port, body, deadline)))
    await asyncio.sleep(rng.expovariate(rate))
  return await asyncio.gather(*tasks)
