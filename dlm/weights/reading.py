"""Tensors of a directory or a GGUF file -> sharded parameters, piece by piece.

A parameter is assembled on its devices, each from the pieces of files that its shard needs: the
host holds a few pieces of CHUNK bytes at a time, however large a tensor or a stack of layers is.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dlm.checksums import not_finite
from dlm.models import quantised
from dlm.models.bind import bind
from dlm.models.config import DTYPES, ModelConfig
from dlm.types import Array, Params
from dlm.weights import codes, files, gguf, names
from dlm.weights.adapt import TABLES
from dlm.weights.configs import Source
from dlm.weights.families import FAMILIES, Family
from dlm.weights.files import Stored, WeightsError, listed

CHUNK = 2 * 2**20  # bytes of a piece
BLOCK = 16  # rows transposed at a time: more would not stay in a CPU's nearest cache
FLOATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}

# Ends of the tensors of quantised models: GPTQ and AWQ, FP8, compressed-tensors, bitsandbytes.
QUANTISED = (
  ".qweight", ".qzeros", ".g_idx", ".weight_scale", ".weight_scale_inv", ".input_scale",
  ".weight_packed", ".absmax", ".quant_map", ".SCB",
)  # fmt: skip

# A router's bias is adjusted in steps that bfloat16 would lose.
FLOAT32_ONLY = "router/bias"

Box = tuple[tuple[int, int], ...]  # start and stop on every axis


def load(
  source: Source,
  *,
  shardings: Any = None,
  dtype: str | None = None,
  progress: Callable[[int, int], None] | None = None,
  spare: int = 0,
  kept: quantised.Kept | None = None,
) -> Params:
  """The parameters of a directory or a GGUF file.

  Args:
    shardings: tree of shardings like the parameters; None: all on the first local device.
    dtype: "float32" or "bfloat16"; None: as stored, where quantised as float32. Router biases
      are always float32.
    progress: is told bytes read and all bytes, of the numbers, after each parameter.
    spare: rows of zeros behind those that are stored, in the embedding and an untied head.
    kept: what is kept of a parameter, by its path, as soon as it is read (`models.quantised`);
      stored codes of that format stay as they are.

  Raises:
    WeightsError: a file is missing or damaged, a number is not finite, or the tensors are not those
      of the family; the message lists names and shapes, - those expected and + those found.
  """
  if dtype is not None and dtype not in DTYPES:
    raise ValueError(f"dtype={dtype!r} must be one of {', '.join(DTYPES)}, or None for as stored")
  family = FAMILIES[source.family]
  tree = nn.unbox(bind(source.model).abstract())
  shapes = {path: leaf.shape for path, leaf in names.paths(tree).items()}
  file = source.file
  stored = files.tensors(source.directory) if file is None else file.tensors
  if source.quantised is not None:
    stored = codes.as_weights(stored, source.quantised)
  parts = _parts(family, source.model, shapes, stored, source)
  for path in set(TABLES) & shapes.keys():
    rows, width = shapes[path]
    shapes[path] = rows + spare, width
  if shardings is None:
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shardings = jax.tree.map(lambda _: here, tree)
  where = names.paths(shardings)

  total, done, leaves = sum(map(files.nbytes, stored.values())), 0, {}
  with codes.Reader() if file is None else gguf.Reader(file.path) as reader:
    for path in shapes:
      kinds = {FLOATS[stored[part.name].dtype] for part in parts[path]}
      own = dtype or functools.reduce(jnp.promote_types, kinds)
      own = jnp.dtype("float32" if path.endswith(FLOAT32_ONLY) else own)
      if kept is not None and kept.codes(tuple(path.split("/"))):
        read = functools.partial(_kept, reader, stored, kept=kept, dtype=own, source=source)
        leaves[path] = _layers(read, parts[path], kept, shapes[path], where[path])
      else:
        read = functools.partial(_shard, reader, stored, parts[path], own)
        leaves[path] = _assemble(read, shapes[path], where[path])
      if progress is not None:
        done += sum(_nbytes(part, stored) for part in parts[path])
        progress(done, total)
  _check_finite(leaves, source)
  return jax.tree.unflatten(jax.tree.structure(tree), leaves.values())


def _check_finite(leaves: Params, source: Source) -> None:
  if leaf := not_finite(leaves):
    raise WeightsError(f"{source.directory}: parameter {leaf} is not finite")


# ---------------------------------------------------------------------------------------------
# Before any data is read


def _parts(
  family: Family,
  model: ModelConfig,
  shapes: Mapping[str, tuple[int, ...]],
  stored: Mapping[str, Stored],
  source: Source,
) -> dict[str, list[names.TensorPart]]:
  """The parts of each parameter. WeightsError where they are not what is stored, exactly."""
  _refuse_quantised(stored, source)
  most = names.count(family.table, shapes)
  if most > 2 * len(stored) + 10_000:  # the list of what is missing would not fit into memory
    raise WeightsError(
      f"{source.directory}: config.json describes {most} tensors, the files hold {len(stored)}"
    )
  parts: dict[str, list[names.TensorPart]] = {path: [] for path in shapes}
  expected: dict[str, tuple[int, ...]] = {}
  for part in names.parts(family.table, shapes, model):
    parts[part.path].append(part)
    expected[part.name] = part.stored

  head, _ = family.table.get("unembed", ("", ""))
  # Stored by some writers, read by nobody.
  unread = {
    name
    for name in stored
    if name.endswith(family.unread)
    or name.startswith(family.unread_below)
    or (model.tied and name == head)
  } | codes.nought_biases(stored.keys() - expected, stored)
  wrong = []
  for name in sorted(expected.keys() | stored.keys() - unread):
    want, found = expected.get(name), stored.get(name)
    if found is None or want != found.shape:
      wrong += [f"- {name} {list(want)}"] if want is not None else []
      wrong += [f"+ {name} {list(found.shape)}"] if found is not None else []
    elif found.dtype not in FLOATS:
      wrong.append(f"+ {name} {list(found.shape)} of dtype {found.dtype}, not {'/'.join(FLOATS)}")
  if wrong:
    raise WeightsError(
      f"{source.directory}: not the tensors of a {source.family} model with this config.json "
      f"(- expected, + found):\n{listed(wrong)}"
    )
  return parts


def _refuse_quantised(stored: Mapping[str, Stored], source: Source) -> None:
  for name, tensor in stored.items():
    if name.endswith(QUANTISED) or tensor.dtype.startswith("F8_"):
      raise WeightsError(
        f"{source.directory} is quantised: tensor {name} of dtype {tensor.dtype}; {_why(source)}"
      )


def _why(source: Source) -> str:
  """Why a quantised tensor is not read."""
  if source.quantised is None:
    known = ", ".join(codes.KNOWN)
    return f"config.json has no {codes.CONFIG} that says how (known: {known})"
  return f"{codes.CONFIG} of method {source.quantised.method} does not account for it"


def _nbytes(part: names.TensorPart, stored: Mapping[str, Stored]) -> int:
  return math.prod(part.layout.stored) * files.BYTES[stored[part.name].dtype]


# ---------------------------------------------------------------------------------------------
# One parameter


def _layers(
  read: Callable[[list[names.TensorPart], tuple[int, ...], jax.sharding.Sharding], Any],
  parts: list[names.TensorPart],
  kept: quantised.Kept,
  shape: tuple[int, ...],
  sharding: jax.sharding.Sharding,
) -> quantised.Codes:
  """A stack of kernels as codes, layer by layer: the numbers of more are never there at once."""
  path = tuple(parts[0].path.split("/"))
  shapes = jax.eval_shape(functools.partial(kept, path), jax.ShapeDtypeStruct(shape, jnp.float32))
  stack = _empty(shapes, quantised.of_codes(path, shapes, sharding))
  for layer in range(shape[0]):
    own = [dataclasses.replace(part, at=(0, *part.at[1:])) for part in parts if part.at[0] == layer]
    stack = _with_layer(stack, read(own, (1, *shape[1:]), sharding), layer)
  return stack


def _empty(shapes: quantised.Codes, shardings: quantised.Codes) -> quantised.Codes:
  make = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)  # noqa: E731
  return jax.jit(make, out_shardings=shardings)()


@functools.partial(jax.jit, donate_argnums=0)
def _with_layer(stack: quantised.Codes, own: quantised.Codes, layer: Array) -> quantised.Codes:
  put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=layer, axis=0)
  return jax.tree.map(put, stack, own)


def _kept(
  reader: files.Reader | gguf.Reader,
  stored: Mapping[str, Stored],
  parts: list[names.TensorPart],
  shape: tuple[int, ...],
  sharding: jax.sharding.Sharding,
  *,
  kept: quantised.Kept,
  dtype: jnp.dtype,
  source: Source,
) -> quantised.Codes:
  """What is kept of kernels: the codes that are stored, where they are of the format."""
  if isinstance(reader, codes.Reader) and all(
    reader.has(stored[part.name], kept.format) for part in parts
  ):
    return _codes(reader, stored, parts, kept, shape, sharding)
  numbers = _assemble(functools.partial(_shard, reader, stored, parts, dtype), shape, sharding)
  _check_finite({parts[0].path: numbers}, source)
  return kept(tuple(parts[0].path.split("/")), numbers)


def _codes(
  reader: codes.Reader,
  stored: Mapping[str, Stored],
  parts: list[names.TensorPart],
  kept: quantised.Kept,
  shape: tuple[int, ...],
  sharding: jax.sharding.Sharding,
) -> quantised.Codes:
  """A parameter as the codes that are stored."""
  path = tuple(parts[0].path.split("/"))
  made = jax.eval_shape(functools.partial(kept, path), jax.ShapeDtypeStruct(shape, jnp.float32))
  where, arrays = quantised.of_codes(path, made, sharding), {}
  stack = len(parts[0].at)
  outs = shape[len(shape) - len(parts[0].layout.groups[0]) :]
  for name in ("code", "scale", "zero"):
    views = {part.name: stored[part.name].of(name) for part in parts}
    inputs = views[parts[0].name].shape[1]
    cut = [
      dataclasses.replace(
        part, layout=dataclasses.replace(part.layout, groups=(part.layout.groups[0], (inputs,)))
      )
      for part in parts
    ]
    dtype = jnp.dtype("float32" if name == "scale" else "int8")
    read = functools.partial(_shard, reader, views, cut, dtype)
    own = {"code": where.codes, "scale": where.scale, "zero": where.zero}[name]
    arrays[name] = _assemble(read, (*shape[:stack], inputs, *outs), own)
  return kept.of_codes(path, arrays["code"], arrays["scale"], arrays["zero"], where.codes)


def _assemble(
  read: Callable[[Box, jax.Device], Array], shape: tuple[int, ...], sharding: jax.sharding.Sharding
) -> Array:
  """A global array of which every local device holds its shard; equal shards are read once."""
  shards: dict[Box, Array] = {}
  arrays = []
  for device, index in sharding.addressable_devices_indices_map(shape).items():
    box = tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
    if box not in shards:
      shards[box] = read(box, device)
    arrays.append(jax.device_put(shards[box], device))
  return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _shard(
  reader: files.Reader | gguf.Reader,
  stored: Mapping[str, Stored],
  parts: list[names.TensorPart],
  dtype: jnp.dtype,
  box: Box,
  device: jax.Device,
) -> Array:
  """What `box` cuts out of a parameter, on `device`."""
  shape = tuple(stop - start for start, stop in box)
  pieces = _read(reader, stored, parts, box)
  # A shard of one piece or less is put together on the host, where no shape has to be compiled.
  if math.prod(shape) * dtype.itemsize <= CHUNK:
    whole = _on_host(pieces, shape, dtype)
    return jax.device_put(whole, jax.sharding.SingleDeviceSharding(device))
  return _on_device(pieces, shape, dtype, device)


class Piece(NamedTuple):
  """Of a stored tensor, and where in a shard it goes."""

  stored: np.ndarray
  start: tuple[int, ...]
  sizes: tuple[int, ...]  # of the shard's last axes
  flip: bool


def _read(
  reader: files.Reader | gguf.Reader,
  stored: Mapping[str, Stored],
  parts: list[names.TensorPart],
  box: Box,
) -> Iterator[Piece]:
  stack = len(parts[0].at)
  for part in parts:
    above = [at - start for at, (start, _) in zip(part.at, box, strict=False)]
    if not all(0 <= at < stop - start for at, (start, stop) in zip(above, box, strict=False)):
      continue
    tensor = stored[part.name]
    for cut, start in _pieces(part, _stored(part, box[stack:]), files.BYTES[tensor.dtype]):
      where = _where(part, cut)
      if part.experts:
        where = (slice(part.at[-1], part.at[-1] + 1), *where)
      piece = reader.read(part.name, tensor, where)
      piece = piece[0] if part.experts else piece
      sizes = tuple(stop - start for start, stop in cut)
      yield Piece(piece, (*above, *start), sizes, part.layout.flip)


def _on_host(pieces: Iterator[Piece], shape: tuple[int, ...], dtype: jnp.dtype) -> np.ndarray:
  whole = np.zeros(shape, dtype)
  for piece, start, sizes, flip in pieces:
    sides = (1,) * (len(shape) - len(sizes)) + sizes
    where = tuple(slice(at, at + side) for at, side in zip(start, sides, strict=True))
    piece = np.asarray(piece).astype(dtype)
    whole[where] = (piece.T if flip else piece).reshape(sides)
  return whole


def _on_device(
  pieces: Iterator[Piece], shape: tuple[int, ...], dtype: jnp.dtype, device: jax.Device
) -> Array:
  here = jax.sharding.SingleDeviceSharding(device)
  # XLA's CPU backend rewrites all of a bfloat16 array to change a part of it: there, whole numbers.
  words = jnp.dtype("uint16") if device.platform == "cpu" and dtype == jnp.bfloat16 else dtype
  buffer = jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=here)(shape, words)
  for piece, start, sizes, flip in pieces:
    piece, start = jax.device_put((piece, np.array(start, np.int32)), device)
    jax.block_until_ready(buffer)  # the device works on one piece while the host reads the next
    buffer = _put(buffer, piece, start, dtype, sizes, flip)
  jax.block_until_ready(buffer)
  if words == dtype:
    return buffer
  return jax.device_put(np.asarray(buffer).view(dtype), here, may_alias=True)  # the same memory


def _stored(part: names.TensorPart, inner: Box) -> Box:
  """Of a box on our axes what is stored: spare rows are not."""
  groups = part.layout.groups[::-1] if part.layout.flip else part.layout.groups
  sizes = itertools.chain(*groups)
  return tuple((min(a, n), min(b, n)) for (a, b), n in zip(inner, sizes, strict=True))


def _pieces(part: names.TensorPart, inner: Box, itemsize: int) -> Iterator[tuple[Box, list[int]]]:
  """Cuts `inner`, on our axes, into stored rows of about CHUNK bytes; and where each piece begins.

  Of axes that are stored as one only the first is cut.
  """
  layout = part.layout
  axis = len(inner) - len(layout.groups[0]) if layout.flip else 0
  first, last = inner[axis]
  rows = math.prod(layout.groups[0][1:])
  row_bytes = itemsize * math.prod(b - a for a, b in inner) // max((last - first) * rows, 1)
  pieces = -(-(last - first) * rows * row_bytes // CHUNK)
  aligned = BLOCK // math.gcd(rows, BLOCK)
  step = -(-(last - first) // (max(pieces, 1) * aligned)) * aligned  # equal pieces compile once
  for at in range(first, last, step):
    span = at, min(at + step, last)
    cut = (*inner[:axis], span, *inner[axis + 1 :])
    yield cut, [got - start for (got, _), (start, _) in zip(cut, inner, strict=True)]


def _where(part: names.TensorPart, cut: Box) -> tuple[slice, ...]:
  """A box on our axes as slices of the stored tensor."""
  sizes, groups = iter(cut), part.layout.groups
  where = []
  for group in reversed(groups) if part.layout.flip else groups:
    (start, stop), *rest = [next(sizes) for _ in group]
    if any(span != (0, size) for span, size in zip(rest, group[1:], strict=True)):
      raise ValueError(
        f"{part.path}: of the axes {group}, stored as one, only the first is sharded"
      )
    rows, offset = math.prod(group[1:]), part.row if group is groups[0] else 0
    where.append(slice(offset + start * rows, offset + stop * rows))
  return tuple(reversed(where) if part.layout.flip else where)


@functools.partial(jax.jit, static_argnums=(3, 4, 5), donate_argnums=0)
def _put(
  buffer: Array,
  piece: Array,
  start: Array,
  dtype: jnp.dtype,
  sizes: tuple[int, ...],
  flip: bool,
) -> Array:
  """Writes a stored piece into a shard of `dtype`, in place: at `start`, of `sizes` there."""
  piece = jax.lax.bitcast_convert_type(piece.astype(dtype), buffer.dtype)
  piece = (_transposed(piece) if flip else piece).reshape(sizes)
  piece = jnp.expand_dims(piece, range(buffer.ndim - piece.ndim))
  return jax.lax.dynamic_update_slice(buffer, piece, tuple(start))


def _transposed(x: Array) -> Array:
  """The transpose, BLOCK rows at a time: on CPUs three times as fast as all at once."""
  block = BLOCK if x.shape[0] % BLOCK == 0 else x.shape[0]

  def put(index: Array, out: Array) -> Array:
    rows = jax.lax.dynamic_slice_in_dim(x, index * block, block)
    return jax.lax.dynamic_update_slice_in_dim(out, rows.T, index * block, axis=1)

  return jax.lax.fori_loop(0, x.shape[0] // block, put, jnp.zeros(x.shape[::-1], x.dtype))
