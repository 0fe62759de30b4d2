"""A checkpoint lands on any mesh as on one device, and leaves it again."""

import jax
import pytest

from dlm import parallel, weights
from dlm.models import bind
from tests.dlm.weights import small


@pytest.mark.parametrize(
  ("family", "mesh"),
  [
    ("qwen2", {"data": 8}),
    ("qwen2", {"fsdp": 4, "tensor": 2}),
    ("llada2_moe", {"expert": 4, "fsdp": 2}),
  ],
)
def test_every_shard_holds_its_part(family, mesh, tmp_path):
  params = small.write(tmp_path / "out", family)
  source = weights.open_source(tmp_path / "out")
  mesh = parallel.make_mesh(**{"data": 1, **mesh})
  shardings = parallel.shard_params(bind(source.model).abstract(), mesh)
  loaded = weights.load(source, shardings=shardings)
  small.same_bits(loaded, params)
  assert loaded["embed"].sharding == shardings["embed"]
  kernel = loaded["layers"]["attention"]["query"]["kernel"]
  parts = mesh.shape["fsdp"] * mesh.shape["tensor"]
  assert kernel.addressable_shards[0].data.size == kernel.size // parts
  weights.export(tmp_path / "again", family, source.model, loaded, facts=source.facts)
  again = tmp_path / "again" / "model.safetensors"
  assert again.read_bytes() == (tmp_path / "out" / "model.safetensors").read_bytes()


def test_an_axis_that_is_stored_inside_another_is_not_sharded(tmp_path):
  params = small.write(tmp_path / "out", "qwen2")
  source = weights.open_source(tmp_path / "out")
  mesh = parallel.make_mesh()
  spec = jax.sharding.PartitionSpec(None, None, None, "data")
  shardings = jax.tree.map(lambda _: jax.sharding.NamedSharding(mesh, jax.P()), params)
  shardings["layers"]["attention"]["query"]["kernel"] = jax.sharding.NamedSharding(mesh, spec)
  with pytest.raises(ValueError, match=r"query/kernel: of the axes \(4, 8\), stored as one"):
    weights.load(source, shardings=shardings)
