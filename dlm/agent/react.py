"""P-ReAct (DLLM-Searcher, arXiv 2602.07035): the call is written first, and runs from then on.

In plain ReAct a model thinks, calls a tool, and waits. A diffusion model may write the call before
the thoughts that stand in front of it (`dlm.sampling.policies.Region`): the tool starts as soon as
the last mask of the call is gone, and the model writes its thoughts meanwhile.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np

from dlm import parallel
from dlm.data.specials import Spelled
from dlm.generate import Generator, Request
from dlm.sampling.policies.region import call_of, region_of
from dlm.tools import Call, Tools
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
  failed: bool  # the response is an error


@dataclasses.dataclass(frozen=True)
class Episode:
  """What became of a question. `answer` was written after the last response."""

  request: Request
  turns: tuple[Turn, ...]
  answer: str
  tokens: tuple[int, ...]  # all that the model wrote
  queries: int  # query positions that this took, and those computed for it: see `Completion`
  computed: float
  forwards: int  # that decided
  row: "Row"
  answered: tuple[int, int]  # where the answer stands in it, [begin, end)
  stop: int | None  # where the stop id that ended the answer does; None: none did


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
  """A whole trajectory as ids: what was given, as responses were, and what the model wrote.

  A token that the policy forced was given. So was what stands behind a slot that was never written:
  it has moved up.
  """

  ids: np.ndarray
  when: np.ndarray  # the forward that wrote each, counted over all turns; -1: it was given
  logp: np.ndarray  # its log-probability then; NaN: it was given, or nobody knows
  response: np.ndarray  # bool: given behind a turn, which was written before

  @classmethod
  def given(cls, ids: np.ndarray, response: bool = False) -> Self:
    size = len(ids)
    when, logp = np.full(size, -1, np.int32), np.full(size, np.nan, np.float32)
    return cls(ids, when, logp, np.full(size, response))

  def __len__(self) -> int:
    return len(self.ids)

  def __getitem__(self, where: slice | np.ndarray) -> "Row":
    return Row(*(x[where] for x in self._arrays))

  def __add__(self, other: "Row") -> "Row":
    return Row(*map(np.concatenate, zip(self._arrays, other._arrays, strict=True)))

  @property
  def _arrays(self) -> tuple[np.ndarray, ...]:
    return self.ids, self.when, self.logp, self.response


@dataclasses.dataclass
class _Asked:
  """A question on its way."""

  request: Request
  row: Row
  turns: list[Turn] = dataclasses.field(default_factory=list)
  tokens: list[int] = dataclasses.field(default_factory=list)
  searches: bool = True
  queries: int = 0
  computed: float = 0.0
  forwards: int = 0

  def add(self, written: Row, canvas: Canvas, i: int) -> None:
    """What was written to it as row `i` of a canvas, and what that took."""
    self.row += written
    self.tokens += written.ids.tolist()
    self.queries += int(canvas.queries_B[i])
    self.computed += float(canvas.computed_B[i])
    self.forwards += int(canvas.turn_B[i])


class Agent:
  """Asks tools, then answers. Called as a `Generator` is, it gives episodes.

  In blocks of the canvas every turn, and the answer, begins where a block does: the question is
  filled up by line breaks before it, and responses within their frame.

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
    self._call = call_of(writer.sampler.policy, turn_tokens)
    answers = region_of(answerer.sampler.policy)
    self._answer = None if answers is None else answers.framed
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

  def fits(self, asked: int) -> bool:
    """Whether the longest episode of a question of so many tokens fits into the canvas."""
    return self._most(asked) <= self._slots

  def _most(self, asked: int) -> int:
    most = asked + self._gap(asked, 0)
    for turn in range(self._turns):
      most += self._new[True] + sum(map(len, self._frame)) + self._longest
      most += self._gap(most, turn + 1)
    return most + self._new[False]

  def _check(self, request: Request) -> None:
    """That the longest episode fits is known before it begins."""
    asked = int(np.argmax(request.open))
    if not self.fits(asked):
      turn = self._new[True] + sum(map(len, self._frame)) + self._longest
      filled = self._most(asked) - asked - self._turns * turn - self._new[False]
      raise ValueError(
        f"prompt {request.id}: {asked} tokens, {self._turns} turns of at most {turn}, an answer of "
        f"{self._new[False]} and {filled} up to blocks exceed config.slots={self._slots}"
      )

  def _batch(self, params: Params, requests: Sequence[Request], seed: int) -> list[Episode]:
    rows = [self._begun(each) for each in requests]
    for turn in range(self._turns):
      if searching := [row for row in rows if row.searches]:
        self._turn(params, searching, turn, seed)
    for row in rows:
      if not row.searches:  # no response has filled its last turn up
        row.row += self._fill(len(row.row), self._turns, response=True)
    asked = [self._request(row, self._turns) for row in rows]
    *_, canvas = self._answerer.stream(params, asked, seed=seed)
    canvas = _on_host(canvas)
    return [self._answered(row, canvas, i) for i, row in enumerate(rows)]

  def _begun(self, request: Request) -> _Asked:
    ids = request.tokens[: int(np.argmax(request.open))]
    return _Asked(request, self._fill(len(ids), 0) + Row.given(ids))

  def _answered(self, asked: _Asked, canvas: Canvas, i: int) -> Episode:
    begin, end = self._answer or (0, None)
    written, behind = self._written(asked, self._answerer, canvas, i, end or 0)
    at = len(asked.row)
    asked.add(written, canvas, i)
    answer = self._answerer.tokenizer.decode(written.ids)
    if self._answer:
      answer, _ = self._within(canvas, i, self._answer)
    row, stop = asked.row, None
    behind = behind[: int((behind.when >= 0).cumprod().sum())]
    if len(behind):  # the model saw the rest of the block as it was written
      stop, block = len(row), self._answerer.sampler.block
      row += behind[: block - stop % block]
    return Episode(
      request=asked.request,
      turns=tuple(asked.turns),
      answer=answer,
      tokens=tuple(asked.tokens),
      queries=asked.queries,
      computed=asked.computed,
      forwards=asked.forwards,
      row=row,
      answered=(at + begin, at + len(written[:end])),
      stop=stop,
    )

  def _turn(self, params: Params, rows: Sequence[_Asked], turn: int, seed: int) -> None:
    """One turn of the rows that still search: what they write, and the responses."""
    asked = [self._request(row, turn) for row in rows]
    calls: list[tuple[Call, int] | None] = [None] * len(rows)
    began = time.monotonic()
    for canvas in self._writer.stream(params, asked, seed=seed):
      canvas = _on_host(canvas)
      forwards_B = canvas.forwards_Bx3.sum(-1)
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
      written, behind = self._written(row, self._writer, canvas, i, self._call[1])
      row.add(written, canvas, i)
      row.searches = calls[i] is not None
      if not row.searches:
        continue
      call, called = calls[i]
      waits = time.monotonic()
      response = call.response()
      waited = time.monotonic() - waits
      self._respond(row, response, turn, behind)
      text = self._writer.tokenizer.decode(written.ids)
      row.turns.append(
        Turn(
          text=text,
          call=call.text,
          response=response,
          forwards=int(forwards_B[i]),
          called=called,
          seconds=wrote,
          tool=call.seconds,
          waited=waited,
          failed=call.failed,
        )
      )

  def _respond(self, asked: _Asked, response: str, turn: int, behind: Row) -> None:
    """A response in its frame. Where that begins with the stop id which stands `behind` the turn,
    the model wrote it."""
    before, after = (Row.given(ids, response=True) for ids in self._frame)
    if len(behind) and len(before) and before.ids[0] == behind.ids[0]:
      before = behind[:1] + before[1:]
    ids = self._writer.tokenizer.encode(response)[: self._longest]
    row = asked.row + before + Row.given(ids, response=True)
    asked.row = row + self._fill(len(row) + len(after), turn + 1, response=True) + after

  def _next(self, turn: int) -> Generator:
    return self._writer if turn < self._turns else self._answerer

  def _gap(self, ids: int, turn: int) -> int:
    """How many ids are missing to where a block begins, before a turn; the last: the answer."""
    generator = self._next(turn)
    return -ids % generator.sampler.block if generator.align == "canvas" else 0

  def _fill(self, ids: int, turn: int, response: bool = False) -> Row:
    """The authors fill up with a text; what they fill in is unknown."""
    filled = np.repeat(self._writer.tokenizer.encode("\n")[:1], self._gap(ids, turn))
    return Row.given(filled, response)

  def _request(self, asked: _Asked, turn: int) -> Request:
    """What is written next."""
    generator, new = self._next(turn), self._new[turn < self._turns]
    request = Request.from_ids(
      asked.request.id, asked.request.prompt, asked.row.ids, generator.sampler.mask_id,
      slots=self._slots, max_new_tokens=new,
    )  # fmt: skip
    return dataclasses.replace(request, sample=turn)

  def _within(self, canvas: Canvas, i: int, span: tuple[int, int]) -> tuple[str, bool]:
    """The text between two forced places, and whether it is whole."""
    mask_id = self._writer.sampler.mask_id
    ids = canvas.tokens_BxL[i][canvas.open_BxL[i]][slice(*span)]
    return self._writer.tokenizer.decode(ids[ids != mask_id]).strip(), bool((ids != mask_id).all())

  def _written(
    self, asked: _Asked, generator: Generator, canvas: Canvas, i: int, end: int
  ) -> tuple[Row, Row]:
    """Row `i` up to the first stop id that follows offset `end`; and what is there from that on."""
    sampler, open_L = generator.sampler, canvas.open_BxL[i]
    ids, when, logp = (x[i][open_L] for x in (canvas.tokens_BxL, canvas.when_BxL, canvas.logp_BxL))
    offset, kept = np.arange(len(ids)), ids != sampler.mask_id
    own = kept.cumprod().astype(bool) & (when >= 0)
    if (region := region_of(sampler.policy)) is not None:
      own &= ~np.isin(offset, [place for place, _ in region.forced])
    when, logp = np.where(own, when + asked.forwards, -1), np.where(own, logp, np.nan)
    row = Row(ids, when, logp, np.zeros(len(ids), bool))
    stops = np.flatnonzero(np.isin(ids, sampler.eos_ids) & (offset >= end))
    stop = int(stops[0]) if len(stops) else len(ids)
    return row[:stop][kept[:stop]], row[stop:]


def _on_host(canvas: Canvas) -> Canvas:
  return parallel.to_host(canvas.replace(key_B=None))
