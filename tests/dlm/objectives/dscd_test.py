"""How much DSCD hides; its masks, losses and gradients are held by recorded cases."""

import numpy as np
import pytest

from dlm.objectives import Dscd


def counts(n, **fields):
  """Of the student and of the teacher, at the least, middle and largest shares."""
  u = np.array([[0.0, 0.0], [0.5, 0.5], [0.999, 0.999]], np.float32)
  many, few = Dscd(4, 5, **fields).counts(u, np.full(3, n))
  return list(map(int, many)), list(map(int, few))


def test_short_answers_have_a_rule_of_their_own_unless_it_is_put_off():
  assert counts(8) == ([2, 2, 2], [1, 1, 1])
  assert counts(8, short=(0, 0)) == ([3, 5, 7], [0, 2, 4]), "0.4, 0.65, 0.9 of 8; 0.3 to 0.7 of it"
  assert counts(16) == ([6, 8, 8], [1, 5, 8]), "half at most, the teacher's share of what it was"
  assert counts(16, short=(0, 0)) == ([6, 10, 14], [1, 5, 9])
  with pytest.raises(ValueError, match=r"Dscd: short=\(-1, 0\) must not be negative"):
    Dscd(4, 5, short=(-1, 0))
