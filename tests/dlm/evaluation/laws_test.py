"""The model of a known law against enumeration, and the real sampling loop against closed forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks
from dlm.evaluation import laws
from dlm.evaluation.limits import Limits
from dlm.sampling import loop
from dlm.sampling.caching import NoCache
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policies import LeftToRight
from dlm.sampling.sampler import Sampler

SLOTS, IDS, TEXTS, MASK = 8, 6, 256, 5
LAWS = laws.standard()


def params_of(law):
  return laws.params_of(law, texts=TEXTS, slots=SLOTS, width=IDS)


@jax.jit
def probabilities(params, tokens_BxW, slot_BxW):
  out = laws.Exact(IDS)(params, tokens_BxW, slot_BxW=slot_BxW, mask=masks.Full()(slot_BxW, SLOTS))
  return jax.nn.softmax(out.head.hidden_BxAxD @ out.head.unembed_VxD.T)


def by_hand(law, row, slot):
  """p(token at `slot` | all other written tokens), one text at a time."""
  p_V = np.zeros(IDS)
  for text, p in zip(law.strings_SxN, law.p_S, strict=True):
    others = (i for i in range(law.length) if i != slot and row[i] != MASK)
    p_V[text[slot]] += p * all(text[i] == row[i] for i in others)
  return p_V / p_V.sum() if p_V.sum() else np.full(IDS, 1 / IDS)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_the_model_answers_as_enumeration_does(law):
  """Rows of all degrees of masking, some that no text of the law goes with; shadows come first."""
  rng = np.random.default_rng(0)
  rows = rng.choice(law.strings_SxN, 12, p=law.p_S)
  rows = np.where(rng.random(rows.shape) < 0.1, rng.integers(0, law.vocab, rows.shape), rows)
  rows = np.where(rng.random(rows.shape) < rng.random((12, 1)), MASK, rows)
  canvas = np.pad(rows, ((0, 0), (0, SLOTS - law.length))).astype(np.int32)
  tokens = np.concatenate([np.full((12, 2), MASK, np.int32), canvas], axis=1)
  slots = np.tile([0, 2, *range(SLOTS)], (12, 1)).astype(np.int32)
  found = np.asarray(probabilities(params_of(law), tokens, slots))
  for row, p_WxV in zip(rows, found, strict=True):
    for slot in range(law.length):
      np.testing.assert_allclose(p_WxV[2 + slot], by_hand(law, row, slot), atol=2e-6)
    np.testing.assert_array_equal(p_WxV[:2], p_WxV[[2, 4]])


def test_laws_are_what_they_are_called():
  chain, hidden = laws.chain(3, flip=0.1), laws.hidden_chain(2, flip=0.1, noise=0.2)
  assert (
    dict(zip(map(tuple, chain.strings_SxN), chain.p_S, strict=True))[0, 0, 1] == 0.5 * 0.9 * 0.1
  )
  # 00 is read of hidden 00 (twice right), 01 and 10 (once wrong), 11 (twice wrong).
  read = 0.45 * 0.8**2 + 2 * 0.05 * 0.8 * 0.2 + 0.45 * 0.2**2
  assert hidden.p_S[0] == pytest.approx(read)
  assert len(laws.brackets(8).p_S) == 14 * 2**4, "Catalan's number, a kind for each pair"
  assert [len(law.p_S) for law in LAWS] == [256, 256, 256, 128, 81, 120, 8, 224]
  assert max(law.vocab for law in LAWS) < IDS


def test_counts_and_divergence():
  """On draws of a law that is known to be off: the estimate lies within its errors."""
  law, rng = laws.brackets(6), np.random.default_rng(1)
  assert law.counts(np.array([*law.strings_SxN[[3, 0, 3]], [0] * 6])).tolist()[:5] == [
    1,
    0,
    0,
    2,
    0,
  ]
  q_S = rng.dirichlet(np.full(len(law.p_S), 3.0)) * 0.8  # a fifth of the draws is not of the law
  kl = float(law.p_S @ np.log2(law.p_S / q_S))
  draws = [rng.multinomial(2000, [*q_S, 0.2])[:-1] for _ in range(200)]
  far = [(found.bits - kl) / found.error for found in (law.divergence(c, 2000) for c in draws)]
  assert abs(np.mean(far)) < 0.3 and 0.85 < np.std(far) < 1.15
  none = law.divergence(np.where(np.arange(len(q_S)) < 5, 0, draws[0]), 2000)
  assert none.unseen == pytest.approx(5 / len(q_S)) and none.bits > kl
  few = laws.shuffle(5).divergence((np.arange(120) < 20).astype(int), 2000)
  assert few.bits == pytest.approx(np.log2(100)), "a hundredth is of the law"


# Share of valid texts left to right, two at a time: `evaluation` closed forms, by enumeration.
VALID = {"parity": 0.5, "copy": 1, "shuffle": 0.533333, "replace": 0.780341}


def test_the_real_loop_loses_what_theory_says():
  """One program for all laws: left to right, two tokens a forward, at temperature 1."""
  rows = 2048
  sampler = Sampler(
    laws.Exact(IDS), LeftToRight(2), NoCache(), masks.Full(), block=SLOTS, max_forwards=16,
    mask_id=MASK, temperature=1.0,
  )  # fmt: skip
  run = jax.jit(loop.run, static_argnums=0)
  canvas = make_canvas(
    [np.full(SLOTS, MASK)] * rows, [np.ones(SLOTS, bool)] * rows, [*range(rows)], slots=SLOTS,
    block=SLOTS, align="canvas", mask_id=MASK, seed=0,
  )  # fmt: skip
  for law in LAWS:
    inside = np.arange(SLOTS) < law.length
    own = canvas.replace(
      open_BxL=jnp.asarray(np.tile(inside, (rows, 1))),
      tokens_BxL=jnp.asarray(np.tile(np.where(inside, MASK, 0), (rows, 1)).astype(np.int32)),
      length_B=jnp.asarray(np.full(rows, law.length, np.int32)),
    )
    done = run(sampler, params_of(law), own)
    assert set(np.asarray(done.forwards_Bx3).sum(1).tolist()) == {-(-law.length // 2)}
    counts = law.counts(np.asarray(done.tokens_BxL)[:, : law.length])
    found, valid = law.divergence(counts, rows), counts.sum() / rows
    pairs = [[*range(law.length)][i : i + 2] for i in range(0, law.length, 2)]
    bits = Limits(law).schedule_bits(pairs)
    assert abs(found.bits - bits) < 4 * found.error + 0.02, law.name
    if law.name in VALID:
      p = VALID[law.name]
      assert abs(valid - p) <= 4 * np.sqrt(p * (1 - p) / rows) + 1e-9, law.name


def test_mistakes():
  with pytest.raises(ValueError, match="Law: x lists a text twice"):
    laws.Law.uniform("x", "", [(0, 1), (0, 1)])
  law = laws.shuffle(3)
  with pytest.raises(ValueError, match=r"probabilities of shuffle sum to 3\.0, not 1"):
    dataclasses.replace(law, p_S=np.full(6, 0.5))
  with pytest.raises(ValueError, match="must give each text a positive probability"):
    dataclasses.replace(law, p_S=law.p_S[1:])
  with pytest.raises(
    ValueError, match="shuffle has 6 texts of 3 tokens below 3, more than texts=5"
  ):
    laws.params_of(law, texts=5, slots=3, width=4)
  with pytest.raises(ValueError, match="keeps no keys"):
    laws.Exact(IDS).empty_cache(1, 8)
