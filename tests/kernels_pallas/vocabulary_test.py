import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import dispatch, vocabulary
from kernels_pallas.token_stats import StatSpec, token_stats


@pytest.mark.parametrize("vocab,tile", [(12, 4), (13, 4), (13, 12), (13, 13), (13, 1)])
def test_each_allowed_id_is_live_exactly_once_and_in_order(vocab, tile):
  unembed_VxD = jnp.arange(vocab, dtype=jnp.float32)[:, None]

  def step(state, part):
    times_V, ordered, last = state
    np.testing.assert_equal(part.unembed_TxD.shape, (tile, 1))
    live_T = part.live_T & (part.unembed_TxD[:, 0] == part.ids_T)  # each id with its own row
    times_V = times_V.at[part.ids_T].add(live_T.astype(jnp.int32))
    lowest = jnp.where(live_T, part.ids_T, vocab).min()
    return times_V, ordered & (lowest > last), jnp.where(live_T, part.ids_T, -1).max()

  state = (jnp.zeros(vocab, jnp.int32), jnp.array(True), jnp.array(-1))
  times_V, ordered, _ = vocabulary.sweep(step, state, unembed_VxD, tile=tile, forbidden=(2, 9))
  np.testing.assert_array_equal(times_V, [i not in (2, 9) for i in range(vocab)])
  assert tile == 1 or ordered


@pytest.mark.parametrize("rows", [0, 1, 32, 4096, 1 << 20])
@pytest.mark.parametrize("vocab", [1, 260, 151_936])
def test_tiles_are_bounded(rows, vocab, monkeypatch):
  hidden_RxD, unembed_VxD = (jax.ShapeDtypeStruct((n, 64), jnp.float32) for n in (rows, vocab))
  monkeypatch.setattr(dispatch, "backend", lambda: "gpu")
  tile = vocabulary.tile_size(hidden_RxD, unembed_VxD)
  assert 1 <= tile <= vocab
  assert tile <= 512 or rows * tile <= 1 << 20
  monkeypatch.setattr(dispatch, "backend", lambda: "cpu")
  # All logits at once, where a tile's copy of the unembedding has as many elements.
  one = vocabulary.tile_size(hidden_RxD, unembed_VxD)
  assert one == (vocab if rows * vocab <= max(512, (1 << 20) // max(rows, 1)) * 64 else tile)


def test_few_rows_of_a_wide_model_copy_no_unembedding_on_a_cpu():
  hidden_RxD, unembed_VxD = (jax.ShapeDtypeStruct((n, 256), jnp.float32) for n in (32, 65_536))
  program = jax.jit(lambda h, u: token_stats(h, u, StatSpec(), implementation="xla"))
  held = program.lower(hidden_RxD, unembed_VxD).compile().memory_analysis().temp_size_in_bytes
  assert held < 65_536 * 256 * 4 / 2


def test_an_id_outside_the_tile_is_not_found():
  x_RxT = jnp.array([[10.0, 11.0, 12.0]] * 4)
  inside_R, value_R = vocabulary.at_id(x_RxT, jnp.array([4, 5, 7, 8]), 5)
  np.testing.assert_array_equal(inside_R, [False, True, True, False])
  np.testing.assert_array_equal(value_R[1:3], [10, 12])
