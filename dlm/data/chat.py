"""Conversations to ids by a checkpoint's chat template (Jinja), rendered in a sandboxed process.

A template may write special tokens, a message may not: what a user types is text, even where it
spells the end of a turn.
"""

import dataclasses
import json
import os
import pathlib
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from dlm.data import lines
from dlm.data.infill import parse_infill
from dlm.data.install import require
from dlm.data.specials import Spelled
from dlm.data.tokenizer_files import (
  CONFIG,
  OLD_TEMPLATE,
  TEMPLATE,
  beside,
  parse_json,
  spelling,
)
from dlm.data.tokenizers import Tokenizer

LONGEST_TEMPLATE = 2**18  # characters; Qwen3's has 4 thousand
AT_ONCE = 256  # texts of one process
LONGEST_WAIT = 60  # seconds, on a busy machine; sandbox.py bounds the processor's time

Message = Mapping[str, Any]  # "role" and "content", and whatever else the template reads
OURS = ("messages", "tools", "add_generation_prompt")  # variables of a template


@dataclasses.dataclass(frozen=True)
class Conversation:
  """What is said, and what the template is told besides.

  Args:
    tools: descriptions of functions, as JSON schemas; None: there are none.
    arguments: other variables of the template, such as enable_thinking.
    where: the file and line it is of.
  """

  messages: Sequence[Message]
  tools: Sequence[Any] | None = None
  arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  where: str = ""

  @classmethod
  def of(cls, record: Mapping[str, Any], where: str) -> Self:
    """A line that holds "messages", and may hold "tools" and "chat_template_kwargs".

    Raises:
      ValueError: names the line and what is wrong with it.
    """
    messages, tools = record["messages"], record.get("tools")
    arguments = record.get("chat_template_kwargs") or {}
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
      raise ValueError(f'{where}: needs {{"messages": [{{"role": "...", "content": "..."}}]}}')
    if tools is not None and not isinstance(tools, list):
      raise ValueError(f"{where}: tools={tools!r:.80} must be a list")
    check_arguments(arguments, f"{where}: chat_template_kwargs")
    said = [
      {key: x for key, x in message.items() if key == "content" or x is not None}
      for message in messages
    ]
    return cls(said, tools or None, arguments, where)

  def record(self) -> dict[str, Any]:
    """A line that `of` reads."""
    told = {"tools": self.tools, "chat_template_kwargs": dict(self.arguments)}
    return {"messages": list(self.messages)} | {name: x for name, x in told.items() if x}


def check_arguments(arguments: Any, name: str) -> None:
  """ValueError where they cannot be variables that the caller of a template chooses."""
  if not isinstance(arguments, Mapping) or {*OURS} & {*arguments}:
    raise ValueError(f"{name}={arguments!r:.80} must be an object, without {', '.join(OURS)} in it")


@dataclasses.dataclass(frozen=True)
class Lesson:
  """A conversation to learn from, see `ChatTemplate.lessons`."""

  ids_T: np.ndarray  # int32
  learned_T: np.ndarray  # bool: the assistant's, end of turn included
  turns: int  # of the assistant
  unlearned: int  # turns that the template writes otherwise once more is said


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
  """Made by `open_template`. `names`: special tokens that the template may ask for."""

  text: str
  names: Mapping[str, str]

  def encode(self, conversations: Sequence[Conversation], tokenizer: Tokenizer) -> list[np.ndarray]:
    """Ids of each conversation, int32, ready for the assistant's answer.

    Raises:
      ValueError: the template fails, or asks for more time, memory or text than it may.
    """
    quoted = Quoted(tokenizer)
    return [quoted.encode(text) for text in self.write(conversations, quoted)]

  def write(
    self, conversations: Sequence[Conversation], quoted: "Quoted", *, asks: bool = True
  ) -> list[str]:
    """Each conversation as the template writes it, for `quoted.encode`; ValueError as `encode`."""
    return self._render([quoted.variables(talk, asks=asks) for talk in conversations])

  def encode_infill(
    self, talk: Conversation, tokenizer: Tokenizer, most: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a conversation whose last message is the assistant's, and which of them are open.

    `[[8]]` in that message stands for eight open positions, at most `most` in all, see
    `dlm.data.infill`; in all others, and in what the template writes, it is text.

    Raises:
      ValueError: as `encode`; or the template does not write the message as it is.
    """
    last = talk.messages[-1]
    if last["role"] != "assistant" or not isinstance(last["content"], str):
      raise ValueError("what is filled in is the last message, a text of the assistant's")
    quoted = Quoted(tokenizer)
    parts = parse_infill(last["content"], most)
    sizes = [part for part in parts if isinstance(part, int)]
    content = "".join(quoted.hole if isinstance(part, int) else part for part in parts)
    asked = dataclasses.replace(talk, messages=[*talk.messages[:-1], {**last, "content": content}])
    (text,) = self.write([asked], quoted, asks=False)
    pieces = [quoted.encode(piece) for piece in text.split(quoted.hole)]
    if len(pieces) != len(sizes) + 1:
      raise ValueError("the chat template does not write the last message as it is")
    masks = [np.full(size, tokenizer.mask_id, np.int32) for size in (*sizes, 0)]
    each = [ids for pair in zip(pieces, masks, strict=True) for ids in pair]
    is_open = [np.full(ids.size, i % 2 == 1) for i, ids in enumerate(each)]
    return np.concatenate(each), np.concatenate(is_open)

  def lessons(self, conversations: Sequence[Conversation], tokenizer: Tokenizer) -> list[Lesson]:
    """Each conversation as the template writes it, with the assistant's turns to be learned.

    A turn is learned if what stands before it is the text that `encode` would read for it, so that
    what is trained is what is sampled. Its tokens begin anew, as those that are sampled do. White
    space behind the last turn's end is left out.

    Raises:
      ValueError: as `encode`; or names the conversation in which no turn can be learned.
    """
    found = self._lessons(conversations, tokenizer)
    for talk, lesson in zip(conversations, found, strict=True):
      if lesson is None:
        raise ValueError(
          f"{talk.where}: the chat template writes no assistant's turn where sampling looks for it"
        )
    return found

  def reads_back(
    self, conversations: Sequence[Conversation], rows: Sequence[np.ndarray], tokenizer: Tokenizer
  ) -> list[bool]:
    """Does training on each conversation read these ids, up to the end of its last turn?

    `rows` are what was sampled: the ids of `encode` and those of the answer, without its end. A
    text may have other ids than those it was written with, and a template may change what is said.
    """
    found = self._lessons(conversations, tokenizer)
    ends = {*tokenizer.specials().values()}
    return [
      lesson is not None
      and bool(lesson.learned_T[-1])
      and np.array_equal(lesson.ids_T[: row_T.size], row_T)
      and lesson.ids_T.size <= row_T.size + 1
      and ends.issuperset(lesson.ids_T[row_T.size :].tolist())
      for lesson, row_T in zip(found, rows, strict=True)
    ]

  def _lessons(
    self, conversations: Sequence[Conversation], tokenizer: Tokenizer
  ) -> list[Lesson | None]:
    """As `lessons`; None where no turn can be learned."""
    quoted = Quoted(tokenizer)
    jobs: list[dict[str, Any]] = []
    wanted = []  # of each conversation: where its whole text is; its turns, where before and after
    for talk in conversations:
      said = talk.messages
      turns = [k for k, message in enumerate(said) if message["role"] == "assistant"]
      if not turns or turns[0] == 0:
        raise ValueError(f"{talk.where}: needs an assistant's message after another's")
      places = []
      for k in turns:
        places.append((len(jobs), len(jobs) + 1))
        jobs.append(quoted.variables(talk, asks=True, most=k))
        jobs.append(quoted.variables(talk, asks=False, most=k + 1))
      wanted.append((len(jobs), places))
      jobs.append(quoted.variables(talk, asks=False))
    texts = self._render(jobs)
    lessons: list[Lesson | None] = []
    for whole, places in wanted:
      text = texts[whole]
      spans = [(texts[before], texts[after]) for before, after in places]
      spans = [
        (len(before), len(before) + quoted.end(after[len(before) :]))
        for before, after in spans
        if text.startswith(after) and after.startswith(before)
      ]
      lessons.append(quoted.lesson(text, spans, len(places)) if spans else None)
    return lessons

  def _render(self, jobs: list[dict[str, Any]]) -> list[str]:
    parts = [jobs[i : i + AT_ONCE] for i in range(0, len(jobs), AT_ONCE)]
    return [text for part in parts for text in self._render_part(part)]

  def _render_part(self, jobs: list[dict[str, Any]]) -> list[str]:
    require("jinja2")
    job = {"template": self.text, "names": dict(self.names), "variables": jobs}
    here = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # and nothing that is secret
    worker = [sys.executable, "-P", str(pathlib.Path(__file__).with_name("sandbox.py"))]
    try:
      done = subprocess.run(
        worker, input=json.dumps(job), capture_output=True, text=True, env=here,
        timeout=LONGEST_WAIT,
      )  # fmt: skip
    except subprocess.TimeoutExpired as error:
      raise ValueError("chat template: it takes too long") from error
    if done.returncode:  # the system ended it
      raise ValueError("chat template: it takes more time or memory than it may")
    result = json.loads(done.stdout)
    if "error" in result:
      raise ValueError(f"chat template: {result['error']}")
    return result["texts"]


class Quoted:
  """Keeps what is said apart from what the template writes: only that may be a special token."""

  def __init__(self, tokenizer: Tokenizer):
    self._spelled = Spelled(tokenizer)
    # Stands in a message for each special it spells; nobody can guess it beforehand.
    nonce = f"\ue000{secrets.token_hex(8)}"
    self.hole = f"{nonce}\ue001"  # stands in a message for open positions
    self._signs = {s: f"{nonce}{i}\ue001" for i, s in enumerate(self._spelled.spellings)}
    self._back = {sign: s for s, sign in self._signs.items()}
    self._tokenizer = tokenizer

  def variables(self, talk: Conversation, *, asks: bool, most: int | None = None) -> dict[str, Any]:
    """Of a template, for the first `most` messages; `asks` for the assistant's answer."""
    said = {**talk.arguments, "messages": list(talk.messages[:most])}
    if talk.tools is not None:
      said["tools"] = list(talk.tools)
    return {"add_generation_prompt": asks, **_each_text(said, self.quote)}

  def encode(self, text: str) -> np.ndarray:
    pieces, at = [np.zeros(0, np.int32)], 0
    for found in self._spelled.pattern.finditer(text):
      pieces += [self._plain(text[at : found.start()]), [self._spelled.ids[found[0]]]]
      at = found.end()
    return np.concatenate([*pieces, self._plain(text[at:])]).astype(np.int32)

  def end(self, turn: str) -> int:
    """Where a turn ends: at its last special token, if only white space follows."""
    ends = [found.end() for found in self._spelled.pattern.finditer(turn)]
    return ends[-1] if ends and not turn[ends[-1] :].strip() else len(turn)

  def lesson(self, text: str, spans: list[tuple[int, int]], turns: int) -> Lesson:
    ids, learned, at = [], [], 0
    last = spans[-1][1]
    if text[last:].strip():  # more is said after the last turn that is learned
      last = len(text)
    for start, stop in [*spans, (last, last)]:
      for piece, is_learned in ((text[at:start], False), (text[start:stop], True)):
        ids.append(self.encode(piece))
        learned.append(np.full(ids[-1].size, is_learned))
      at = stop
    ids_T, learned_T = np.concatenate(ids), np.concatenate(learned)
    return Lesson(ids_T, learned_T, turns, turns - len(spans))

  def _plain(self, text: str) -> np.ndarray:
    return self._tokenizer.encode(_replace(text, self._back))

  def quote(self, text: str) -> str:
    """Text in which no special token is spelled."""
    return _replace(text, self._signs)


def open_template(directory: str | pathlib.Path) -> ChatTemplate:
  """Reads `chat_template.jinja`, else `chat_template.json`, else `tokenizer_config.json`.

  Raises:
    ValueError: none is there, or not what it should be.
  """
  return _template(beside(pathlib.Path(directory)), directory)


def template_of(tokenizer: Tokenizer) -> ChatTemplate:
  """As `open_template`, of the files that lay beside a tokenizer."""
  return _template(tokenizer.beside, "the tokenizer")


def _template(files: Mapping[str, bytes], where: Any) -> ChatTemplate:
  config, old = (
    parse_json(files.get(name, b"{}"), f"{where}/{name}") for name in (CONFIG, OLD_TEMPLATE)
  )
  text = old.get("chat_template") or config.get("chat_template")
  if isinstance(text, list):  # several by name
    named = {each.get("name"): each.get("template") for each in text if isinstance(each, dict)}
    text = named.get("default")
  if TEMPLATE in files:
    try:
      text = files[TEMPLATE].decode()
    except ValueError as error:
      raise ValueError(f"{where}/{TEMPLATE} cannot be read: {error}") from error
  if not isinstance(text, str):
    places = f"{TEMPLATE}, {OLD_TEMPLATE} or {CONFIG}"
    raise ValueError(f"{where} has no chat template: none in {places}")
  if len(text) > LONGEST_TEMPLATE:
    raise ValueError(f"{where}: a chat template of {len(text)} > {LONGEST_TEMPLATE} characters")
  tokens = {key: spelling(x) for key, x in config.items() if key.endswith("_token")}
  tokens = {key: x for key, x in tokens.items() if x is not None}
  return ChatTemplate(text, tokens)


def read_conversations(paths: str | pathlib.Path, kind: str | None = None) -> list[Conversation]:
  """One conversation a line: {"messages": [{"role", "content"}, ...]}, {"prompt"} or a string.

  `kind`: of the files, one of `dlm.data.lines.READERS`; None: as each begins.

  Raises:
    ValueError: names the line that is none of them, or the file that holds none.
  """
  found = []
  for line in lines.read(paths, kind):
    value = line.value if isinstance(line.value, dict) else {"prompt": line.value}
    if value.get("infill"):
      raise ValueError(f"{line.where}: a conversation has no text to infill")
    if "messages" not in value:
      if not isinstance(value.get("prompt"), str):
        raise ValueError(
          f'{line.where}: needs {{"messages": [{{"role": "...", "content": "..."}}]}}, '
          '{"prompt": "..."} or a string'
        )
      value = value | {"messages": from_user(value["prompt"])}
    found.append(Conversation.of(value, line.where))
  if not found:
    raise ValueError(f"{paths} holds no conversation")
  return found


def from_user(text: str) -> list[Message]:
  """A conversation that a user opens."""
  return [{"role": "user", "content": text}]


def _is_message(value: Any) -> bool:
  return isinstance(value, dict) and isinstance(value.get("role"), str) and "content" in value


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
  """A JSON value with every string in it changed."""
  if isinstance(value, Mapping):
    return {change(key): _each_text(part, change) for key, part in value.items()}
  if isinstance(value, list | tuple):
    return [_each_text(part, change) for part in value]
  return change(value) if isinstance(value, str) else value


def _replace(text: str, by: Mapping[str, str]) -> str:
  if not by:
    return text
  return re.sub("|".join(map(re.escape, by)), lambda match: by[match[0]], text)
