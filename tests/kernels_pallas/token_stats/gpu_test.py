"""The kernel for Hopper, interpreted: programs, the ring of copies, and what is left to others."""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks

from kernels_pallas import hopper
from kernels_pallas.token_stats import Inputs, StatSpec, cut, gpu, reference, token_stats
from kernels_pallas.vocabulary import Held
from tests.kernels_pallas.hopper import interpret_gpu
from tests.kernels_pallas.token_stats.twin import keys

ALL = StatSpec(
  top2=True, entropy=True, current=True, gather=True, outside=(3, 4), forbidden=(0, 1, 2, 77)
)
DRAWN = dataclasses.replace(ALL, temperature=0.7)
V, D = 104, 128  # the last tile of 16 or 24 ids is moved back

# Two slots are refilled all the time. Few rows: two programs of two workers, which walk over two
# tiles each. Many: two groups of 128 rows, whose programs walk over five tiles.
FEW = dataclasses.replace(hopper.tiling_for(20, V, programs=2, max_tile=16), slots=2)
MANY = dataclasses.replace(hopper.tiling_for(150, V, programs=2, max_tile=24), slots=2)
MANY = dataclasses.replace(MANY, groups=2, blocks=1)


# XLA runs a warpgroup on each of its threads, and hangs where it has fewer.
threads = pytest.mark.skipif(
  int(os.environ.get("NPROC") or os.cpu_count()) < 8, reason="needs NPROC=8 before jax starts"
)


@functools.cache
def _jitted(implementation, **static):
  return jax.jit(functools.partial(implementation, **static))


def interpreted(hidden_RxD, unembed_VxD, spec, inputs, tiling, *, held=None, soft_cap=None):
  """The kernel's statistics. Fails on a race between its warpgroups and copies."""
  held = held or Held(0, V)
  with interpret_gpu():
    run = _jitted(gpu.token_stats, spec=spec, tiling=tiling, held=held, soft_cap=soft_cap)
    stats = jax.block_until_ready(run(hidden_RxD, unembed_VxD, inputs=inputs))
    assert not gpu_callbacks.get_races().races_found
  return stats


def assert_agrees(stats, hidden_RxD, unembed_VxD, spec, inputs, *, soft_cap=None):
  held = Held(0, unembed_VxD.shape[0])
  run = _jitted(reference.token_stats, spec=spec, held=held, soft_cap=soft_cap)
  for name, expected in vars(run(hidden_RxD, unembed_VxD, inputs=inputs)).items():
    actual = getattr(stats, name)
    assert (actual is None) == (expected is None), name
    if expected is not None:
      assert actual.dtype == expected.dtype, name
      np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=8e-6, err_msg=name)


def arrays(rows, vocab=V):
  hidden_RxD = jax.random.normal(jax.random.key(0), (rows, D), jnp.bfloat16) / 4
  unembed_VxD = jax.random.normal(jax.random.key(1), (vocab, D), jnp.bfloat16)
  ids_R = jnp.arange(rows) % (vocab + 2) - 1  # two of them do not exist
  gather_id_RxJ = jnp.stack([ids_R[::-1], jnp.full(rows, vocab - 1)], axis=1)
  inputs = Inputs(current_R=ids_R, gather_id_RxJ=gather_id_RxJ, key_data_Rx2=keys(rows))
  return hidden_RxD, unembed_VxD, inputs


@threads
@pytest.mark.parametrize(
  "rows,tiling,spec", [(20, FEW, DRAWN), (150, MANY, ALL)], ids=["few, drawn", "many"]
)
def test_all_statistics(rows, tiling, spec):
  hidden_RxD, unembed_VxD, inputs = arrays(rows)
  stats = interpreted(hidden_RxD, unembed_VxD, spec, inputs, tiling)
  assert_agrees(stats, hidden_RxD, unembed_VxD, spec, inputs)

  # The same program, where the numbers are not ordinary.
  whole_RxD = jnp.round(4 * hidden_RxD).at[0].set(0)  # ties, everywhere in row 0
  whole_RxD = whole_RxD.at[1].set(jnp.nan).at[2].multiply(1e4)
  whole_VxD = jnp.round(unembed_VxD).at[50].set(unembed_VxD[90].round())
  stats = interpreted(whole_RxD, whole_VxD, spec, inputs, tiling)
  assert_agrees(stats, whole_RxD, whole_VxD, spec, inputs)
  assert stats.token[1] == 3 and stats.logit[1] == -np.inf and np.isnan(stats.lse[1])


@threads
def test_tempered_statistics_of_the_part_of_one_device():
  """What the device holds starts at id 104: noise and forbidden ids go by the ids of all."""
  spec = dataclasses.replace(
    DRAWN, confidence="tempered", gather=False, forbidden=(0, 104, 105, 207)
  )
  hidden_RxD, unembed_VxD, inputs = arrays(20, 2 * V)
  inputs.gather_id_RxJ, inputs.current_R = None, 100 + 5 * jnp.arange(20)
  inputs.divide_R = jnp.linspace(0.5, 2, 20)
  held = Held(V, 2 * V)
  stats = interpreted(hidden_RxD, unembed_VxD[V:], spec, inputs, FEW, held=held, soft_cap=5.0)
  others = dataclasses.replace(spec, forbidden=(*range(V), *spec.forbidden))
  assert_agrees(stats, hidden_RxD, unembed_VxD, others, inputs, soft_cap=5.0)
  assert len(set(np.asarray(stats.token))) > 10


@threads
def test_reading_before_a_copy_has_arrived_is_a_race(monkeypatch):
  """The check for races can fail."""

  def load_at_once(sources, here, arrived, rows, worker):
    wait, hopper.plgpu.barrier_wait = hopper.plgpu.barrier_wait, lambda barrier: None
    try:
      return load(sources, here, arrived, rows, worker)
    finally:
      hopper.plgpu.barrier_wait = wait

  load = hopper._load
  monkeypatch.setattr(hopper, "_load", load_at_once)
  hidden_RxD, unembed_VxD, inputs = arrays(20)
  spec = StatSpec(current=True)
  told = "races_found|RACE DETECTED"  # ours of the interpreter's list; from jax 0.12 on its own
  with pytest.raises((AssertionError, RuntimeError), match=told):
    interpreted(hidden_RxD, unembed_VxD, spec, inputs, FEW)


@pytest.mark.parametrize("rows", [1, 32, 64, 65, 1000, 2200, 4096])
@pytest.mark.parametrize("vocab", [2048, 126_464, 152_064, 157_184])
def test_a_tiling_covers_all_and_fits(rows, vocab):
  tiling = hopper.tiling_for(rows, vocab)
  assert tiling.rows >= rows and tiling.splits * tiling.walk * tiling.block_ids >= vocab
  assert tiling.tile % 8 == 0 and tiling.tile <= 256 and tiling.block_ids <= vocab
  assert tiling.slots >= 3
  # Work that is thrown away: rows of the last block, ids beyond the end, idle processors.
  programs = tiling.groups * tiling.blocks * tiling.splits
  if vocab > 1e5 and rows in (32, 4096):
    assert tiling.splits * tiling.walk * tiling.block_ids < 1.05 * vocab
    assert 0.96 < programs / (132 * tiling.groups) <= 1


@pytest.mark.parametrize(
  "change,match",
  [
    ({"dtype": jnp.float32}, "bfloat16"),
    ({"width": 96}, "96, must be a multiple of 64"),
    ({"vocab": 2052}, "2052, must be a multiple of 8"),
    ({"vocab": 8}, "at least one tile, 16"),
    ({"spec": StatSpec(temperature=1.0, best=2)}, "finds the best id alone"),
    ({"spec": StatSpec(soft=True)}, "averages no embeddings"),
    ({"spec": StatSpec(gather=True)}, "5 gathered ids a row"),
  ],
  ids=str,
)
def test_what_is_left_to_others(change, match):
  sizes = {"dtype": jnp.bfloat16, "width": 64, "vocab": 2048, "spec": StatSpec()} | change
  hidden_RxD = jnp.ones((3, sizes["width"]), sizes["dtype"])
  unembed_VxD = jnp.ones((sizes["vocab"], sizes["width"]), sizes["dtype"])
  call = functools.partial(
    token_stats,
    hidden_RxD,
    unembed_VxD,
    sizes["spec"],
    key_R=jax.random.split(jax.random.key(0), 3),
    gather_id_RxJ=jnp.zeros((3, 5), jnp.int32),
    embed_VxD=unembed_VxD,
  )
  with pytest.raises(NotImplementedError, match=match):
    call(implementation="gpu")


def test_top_k_of_a_split_vocabulary_is_left_to_others_where_it_cuts():
  hidden_RxD, unembed_VxD = jnp.ones((3, 64), jnp.bfloat16), jnp.ones((2048, 64), jnp.bfloat16)
  spec = StatSpec(confidence="shaped", top_k=3000)
  held = Held(2048, 4096, "tensor")
  with pytest.raises(NotImplementedError, match="no top-k of a vocabulary that is split"):
    gpu.token_stats(hidden_RxD, unembed_VxD, spec, Inputs(), held=held, soft_cap=None)


@threads
def test_top_k_and_top_p_cut_in_the_kernel(monkeypatch):
  """Each row has the logits -4, -3.875 .. 3.875 in its own order, and 40 of 0 beside them."""
  monkeypatch.setattr(cut, "_BITS", 6)  # two passes tell eighths apart
  z_RxD = np.random.default_rng(0).permuted(np.tile(np.arange(64) / 8 - 4, (20, 1)), axis=1)
  z_RxD[0], z_RxD[1] = 0, np.nan
  hidden_RxD, unembed_VxD = jnp.asarray(z_RxD, jnp.bfloat16), jnp.eye(V, 64, dtype=jnp.bfloat16)
  spec = StatSpec(temperature=0.5, top_k=9, top_p=0.7, confidence="shaped", forbidden=(0, 77))
  inputs = Inputs(key_data_Rx2=keys(20))
  tiling = hopper.Tiling(by_ids=True, groups=1, blocks=1, splits=1, walk=2, tile=48, slots=2)
  stats = interpreted(hidden_RxD, unembed_VxD, spec, inputs, tiling)
  assert_agrees(stats, hidden_RxD, unembed_VxD, spec, inputs)


def test_counting_finds_the_k_best_among_ties_and_far_from_zero():
  rng = np.random.default_rng(0)
  z_RxV = (rng.normal(size=(8, 50)) * [[1], [1], [1], [1], [1e-6], [1e-6], [1e3], [1e3]]).astype(
    "f4"
  )
  z_RxV[[1, 3]] = np.round(z_RxV[[1, 3]])
  z_RxV[2], z_RxV[5] = 0, z_RxV[5] + np.float32(1e4)
  z_RxV[7, 9:] = -np.inf

  @functools.partial(jax.jit, static_argnums=0)
  def lowest(k):
    def above(value_CxR):
      return (z_RxV[None] >= value_CxR[:, :, None]).sum(2, dtype=jnp.float32), None

    return cut.k_best_cut(above, 8, z_RxV.max(1), np.sort(z_RxV)[:, -9], k)

  for k in (1, 4, 9):
    kept_RxV = z_RxV >= np.asarray(lowest(k))[:, None]
    np.testing.assert_array_equal(kept_RxV, z_RxV >= np.sort(z_RxV)[:, -k, None])
