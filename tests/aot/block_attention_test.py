"""block_attention compiles at the shapes of models, decoding and training, in little memory.

Nothing is named: the kernels are what the devices take by themselves.
"""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from kernels_pallas import aot
from kernels_pallas.block_attention import Keys, Mask, Part, block_attention, prepare

MIB = 1 << 20
LAYERS = 2
WHOLE = P()  # on every device


def decode(mesh, batch, window, slots, heads, kv_heads, dim, dtype, split=(WHOLE, WHOLE)):
  """A layer of a decoding step: the window's own keys, and the layer's in a cache of two.

  `split`: of rows, and of rows and heads.
  """
  platform = mesh.devices.flat[0].platform  # GPU kernels must be named

  def step(mask, slot_BxW, slot_BxS, live_BxS, q, k, v, cache_k, cache_v, layer):
    keys = [Keys(slot_BxW), Keys(slot_BxS, live_BxS)]
    sight = prepare(mask, keys, heads=heads, kv_heads=kv_heads, implementation=platform)
    return block_attention(q, [Part(k, v), Part(cache_k, cache_v, layer)], sight)

  by_row, by_head = split
  cached = P(None, *by_head)
  shape = shapes_on(mesh)
  bound_BxWx1 = shape((batch, window, 1), jnp.int32, by_row)
  own = shape((batch, window, kv_heads, dim), dtype, by_head)
  cache = shape((LAYERS, batch, slots, kv_heads, dim), dtype, cached)
  return aot.compile_for(
    mesh,
    step,
    Mask(bound_BxWx1, bound_BxWx1),
    shape((batch, window), jnp.int32, by_row),
    shape((batch, slots), jnp.int32, by_row),
    shape((batch, slots), jnp.bool_, by_row),
    shape((batch, window, heads, dim), dtype, by_head),
    own,
    own,
    cache,
    cache,
    shape((), jnp.int32, WHOLE),
  )


def gradients(
  mesh, batch, length, heads, kv_heads, dim, dtype, ranges=1, segments=False, split=(WHOLE, WHOLE)
):
  """Of a layer of a training step, to queries, keys and values."""
  platform = mesh.devices.flat[0].platform

  def step(mask, slot_BxL, q, k, v):
    keys = [Keys(slot_BxL)]
    sight = prepare(mask, keys, heads=heads, kv_heads=kv_heads, implementation=platform)

    def total(q, k, v):
      return block_attention(q, [Part(k, v)], sight).astype(jnp.float32).sum()

    return jax.grad(total, argnums=(0, 1, 2))(q, k, v)

  by_row, by_head = split
  shape = shapes_on(mesh)
  bound_BxLxR = shape((batch, length, ranges), jnp.int32, by_row)
  slot_BxL = shape((batch, length), jnp.int32, by_row)
  own = shape((batch, length, kv_heads, dim), dtype, by_head)
  mask = Mask(bound_BxLxR, bound_BxLxR, *((slot_BxL, slot_BxL) if segments else ()))
  q = shape((batch, length, heads, dim), dtype, by_head)
  return aot.compile_for(mesh, step, mask, slot_BxL, q, own, own)


def shapes_on(mesh):
  def shape(sizes, dtype, spec):
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, spec))

  return shape


def check(program, kernels, most_mib):
  calls = re.findall('custom_call_target="(tpu_custom_call|mosaic_gpu_v2)"', program.as_text())
  assert len(calls) == kernels
  used = program.memory_analysis().temp_size_in_bytes
  assert used <= most_mib * MIB


@pytest.mark.tpu
@pytest.mark.parametrize("device", ["v5p", pytest.param("v6e", marks=pytest.mark.long)])
def test_decoding_reads_the_cache_where_it_is(device):
  """A copy of a layer's keys alone would be 256 MiB."""
  program = decode(aot.mesh(device), 4, 32, 32_768, 32, 8, 128, jnp.bfloat16)
  check(program, 2, 8)


@pytest.mark.tpu
@pytest.mark.parametrize(
  "device,most_mib", [("v5p", 290), pytest.param("v6e", 130, marks=pytest.mark.long)]
)
def test_noisy_and_clean_tokens_of_a_training_step(device, most_mib):
  """Scores of a single head would take 256 MiB in float32, those of all heads 8 GiB."""
  program = gradients(aot.mesh(device), 1, 8192, 32, 8, 128, jnp.bfloat16, ranges=2)
  check(program, 3, most_mib)


@pytest.mark.tpu
@pytest.mark.long
def test_packed_documents():
  program = gradients(aot.mesh("v5e"), 2, 4096, 16, 16, 64, jnp.bfloat16, segments=True)
  check(program, 3, 165)


@pytest.mark.tpu
@pytest.mark.long
def test_small_and_ragged():
  mesh = aot.mesh("v6e")
  check(gradients(mesh, 2, 200, 4, 2, 32, jnp.float32, segments=True), 3, 1)
  check(decode(mesh, 2, 5, 41, 3, 1, 32, jnp.float32), 2, 1)


@pytest.mark.tpu
@pytest.mark.long
def test_positions_are_split():
  """Each device has a quarter of the queries, all keys of its heads, and no tile of the mask."""
  mesh = aot.mesh("v5e", (2, 2), ("sequence", "tensor"))
  split = P(None, "sequence"), P(None, "sequence", "tensor")
  program = gradients(mesh, 1, 8192, 32, 8, 128, jnp.bfloat16, ranges=2, split=split)
  check(program, 3, 90)
  assert not re.search(r"(pred|f32|s32)\[[\d,]*4096,8192\]", program.as_text())


@pytest.mark.tpu
def test_rows_and_heads_are_split():
  mesh = aot.mesh("v5e", (2, 2), ("fsdp", "tensor"))
  split = P("fsdp"), P("fsdp", None, "tensor")
  trained = gradients(mesh, 2, 256, 32, 8, 128, jnp.bfloat16, ranges=2, split=split)
  check(trained, 3, 8)
  decoded = decode(mesh, 4, 32, 256, 32, 8, 128, jnp.bfloat16, split=split)
  check(decoded, 2, 8)
  for program in (trained, decoded):
    assert not re.search("all-gather|all-to-all|collective-permute", program.as_text())


@pytest.mark.cuda
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(32, 32, 128), (32, 4, 64)])
def test_hopper_decodes(heads, kv_heads, dim):
  """Of one worker and of two; the last tile of the cache is moved back."""
  program = decode(aot.mesh("h100"), 4, 32, 32_776, heads, kv_heads, dim, jnp.bfloat16)
  check(program, 2, 24)


@pytest.mark.cuda
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(32, 8, 128), (28, 4, 64)])
def test_hopper_trains(heads, kv_heads, dim):
  mesh = aot.mesh("h100")
  check(gradients(mesh, 1, 8192, heads, kv_heads, dim, jnp.bfloat16, 2, segments=True), 3, 160)


@pytest.mark.cuda
def test_hopper_splits_rows_and_heads():
  mesh = aot.mesh("h100", (2, 2), ("fsdp", "tensor"))
  split = P("fsdp"), P("fsdp", None, "tensor")
  program = gradients(mesh, 2, 256, 32, 8, 128, jnp.bfloat16, ranges=2, split=split)
  check(program, 3, 16)
  assert not re.search("all-gather|all-to-all|collective-permute", program.as_text())
