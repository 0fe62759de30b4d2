"""Sparse credit against the whole matrix, and what credit does."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from dlm import masks
from dlm.sampling.caching import NoCache
from dlm.sampling.policies import Credit, Factor, Fixed, Threshold
from dlm.sampling.sampler import Sampler
from dlm.sampling.score import score
from dlm.types import LogitHead
from tests.dlm.sampling.policies.views import keys, view_of
from tests.dlm.sampling.table import Lookup

VOCAB, WIDTH, BATCH = 11, 5, 3


class Spy(Threshold):
  """A threshold that keeps the statistics it was shown."""

  def decide(self, view, state, key_B):
    decision, _ = super().decide(view, (), key_B)
    return decision, view.stats


def play(policy, logits_TxBxAxV, masked_TxBxA):
  """The statistics that the inner policy sees, forward by forward."""
  state, seen = policy.enter(jnp.asarray(masked_TxBxA[0]), None), []
  for logits_BxAxV, masked_BxA in zip(logits_TxBxAxV, masked_TxBxA, strict=True):
    zero_BxA = jnp.zeros(masked_BxA.shape, jnp.int32)
    stats = score(
      LogitHead(jnp.asarray(logits_BxAxV, jnp.float32), jnp.eye(VOCAB)),
      policy.needs(),
      current_BxA=zero_BxA,
      key_B=keys(BATCH),
      slot_BxA=zero_BxA,
      gather_BxAxJ=policy.gather_ids(state),
    )
    view = view_of(np.ones(masked_BxA.shape), masked_BxA).replace(stats=stats)
    _, state = policy.decide(view, state, keys(BATCH))
    seen.append(state.inner)
  return seen


def dense(logits_TxBxAxV, masked_TxBxA, alpha, decay, gamma):
  """The authors' matrix [B, A, V]: candidate and its probability, forward by forward."""
  credit = np.zeros(logits_TxBxAxV.shape[1:])
  for logits, masked in zip(logits_TxBxAxV, masked_TxBxA, strict=True):
    credit *= decay
    p, best = softmax(logits, -1).max(-1), logits.argmax(-1)
    for b, a in np.ndindex(masked.shape):
      credit[b, a, best[b, a]] += masked[b, a] * p[b, a] ** gamma
    fused = softmax(logits + alpha * np.log1p(credit), -1)
    yield fused.argmax(-1), fused.max(-1)


@pytest.mark.parametrize("settings", [(0.7, 0.8, 0.2), (3.0, 1.0, 0.0), (8.0, 0.5, 1.0)])
def test_it_equals_the_whole_matrix(settings):
  """Positions are written, one by one: those are not compared, nor is their credit needed."""
  rng = np.random.default_rng(0)
  turns = 8
  own = rng.normal(size=(BATCH, WIDTH, VOCAB))
  logits = own + rng.normal(size=(turns, BATCH, WIDTH, VOCAB))
  masked = rng.uniform(size=(BATCH, WIDTH)) * turns > np.arange(turns)[:, None, None] / 2
  alpha, decay, gamma = settings
  policy = Credit(Spy(0.9), alpha=alpha, decay=decay, gamma=gamma, ids=turns)
  moved = 0
  for t, (stats, (token, p)) in enumerate(
    zip(play(policy, logits, masked), dense(logits, masked, *settings), strict=True)
  ):
    now = masked[t]
    np.testing.assert_array_equal(np.asarray(stats.token)[now], token[now])
    np.testing.assert_allclose(np.exp(stats.logit - stats.lse)[now], p[now], rtol=1e-5)
    moved += (token != logits[t].argmax(-1))[now].sum()
  assert moved, "credit changes some candidates"


def test_a_full_table_forgets_the_least():
  """With one id, the last best one has credit, and nothing else."""
  rng = np.random.default_rng(1)
  logits = np.repeat(rng.normal(size=(1, BATCH, WIDTH, VOCAB)), 3, axis=0)
  logits[1] = rng.normal(size=logits[1].shape)
  masked = np.ones((3, BATCH, WIDTH), bool)
  one = play(Credit(Spy(0.9), ids=1), logits, masked)
  fresh = play(Credit(Spy(0.9), ids=1), logits[2:], masked[2:])
  changed = logits[0].argmax(-1) != logits[1].argmax(-1)
  np.testing.assert_allclose(one[2].lse[changed], fresh[0].lse[changed], rtol=1e-6)


def test_a_new_block_starts_without_credit():
  policy, masked = Credit(Threshold(0.9), ids=2), jnp.ones((BATCH, WIDTH), bool)
  state = policy.enter(masked, None)
  state = state.replace(id_BxAxJ=state.id_BxAxJ + 3, credit_BxAxJ=state.credit_BxAxJ + 1)
  again = policy.enter(masked, state)
  assert (again.id_BxAxJ == -1).all() and (again.credit_BxAxJ == 0).all()


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: Credit(Threshold(), alpha=-1.0), "credit: alpha=-1.0"),
    (lambda: Credit(Threshold(), decay=1.5), "credit: decay=1.5"),
    (lambda: Credit(Threshold(), ids=0), "credit: ids=0"),
    (lambda: Credit(Fixed(k=1, order="entropy")), "candidates and confidences alone"),
    (lambda: Credit(Credit(Threshold())), "candidates and confidences alone"),
    (lambda: sampler(Credit(Factor(1.0)), temperature=0.5), "temperature=0.5 must be 0"),
  ],
)
def test_bad_settings_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def sampler(policy, **fields):
  return Sampler(
    Lookup(), policy, NoCache(), masks.Full(), block=4, max_forwards=9, mask_id=6, **fields
  )
