"""A tokenizer and a chat template from the keys of a GGUF file.

    tokenizer.ggml.model   gpt2: byte-level BPE, merges given; how text is cut before, `pre` says
                           llama: SentencePiece's BPE, whose merges follow from the scores
    tokenizer.ggml.tokens, token_type, merges, scores, *_token_id, add_bos_token, add_space_prefix
    tokenizer.chat_template

Keys are as `dlm.weights.gguf` reads them.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dlm.data import tokenizer_files
from dlm.data.install import require
from dlm.data.tokenizers import BpeTokenizer, roles_of

KEY = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5  # of token_type
ROLE_KEYS = {"pad": "padding", "bos": "bos", "eos": "eos", "mask": "mask"}
SPACE = "\u2581"  # SentencePiece's

# Llama 3: as Qwen2, but that up to three digits stay together. Mistral's Tekken: words end where
# small letters are followed by a capital one.
LLAMA3_SPLIT = tokenizer_files.QWEN2_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN_SPLIT = (
  rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# What `pre` names: kinds of cuts. Of those with whole words a word that is a token is not merged.
GPT2, DIGITS, QWEN2, LLAMA3, TEKKEN = "gpt-2", "digits", "qwen2", "llama 3", "tekken"
CUTS = {
  "gpt-2": GPT2,
  "phi-2": GPT2,
  "olmo": GPT2,
  "smollm": DIGITS,
  "starcoder": DIGITS,
  "refact": DIGITS,
  "codeshell": DIGITS,
  "qwen2": QWEN2,
  "deepseek-r1-qwen": QWEN2,
  "llama-bpe": LLAMA3,
  "llama3": LLAMA3,
  "llama-v3": LLAMA3,
  "tekken": TEKKEN,
}
WHOLE_WORDS = (LLAMA3, TEKKEN)
BEGINS = (LLAMA3, TEKKEN)  # whose texts begin with the token of it, where add_bos_token is missing


def of_keys(keys: Mapping[str, Any], where: Any, *, extend: bool) -> BpeTokenizer:
  """The tokenizer that a GGUF file describes, with its chat template beside it.

  Args:
    where: the file, for messages.
    extend: a mask token that the file lacks is added to the vocabulary.

  Raises:
    ValueError: the file names no tokenizer, or one of a kind that is not known, or its lists do not
      fit together.
  """
  try:
    return _of_keys(keys, where, extend)
  except ValueError as error:
    text = str(error)
    raise ValueError(text if text.startswith(str(where)) else f"{where}: {text}") from error


def _of_keys(keys: Mapping[str, Any], where: Any, extend: bool) -> BpeTokenizer:
  tokens = _list(keys, "tokens", str)
  types = _list(keys, "token_type", int, len(tokens)) if KEY + "token_type" in keys else None
  types = [NORMAL] * len(tokens) if types is None else types
  # A converter fills up the embedding's rows with such, which no text ever becomes.
  while types and types[-1] == UNUSED:
    tokens, types = tokens[:-1], types[:-1]
  vocabulary = {token: id for id, token in enumerate(tokens)}
  if len(vocabulary) < len(tokens):
    twice = next(id for id, token in enumerate(tokens) if vocabulary[token] != id)
    raise ValueError(f"{KEY}tokens: {tokens[twice]!r:.80} is there twice")
  roles = {role: _id(keys, f"{name}_token_id", tokens) for role, name in ROLE_KEYS.items()}
  model = keys.get(KEY + "model")
  if model not in MODELS:
    raise ValueError(f"{KEY}model={model!r:.80} is not supported; known: {', '.join(MODELS)}")
  made, begins = MODELS[model](keys, vocabulary, types)
  special = {id for id in roles.values() if id is not None}
  special |= {id for id, kind in enumerate(types) if kind in (UNKNOWN, CONTROL)}
  library = require("tokenizers")
  for id, kind in enumerate(types):
    if id in special or kind == USER_DEFINED:
      token = library.AddedToken(tokens[id], special=id in special, normalized=False)
      made.add_tokens([token])
  begins = keys.get(KEY + "add_bos_token", begins)
  if begins and roles["bos"] is not None:
    bos = tokens[roles["bos"]]
    made.post_processor = library.processors.TemplateProcessing(
      single=[bos, "$A"], pair=[bos, "$A", bos, "$B"], special_tokens=[(bos, roles["bos"])]
    )
  named = {role: id for role, id in roles.items() if id is not None}
  found = roles_of(made, named, where, extend=extend)
  return BpeTokenizer(made, found, _beside(keys, made, found, tokens))


def _beside(
  keys: Mapping[str, Any], made: Any, roles: Mapping[str, int], tokens: Sequence[str]
) -> dict[str, bytes]:
  """The files that would lie beside the tokenizer's in a folder."""
  config = tokenizer_files.config_of(made, roles)
  unknown = _id(keys, "unknown_token_id", tokens)
  if unknown is not None:
    config["unk_token"] = tokens[unknown]
  if KEY + "add_bos_token" in keys:
    config["add_bos_token"] = bool(keys[KEY + "add_bos_token"])
  text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
  found = {tokenizer_files.CONFIG: text.encode()}
  template = keys.get("tokenizer.chat_template")
  if template is not None:
    if not isinstance(template, str):
      raise ValueError(f"tokenizer.chat_template={template!r:.80} must be a text")
    found[tokenizer_files.TEMPLATE] = template.encode()
  return found


# ---------------------------------------------------------------------------------------------
# The two kinds


def _byte_level(
  keys: Mapping[str, Any], vocabulary: dict[str, int], types: Sequence[int]
) -> tuple[Any, bool]:
  """GPT-2's BPE over bytes, and whether texts begin with a token of it."""
  pre = keys.get(KEY + "pre")
  if pre not in CUTS:
    raise ValueError(
      f"{KEY}pre={pre!r:.80}: how it cuts text is not known; known: {', '.join(CUTS)}"
    )
  kind = CUTS[pre]
  merges = []
  for text in _list(keys, "merges", str):
    pair = tuple(text.split(" "))
    if len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.keys():
      raise ValueError(f"{KEY}merges: {text!r:.80} must be two tokens that make a third")
    merges.append(pair)
  library = require("tokenizers")
  model = library.models.BPE(vocabulary, merges, ignore_merges=kind in WHOLE_WORDS)
  made = library.Tokenizer(model)
  made.decoder = library.decoders.ByteLevel()
  cuts = library.pre_tokenizers
  if kind == QWEN2:
    made.normalizer, made.pre_tokenizer = tokenizer_files.qwen2_cuts()
  elif kind in (GPT2, DIGITS):
    words = cuts.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = [cuts.Digits(individual_digits=True)] if kind == DIGITS else []
    made.pre_tokenizer = cuts.Sequence([*digits, words])
  else:
    split = {LLAMA3: LLAMA3_SPLIT, TEKKEN: TEKKEN_SPLIT}[kind]
    made.pre_tokenizer = tokenizer_files.cuts_at(split)
  return made, kind in BEGINS


def _sentence_piece(
  keys: Mapping[str, Any], vocabulary: dict[str, int], types: Sequence[int]
) -> tuple[Any, bool]:
  """BPE over characters, bytes where a character is no token; see `_byte_level`."""
  if KEY + "precompiled_charsmap" in keys:
    raise ValueError(f"{KEY}precompiled_charsmap normalises text, which is not supported")
  scores = _list(keys, "scores", float, least=len(vocabulary))
  unknown = [token for token, id in vocabulary.items() if types[id] == UNKNOWN]
  library = require("tokenizers")
  model = library.models.BPE(
    vocabulary,
    _merges(vocabulary, types, scores),
    unk_token=unknown[0] if unknown else None,
    fuse_unk=True,
    byte_fallback=True,
  )
  made = library.Tokenizer(model)
  prefixed = bool(keys.get(KEY + "add_space_prefix", True))
  begin = [library.normalizers.Prepend(SPACE)] if prefixed else []
  strip = [library.decoders.Strip(" ", 1, 0)] if prefixed else []
  made.normalizer = library.normalizers.Sequence([*begin, library.normalizers.Replace(" ", SPACE)])
  made.decoder = library.decoders.Sequence(
    [
      library.decoders.Replace(SPACE, " "),
      library.decoders.ByteFallback(),
      library.decoders.Fuse(),
      *strip,
    ]
  )
  return made, True


def _merges(
  vocabulary: Mapping[str, int], types: Sequence[int], scores: Sequence[float]
) -> list[tuple[str, str]]:
  """SentencePiece joins the two neighbours whose joint token has the best score."""
  normal = {token for token, id in vocabulary.items() if types[id] == NORMAL}
  merges = []
  for token in sorted(normal, key=lambda token: (-scores[vocabulary[token]], vocabulary[token])):
    pairs = ((token[:at], token[at:]) for at in range(1, len(token)))
    merges += [pair for pair in pairs if normal.issuperset(pair)]
  return merges


MODELS = {"gpt2": _byte_level, "llama": _sentence_piece}


# ---------------------------------------------------------------------------------------------
# Keys


def _list(keys: Mapping[str, Any], name: str, kind: type, least: int = 1) -> list[Any]:
  """A list, or the array that `dlm.weights.gguf` makes of numbers."""
  found = keys.get(KEY + name)
  if found is None:
    raise ValueError(f"{KEY}{name} is missing")
  found = found.tolist() if hasattr(found, "tolist") else found
  if not isinstance(found, list) or not all(type(each) is kind for each in found):
    raise ValueError(f"{KEY}{name}={found!r:.80} must be a list of {kind.__name__}")
  if len(found) < least:
    raise ValueError(f"{KEY}{name} has {len(found)} values, and {least} are needed")
  return found


def _id(keys: Mapping[str, Any], name: str, tokens: Sequence[str]) -> int | None:
  id = keys.get(KEY + name)
  if id is not None and (type(id) is not int or not 0 <= id < len(tokens)):
    raise ValueError(f"{KEY}{name}={id!r:.40} is outside the vocabulary of {len(tokens)} ids")
  return id
