"""One program on many devices: the mesh, the names of axes, and functions that run shard by shard.

Parameters are split by the names that `dlm.models` gives their axes, and XLA inserts the
communication, except where it does badly: `kernels_pallas.shards` splits kernels, and
`dlm.models.moe.exchange` experts, by the mesh that `over_batch` makes known. On a mesh of "data"
alone the batch is split by hand: sampling loops then stop shard by shard, and gradients are summed
once.
Beside other axes the batch is left to XLA too: devices that share a parameter must stop together
anyway, and a lookup in a table split over automatic axes inside a region that is manual over "data"
aborts XLA (jax 0.10.2, 0.11.2). "sequence" splits the positions of a row, for rows too long for one
device: queries stay where they are and keys are gathered (`block_attention.sequence`).

Slices of TPUs, or hosts, that a slower network joins split rows alone: each holds all parameters,
and "data" runs over all of them (`dcn`). XLA sums gradients within a slice first: each of its
devices then exchanges its part of them with the other slices.
"""

import dataclasses
import itertools
import json
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor", "expert", "sequence")

RULES: dict[str, str | tuple[str, ...] | None] = {
  "batch": ("data", "fsdp", "expert"),
  "embed": ("fsdp", "sequence"),  # devices that share a row need not hold the same parameters
  "heads": "tensor",
  "kv_heads": "tensor",
  "mlp": "tensor",
  "vocab": "tensor",
  "expert": "expert",
  "layers": None,
  "head_dim": None,
}

Driver = Literal["shard_map", "pmap"]

# XLA's options for TPUs: parameters are gathered and gradients summed beside products, in parts. By
# default nothing hides them, and a gather over a whole three-dimensional torus becomes an
# all-reduce, of twice the bytes.
OVERLAP = {
  "xla_enable_async_all_gather": True,
  "xla_enable_async_all_reduce": True,
  "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
  "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": True,
  "xla_tpu_prefer_async_allgather_to_allreduce": True,
}
# Without this one where tokens choose their experts: libtpu 0.0.42.1 refuses products of ragged
# groups beside such a gather by an internal error ("iteration-smem-mask-address-key").
BUT_RAGGED = "xla_tpu_enable_async_collective_fusion_fuse_all_gather"

T = TypeVar("T")


def make_mesh(
  data: int = -1,
  fsdp: int = 1,
  tensor: int = 1,
  expert: int = 1,
  sequence: int = 1,
  dcn: int = 1,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """Mesh over `devices` (None: all); one size may be -1 and takes what the others leave.

  Of `dcn` slices (-1: as many as devices tell of) each gets a mesh of these sizes; they follow each
  other along "data".
  """
  slices = _slices(jax.devices() if devices is None else devices, dcn)
  sizes = dict(zip(AXES, (data, fsdp, tensor, expert, sequence), strict=True))
  count = len(slices[0])
  known = 1
  for size in sizes.values():
    known *= size if size > 0 else 1
  free = [name for name, size in sizes.items() if size == -1]
  if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
    raise ValueError(f"mesh sizes {sizes} must be positive, but one may be -1: what is left")
  if count % known or (not free and known != count):
    of = "" if len(slices) == 1 else f" of each of {len(slices)} slices"
    raise ValueError(f"mesh sizes {sizes} must multiply to the number of devices{of}, {count}")
  if free:
    sizes[free[0]] = count // known
  shape = tuple(sizes.values())
  # Several axes of the mesh may share an axis of a torus of TPUs, if it does not go otherwise.
  meshes = [
    mesh_utils.create_device_mesh(shape, each, allow_split_physical_axes=True) for each in slices
  ]
  return Mesh(np.concatenate(meshes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slices(devices: Sequence[jax.Device], count: int) -> list[Sequence[jax.Device]]:
  """The devices of each slice; those of processes, where devices tell of one slice alone."""
  told = len({getattr(each, "slice_index", 0) for each in devices})
  count = told if count == -1 else count
  if count != told and (devices[0].platform == "tpu" or 1 not in (count, told)):
    raise ValueError(f"mesh.dcn={count} must be the number of slices, {told}")
  if count == 1:
    return [devices]
  name = "slice_index" if told > 1 else "process_index"
  parts = len({getattr(each, name) for each in devices})
  if count < 1 or parts % count:
    raise ValueError(f"mesh.dcn={count} must divide the number of processes, {parts}")
  ordered = sorted(devices, key=operator.attrgetter(name))
  size = len(ordered) // count
  return [ordered[start : start + size] for start in range(0, len(ordered), size)]


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """The `mesh` table of a config: devices along each axis; -1: what the others leave.

  `dcn`: slices of such a mesh each, joined by a slower network; -1: as many as devices tell of.
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1
  expert: int = 1
  sequence: int = 1
  dcn: int = 1

  def make(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices`; None: over all there are."""
    return make_mesh(**dataclasses.asdict(self), devices=devices)


def shard_params(abstract_boxed_params: Any, mesh: Mesh) -> Any:
  """Shardings for `Model.abstract()`, leaf by leaf, for `jax.jit(init, out_shardings=...)`.

  ValueError where an axis of a parameter does not divide by the mesh axes it is split over.
  """
  specs = nn.get_partition_spec(abstract_boxed_params)
  shardings = nn.logical_to_mesh_sharding(specs, mesh, list(RULES.items()))

  def check(path, leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> None:
    try:
      sharding.shard_shape(leaf.shape)
    except ValueError as error:
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      raise ValueError(
        f"parameter {name} of shape {leaf.shape} does not divide over {sharding.spec} "
        f"of mesh {dict(mesh.shape)}"
      ) from error

  jax.tree_util.tree_map_with_path(check, nn.unbox(abstract_boxed_params), shardings)
  return shardings


def batch_shards(mesh: Mesh) -> int:
  """Into how many parts the rows of a batch are split."""
  return math.prod(mesh.shape[axis] for axis in RULES["batch"])


def batch_spec(axis: int = 0) -> PartitionSpec:
  """Rows on this axis, split over all devices that hold different data."""
  return PartitionSpec(*[None] * axis, RULES["batch"])


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows of a global batch, split over all devices that hold different data."""
  return NamedSharding(mesh, batch_spec())


def feeders(mesh: Mesh) -> tuple[int, int]:
  """(which, of how many) part of a batch's rows this process gives.

  Processes whose devices share rows, as those of one "sequence" or "tensor" axis, give the same.
  ValueError where some share a part of theirs, or some have more rows than others.
  """
  axes = [mesh.axis_names.index(axis) for axis in RULES["batch"]]
  devices = np.moveaxis(mesh.devices, axes, range(len(axes))).reshape(batch_shards(mesh), -1)
  process_SxN = np.vectorize(lambda device: device.process_index)(devices)
  own = {p: tuple(np.flatnonzero((process_SxN == p).any(1))) for p in np.unique(process_SxN)}
  parts = sorted(set(own.values()))
  if len(set(map(len, parts))) > 1 or sum(map(len, parts)) != len(process_SxN):
    raise ValueError(
      f"mesh {dict(mesh.shape)} shares the rows of a batch unevenly among {len(own)} processes"
    )
  return parts.index(own[jax.process_index()]), len(parts)


def splits_data_alone(mesh: Mesh) -> bool:
  """Whether every device holds all parameters."""
  return mesh.size == mesh.shape["data"]


def over_batch(
  fn: Callable[..., Any],
  mesh: Mesh,
  *,
  batched_in: tuple[bool, ...],
  batched_out: bool | tuple[bool, ...],
  driver: Driver = "shard_map",
) -> Callable[..., Any]:
  """Runs `fn` once per shard of "data" if the mesh is data alone; otherwise once, split by XLA.

  Under `jax.jit` both compute the same. Every leaf of an argument marked True leads with the batch
  axis; other arguments are whole on every shard. Outputs marked True are joined along the batch,
  the others must be equal on all shards (`sum_over_batch`); `batched_out` is a prefix of the
  output. ValueError: an unknown driver, pmap beside other axes, a batch that does not divide.
  """
  if driver not in get_args(Driver):
    raise ValueError(f"unknown driver {driver!r}; known: {', '.join(get_args(Driver))}")
  if driver == "pmap" and not splits_data_alone(mesh):
    raise ValueError(f"pmap splits the batch only, but the mesh is {dict(mesh.shape)}")
  if not _by_hand(mesh):
    return _within(fn, mesh)
  per_shard = _shard_map if driver == "shard_map" else _pmap
  run = per_shard(fn, mesh, batched_in, batched_out)
  shards = mesh.shape["data"]

  def checked(*args):
    for arg, batched in zip(args, batched_in, strict=True):
      for leaf in jax.tree.leaves(arg) if batched else []:
        if leaf.shape[0] % shards:
          raise ValueError(f"a batch of {leaf.shape[0]} rows must divide by data={shards}")
    return run(*args)

  return checked


def over_shards(fn: Callable[..., Any], mesh: Mesh, specs_in: Any, specs_out: Any) -> Callable:
  """As `over_batch` by shard_map, where rows are not the first axis of every leaf.

  `specs_in`, `specs_out`: a PartitionSpec for each leaf, or for a tree of them.
  """
  if not _by_hand(mesh):
    return _within(fn, mesh)
  # check_vma=True would sum the gradients of whole arguments by itself, and sum_over_batch again.
  return jax.shard_map(fn, mesh=mesh, in_specs=specs_in, out_specs=specs_out, check_vma=False)


def sum_over_batch(tree: Any, mesh: Mesh) -> Any:
  """Sum over the shards of `over_batch`; called inside its function."""
  return jax.lax.psum(tree, "data") if _by_hand(mesh) else tree


def sum_over_parts(fn: Callable[[Any], Any], batch: Any, parts: int) -> Any:
  """Sum of `fn` over `parts` equal parts of the rows; one part's activations exist at a time.

  Where leaves have several rows for one of the shortest leaf, they stay together.
  """
  if parts == 1:
    return fn(batch)
  rows = min(x.shape[0] for x in jax.tree.leaves(batch))

  def cut(x: jax.Array) -> jax.Array:
    # Part m takes rows m, m + parts, ...: each device keeps the rows it has.
    x = x.reshape(rows // parts, parts, x.shape[0] // rows, *x.shape[1:]).swapaxes(0, 1)
    return x.reshape(parts, -1, *x.shape[3:])

  batch = jax.tree.map(cut, batch)
  shapes = jax.eval_shape(fn, jax.tree.map(lambda x: x[0], batch))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

  def add(total: Any, part: Any) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, total, fn(part)), None

  return jax.lax.scan(add, zeros, batch)[0]


def share(items: Iterable[T]) -> Iterator[T]:
  """Of what all processes do together, this one's part: every n-th of n processes."""
  return itertools.islice(items, jax.process_index(), None, jax.process_count())


def joined(own: list[Any]) -> list[Any]:
  """JSON values that each process made of its `share`: all, in the order of the whole.

  Every process calls it, and gets the same.
  """
  if jax.process_count() == 1:
    return own
  text = np.frombuffer(json.dumps(own).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32([text.size])).ravel()
  padded = np.zeros(sizes.max(), np.uint8)
  padded[: text.size] = text
  every = multihost_utils.process_allgather(padded)
  parts = [json.loads(row[:size].tobytes()) for row, size in zip(every, sizes, strict=True)]
  return [parts[i % len(parts)][i // len(parts)] for i in range(sum(map(len, parts)))]


def put(tree: Any, sharding: NamedSharding) -> Any:
  """As `jax.device_put`, of arrays that every process has whole.

  `jax.device_put` itself compares them between processes first, and a NaN equals no NaN.
  """
  if jax.process_count() == 1:
    return jax.device_put(tree, sharding)

  def laid(x: Any) -> jax.Array:
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      return jax.random.wrap_key_data(laid(jax.random.key_data(x)))
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

  return jax.tree.map(laid, tree)


def to_host(tree: Any) -> Any:
  """Arrays, whole; those that lie over devices of several processes on each of these."""

  def whole(x: Any) -> Any:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      return multihost_utils.process_allgather(x, tiled=True)
    return jax.device_get(x)

  return jax.device_get(tree) if jax.process_count() == 1 else jax.tree.map(whole, tree)


def _within(fn: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
  """`fn` itself, which finds the mesh by `jax.sharding.get_abstract_mesh`."""

  def run(*args):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return fn(*args)

  return run if mesh.size > 1 else fn


def _by_hand(mesh: Mesh) -> bool:
  return 1 < mesh.shape["data"] == mesh.size


def _shard_map(fn, mesh, batched_in, batched_out):
  def spec(batched: bool) -> PartitionSpec:
    return PartitionSpec("data") if batched else PartitionSpec()

  return over_shards(fn, mesh, jax.tree.map(spec, batched_in), jax.tree.map(spec, batched_out))


def _pmap(fn, mesh, batched_in, batched_out):
  shards = mesh.shape["data"]

  def axis(batched: bool) -> int | None:
    return 0 if batched else None

  mapped = jax.pmap(
    fn,
    axis_name="data",
    in_axes=jax.tree.map(axis, batched_in),
    out_axes=jax.tree.map(axis, batched_out),
    devices=list(mesh.devices.flat),
  )

  def cut(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.reshape(shards, x.shape[0] // shards, *x.shape[1:]), tree)

  def join(batched: bool, tree: Any) -> Any:
    if not batched:
      return tree
    return jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), tree)

  def run(*args):
    args = [cut(arg) if batched else arg for arg, batched in zip(args, batched_in, strict=True)]
    return jax.tree.map(join, batched_out, mapped(*args))

  return run
