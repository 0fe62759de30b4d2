"""A tokenizer from the files of a published checkpoint: tokenizer.json, or what it is made of.

    tokenizer.json              all of it, in most folders
    vocab.json, merges.txt      in its place where the authors' tokenizer is a Python class (Dream)
    tokenizer_config.json, added_tokens.json, special_tokens_map.json
                                more added tokens, and which of them ends a text, pads, masks

An added token keeps the id that its file gives it, or the folder is refused.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from dlm.data.install import require

FILE, VOCABULARY, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
TEMPLATE, OLD_TEMPLATE = "chat_template.jinja", "chat_template.json"
CONFIG, ADDED, SPECIALS = "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"
# How a model's tokens and chats are meant, by whoever published it; with folders of such files.
BESIDE = (CONFIG, ADDED, SPECIALS, TEMPLATE, OLD_TEMPLATE, "generation_config.json")
BESIDE_IN = ("additional_chat_templates",)
ROLES = ("pad", "bos", "eos", "mask")
FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")

# How Qwen2, and with it Dream, cuts text before bytes are merged: contractions, words with the sign
# before them, single digits, signs with the line ends after them, white space.
QWEN2_SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2, GPT2 = "Qwen2Tokenizer", "GPT2Tokenizer"
CLASSES = {QWEN2: QWEN2, "DreamTokenizer": QWEN2, GPT2: GPT2}  # also with "Fast" behind them


def read(path: pathlib.Path) -> tuple[Any, dict[str, str]]:
  """The `tokenizers.Tokenizer` of a folder, or of a tokenizer.json with the files beside it, and
  the spellings of the roles that they name.

  Raises:
    ValueError: files are missing or damaged, or do not agree on the id of an added token.
  """
  folder = path if path.is_dir() else path.parent
  file = folder / FILE if path.is_dir() else path
  config = {name: read_json(folder / name) for name in (CONFIG, ADDED, SPECIALS)}
  if file.is_file():
    tokenizer = read_file(file)
  elif (folder / VOCABULARY).is_file() and (folder / MERGES).is_file():
    tokenizer = _byte_level(folder, config[CONFIG].get("tokenizer_class"))
  else:
    raise ValueError(f"no tokenizer at {path}: need a {FILE}, or {VOCABULARY} and {MERGES}")
  named: dict[str, str] = {}
  special: set[str] = set()
  for name in (SPECIALS, CONFIG):
    tokens = _tokens(folder / name, config[name])
    special |= {*tokens.values(), *_additional(folder / name, config[name])}
    named |= {role: tokens[role] for role in ROLES if role in tokens}
  for token in _defined(folder, config, special):
    _add(tokenizer, *token)
  return tokenizer, named


def read_file(path: pathlib.Path) -> Any:
  """tokenizer.json by the `tokenizers` package, which raises bare Exceptions.

  ValueError where it cannot, or would give an added token another id than the file.
  """
  try:
    tokenizer = require("tokenizers").Tokenizer.from_file(str(path))
  except Exception as error:
    raise ValueError(f"{path} cannot be read: {error}") from error
  for token in read_json(path).get("added_tokens") or []:
    _check_id(tokenizer, token["content"], token["id"], path)
  return tokenizer


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """An object; an empty one where there is no file."""
  return parse_json(path.read_bytes(), path) if path.is_file() else {}


def parse_json(content: bytes, where: Any) -> dict[str, Any]:
  """An object; ValueError, which begins with `where`, if it is none."""
  try:
    found = json.loads(content)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{where} cannot be read: {error}") from error
  if not isinstance(found, dict):
    raise ValueError(f"{where} holds no JSON object")
  return found


def signs_of_bytes() -> dict[int, str]:
  """Byte-level BPE spells a byte as a character that can be seen: those that can as themselves."""
  seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
  signs = {byte: chr(byte) for byte in seen}
  return signs | {byte: chr(256 + i) for i, byte in enumerate(sorted({*range(256)} - {*seen}))}


def of_bytes(specials: Sequence[str]) -> Any:
  """A `tokenizers.Tokenizer` whose ids are bytes, with special tokens from 256 on."""
  library = require("tokenizers")
  signs = signs_of_bytes()
  model = library.models.BPE({signs[byte]: byte for byte in range(256)}, [])
  made = library.Tokenizer(model)
  made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  made.decoder = library.decoders.ByteLevel()
  made.add_special_tokens([*specials])
  return made


def config_of(tokenizer: Any, roles: Mapping[str, int]) -> dict[str, Any]:
  """tokenizer_config.json by which transformers reads tokenizer.json as it is.

  Without it AutoTokenizer takes the class of config.json's model_type, which cuts text in its own
  way and adds an end of text of its own.
  """
  added = tokenizer.get_added_tokens_decoder()
  named = {f"{role}_token": added[id].content for role, id in roles.items() if id in added}
  others = [token.content for token in added.values() if token.special]
  return {
    "tokenizer_class": "PreTrainedTokenizerFast",
    **named,
    "additional_special_tokens": [each for each in others if each not in named.values()],
    "added_tokens_decoder": {
      str(id): {"content": token.content, **{flag: getattr(token, flag) for flag in FLAGS}}
      for id, token in added.items()
    },
    "clean_up_tokenization_spaces": False,
  }


def cuts_as_qwen2(tokenizer: Any) -> bool:
  """Whether text is normalised and cut as Qwen2's own class does it."""
  library = require("tokenizers")
  theirs = library.Tokenizer(library.models.BPE())
  theirs.normalizer, theirs.pre_tokenizer = qwen2_cuts()
  ours, theirs = (json.loads(each.to_str()) for each in (tokenizer, theirs))
  return all(ours[part] == theirs[part] for part in ("normalizer", "pre_tokenizer"))


def beside(folder: pathlib.Path) -> dict[str, bytes]:
  """The content of the files that go wherever a tokenizer goes, by name."""
  paths = [folder / name for name in BESIDE]
  paths += [path for name in BESIDE_IN for path in sorted((folder / name).glob("*"))]
  return {
    path.relative_to(folder).as_posix(): path.read_bytes() for path in paths if path.is_file()
  }


def spelling(value: Any) -> str | None:
  """A token's text; Hugging Face writes it as it is or as {"content": text}."""
  value = value.get("content") if isinstance(value, Mapping) else value
  return value if isinstance(value, str) else None


def _byte_level(folder: pathlib.Path, named: Any) -> Any:
  """Byte-level BPE, which cuts text as the class that tokenizer_config.json names does."""
  kind = CLASSES.get(str(named).removesuffix("Fast"))
  if kind is None:
    raise ValueError(
      f"{folder} has no {FILE}, and {CONFIG} names tokenizer_class={named!r:.80}: how it cuts text "
      f"is known of {', '.join(CLASSES)}"
    )
  library = require("tokenizers")
  try:
    model = library.models.BPE.from_file(str(folder / VOCABULARY), str(folder / MERGES))
  except Exception as error:
    raise ValueError(f"{folder}: {VOCABULARY} and {MERGES} cannot be read: {error}") from error
  made = library.Tokenizer(model)
  made.decoder = library.decoders.ByteLevel()
  if kind == QWEN2:
    made.normalizer, made.pre_tokenizer = qwen2_cuts()
  else:
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
  return made


def qwen2_cuts() -> tuple[Any, Any]:
  """Normaliser and pre-tokenizer."""
  return require("tokenizers").normalizers.NFC(), cuts_at(QWEN2_SPLIT)


def cuts_at(expression: str) -> Any:
  """The pre-tokenizer that cuts text into what the expression matches, and that into bytes."""
  library = require("tokenizers")
  cuts = library.pre_tokenizers
  split = cuts.Split(library.Regex(expression), behavior="isolated")
  return cuts.Sequence([split, cuts.ByteLevel(add_prefix_space=False, use_regex=False)])


def _tokens(path: pathlib.Path, config: Mapping[str, Any]) -> dict[str, str]:
  """Role -> spelling, of every key like "eos_token"."""
  found = {}
  for key, value in config.items():
    role, of_token, _ = key.partition("_token")
    if of_token and key == role + "_token" and value:
      found[role] = spelling(value)
      if not found[role]:
        raise ValueError(f"{path}: {key}={value!r:.80} must be a token's text")
  return found


def _additional(path: pathlib.Path, config: Mapping[str, Any]) -> list[str]:
  given = config.get("additional_special_tokens") or []
  found = [spelling(each) for each in given] if isinstance(given, list) else [None]
  if None in found:
    raise ValueError(f"{path}: additional_special_tokens={given!r:.80} must be a list of tokens")
  return found


def _defined(
  folder: pathlib.Path, config: Mapping[str, Mapping[str, Any]], special: set[str]
) -> list[tuple[int, str, dict[str, bool], pathlib.Path]]:
  """(id, spelling, flags, file) of the tokens that files beside tokenizer.json define, by id."""
  found = {}
  for text, id in config[ADDED].items():
    if type(id) is not int:
      raise ValueError(f"{folder / ADDED}: {text!r:.80} has id {id!r:.40}")
    is_special = text in special
    flags = {"special": is_special, "normalized": not is_special}
    found[text] = (id, text, flags, folder / ADDED)
  decoder = config[CONFIG].get("added_tokens_decoder") or {}
  for id, token in decoder.items() if isinstance(decoder, dict) else [("", decoder)]:
    text = spelling(token)
    if not id.isdecimal() or text is None:
      raise ValueError(f"{folder / CONFIG}: added_tokens_decoder has {id!r:.40}: {token!r:.80}")
    if text in found and found[text][0] != int(id):
      raise ValueError(
        f"{folder / CONFIG}: token {text!r} has id {id}, and {found[text][0]} in {ADDED}"
      )
    flags = {name: token[name] for name in FLAGS if isinstance(token.get(name), bool)}
    is_special = flags.setdefault("special", text in special)
    flags.setdefault("normalized", not is_special)
    found[text] = (int(id), text, flags, folder / CONFIG)
  return sorted(found.values(), key=lambda token: token[0])


def _add(tokenizer: Any, id: int, text: str, flags: dict[str, bool], path: pathlib.Path) -> None:
  has = {token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()}
  if text not in has or (flags["special"] and not has[text]):
    tokenizer.add_tokens([require("tokenizers").AddedToken(text, **flags)])
  _check_id(tokenizer, text, id, path)


def _check_id(tokenizer: Any, text: str, id: int, path: pathlib.Path) -> None:
  """The `tokenizers` package numbers added tokens one after the other, whatever their file says."""
  got = tokenizer.token_to_id(text)
  if got != id:
    raise ValueError(
      f"{path}: token {text!r} has id {id}, but the tokenizers package gives it {got}: ids before "
      "it are missing, or it is there twice"
    )
