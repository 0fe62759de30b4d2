"""Quantised checkpoints of others, in 8 and 4 bits: read as the float32 numbers they stand for.

A linear layer is several tensors in place of LAYER.weight [out, in]:

  FP8    weight [out, in] of 8-bit floats, and weight_scale_inv, a factor for each block of them
  GPTQ   qweight [in / n, out], n codes an int32 along the inputs, the lowest bits first; scales and
         qzeros of groups of inputs; g_idx says which group an input is in ("act-order")
  AWQ    qweight [in, out / 8], 8 codes an int32 along the outputs, in the order of AWQ_ORDER

A number is scale * (code - zero). GPTQ's first format stores zero - 1, its second the zero itself.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from dlm.models.quantised import Format
from dlm.weights import files
from dlm.weights.fields import ConfigJson
from dlm.weights.files import Stored, WeightsError

CONFIG = "quantization_config"  # key of config.json
OTHERS = ("quantization", "compression_config")  # keys of other programs
KNOWN = ("awq", "fp8", "gptq")

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where in an int32 the codes of 8 outputs lie
SCALES = ("F32", "F16", "BF16", "F8_E8M0")
FLOATS8 = ("F8_E4M3", "F8_E5M2")

# Keys that could mean other numbers, with the values that mean ours; keys that say nothing of them.
ONLY: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
  "fp8": {"activation_scheme": ("dynamic",), "fmt": ("e4m3",), "expert_dtype": ("fp8",)},
  "gptq": {
    "bits": (4, 8),
    "checkpoint_format": ("gptq", "gptq_v2"),
    "format": ("gptq", "gptq_v2"),
    "is_marlin_format": (False,),
    "pack_dtype": ("int32",),
  },
  "awq": {
    "bits": (4,),
    "w_bit": (4,),
    "checkpoint_format": ("gemm",),
    "format": ("gemm",),
    "version": ("gemm", "GEMM"),
    "pack_dtype": ("int32",),
    "zero_point": (True,),
  },
}
IRRELEVANT = (
  # Which layers: their tensors say so.
  "dynamic", "ignored_layers", "lm_head", "modules_in_block_to_quantize", "modules_to_convert",
  "modules_to_fuse", "modules_to_not_convert", "block_name_to_quantize",
  "module_name_preceding_first_block",
  # How the codes were found.
  "act_group_aware", "batch_size", "cache_block_outputs", "damp_auto_increment", "damp_percent",
  "dataset", "desc_act", "meta", "model_file_base_name", "model_name_or_path", "model_seqlen",
  "pad_token_id", "static_groups", "sym", "tokenizer", "true_sequential",
  # With which kernels other programs compute, and how they hold the scales.
  "backend", "dequantize", "disable_exllama", "do_fuse", "exllama_config", "fuse_max_seq_len",
  "max_input_length", "method", "quant_method", "scale_fmt", "use_cuda_fp16", "use_exllama",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Quantised:
  """What `quantization_config` says.

  Args:
    method: one of KNOWN.
    bits: of a code.
    group: inputs that share a scale, -1: all; of FP8 0.
    block: outputs and inputs that share a factor of FP8.
    zero: what is added to a stored zero.
  """

  method: str
  bits: int
  group: int = 0
  block: tuple[int, int] = (0, 0)
  zero: int = 0


def of_config(config: Mapping[str, Any]) -> Quantised | None:
  """How a checkpoint with this config.json is quantised; None: not at all.

  ValueError: by a method that is not known, or a key that is not understood.
  """
  for key in OTHERS:
    if config.get(key) is not None:
      raise ValueError(
        f"{key}={config[key]!r:.80}: the checkpoint is quantised in a way that is not known; "
        f"known: {CONFIG} with quant_method {', '.join(KNOWN)}"
      )
  said = config.get(CONFIG)
  if said is None:
    return None
  method = said.get("quant_method") if isinstance(said, dict) else said
  if method not in KNOWN:
    raise ValueError(f"{CONFIG}.quant_method={method!r:.80} is unknown; known: {', '.join(KNOWN)}")
  try:
    return _read(method, ConfigJson(said))
  except ValueError as error:
    raise ValueError(f"{CONFIG}: {error} (quant_method {method})") from error


def _read(method: str, config: ConfigJson) -> Quantised:
  config.only(ONLY[method])
  if method == "fp8":
    block = config.need("weight_block_size", list)
    if len(block) != 2 or not all(type(size) is int and size > 0 for size in block):
      raise ValueError(f"weight_block_size={block!r:.80} must be two sizes")
    made = Quantised(method, 8, block=tuple(block))
  else:
    formats = {config.get(name) for name in ("checkpoint_format", "format")}
    zero = int(method == "gptq" and "gptq_v2" not in formats)
    made = Quantised(method, config.need(("bits", "w_bit"), int), _group(config), zero=zero)
  config.nothing_else((*IRRELEVANT, *ONLY[method]))
  return made


def _group(config: ConfigJson) -> int:
  name = "group_size" if "group_size" in config else "q_group_size"
  group = config.get(name, 128)
  if type(group) is not int or not (group == -1 or group > 0):
    raise ValueError(f"{name}={group!r:.80} must be -1, for all inputs, or their number")
  return group


# ---------------------------------------------------------------------------------------------
# Tensors


@dataclasses.dataclass(frozen=True)
class Coded(Stored):
  """The weight of a linear layer: `dtype` and `shape` are those of the numbers.

  Args:
    parts: the tensors that hold it, by the ends of their names.
    only: of the numbers the "code" alone, or the "scale" or "zero" of each group [out, groups];
      whole numbers are then signed, less half of their range.
  """

  how: Quantised
  parts: Mapping[str, tuple[str, Stored]]
  only: str = ""

  @property
  def groups(self) -> int:
    return self.parts["scales"][1].shape[0]

  def of(self, only: str) -> "Coded":
    """One of these arrays as a tensor of its own."""
    sizes = self.shape if only == "code" else (self.shape[0], self.groups)
    dtype = "F32" if only == "scale" else "I8"
    return dataclasses.replace(self, shape=sizes, dtype=dtype, only=only)


PARTS = {
  "fp8": ("weight_scale_inv", "weight"),
  "gptq": ("qweight", "qzeros", "scales", "g_idx"),
  "awq": ("qweight", "qzeros", "scales"),
}


def as_weights(stored: Mapping[str, Stored], how: Quantised) -> dict[str, Stored]:
  """The tensors with each quantised layer as its one weight.

  WeightsError where its parts are not all there, or do not fit.
  """
  found = dict(stored)
  first, *others = PARTS[how.method]
  for layer in [name.removesuffix(first) for name in stored if name.endswith("." + first)]:
    ends = [end for end in (first, *others) if layer + end in found]
    parts = {end: (layer + end, found.pop(layer + end)) for end in ends}
    missing = [end for end in others if end not in parts and end != "g_idx"]
    if missing:
      raise WeightsError(f"{parts[first][1].file}: tensor {layer}{missing[0]} is missing")
    found[layer + "weight"] = _coded(layer, parts, how)
  return found


def _coded(layer: str, parts: Mapping[str, tuple[str, Stored]], how: Quantised) -> Coded:
  of = {end: stored for end, (_, stored) in parts.items()}
  packed = 32 // how.bits
  if any(len(each.shape) != (1 if end == "g_idx" else 2) for end, each in of.items()):
    shapes = ", ".join(f"{layer}{end} {list(each.shape)}" for end, each in of.items())
    raise WeightsError(f"{shapes}: must be matrices")
  if how.method == "fp8":
    shape = of["weight"].shape
    blocks = tuple(-(-size // block) for size, block in zip(shape, how.block, strict=True))
    want = {"weight": (shape, FLOATS8), "weight_scale_inv": (blocks, SCALES)}
  else:
    rows, columns = of["qweight"].shape
    inputs, outputs = (rows * packed, columns) if how.method == "gptq" else (rows, columns * packed)
    shape = outputs, inputs
    groups = -(-inputs // (how.group if how.group > 0 else inputs))
    want = {
      "qweight": ((rows, columns), ("I32",)),
      "qzeros": ((groups, outputs // packed), ("I32",)),
      "scales": ((groups, outputs), SCALES),
      "g_idx": ((inputs,), ("I32",)),
    }
  for end, each in of.items():
    sizes, dtypes = want[end]
    if each.shape != sizes or each.dtype not in dtypes:
      raise WeightsError(
        f"{each.file}: tensor {layer}{end} is {each.dtype} {list(each.shape)}, not "
        f"{'/'.join(dtypes)} {list(sizes)}, as {layer}weight {list(shape)} in {how.method} needs"
      )
  return Coded(of[next(iter(of))].file, "F32", tuple(shape), 0, how, parts)


class Reader(files.Reader):
  """Pieces of tensors; of a quantised one as float32. Use it in a `with`."""

  def read(self, name: str, stored: Stored, where: tuple[slice, ...]) -> np.ndarray:
    if not isinstance(stored, Coded):
      return super().read(name, stored, where)

    def part(end: str, *where: slice) -> np.ndarray:
      return files.Reader.read(self, *stored.parts[end], where)

    return (_of_blocks if stored.how.method == "fp8" else _of_groups)(stored, part, *where)

  def has(self, stored: Stored, format: Format) -> bool:
    """Whether a weight's codes are of the format already."""
    if not isinstance(stored, Coded) or stored.how.method == "fp8":
      return False
    inputs, group = stored.shape[1], max(stored.how.group, 0)
    if Format(stored.how.bits, 0 if group == inputs else group, zero=True) != format:
      return False
    if "g_idx" not in stored.parts:
      return True
    own = files.Reader.read(self, *stored.parts["g_idx"], (slice(0, inputs),))
    return np.array_equal(own, _neighbours(stored))


def nought_biases(names: Iterable[str], stored: Mapping[str, Stored]) -> set[str]:
  """Of these tensors the biases of quantised layers that are all nought.

  Some versions of AutoGPTQ store one for every layer, whatever the model has (AutoGPTQ#555).
  """
  found = set()
  with Reader() as reader:
    for name in names:
      layer, _, end = name.rpartition(".")
      if end == "bias" and isinstance(stored.get(layer + ".weight"), Coded):
        every = tuple(slice(0, size) for size in stored[name].shape)
        found |= set() if reader.read(name, stored[name], every).any() else {name}
  return found


def _of_blocks(stored: Coded, part: Callable, outs: slice, ins: slice) -> np.ndarray:
  """FP8's numbers [out, in]."""
  spans = tuple(zip((outs, ins), stored.how.block, strict=True))
  factor = part("weight_scale_inv", *(_covering(span, block) for span, block in spans))
  factor = factor.astype(np.float32)
  for axis, (span, block) in enumerate(spans):
    factor = _cut(np.repeat(factor, block, axis), span, block, axis)
  return part("weight", outs, ins).astype(np.float32) * factor


def _of_groups(stored: Coded, part: Callable, outs: slice, ins: slice) -> np.ndarray:
  """GPTQ's and AWQ's numbers [out, in], or what else `stored` is."""
  how, packed = stored.how, 32 // stored.how.bits

  def codes(end: str, where: list[slice], axis: int) -> np.ndarray:
    """Unpacked along an axis."""
    span, where[axis] = where[axis], _covering(where[axis], packed)
    words = np.expand_dims(np.moveaxis(part(end, *where), axis, 0), 1)
    order = np.array(AWQ_ORDER) if how.method == "awq" else np.arange(packed)
    found = words >> (how.bits * order[:, None]) & (2**how.bits - 1)
    found = found.reshape(len(words) * packed, words.shape[-1])
    return _cut(np.moveaxis(found, 0, axis), span, packed, axis)

  def code() -> np.ndarray:
    return codes("qweight", [ins, outs], axis=1 if how.method == "awq" else 0)

  def zero(groups: slice) -> np.ndarray:
    return codes("qzeros", [groups, outs], axis=1) + how.zero

  half = 2 ** (how.bits - 1)
  if stored.only == "code":
    return (code() - half).astype(np.int8).T
  if stored.only == "scale":
    return part("scales", ins, outs).astype(np.float32).T
  if stored.only == "zero":
    found = zero(ins) - half
    if found.max(initial=0) > 127:
      name, tensor = stored.parts["qzeros"]
      raise WeightsError(f"{tensor.file}: tensor {name} has a zero of 256, of 8 bits at most 255")
    return found.astype(np.int8).T
  every = slice(0, stored.groups)
  group = _group_of(stored, part, ins)
  scale = part("scales", every, outs).astype(np.float32)[group]
  return ((code() - zero(every)[group]) * scale).T


def _group_of(stored: Coded, part: Callable, ins: slice) -> np.ndarray:
  """The group of each input."""
  if "g_idx" not in stored.parts:
    return _neighbours(stored)[ins]
  found = part("g_idx", ins)
  if found.size and not 0 <= found.min() <= found.max() < stored.groups:
    name, tensor = stored.parts["g_idx"]
    raise WeightsError(f"{tensor.file}: tensor {name} must name groups in 0..{stored.groups - 1}")
  return found


def _neighbours(stored: Coded) -> np.ndarray:
  """The group of each input where they are groups of neighbours."""
  inputs = stored.shape[1]
  return np.arange(inputs) // (stored.how.group if stored.how.group > 0 else inputs)


def _covering(span: slice, size: int) -> slice:
  """Of pieces of a size those that the span touches."""
  return slice(span.start // size, -(-span.stop // size))


def _cut(whole: np.ndarray, span: slice, size: int, axis: int) -> np.ndarray:
  """The span out of what begins with the first piece that it touches."""
  first = span.start // size * size
  index = [slice(None)] * whole.ndim
  index[axis] = slice(span.start - first, span.stop - first)
  return whole[tuple(index)]
