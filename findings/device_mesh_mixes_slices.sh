#!/bin/sh
# jax: mesh_utils.create_device_mesh takes the TPUs of two slices, and lays them out alternately.
#
# Guess: mesh_utils.create_device_mesh either refuses devices of several slices, as jax.make_mesh
#   does, or keeps the chips of a slice together, as their order in the list does.
# Seen (jax 0.10.2, libtpu 0.0.42.1, two slices of v5e:2x2 described ahead of time, no TPU): it warns
#   of nothing, and along the one axis slices follow each other as 0 1 0 1 1 0 1 0. It sorts by
#   coordinates, and each slice has the same ones. Of 7 neighbours 6 are in different slices, so a
#   ring over this axis leaves its slice at nearly every step, for the slower network. With
#   create_hybrid_device_mesh it is 1 of 7; that function in turn refuses devices of a single slice,
#   which have no attribute `slice_index`.
# It matters to all who build a mesh by hand: the mesh is valid and the results are right, only slow.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile jax==0.10.2 libtpu==0.0.42.1

JAX_PLATFORMS=cpu ALLOW_MULTIPLE_LIBTPU_LOAD=1 TPU_SKIP_MDS_QUERY=1 \
  "$folder/venv/bin/python" -W ignore - 2>/dev/null <<'PYTHON'
from importlib.metadata import version

import jax
from jax.experimental import mesh_utils, topologies

print("jax", version("jax"), "libtpu", version("libtpu"))
described = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2", num_slices=2)
chips = described.devices
assert [chip.slice_index for chip in chips] == [0] * 4 + [1] * 4


def crossings(mesh):
  slices = [chip.slice_index for chip in mesh]
  print("  slices along the axis:", *slices)
  return sum(a != b for a, b in zip(slices, slices[1:]))


try:
  jax.make_mesh((8,), ("data",), devices=chips)
  raise SystemExit("CHANGED: make_mesh takes two slices")
except ValueError as error:
  print("make_mesh:", error)

print("create_device_mesh, expected 1 step between slices or an error:")
plain = crossings(mesh_utils.create_device_mesh((8,), chips))
print("create_hybrid_device_mesh:")
hybrid = crossings(mesh_utils.create_hybrid_device_mesh((4,), (2,), chips))
print(f"neighbours in different slices: {plain} of 7 and {hybrid} of 7")
if (plain, hybrid) != (6, 1):
  raise SystemExit("CHANGED: slices are laid out otherwise")

one = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
try:
  mesh_utils.create_hybrid_device_mesh((4,), (1,), one)
  raise SystemExit("CHANGED: create_hybrid_device_mesh takes one slice")
except ValueError as error:
  print("create_hybrid_device_mesh of one slice:", error)
PYTHON
echo "as found"
