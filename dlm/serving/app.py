"""An OpenAI server over an engine: completions, chat, health, metrics, and a page to look at.

Every request ends: by an answer, by an error that says why in OpenAI's form, or because its client
went away, and then its rows are free at the next tick.
"""

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import pathlib
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import starlette.exceptions
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from dlm.serving import replies
from dlm.serving.asks import Event
from dlm.serving.doors import Doors
from dlm.serving.metrics import Metrics
from dlm.serving.protocol import Call, Reader, Refused
from dlm.serving.replies import Replies
from dlm.serving.runner import Feed, Runner
from dlm.serving.scheduler import Overloaded

KEYS = "DLM_API_KEYS"  # environment: keys that are let in, separated by commas; none: all are
PAGE = pathlib.Path(__file__).with_name("playground.html")
GONE = 499  # the client went away; nobody reads it


class Server:
  """The routes, and what they share."""

  def __init__(self, reader: Reader, runner: Runner, metrics: Metrics, doors: Doors):
    self.reader, self.runner, self.metrics, self.doors = reader, runner, metrics, doors
    self.draining = False
    self._keys = [key.encode() for key in os.environ.get(KEYS, "").split(",") if key]
    self._began = int(time.time())
    cors = Middleware(CORSMiddleware, allow_origins=[doors.origin], allow_methods=["*"],
                      allow_headers=["*"])  # fmt: skip
    self.app = Starlette(
      routes=[
        Route("/", self._page),
        Route("/health", lambda _: JSONResponse({"status": "ok"})),
        Route("/ready", self._readiness),
        Route("/metrics", self._metrics),
        Route("/v1/models", self._models),
        Route("/v1/models/{name:path}", self._models),
        Route("/v1/completions", self._completions, methods=["POST"]),
        Route("/v1/chat/completions", self._chat, methods=["POST"]),
      ],
      middleware=[cors] if doors.origin else [],
      exception_handlers={
        Refused: self._refused,
        starlette.exceptions.HTTPException: self._no_route,
        Exception: self._failed,
      },
    )

  @property
  def ready(self) -> bool:
    return self.runner.healthy and not self.draining

  # -----------------------------------------------------------------------------------------------
  # Routes

  def _page(self, _: Request) -> Response:
    return HTMLResponse(PAGE.read_text())

  def _readiness(self, _: Request) -> Response:
    return JSONResponse({"ready": self.ready}, 200 if self.ready else 503)

  def _metrics(self, _: Request) -> Response:
    return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

  def _models(self, request: Request) -> Response:
    self._tenant(request)
    model = {
      "id": self.reader.model, "object": "model", "created": self._began, "owned_by": "dlm",
    }  # fmt: skip
    name = request.path_params.get("name")
    if name is None:
      return JSONResponse({"object": "list", "data": [model]})
    if name != self.reader.model:
      raise Refused(404, f"model={name!r} is not served", param="model", code="model_not_found")
    return JSONResponse(model)

  async def _completions(self, request: Request) -> Response:
    return await self._answer(request, self.reader.completion, chat=False)

  async def _chat(self, request: Request) -> Response:
    return await self._answer(request, self.reader.chat, chat=True)

  async def _answer(
    self, request: Request, read: Callable[[Mapping[str, Any], str], Call], *, chat: bool
  ) -> Response:
    arrived = time.monotonic()
    tenant = self._tenant(request)
    body = await self._body(request)
    if not self.ready:
      raise Refused(
        503, "the server is about to end" if self.draining else "the engine does not run",
        code="shutting_down" if self.draining else "engine_died", retry_after=5,
      )  # fmt: skip
    try:
      call = await asyncio.to_thread(read, body, tenant)
      feed = await self.runner.submit(call.asks)
    except ValueError as error:
      raise Refused(400, str(error), code="invalid_value") from error
    except Overloaded as error:
      raise Refused(
        429, str(error), code="server_overloaded", retry_after=error.retry_after
      ) from error
    reply = Replies(call, self.reader.model, self.reader.tokenizer, chat=chat)
    if call.stream:
      return _Stream(self._parts(call, feed, reply, arrived), feed, self.doors.stall)
    return await self._whole(request, call, feed, reply, arrived)

  async def _whole(
    self, request: Request, call: Call, feed: Feed, reply: Replies, arrived: float
  ) -> Response:
    """The answer in one piece, unless the client goes away before."""
    work = asyncio.create_task(self._collect(call, feed, arrived))
    gone = asyncio.create_task(_gone(request))
    try:
      await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
      if not work.done():
        return self._counted(Response(status_code=GONE))
      return self._counted(JSONResponse(reply.whole(work.result())))
    finally:
      work.cancel()
      gone.cancel()
      feed.close()

  async def _collect(self, call: Call, feed: Feed, arrived: float) -> list[Event]:
    """The last event of each choice."""
    done: dict[int, Event] = {}
    async for i, event in self._timed(call, feed, arrived):
      if event.fault:
        raise replies.fault(event.fault)
      if event.completion:
        done[i] = event
    return [done[i] for i in range(len(call.asks))]

  async def _parts(
    self, call: Call, feed: Feed, reply: Replies, arrived: float
  ) -> AsyncIterator[bytes]:
    """The answer as server-sent events."""
    done = []
    async for i, event in self._timed(call, feed, arrived):
      if event.fault:
        yield replies.data(replies.error(replies.fault(event.fault)))
        break
      if part := reply.part(i, event):
        yield replies.data(part)
      if event.completion:
        done.append(event)
    else:
      if call.include_usage:
        yield replies.data(reply.last(done))
    yield replies.DONE
    self.metrics.replies.labels(200).inc()

  async def _timed(self, call: Call, feed: Feed, arrived: float) -> AsyncIterator[Any]:
    """The feed's events, with the times that clients care for."""
    first = True
    async for i, event in feed.events(len(call.asks)):
      if first and (event.tokens or event.completion):
        self.metrics.first.observe(time.monotonic() - arrived)
        first = False
      yield i, event
    self.metrics.whole.observe(time.monotonic() - arrived)

  # -----------------------------------------------------------------------------------------------
  # What may come in

  def _tenant(self, request: Request) -> str:
    """Whose request it is: prompts share cached prefixes within one key."""
    given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
    if not self._keys:
      return ""
    if not any([hmac.compare_digest(given, key) for key in self._keys]):
      raise Refused(401, f"a key of {KEYS} is needed as 'Authorization: Bearer KEY'")
    return hashlib.blake2b(given, digest_size=16).hexdigest()

  async def _body(self, request: Request) -> Mapping[str, Any]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind != "application/json":
      raise Refused(415, f"content-type={kind!r} must be application/json")
    content = bytearray()
    async for part in request.stream():
      content += part
      if len(content) > self.doors.body:
        raise Refused(413, f"the body exceeds {self.doors.body} bytes")
    try:
      body = json.loads(content)
    except (ValueError, RecursionError) as error:
      raise Refused(400, f"the body is no JSON: {error}", code="invalid_json") from error
    if not isinstance(body, dict):
      raise Refused(400, "the body must be an object", code="invalid_json")
    return body

  # -----------------------------------------------------------------------------------------------
  # What goes out

  def _counted(self, response: Response) -> Response:
    self.metrics.replies.labels(response.status_code).inc()
    response.headers["x-request-id"] = secrets.token_hex(12)
    return response

  def _refused(self, _: Request, refused: Refused) -> Response:
    after = {"retry-after": str(refused.retry_after)} if refused.retry_after else {}
    return self._counted(JSONResponse(replies.error(refused), refused.status, after))

  def _no_route(self, request: Request, error: starlette.exceptions.HTTPException) -> Response:
    where = f"{request.method} {request.url.path}"
    return self._refused(request, Refused(error.status_code, f"{where}: {error.detail}"))

  def _failed(self, request: Request, error: Exception) -> Response:
    """A fault of ours; its traceback goes to the log."""
    return self._refused(request, Refused(500, "the server failed", code="internal_error"))

  async def drained(self) -> None:
    """No new requests; returns when those that run have ended, which they must when time is up."""
    self.draining = True
    try:
      async with asyncio.timeout(self.doors.drain):
        while self.runner.busy:
          await asyncio.sleep(0.05)
    except TimeoutError:
      self.runner.give_up("shutting_down")


class _Stream(StreamingResponse):
  """Server-sent events. However they end, what is left of the call is cancelled."""

  media_type = "text/event-stream"

  def __init__(self, parts: AsyncIterator[bytes], feed: Feed, stall: float):
    headers = {"cache-control": "no-cache", "x-request-id": secrets.token_hex(12)}
    super().__init__(parts, headers=headers)
    self._feed, self._stall = feed, stall

  async def __call__(self, scope, receive, send) -> None:
    async def bounded(message) -> None:
      await asyncio.wait_for(send(message), self._stall)

    try:
      with contextlib.suppress(TimeoutError, ClientDisconnect):
        await super().__call__(scope, receive, bounded)
    finally:
      self._feed.close()


async def _gone(request: Request) -> None:
  """Returns when the client goes away."""
  while (await request.receive())["type"] != "http.disconnect":
    pass


class _Uvicorn(uvicorn.Server):
  """Signals are ours: the first SIGTERM lets what runs end."""

  def capture_signals(self):
    return contextlib.nullcontext()


def bound(host: str, port: int) -> list[socket.socket]:
  """The address, taken but not listened at: who asks is refused until `serve` is ready.

  A server takes it before it compiles for minutes. `port`: 0: any that is free.

  Raises:
    ValueError: there is no such address here, or another program has it.
  """
  where = f"http://{host}:{port}"
  try:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
  except (OSError, UnicodeError) as error:
    raise ValueError(f"{where}: there is no such address ({error})") from error
  sockets = []
  for family, kind, protocol, _, address in dict.fromkeys(found):
    taken = socket.socket(family, kind, protocol)
    sockets.append(taken)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
      taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has its own
    try:
      taken.bind(address)
    except OSError as error:
      for each in sockets:
        each.close()
      raise ValueError(f"{where} cannot be served: {error.strerror}") from error
  return sockets


async def serve(
  server: Server, sockets: Sequence[socket.socket], ready: Callable[[int], None]
) -> None:
  """Until SIGTERM, and what runs then has ended; SIGINT and a second SIGTERM end at once.

  Args:
    sockets: of `bound`.
    ready: called with the port, when requests are taken.
  """
  config = uvicorn.Config(server.app, log_level="warning", lifespan="off", access_log=False)
  web = _Uvicorn(config)
  loop = asyncio.get_running_loop()
  ends: list[asyncio.Task] = []

  async def end() -> None:
    await server.drained()
    web.should_exit = True

  def on_term() -> None:
    if ends:
      os._exit(128 + signal.SIGTERM)
    ends.append(loop.create_task(end()))

  loop.add_signal_handler(signal.SIGTERM, on_term)
  loop.add_signal_handler(signal.SIGINT, lambda: os._exit(128 + signal.SIGINT))
  server.runner.start()
  serving = loop.create_task(web.serve([*sockets]))
  while not web.started and not serving.done():
    await asyncio.sleep(0.01)
  if web.started:
    ready(web.servers[0].sockets[0].getsockname()[1])
  await serving
  server.runner.stop()
