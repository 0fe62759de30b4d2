"""P-ReAct (DLLM-Searcher, arXiv 2602.07035): the call is written first, and runs from then on.

In plain ReAct a model thinks, calls a tool, and waits. A diffusion model may write the call before
the thoughts that stand in front of it (`dlm.sampling.policies.Region`): the tool starts as soon as
the last mask of the call is gone, and the model writes its thoughts meanwhile.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence

import numpy as np

from dlm.agent.tools import Call, Tools
from dlm.data.specials import Spelled
from dlm.generate import Generator, Request
from dlm.sampling.policies import Region
from dlm.sampling.policy import Policy, Wrapper
from dlm.types import Canvas, Params


@dataclasses.dataclass(frozen=True)
class Turn:
  """Thoughts, a call, and its response."""

  text: str  # all that the model wrote
  call: str
  response: str
  forwards: int  # of the turn
  called: int  # after how many of them the tool started
  seconds: float  # the turn took to write
  tool: float  # seconds the tool took
  waited: float  # seconds of those in which there was nothing left to write


@dataclasses.dataclass(frozen=True)
class Episode:
  """What became of a question. `answer` was written after the last response."""

  request: Request
  turns: tuple[Turn, ...]
  answer: str
  tokens: tuple[int, ...]  # all that the model wrote
  queries: int  # query positions that this took, and those computed for it: see `Completion`
  computed: float


@dataclasses.dataclass
class _Row:
  request: Request
  ids: np.ndarray  # the question, and all that was written and responded since
  turns: list[Turn] = dataclasses.field(default_factory=list)
  tokens: list[int] = dataclasses.field(default_factory=list)
  searches: bool = True
  queries: int = 0
  computed: float = 0.0

  def add(self, ids: np.ndarray, canvas: Canvas, i: int) -> None:
    """What was written to it as row `i` of a canvas, and what that took."""
    self.ids = np.concatenate([self.ids, ids])
    self.tokens += ids.tolist()
    self.queries += int(canvas.queries_B[i])
    self.computed += float(canvas.computed_B[i])


class Agent:
  """Asks tools, then answers. Called as a `Generator` is, it gives episodes.

  Args:
    writer: writes a turn; a region in its policy forces the tokens that frame a call.
    answerer: writes the answer. What its policy forces frames the answer; if nothing, it is all
      that is written.
    turns: with a call, at most. A call without a text ends them.
    frame: text before and after a response; special tokens may be spelled.
    longest: tokens of a response; the rest is cut off.
    ahead: a tool starts as soon as its call is written. False: when the turn is, as in plain ReAct.

  Raises:
    ValueError: the policy frames no call, or a turn does not hold it.
  """

  def __init__(
    self,
    writer: Generator,
    answerer: Generator,
    tools: Tools,
    *,
    slots: int,
    turn_tokens: int,
    answer_tokens: int,
    turns: int = 1,
    frame: tuple[str, str] = ("\n", "\n"),
    longest: int = 512,
    ahead: bool = True,
  ):
    for name, value in (("turns", turns), ("longest", longest)):
      if value < 1:
        raise ValueError(f"Agent: {name}={value} must be at least 1")
    framed = between(writer.sampler.policy)
    if framed is None:
      raise ValueError(
        "Agent: the policy must force the tokens around a call: policy.name='region' with `forced` "
        "of two places or more (configs/sample/p_react.py)"
      )
    if framed[1] >= turn_tokens:
      raise ValueError(f"Agent: {turn_tokens=} must hold the call, which ends at {framed[1]}")
    self._call, self._answer = framed, between(answerer.sampler.policy)
    self._writer, self._answerer, self._tools, self._turns = writer, answerer, tools, turns
    self._slots, self._new = slots, {True: turn_tokens, False: answer_tokens}
    self._longest, self._ahead = longest, ahead
    spelled = Spelled(writer.tokenizer)
    self._frame = [spelled.encode(text) for text in frame]

  def __call__(
    self,
    params: Params,
    requests: Sequence[Request],
    *,
    seed: int = 0,
    on_batch: Callable[[list[Episode]], None] | None = None,
  ) -> list[Episode]:
    """Episodes in the order of the requests, whose open slots are left out of account.

    Raises:
      ValueError: a question and what is written and found do not fit into the canvas.
    """
    for request in requests:
      self._check(request)
    episodes = []
    for first in range(0, len(requests), self._writer.batch):
      done = self._batch(params, requests[first : first + self._writer.batch], seed)
      episodes += done
      if on_batch:
        on_batch(done)
    return episodes

  def _check(self, request: Request) -> None:
    """That the longest episode fits is known before it begins."""
    asked = int(np.argmax(request.open))
    turn = self._new[True] + sum(map(len, self._frame)) + self._longest
    fill = self._writer.sampler.block - 1 if self._writer.align == "canvas" else 0
    if asked + self._turns * turn + fill + self._new[False] > self._slots:
      raise ValueError(
        f"prompt {request.id}: {asked} tokens, {self._turns} turns of at most {turn}, an answer of "
        f"{self._new[False]} and {fill} up to a block exceed config.slots={self._slots}"
      )

  def _batch(self, params: Params, requests: Sequence[Request], seed: int) -> list[Episode]:
    rows = [_Row(each, each.tokens[: int(np.argmax(each.open))]) for each in requests]
    for turn in range(self._turns):
      if searching := [row for row in rows if row.searches]:
        self._turn(params, searching, turn, seed)
    asked = [self._request(row, self._turns, calls=False) for row in rows]
    *_, canvas = self._answerer.stream(params, asked, seed=seed)
    episodes = []
    for i, row in enumerate(rows):
      ids = self._written(canvas, i, self._answer[1] if self._answer else 0)
      answer = self._answerer.tokenizer.decode(ids)
      if self._answer:
        answer, _ = self._within(canvas, i, self._answer)
      row.add(ids, canvas, i)
      spent = row.queries, row.computed
      episodes.append(Episode(row.request, tuple(row.turns), answer, tuple(row.tokens), *spent))
    return episodes

  def _turn(self, params: Params, rows: Sequence[_Row], turn: int, seed: int) -> None:
    """One turn of the rows that still search: what they write, and the responses."""
    asked = [self._request(row, turn, calls=True) for row in rows]
    calls: list[tuple[Call, int] | None] = [None] * len(rows)
    began = time.monotonic()
    for canvas in self._writer.stream(params, asked, seed=seed):
      forwards_B = np.asarray(canvas.forwards_Bx3).sum(-1)
      for i in range(len(rows)):
        if self._ahead and calls[i] is None:
          text, whole = self._within(canvas, i, self._call)
          calls[i] = (self._tools.call(text), int(forwards_B[i])) if whole and text else None
    wrote = time.monotonic() - began
    for i in range(len(rows)):
      text, _ = self._within(canvas, i, self._call)
      if text and (calls[i] is None or calls[i][0].text != text):  # a policy may write it anew
        calls[i] = self._tools.call(text), int(forwards_B[i])
    for i, row in enumerate(rows):
      ids = self._written(canvas, i, self._call[1])
      row.add(ids, canvas, i)
      row.searches = calls[i] is not None
      if not row.searches:
        continue
      call, called = calls[i]
      waits = time.monotonic()
      response = call.response()
      waited = time.monotonic() - waits
      before, after = self._frame
      found = self._writer.tokenizer.encode(response)[: self._longest]
      row.ids = np.concatenate([row.ids, before, found, after])
      text = self._writer.tokenizer.decode(ids)
      row.turns.append(
        Turn(text, call.text, response, int(forwards_B[i]), called, wrote, call.seconds, waited)
      )

  def _request(self, row: _Row, turn: int, *, calls: bool) -> Request:
    """What a row writes next, begun where blocks of the canvas begin, as the call has its place."""
    generator, ids = (self._writer if calls else self._answerer), row.ids
    if generator.align == "canvas":  # the authors fill up with a text; what they fill in is unknown
      fill = np.repeat(generator.tokenizer.encode("\n")[:1], -len(ids) % generator.sampler.block)
      ids = np.concatenate([fill, ids])
    request = Request.from_ids(
      row.request.id, row.request.prompt, ids, generator.sampler.mask_id,
      slots=self._slots, max_new_tokens=self._new[calls],
    )  # fmt: skip
    return dataclasses.replace(request, sample=turn)

  def _open(self, canvas: Canvas, i: int) -> np.ndarray:
    """Ids of the slots that row `i` was to write, masks where it did not yet."""
    return np.asarray(canvas.tokens_BxL[i])[np.asarray(canvas.open_BxL[i])]

  def _within(self, canvas: Canvas, i: int, span: tuple[int, int]) -> tuple[str, bool]:
    """The text between two forced places, and whether it is whole."""
    ids, mask_id = self._open(canvas, i)[slice(*span)], self._writer.sampler.mask_id
    return self._writer.tokenizer.decode(ids[ids != mask_id]).strip(), bool((ids != mask_id).all())

  def _written(self, canvas: Canvas, i: int, end: int) -> np.ndarray:
    """Ids of row `i` up to the first stop id that follows offset `end`."""
    sampler, ids = self._writer.sampler, self._open(canvas, i)
    stops = np.flatnonzero(np.isin(ids, sampler.eos_ids) & (np.arange(len(ids)) >= end))
    ids = ids[: stops[0]] if len(stops) else ids
    return ids[ids != sampler.mask_id]


def between(policy: Policy) -> tuple[int, int] | None:
  """Offsets [begin, end) that a policy's forced tokens enclose; None: they enclose none."""
  while isinstance(policy, Wrapper) and not isinstance(policy, Region):
    policy = policy.inner
  forced = sorted(offset for offset, _ in policy.forced) if isinstance(policy, Region) else []
  for left, right in itertools.pairwise(forced):
    if right > left + 1:
      return left + 1, right
  return None
