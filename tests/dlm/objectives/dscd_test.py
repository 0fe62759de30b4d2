"""How much DSCD hides; its masks, losses and gradients are held by recorded cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm.objectives import Dscd
from tests.checkers.distillation import distilled
from tests.checkers.post_training import batch_of


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


def test_of_what_it_sees_the_teacher_may_be_certain():
  """As if it gave the tokens it sees, and only those, all probability. No output of its counts."""
  vocab, mask_id, rng = 6, 5, np.random.default_rng(0)
  batch = batch_of(rng.integers(0, 4, (3, 2)), rng.integers(0, 4, (3, 12)))
  drawn = Dscd(mask_id, 4)
  noisy = drawn.corrupt_with(drawn.draw(jax.random.key(0), batch), batch, jnp.int32(0))
  student, teacher, other = rng.normal(size=(3, *batch.tokens_BxL.shape, vocab)).astype(np.float32)
  seen_BxLx1 = np.array(noisy.extra["nearer_BxL"] != mask_id)[..., None]
  certain = 1e4 * np.eye(vocab, dtype=np.float32)[batch.tokens_BxL]
  assert (seen_BxLx1[..., 0] & (noisy.weight_BxL > 0)).any()
  of_text, as_if = (
    distilled(Dscd(mask_id, 4, seen=seen), noisy, student, np.where(seen_BxLx1, said, teacher))
    for seen, said in (("text", other), ("teacher", certain))
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), of_text, as_if)
  with pytest.raises(ValueError, match="Dscd: seen='nobody' is not one of teacher, text"):
    Dscd(4, 5, seen="nobody")
