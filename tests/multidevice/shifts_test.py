"""Rows whose text is inserted and deleted are the same on eight devices; given text is kept."""

import jax
import numpy as np
import pytest

from dlm import parallel
from dlm.sampling import loop
from dlm.sampling.policies import ServedInDel
from tests.dlm.sampling.every import GROWING
from tests.dlm.sampling.loop_test import MASK, ROWS, SLOTS, VOCAB, canvas_of, run, sampler
from tests.dlm.sampling.table import random_table


@pytest.mark.parametrize("policy", [ServedInDel(1, 2, most=3, ids=5), *GROWING], ids=str)
def test_eight_devices_edit_as_one_does(policy):
  params, moving = random_table(2, 2 * SLOTS, VOCAB), sampler(policy)
  rows = [ROWS[i % len(ROWS)] for i in range(8)]
  canvas = canvas_of(rows, slots=2 * SLOTS)
  mesh = parallel.make_mesh(8)
  split = parallel.over_batch(
    lambda params, canvas: loop.run(moving, params, canvas), mesh, batched_in=(False, True),
    batched_out=True,
  )  # fmt: skip
  eight = jax.jit(split)(params, jax.device_put(canvas, parallel.batch_sharding(mesh)))
  one = run(moving, params, canvas)
  for name in ("tokens_BxL", "when_BxL", "open_BxL", "length_B", "forwards_Bx3", "done_B"):
    np.testing.assert_array_equal(getattr(eight, name), getattr(one, name), err_msg=name)
  for i, row in enumerate(rows):
    length = int(one.length_B[i])
    given = ~np.asarray(one.open_BxL[i, :length])
    assert np.asarray(one.tokens_BxL[i, :length])[given].tolist() == [t for t in row if t != MASK]
