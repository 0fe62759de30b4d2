"""SDTT's times; its losses and the teacher's walk are held by recorded cases."""

import numpy as np

from dlm.objectives import Sdtt


def times(t, **fields):
  return np.asarray(Sdtt(4, vocab=5, **fields).times_from(np.array([t], np.float32)))[0]


def test_the_teacher_walks_from_where_the_student_stands_by_steps_of_dt():
  """The authors' code multiplies by 1 - t where it goes by the share that is left."""
  np.testing.assert_allclose(times(0.6, dt=0.1), [0.6, 0.4], rtol=1e-6)
  np.testing.assert_allclose(times(0.6, dt=0.1, released_times=True), [0.76, 0.16], rtol=1e-6)
  np.testing.assert_allclose(times(0.1, dt=0.1), [0.1, 1e-5], rtol=1e-6)
