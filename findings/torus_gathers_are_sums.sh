#!/bin/sh
# libtpu: on a whole three-dimensional torus an all-gather is compiled as an all-reduce.
#
# Guess: jax.lax.all_gather over 64 chips becomes HLO's all-gather, in which each chip receives 63/64
#   of the array once. With fully sharded parameters (FSDP) a step's traffic is planned by that rule.
# Seen (jax 0.10.2, libtpu 0.0.42.1, compiled ahead of time, no TPU): for v5p:4x4x4 the program holds
#   an all-reduce of the whole array and no all-gather: twice the bytes, and nothing beside it. Over 16
#   of the chips it is an all-gather. Three compiler options together bring it back on 64; two, that
#   one would guess by their names, do not.
# It matters to all who train over a pod's whole slice on one axis: read the compiled collectives.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile jax==0.10.2 libtpu==0.0.42.1

JAX_PLATFORMS=cpu ALLOW_MULTIPLE_LIBTPU_LOAD=1 TPU_SKIP_MDS_QUERY=1 \
  "$folder/venv/bin/python" -W ignore - 2>/dev/null <<'PYTHON'
import re
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

print("jax", version("jax"), "libtpu", version("libtpu"))
CHIPS = topologies.get_topology_desc(platform="tpu", topology_name="v5p:4x4x4").devices
CHIPS = sorted(CHIPS, key=lambda chip: chip.coords)
SPLIT = PartitionSpec("fsdp")
NAMED = {
  "xla_enable_async_all_gather": True,
  "xla_tpu_prefer_async_allgather_to_allreduce": True,
}
FUSED = NAMED | {"xla_tpu_enable_async_collective_fusion_fuse_all_gather": True}
CASES = (
  (16, "no", None, "all-gather"),
  (64, "no", None, "all-reduce"),
  (64, "two", NAMED, "all-reduce"),
  (64, "three", FUSED, "all-gather"),
)


def layer(kernel, x):
  whole = jax.lax.all_gather(kernel, "fsdp", axis=0, tiled=True)
  return jnp.einsum("bwd,df->bwf", x, whole)


def collectives(count, options):
  mesh = Mesh(np.array(CHIPS[:count]), ("fsdp",))
  place = NamedSharding(mesh, SPLIT)
  kernel = jax.ShapeDtypeStruct((4096, 1024), jnp.bfloat16, sharding=place)
  x = jax.ShapeDtypeStruct((count, 512, 4096), jnp.bfloat16, sharding=place)
  split = jax.shard_map(layer, mesh=mesh, in_specs=(SPLIT, SPLIT), out_specs=SPLIT)
  traced = jax.jit(split, compiler_options=options).trace(kernel, x)
  text = traced.lower(lowering_platforms=("tpu",)).compile().as_text()
  return sorted(set(re.findall(r" (all-gather|all-reduce)(?:-start)?\(", text)))


for count, name, options, seen in CASES:
  found = collectives(count, options)
  print(f"{count} chips, {name} options: expected ['all-gather'], seen {found}")
  assert found == [seen], f"{count} chips, {name} options: the compiler has changed"
print("as found")
PYTHON
