"""A block's text is inserted and deleted on eight devices as on one; given text stays."""

import jax
import numpy as np

from dlm import parallel
from dlm.sampling import loop
from dlm.sampling.policies import ServedInDel
from tests.dlm.sampling.loop_test import MASK, ROWS, SLOTS, VOCAB, canvas_of, run, sampler
from tests.dlm.sampling.table import random_table


def test_eight_devices_edit_as_one_does():
  params, editing = random_table(2, 2 * SLOTS, VOCAB), sampler(ServedInDel(1, 2, most=3, ids=5))
  rows = [ROWS[i % len(ROWS)] for i in range(8)]
  canvas = canvas_of(rows, slots=2 * SLOTS)
  mesh = parallel.make_mesh(8)
  split = parallel.over_batch(
    lambda params, canvas: loop.run(editing, params, canvas), mesh, batched_in=(False, True),
    batched_out=True,
  )  # fmt: skip
  eight = jax.jit(split)(params, jax.device_put(canvas, parallel.batch_sharding(mesh)))
  one = run(editing, params, canvas)
  for name in ("tokens_BxL", "when_BxL", "forwards_Bx3", "done_B"):
    np.testing.assert_array_equal(getattr(eight, name), getattr(one, name), err_msg=name)
  for i, row in enumerate(rows):
    given = np.array(row) != MASK
    np.testing.assert_array_equal(one.tokens_BxL[i, : len(row)][given], np.array(row)[given])
