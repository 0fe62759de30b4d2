import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import vocabulary


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
def test_tiles_are_bounded(rows, vocab):
  tile = vocabulary.tile_size(rows, vocab)
  assert 1 <= tile <= vocab
  assert tile <= 512 or rows * tile <= 1 << 20


def test_an_id_outside_the_tile_is_not_found():
  x_RxT = jnp.array([[10.0, 11.0, 12.0]] * 4)
  inside_R, value_R = vocabulary.at_id(x_RxT, jnp.array([4, 5, 7, 8]), 5)
  np.testing.assert_array_equal(inside_R, [False, True, True, False])
  np.testing.assert_array_equal(value_R[1:3], [10, 12])
