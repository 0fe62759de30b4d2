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
from typing import Any

import numpy as np

from dlm.data import lines
from dlm.data.install import require
from dlm.data.tokenizer_files import CONFIG, OLD_TEMPLATE, TEMPLATE, read_json, spelling
from dlm.data.tokenizers import Tokenizer

LONGEST_TEMPLATE = 2**18  # characters; Qwen3's has 4 thousand
LONGEST_WAIT = 60  # seconds, on a busy machine; sandbox.py bounds the processor's time

Message = Mapping[str, Any]  # "role" and "content", and whatever else the template reads


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
  """Made by `open_template`. `names`: special tokens that the template may ask for."""

  text: str
  names: Mapping[str, str]

  def encode(
    self, conversations: Sequence[Sequence[Message]], tokenizer: Tokenizer
  ) -> list[np.ndarray]:
    """Ids of each conversation, int32, ready for the assistant's answer.

    Raises:
      ValueError: the template fails, or asks for more time, memory or text than it may.
    """
    specials = tokenizer.specials()
    spelled = sorted(specials, key=len, reverse=True)
    # Stands in a message for each special it spells; nobody can guess it beforehand.
    nonce = f"\ue000{secrets.token_hex(8)}"
    quoted = {spelling: f"{nonce}{i}\ue001" for i, spelling in enumerate(spelled)}
    safe = [[_each_text(m, lambda text: _replace(text, quoted)) for m in c] for c in conversations]
    back = {sign: spelling for spelling, sign in quoted.items()}
    ids = []
    for text in self._render(safe):
      parts = re.split(f"({'|'.join(map(re.escape, spelled))})", text) if spelled else [text]
      pieces = [np.zeros(0, np.int32)]
      for i, part in enumerate(parts):
        if i % 2:
          pieces.append(np.asarray([specials[part]], np.int32))
        else:
          pieces.append(tokenizer.encode(_replace(part, back)))
      ids.append(np.concatenate(pieces))
    return ids

  def _render(self, conversations: list) -> list[str]:
    require("jinja2")
    job = {"template": self.text, "names": dict(self.names), "conversations": conversations}
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


def open_template(directory: str | pathlib.Path) -> ChatTemplate:
  """Reads `chat_template.jinja`, else `chat_template.json`, else `tokenizer_config.json`.

  Raises:
    ValueError: none is there, or not what it should be.
  """
  directory = pathlib.Path(directory)
  config = read_json(directory / CONFIG)
  text = read_json(directory / OLD_TEMPLATE).get("chat_template") or config.get("chat_template")
  if isinstance(text, list):  # several by name
    named = {each.get("name"): each.get("template") for each in text if isinstance(each, dict)}
    text = named.get("default")
  if (directory / TEMPLATE).is_file():
    text = (directory / TEMPLATE).read_text(encoding="utf-8")
  if not isinstance(text, str):
    places = f"{TEMPLATE}, {OLD_TEMPLATE} or {CONFIG}"
    raise ValueError(f"{directory} has no chat template: none in {places}")
  if len(text) > LONGEST_TEMPLATE:
    raise ValueError(f"{directory}: a chat template of {len(text)} > {LONGEST_TEMPLATE} characters")
  tokens = {key: spelling(x) for key, x in config.items() if key.endswith("_token")}
  tokens = {key: x for key, x in tokens.items() if x is not None}
  return ChatTemplate(text, tokens)


def read_conversations(paths: str | pathlib.Path) -> list[list[Message]]:
  """One conversation a line: {"messages": [{"role", "content"}, ...]}, {"prompt"} or a string.

  Raises:
    ValueError: names the line that is none of them, or the file that holds none.
  """
  found = []
  for line in lines.read(paths):
    value = line.value
    if isinstance(value, dict) and value.get("infill"):
      raise ValueError(f"{line.where}: a conversation has no text to infill")
    said = value.get("messages", value.get("prompt")) if isinstance(value, dict) else value
    messages = from_user(said) if isinstance(said, str) else said
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
      raise ValueError(
        f'{line.where}: needs {{"messages": [{{"role": "...", "content": "..."}}]}}, '
        '{"prompt": "..."} or a string'
      )
    found.append(messages)
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
