"""Compiles for TPUs and GPUs that this machine does not have: no speeds, but everything else.

Most kernels that lower do not compile, because of a layout, a data type, or scratch memory that
does not fit. XLA's compilers for accelerators are packages that need none of the hardware: libtpu,
and jax-cuda13-pjrt with jax-cuda13-plugin. `make aot` puts them into `.aot/`, beside the
environment and not into it, since jax would try to use them.
"""

import functools
import importlib.util
import math
import os
import re
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# Devices: the platform that their compiler is for, and the topologies it is asked for by count.
TOPOLOGIES: dict[str, tuple[str, dict[int, str]]] = {
  "v5e": ("tpu", {4: "v5e:2x2", 16: "v5e:4x4"}),
  "v5p": ("tpu", {4: "v5p:2x2x1"}),
  "v6e": ("tpu", {4: "v6e:2x2", 16: "v6e:4x4"}),
  "h100": ("cuda", {1: "1x1x1", 8: "1x8x1"}),
}

# libtpu locks a file against a second process, and asks a server that only TPU machines have.
_ALONE = {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1"}

# What the CUDA compiler asks of a device, from NVIDIA's data sheet and occupancy tables.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_memory_size: 84978434048
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def tpus(topology: str) -> list[jax.Device]:
  """TPUs that are not here, as "v5p:4x4x4": the chip, and how many of them lie along each axis.

  "2xv5p:4x4x4" are two such slices, which the network of a data center joins.

  Raises:
    ValueError: no such topology.
    ModuleNotFoundError: the compiler is not on the path; the message says how to get it.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise ModuleNotFoundError(
      "no compiler for TPUs: `make aot` installs it; then .aot/*/tpu belongs on PYTHONPATH"
    )
  os.environ.update(_ALONE | os.environ)
  slices, name = sliced(topology)
  shape = {"topology_name": name.replace("v7x:", "tpu7x:"), "num_slices": slices}
  try:
    return topologies.get_topology_desc(platform="tpu", **shape).devices
  except Exception as error:
    raise ValueError(f"{topology=} is none that libtpu knows: {error}") from error


def sliced(topology: str) -> tuple[int, str]:
  """How many slices of what: of "2xv5p:4x4x4" 2 of "v5p:4x4x4"."""
  found = re.match(r"(\d+)x(?=v)", topology)
  return (int(found[1]), topology[found.end() :]) if found else (1, topology)


@functools.cache
def mesh(device: str, sizes: tuple[int, ...] = (1,), names: tuple[str, ...] = ("data",)) -> Mesh:
  """A mesh of devices that are not here, for shardings of the shapes that `compile_for` is given.

  Raises:
    ValueError: an unknown device, or a mesh larger than the topologies that are known.
    RuntimeError: its compiler is not on the path; the message says how to get it.
  """
  if device not in TOPOLOGIES:
    raise ValueError(f"{device=} is not one of {', '.join(TOPOLOGIES)}")
  platform, known = TOPOLOGIES[device]
  count = math.prod(sizes)
  fitting = [topology for size, topology in known.items() if size >= count]
  if not fitting:
    raise ValueError(f"{sizes=} make {count} devices; at most {max(known)} of {device} are known")
  shape = {"topology_name": fitting[0]}
  if platform == "cuda":
    shape = {"target_config": _H100, "topology": fitting[0]}
  os.environ.update(_ALONE | os.environ)
  try:
    found = topologies.get_topology_desc(platform=platform, **shape)
  except Exception as error:  # each plugin fails in its own way
    raise RuntimeError(
      f"no compiler for {device}: {error}. `make aot` installs it into .aot/, which then belongs "
      f"on PYTHONPATH: .aot/tpu:.aot/cuda"
    ) from error
  types = (AxisType.Auto,) * len(names)
  return jax.make_mesh(sizes, names, axis_types=types, devices=found.devices[:count])


def compile_for(mesh: Mesh, fn: Callable, *shapes: Any, **jit: Any) -> jax.stages.Compiled:
  """Compiles `fn` for the mesh's devices. Leaves without a sharding are whole on all of them.

  Args:
    shapes: trees of `jax.ShapeDtypeStruct` (or arrays) in place of the arguments.
    jit: further arguments of `jax.jit`.
  """
  whole = NamedSharding(mesh, PartitionSpec())

  def place(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    on_mesh = isinstance(sharding, NamedSharding) and sharding.mesh == mesh
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.format if on_mesh else whole)

  platform = mesh.devices.flat[0].platform
  platform = "cuda" if platform == "gpu" else platform
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    traced = jax.jit(fn, **jit).trace(*jax.tree.map(place, shapes))
    return traced.lower(lowering_platforms=(platform,)).compile()
