import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import checksums
from dlm.checksums import checksums as sums_of


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
@pytest.mark.parametrize("few", [-1, checksums.FEW], ids=["device", "host"])
def test_checksum_sees_one_wrong_element_and_two_swapped_ones(monkeypatch, few, dtype):
  monkeypatch.setattr(checksums, "FEW", few)
  value = (jnp.arange(60).reshape(4, 3, 5) % 2).astype(dtype)
  sums = {sums_of([value])["0"]}
  sums.add(sums_of([value.at[1, 2, 3].set(value[1, 2, 2])])["0"])
  sums.add(sums_of([value.at[0, 0, :2].set(value[0, 0, 1::-1])])["0"])
  assert len(sums) == 3


def test_checksum_sees_two_flipped_signs():
  value = jnp.ones(8)
  flipped = value.at[jnp.array([2, 5])].multiply(-1)
  assert sums_of(value) != sums_of(flipped)


def by_definition(x):
  """Every element's bits and index through the mix, one sum."""
  words = np.asarray(x).view(f"uint{8 * x.dtype.itemsize}").astype(np.uint32).ravel()
  mixed = words + np.arange(words.size, dtype=np.uint32) * np.uint32(0x9E3779B9)
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
    mixed = (mixed ^ (mixed >> np.uint32(shift))) * np.uint32(factor)
  return int(mixed.sum(dtype=np.uint32))


@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (6, 5, 4), (12, 40)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pieces_change_nothing(monkeypatch, shape, dtype):
  x = jax.random.normal(jax.random.key(0), shape).astype(dtype)
  assert sums_of([x]) == {"0": by_definition(x)}  # by the host
  monkeypatch.setattr(checksums, "FEW", -1)
  assert sums_of([x]) == {"0": by_definition(x)}
  monkeypatch.setattr(checksums, "PIECE", 50)
  assert sums_of([x]) == {"0": by_definition(x)}


def test_memory_is_that_of_a_piece():
  x = jax.ShapeDtypeStruct((8, 1024, 2048), jnp.bfloat16)
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  rows, piece = checksums._pieces(x.update(sharding=here))
  needs = checksums._add_rows.lower(jnp.uint32(0), x, jnp.int32(0), rows, piece).compile()
  assert needs.memory_analysis().temp_size_in_bytes <= 2 * 4 * checksums.PIECE


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_memory_is_taken_to_see_whether_all_is_finite(dtype):
  leaf = jax.ShapeDtypeStruct((1024, 2048), dtype)
  needs = checksums._all_finite.lower(leaf).compile().memory_analysis()
  assert needs.temp_size_in_bytes < 1024


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("few", [checksums.FEW, -1])  # by the host, by a program
def test_first_leaf_that_is_not_finite_is_named(monkeypatch, dtype, value, few):
  monkeypatch.setattr(checksums, "FEW", few)
  good = jnp.arange(60).reshape(4, 3, 5).astype(dtype)
  bad = good.at[3, 2, 4].set(value)
  count = jnp.arange(3)
  assert checksums.not_finite({"a": good, "b": [good, count]}) is None
  assert checksums.not_finite({"a": good, "b": [good, bad], "c": bad, "d": count}) == "b/1"
  assert checksums.not_finite({}) is None
  # XLA's maximum finds what is not finite among few numbers, and passes over it among many.
  many = jnp.ones(4801, dtype)
  assert checksums.not_finite({"a": many}) is None
  assert {checksums.not_finite({"a": many.at[at].set(value)}) for at in (0, 77, 4800)} == {"a"}
