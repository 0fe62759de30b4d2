"""Text to ids and back: bytes, BPE trained here, or the files of a Hugging Face checkpoint.

Ids that `encode` gives are always text: a user who types the spelling of the mask gets letters, not
the mask. Special ids are only ever put in by code.
"""

import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol, Self

import numpy as np

from dlm import files
from dlm.data import tokenizer_files
from dlm.data.install import require
from dlm.data.tokenizer_files import ROLES

MASK_SIGN = "\u2591"
SAVED_NAME = "dlm_tokenizer.json"

# Spellings by which a tokenizer.json that does not name its roles is understood, best first.
SPELLINGS = {
  "pad": ("<|pad|>", "<pad>", "[PAD]"),
  "bos": ("<|bos|>", "<s>", "<|startoftext|>", "[CLS]"),
  "eos": ("<|eos|>", "</s>", "<|endoftext|>", "[SEP]"),
  "mask": ("<|mask|>", "<|mdm_mask|>", "<mask>", "[MASK]", "|<MASK>|"),
}


class Tokenizer(Protocol):
  """`decode` drops specials; text cut inside a character ends in U+FFFD."""

  vocab_size: int  # largest id + 1, specials included
  pad_id: int
  bos_id: int
  eos_id: int
  mask_id: int
  fingerprint: str  # equal fingerprints: equal ids for all text
  beside: Mapping[str, bytes]  # files that are saved with it, by name: `dlm.data.tokenizer_files`

  def encode(self, text: str) -> np.ndarray: ...
  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]: ...
  def decode(self, ids: Sequence[int], show_mask: bool = False) -> str: ...
  def specials(self) -> dict[str, int]: ...
  def pieces(self) -> list[bytes | None]:
    """What each id adds to the UTF-8 of a text; None: it is special, or no id.

    Raises:
      ValueError: an id has no bytes of its own.
    """
    ...

  def save(self, directory: str | pathlib.Path) -> None: ...
  def publish(self, directory: str | pathlib.Path) -> None:
    """Saves it, and what transformers needs to read the same ids."""
    ...

  @property
  def cuts_as_qwen2(self) -> bool:
    """Whether the class Qwen2Tokenizer of transformers reads the same ids."""
    ...

  @classmethod
  def load(cls, directory: str | pathlib.Path) -> Self: ...


class ByteTokenizer:
  """UTF-8: ids 0..255 are bytes, then pad, bos, eos, mask."""

  pad_id, bos_id, eos_id, mask_id = 256, 257, 258, 259
  vocab_size = 260
  fingerprint = "byte"
  beside: Mapping[str, bytes] = MappingProxyType({})

  def encode(self, text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [self.encode(text) for text in texts]

  def decode(self, ids: Sequence[int], show_mask: bool = False) -> str:
    ids = _checked_ids(ids, self.vocab_size)
    if not show_mask:
      return _utf8(ids)
    parts = np.split(ids, np.flatnonzero(ids == self.mask_id))
    return MASK_SIGN.join(_utf8(part) for part in parts)

  def specials(self) -> dict[str, int]:
    return {}  # its specials have no spelling

  def pieces(self) -> list[bytes | None]:
    return [bytes([byte]) for byte in range(256)] + [None] * 4

  def save(self, directory: str | pathlib.Path) -> None:
    _write_saved(directory, {"kind": "byte"})

  def publish(self, directory: str | pathlib.Path) -> None:
    specials = {role: SPELLINGS[role][0] for role in ROLES}
    made = tokenizer_files.of_bytes([*specials.values()])
    BpeTokenizer(made, {role: made.token_to_id(s) for role, s in specials.items()}).publish(
      directory
    )
    self.save(directory)  # what it is to us

  cuts_as_qwen2 = False

  @classmethod
  def load(cls, directory: str | pathlib.Path) -> Self:
    _read_saved(directory, "byte")
    return cls()


class BpeTokenizer:
  """A `tokenizers.Tokenizer` with its four roles. Made by `train_bpe`, `from_file` or `load`."""

  def __init__(self, tokenizer, roles: dict[str, int], beside: Mapping[str, bytes] | None = None):
    size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    for role in ROLES:
      if not 0 <= roles[role] < size:
        raise ValueError(f"{role}_id={roles[role]} is outside the vocabulary of {size} ids")
    if roles["mask"] in (roles["pad"], roles["bos"], roles["eos"]):
      raise ValueError(f"mask_id={roles['mask']} must be no other special's id, {roles=}")
    tokenizer.encode_special_tokens = True  # a spelled special is text
    tokenizer.no_padding()
    tokenizer.no_truncation()
    self._tokenizer, self._roles, self.beside = tokenizer, roles, dict(beside or {})
    self.vocab_size = size
    self.pad_id, self.bos_id, self.eos_id, self.mask_id = (roles[role] for role in ROLES)
    described = tokenizer.to_str() + json.dumps(roles, sort_keys=True)
    self.fingerprint = "bpe-" + hashlib.sha256(described.encode()).hexdigest()[:16]

  @classmethod
  def from_file(cls, path: str | pathlib.Path, *, extend: bool = True, **roles: str | int) -> Self:
    """Reads a tokenizer.json or a folder: see `dlm.data.tokenizer_files`.

    A role comes from `roles` (its spelling or id), else from the files beside tokenizer.json, else
    from a known spelling among the added tokens. Then the end of text serves as padding and as
    beginning, so that no id is added which a model's embedding lacks; a mask or end of text that
    the files lack is added to the vocabulary, or without `extend` a ValueError.
    """
    path = pathlib.Path(path)
    if unknown := set(roles) - set(ROLES):
      raise ValueError(f"unknown roles {sorted(unknown)}; known: {', '.join(ROLES)}")
    tokenizer, named = tokenizer_files.read(path)
    beside = tokenizer_files.beside(path if path.is_dir() else path.parent)
    return cls(tokenizer, roles_of(tokenizer, named | roles, path, extend=extend), beside)

  def encode(self, text: str) -> np.ndarray:
    return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.asarray(encoding.ids, np.int32) for encoding in found]

  def decode(self, ids: Sequence[int], show_mask: bool = False) -> str:
    ids = _checked_ids(ids, self.vocab_size)
    if not show_mask:
      return self._tokenizer.decode(ids.tolist(), skip_special_tokens=True)
    parts = np.split(ids, np.flatnonzero(ids == self.mask_id))
    return MASK_SIGN.join(self.decode(part) for part in parts)

  def specials(self) -> dict[str, int]:
    """Ids by their spelling, which a chat template may write and a user may not."""
    found = self._tokenizer.get_added_tokens_decoder().items()
    return {token.content: id for id, token in found if token.special}

  def pieces(self) -> list[bytes | None]:
    if type(self._tokenizer.decoder) is not _library().decoders.ByteLevel:
      raise ValueError("the tokenizer's ids have no bytes of their own: it is not of byte level")
    special = set(self.specials().values())
    signs = {sign: byte for byte, sign in tokenizer_files.signs_of_bytes().items()}
    pieces: list[bytes | None] = [None] * self.vocab_size
    for text, id in self._tokenizer.get_vocab(with_added_tokens=True).items():
      if id not in special:
        known = all(sign in signs for sign in text)  # else an added token, which is what it says
        pieces[id] = bytes(signs[sign] for sign in text) if known else text.encode()
    return pieces

  def save(self, directory: str | pathlib.Path) -> None:
    directory = pathlib.Path(directory)
    _write_saved(directory, {"kind": "bpe", "roles": self._roles})
    files.write(directory / tokenizer_files.FILE, self._tokenizer.to_str(pretty=True))
    for name, content in self.beside.items():
      (directory / name).parent.mkdir(exist_ok=True)
      files.write(directory / name, content)

  def publish(self, directory: str | pathlib.Path) -> None:
    self.save(directory)
    if tokenizer_files.CONFIG not in self.beside:
      config = tokenizer_files.config_of(self._tokenizer, self._roles)
      text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
      files.write(pathlib.Path(directory) / tokenizer_files.CONFIG, text)

  @property
  def cuts_as_qwen2(self) -> bool:
    return tokenizer_files.cuts_as_qwen2(self._tokenizer)

  @classmethod
  def load(cls, directory: str | pathlib.Path) -> Self:
    roles = _read_saved(directory, "bpe").get("roles")
    if not isinstance(roles, dict) or not all(type(roles.get(role)) is int for role in ROLES):
      raise ValueError(f"{pathlib.Path(directory) / SAVED_NAME}: roles={roles!r:.80} must be ids")
    directory = pathlib.Path(directory)
    tokenizer = tokenizer_files.read_file(directory / tokenizer_files.FILE)
    return cls(tokenizer, roles, tokenizer_files.beside(directory))


def train_bpe(texts: Iterable[str], vocab_size: int) -> BpeTokenizer:
  """Byte-level BPE of at most `vocab_size` ids (fewer if the text has no more pairs).

  Deterministic. All 256 bytes are in the alphabet, so every text survives the round trip.
  """
  least = 256 + len(ROLES)
  if vocab_size < least:
    raise ValueError(f"{vocab_size=} must be at least {least}: 256 bytes and {len(ROLES)} specials")
  lib = _library()
  tokenizer = lib.Tokenizer(lib.models.BPE())
  tokenizer.pre_tokenizer = lib.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = lib.decoders.ByteLevel()
  specials = [SPELLINGS[role][0] for role in ROLES]
  trainer = lib.trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=specials,
    initial_alphabet=sorted(lib.pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  tokenizer.train_from_iterator(texts, trainer)
  return BpeTokenizer(
    tokenizer, {role: tokenizer.token_to_id(s) for role, s in zip(ROLES, specials, strict=True)}
  )


def _load_saved(directory: str) -> Tokenizer:
  kinds = {"byte": ByteTokenizer, "bpe": BpeTokenizer}
  kind = _read_saved(directory, None).get("kind")
  if kind not in (*kinds,):
    path = pathlib.Path(directory) / SAVED_NAME
    raise ValueError(f"{path}: kind={kind!r:.40} is unknown; known: {', '.join(kinds)}")
  return kinds[kind].load(directory)


TOKENIZERS = {"bpe": BpeTokenizer.from_file, "saved": _load_saved}


def load_tokenizer(spec: str) -> Tokenizer:
  """`byte`; `bpe:PATH` a tokenizer.json or its folder; `saved:DIR` what `save(DIR)` wrote."""
  if spec == "byte":
    return ByteTokenizer()
  kind, _, path = spec.partition(":")
  if kind not in TOKENIZERS or not path:
    raise ValueError(f"unknown tokenizer {spec!r}; known: byte, bpe:PATH, saved:DIR")
  return TOKENIZERS[kind](path)


def _library():
  return require("tokenizers")


def _utf8(ids: np.ndarray) -> str:
  return ids[ids < 256].astype(np.uint8).tobytes().decode("utf-8", errors="replace")


def _checked_ids(ids: Sequence[int], size: int) -> np.ndarray:
  ids = np.asarray(ids, np.int64)
  outside = ids[(ids < 0) | (ids >= size)]
  if outside.size:
    raise ValueError(f"id {outside[0]} is outside the vocabulary of {size} ids")
  return ids


def roles_of(
  tokenizer, named: Mapping[str, str | int], where: object, *, extend: bool
) -> dict[str, int]:
  """The id of every role: see `BpeTokenizer.from_file`. `where` begins messages."""
  for role, given in named.items():
    if not extend and isinstance(given, str) and tokenizer.token_to_id(given) is None:
      raise ValueError(f"{where}: the {role} token {given!r:.80} has no id in any file")
  found = {role: _role_id(tokenizer, role, named.get(role)) for role in ROLES}
  for role in ("eos", "mask"):
    if found[role] is None and not extend:
      raise ValueError(f"{where} names no {role} token, nor do the files beside it")
    if found[role] is None:
      found[role] = _add_special(tokenizer, SPELLINGS[role][0])
  return {role: found["eos"] if id is None else id for role, id in found.items()}


def _role_id(tokenizer, role: str, named: str | int | None) -> int | None:
  """The id of a role; None where nothing names it."""
  if isinstance(named, int):
    return named  # its range is checked with the others
  added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
  spelling = named or next((s for s in SPELLINGS[role] if s in added), None)
  return None if spelling is None else _add_special(tokenizer, spelling)


def _add_special(tokenizer, spelling: str) -> int:
  """Also marks an ordinary token as special: only then is its spelling in a text plain text."""
  tokenizer.add_special_tokens([_library().AddedToken(spelling, special=True, normalized=False)])
  return tokenizer.token_to_id(spelling)


def _write_saved(directory: str | pathlib.Path, facts: dict) -> None:
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  files.write_json(directory / SAVED_NAME, facts, indent=1)


def _read_saved(directory: str | pathlib.Path, kind: str | None) -> dict:
  path = pathlib.Path(directory) / SAVED_NAME
  if not path.is_file():
    raise ValueError(f"no saved tokenizer in {directory}: {SAVED_NAME} is missing")
  facts = tokenizer_files.read_json(path)
  if kind is not None and facts.get("kind") != kind:
    raise ValueError(f"{path} holds a tokenizer of kind {facts.get('kind')!r:.40}, not {kind!r}")
  return facts
