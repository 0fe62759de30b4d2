"""Block training: where blocks are cut, what is seen and masked, and how papers put it together.

The authors' own losses are conformance cases (tests/checkers/block_objectives.py).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm.objectives import D2f, EfficientDlm, FastDllmV2, IDlm, Llada2Sft, Sdar, Uniform, block
from dlm.objectives.cross_entropy import cross_entropy, predict
from kernels_pallas.block_attention import Keys, visible
from tests.dlm.objectives import oracle
from tests.dlm.objectives.oracle import MASK, Constant, Oracle

LENGTH = 16
TOKENS = oracle.sample(1500, LENGTH)
# Documents of 5 and 6 tokens whose last 3 and 4 are answers, and padding.
SEGMENT = np.array([1] * 5 + [2] * 6 + [0] * 5)
NOISABLE = np.isin(np.arange(LENGTH), [2, 3, 4, 7, 8, 9, 10])


def documents(rows: int = 4):
  batch = oracle.rows(TOKENS[:rows], np.tile(SEGMENT, (rows, 1)))
  starts = np.maximum.accumulate(np.where(np.diff(SEGMENT, prepend=-1) != 0, np.arange(LENGTH), 0))
  position = np.arange(LENGTH) - starts
  return batch.replace(
    noisable_BxL=jnp.asarray(np.tile(NOISABLE, (rows, 1))),
    position_BxL=jnp.asarray(np.tile(position, (rows, 1))),
  )


def test_documents_answers_and_blocks_begin_where_they_do():
  @jax.jit
  def all_of(batch):
    return (
      block.document_start(batch)[0],
      block.document_end(batch)[0],
      block.answer_start(batch)[0],
      block.block_start(batch, 4)[0],
    )

  start, end, answer, cut = map(list, map(np.asarray, all_of(documents())))
  assert start == [0] * 5 + [5] * 6 + [11] * 5
  assert end == [5] * 5 + [11] * 6 + [16] * 5
  assert answer[:11] == [2] * 5 + [7] * 6 and min(answer[11:]) >= 16
  assert cut == [0] * 4 + [4] + [5] * 4 + [9] * 2 + [11] * 4 + [15]


def test_padding_completes_last_blocks_and_no_more():
  filled, where = jax.jit(block.fill_last_blocks, static_argnums=1)(documents(), 4)
  np.testing.assert_array_equal(np.flatnonzero(where[0]), [11, 12])
  np.testing.assert_array_equal(filled.segment_BxL[0, 9:], [2, 2, 2, 2, 0, 0, 0])
  np.testing.assert_array_equal(filled.position_BxL[0, 5:13], range(8))
  np.testing.assert_array_equal(filled.noisable_BxL[0], NOISABLE)


def test_sdar_learns_its_fillers_and_fast_dllm_v2_never_sees_them():
  batch = documents().replace(tokens_BxL=jnp.full((4, LENGTH), 2).at[:, 11:].set(3))
  sdar = oracle.corrupt(Sdar(MASK, 4), 0, batch)
  np.testing.assert_array_equal(sdar.count_B, NOISABLE.sum() + 2)
  whole = dataclasses.replace(Sdar(MASK, 4), fill=False)
  np.testing.assert_array_equal(oracle.corrupt(whole, 0, batch).count_B, NOISABLE.sum())
  assert Sdar(MASK, 4).not_a_likelihood() and whole.not_a_likelihood() is None
  fast = oracle.corrupt(FastDllmV2(MASK, 4), 0, batch)
  for half in (fast.inputs_BxW[:, :LENGTH], fast.inputs_BxW[:, LENGTH:]):
    np.testing.assert_array_equal(half[:, 11:], np.tile([MASK, MASK, 3, 3, 3], (8, 1)))
  assert not np.asarray(fast.weight_BxL[:, 11:]).any()


# ---------------------------------------------------------------------------------------------
# What is seen


def predicate(kind: str, size: int) -> np.ndarray:
  """Who sees whom, said input by input, for `documents()`."""
  start = np.maximum.accumulate(np.where(np.diff(SEGMENT, prepend=-1) != 0, np.arange(LENGTH), 0))
  position = np.arange(LENGTH) - start
  answer = np.array([{1: 2, 2: 2, 0: LENGTH}[s] for s in SEGMENT])
  of = position // size
  if kind == "prompt":
    of = np.where(position < answer, 0, 1 + (position - answer) // size)
  i, j = np.indices((LENGTH, LENGTH))
  same = SEGMENT[i] == SEGMENT[j]
  if kind in ("prompt", "noisy"):
    return same & (of[j] <= of[i])
  causal = kind == "causal"
  noisy = (of[i] == of[j]) & ((j <= i) | (not causal))
  clean = (j <= i) if causal else of[j] <= of[i]
  hidden = np.zeros_like(same)
  return np.block([[same & noisy, same & (of[j] < of[i])], [hidden, same & clean]])


@pytest.mark.parametrize(
  ("objective", "kind"),
  [
    (Sdar(MASK, 4, fill=False), "clean"),
    (FastDllmV2(MASK, 3, complement=False), "clean"),
    (EfficientDlm(MASK, 4), "clean"),
    (EfficientDlm(MASK, 4, context="noisy"), "noisy"),
    (Llada2Sft(MASK, 2), "clean"),
    (Uniform(MASK, 4, 5), "clean"),
    (IDlm(MASK, 2), "causal"),
    (D2f(MASK, 3), "prompt"),
  ],
  ids=lambda x: x if isinstance(x, str) else type(x).__name__,
)
def test_inputs_see_what_the_table_says_within_their_document(objective, kind):
  batch = documents(1)
  if isinstance(objective, FastDllmV2):  # it fills blocks of 3: slot 11 joins document 2
    batch = batch.replace(segment_BxL=jnp.where(batch.segment_BxL == 0, 3, batch.segment_BxL))
    batch = batch.replace(noisable_BxL=batch.noisable_BxL & (batch.segment_BxL < 3))
  mask = oracle.corrupt(objective, 0, batch).mask
  width = mask.lo_BxWxR.shape[1]
  seen = np.asarray(jax.jit(visible)(mask, Keys(jnp.arange(width)[None])))[0]
  np.testing.assert_array_equal(seen, predicate(kind, objective.block))


@pytest.mark.parametrize("make", [Sdar, FastDllmV2, EfficientDlm, Llada2Sft])
def test_a_block_as_long_as_the_row_is_one_stream(make):
  noisy = oracle.corrupt(make(MASK, LENGTH), 0, oracle.rows(TOKENS[:2]))
  assert noisy.inputs_BxW.shape[1] == noisy.mask.lo_BxWxR.shape[1] == LENGTH


def test_sdar_bounds_the_likelihood_with_equality():
  """A label that leaks, or a block too few, would move the oracle away from the exact value."""
  objective = Sdar(MASK, 4, fill=False)

  @jax.jit
  def losses(key):
    noisy = objective.corrupt(key, oracle.rows(TOKENS), 0)
    head, _ = predict(Oracle(), {}, noisy)
    return noisy.weight_BxL * cross_entropy(head, noisy, (MASK,))

  off = np.asarray(losses(jax.random.key(1))).sum(-1) - oracle.exact_nats(TOKENS).sum(-1)
  assert abs(off.mean()) < 4 * off.std() / np.sqrt(len(off))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_i_dlm_drafts_from_clean_blocks_and_judges_from_all_before(size):
  """Both exactly: a draft knows the last clean token before its block, a judge the one before."""
  tokens = TOKENS[:50, :12]
  noisy = oracle.corrupt(IDlm(MASK, size), 0, oracle.rows(tokens))

  @jax.jit
  def ce_of(noisy):
    return cross_entropy(predict(Oracle(ahead=1), {}, noisy)[0], noisy, (MASK,))

  ce = ce_of(noisy)
  drafted, judged = np.split(np.asarray(ce), 2, axis=1)
  np.testing.assert_allclose(judged[:, 1:], oracle.exact_nats(tokens)[:, 1:], rtol=1e-4)
  assert not drafted[:, 0].any() and not judged[:, 0].any()
  for target in range(1, 12):
    last = (target - 1) // size * size - 1
    p = oracle.FIRST[tokens[:, target]]
    if last >= 0:
      power = np.linalg.matrix_power(oracle.STEP, target - last)
      p = power[tokens[:, last], tokens[:, target]]
    np.testing.assert_allclose(drafted[:, target], -np.log(p), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------
# What is masked


@pytest.mark.parametrize("make", [FastDllmV2, functools.partial(Llada2Sft, complement=True)])
def test_complementary_views_ask_for_every_token_exactly_once(make):
  batch = documents(64)
  noisy = oracle.corrupt(make(MASK, 4), 0, batch)
  masked = np.asarray(noisy.inputs_BxW[:, :11] == MASK).reshape(64, 2, 11)
  np.testing.assert_array_equal(masked.sum(1), np.tile(NOISABLE[:11], (64, 1)))
  asked = np.asarray(noisy.weight_BxL).reshape(64, 2, LENGTH)
  np.testing.assert_array_equal(asked.sum(1), np.tile(NOISABLE, (64, 1)))
  np.testing.assert_array_equal(noisy.count_B.reshape(64, 2).sum(1), NOISABLE.sum())
  clean = np.asarray(noisy.targets_BxL).reshape(64, 2, LENGTH)
  np.testing.assert_array_equal(clean[:, 0, :11], TOKENS[:64, :11])
  np.testing.assert_array_equal(clean[:, 0], clean[:, 1])
  level = np.asarray(noisy.time_BxW[:, :LENGTH]).reshape(64, 2, LENGTH)
  np.testing.assert_allclose(level.sum(1), 1, rtol=1e-6)


def test_documents_or_blocks_share_a_level():
  batch = documents(8)
  for objective, starts in (
    (Sdar(MASK, 4, fill=False), [0, 5, 11]),
    (FastDllmV2(MASK, 4, complement=False), [0, 4, 5, 9, 13]),
    (Llada2Sft(MASK, 4), [0, 5, 11]),
    (Uniform(MASK, 4, 5), [0, 4, 5, 9, 11]),
    (Uniform(MASK, None, 5), [0, 5, 11]),
  ):
    level = np.asarray(oracle.corrupt(objective, 0, batch).time_BxW[:, :LENGTH])
    changes = np.flatnonzero((np.diff(level, axis=1) != 0).all(0)) + 1
    np.testing.assert_array_equal(changes[changes <= 13], starts[1:])
    assert len(np.unique(level)) >= 8 * len(starts)
  window = Llada2Sft(MASK, 4, window=(0.3, 0.8))
  level = np.asarray(oracle.corrupt(window, 0, batch).time_BxW[:, :LENGTH])
  assert 0.3 <= level.min() < 0.4 and 0.7 < level.max() <= 0.8


def test_efficient_dlm_masks_an_exact_share_of_every_block():
  batch = oracle.rows(TOKENS)
  noisy = oracle.corrupt(EfficientDlm(MASK, 4), 0, batch)
  masked = np.asarray(noisy.weight_BxL > 0).reshape(1500, 4, 4)
  level = np.asarray(noisy.time_BxW[:, :LENGTH]).reshape(1500, 4, 4)
  assert (level == level[..., :1]).all()
  np.testing.assert_array_equal(masked.sum(-1), np.round(4 * level[..., 0]))
  weight = np.asarray(noisy.weight_BxL).reshape(1500, 4, 4)
  np.testing.assert_allclose(weight[masked], 1 / level[masked], rtol=1e-6)
  np.testing.assert_array_equal(noisy.count_B, LENGTH)
  whole = oracle.corrupt(EfficientDlm(MASK, None), 0, batch)
  shown = np.round(LENGTH * np.asarray(whole.time_BxW[:, 0]))
  np.testing.assert_array_equal(np.asarray(whole.weight_BxL > 0).sum(-1), np.maximum(shown, 1))


PLACES = [0, 8, 16, 32, 48, 63]


@pytest.mark.parametrize(
  ("half_life", "profile"),
  [
    (None, [0.5] * 6),
    (0.25, [0.371, 0.397, 0.428, 0.494, 0.577, 0.662]),
    (0.1, [0.265, 0.296, 0.341, 0.467, 0.654, 0.851]),
    (0.05, [0.189, 0.229, 0.280, 0.456, 0.726, 0.939]),
  ],
)
def test_later_tokens_are_masked_more_often(half_life, profile):
  """Measured with 60000 draws of the authors' rule."""
  batch = oracle.rows(np.zeros((9000, 64), np.int32))
  objective = EfficientDlm(MASK, 64, half_life=half_life)

  @jax.jit
  def shares(key):
    return objective.masked(objective.draw(key, batch), batch)[0].mean(0)

  got = np.asarray(shares(jax.random.key(0)))
  np.testing.assert_allclose(got[PLACES], profile, atol=4.5 * 0.5 / np.sqrt(9000))
  assert abs(got.mean() - 0.5) < 0.015


def test_from_right_to_left_where_the_half_life_is_nothing():
  noisy = oracle.corrupt(EfficientDlm(MASK, 4, half_life=1e-4), 0, oracle.rows(TOKENS))
  masked, level = np.asarray(noisy.weight_BxL > 0), np.asarray(noisy.time_BxW[:, :LENGTH])
  masked = masked[level < 0.95].reshape(-1, 4)  # near level 1 no place is preferred
  assert (np.diff(masked.astype(int), axis=1) >= 0).all() and masked.any()


@pytest.mark.parametrize("mask_id", [2, 9])
def test_uniform_noise_is_any_id_but_the_mask_and_every_token_is_asked(mask_id):
  batch = oracle.rows(np.full((3000, 6), 4, np.int32))
  batch = batch.replace(noisable_BxL=jnp.broadcast_to(jnp.arange(6) >= 2, (3000, 6)))
  noisy = oracle.corrupt(Uniform(mask_id, 3, vocab=5), 0, batch)
  ids, level = np.asarray(noisy.inputs_BxW), np.asarray(noisy.time_BxW[:, :6])
  assert ids.shape == (3000, 12) and (ids[:, 6:] == 4).all() and (ids[:, :2] == 4).all()
  others = [i for i in range(5) if i != mask_id]
  share = [(ids[:, 2:6] == i).mean() for i in others[:-1]]
  np.testing.assert_allclose(share, 0.5 / len(others), atol=0.02)
  assert set(np.unique(ids)) == set(others)
  changed = np.asarray(ids[:, 2:6] != 4) / (1 - 1 / len(others))
  for low in (0.0, 0.4, 0.8):  # as often as the level says
    near = (level[:, 2:] >= low) & (level[:, 2:] < low + 0.2)
    assert abs(changed[near].mean() - level[:, 2:][near].mean()) < 0.06
  np.testing.assert_array_equal(noisy.weight_BxL, np.asarray(batch.noisable_BxL, np.float32))
  np.testing.assert_array_equal(noisy.count_B, 4)


def test_d2f_levels_rise_from_block_to_block_of_an_answer():
  rows, length, size = 400, 24, 3
  segment = np.tile([1] * 10 + [2] * 11 + [3] * 2 + [0], (rows, 1))
  noisable = np.isin(np.arange(length), [*range(2, 10), *range(11, 21)])
  batch = oracle.rows(np.zeros((rows, length), np.int32), segment)
  batch = batch.replace(noisable_BxL=jnp.asarray(np.tile(noisable, (rows, 1))))
  objective = D2f(MASK, size)
  level = np.asarray(oracle.corrupt(objective, 0, batch).time_BxW)
  assert not level[:, [0, 1, 10, 21, 22]].any()
  for answer, end in ((2, 10), (11, 21)):
    cuts = np.arange(answer, end, size)
    for cut in cuts:
      inside = level[:, cut : min(cut + size, end)]
      np.testing.assert_array_equal(inside, np.repeat(inside[:, :1], inside.shape[1], 1))
    rise = np.diff(level[:, cuts], axis=1)
    most = (0.7 - level[:, answer]) / (len(cuts) - 1)
    assert (rise >= -1e-6).all() and (rise <= most[:, None] + 1e-6).all()
    np.testing.assert_allclose(rise.mean(0), most.mean() / 2, rtol=0.15)
    first = level[:, answer]
    assert 0.2 <= first.min() < 0.22 and 0.68 < first.max() <= 0.7 + 1e-6
  assert level.max() <= 0.7 + 1e-6
  assert abs(np.corrcoef(level[:, 2], level[:, 11])[0, 1]) < 0.2  # documents draw their own


def test_means_over_masked_tokens_are_one_where_every_token_costs_one_nat():
  batch = oracle.rows(np.zeros((20, 6), np.int32))
  for objective in (FastDllmV2(2, 2), Llada2Sft(2, 2), Llada2Sft(2, 2, shift=1)):
    sums = jax.jit(functools.partial(_loss, objective))(batch)
    assert float(sums.total / sums.count) == pytest.approx(1, rel=1e-5)
    assert float(sums.count) > 0


def _loss(objective, batch):
  return objective.loss(Constant(), {}, objective.corrupt(jax.random.key(0), batch, 0))[0]


def test_streams_of_i_dlm_add_up_and_may_be_balanced():
  batch = oracle.rows(TOKENS[:20])

  @functools.partial(jax.jit, static_argnums=0)
  def sums(objective):
    noisy = objective.corrupt(jax.random.key(0), batch, 0)
    loss, _ = objective.loss(Oracle(ahead=1), {}, noisy)
    asked = IDlm(MASK, 2).corrupt_with({}, batch, 0)
    ce = cross_entropy(predict(Oracle(ahead=1), {}, asked)[0], asked, ())
    return loss.total, loss.count, ce

  total, count, ce = map(np.asarray, sums(IDlm(MASK, 2)))
  drafted, judged = ce[:, :LENGTH].sum(), ce[:, LENGTH:].sum()
  assert count == 20 * (LENGTH - 1)
  assert total == pytest.approx(drafted + 0.2 * judged, rel=1e-5)
  assert sums(IDlm(MASK, 2, clean_weight=0.0))[0] == pytest.approx(drafted, rel=1e-5)
  assert sums(IDlm(MASK, 2, clean_weight=None))[0] == pytest.approx(2 * drafted, rel=1e-5)


@pytest.mark.parametrize(
  ("make", "words"),
  [
    (lambda: Sdar(-1, 4), "Sdar: mask_id=-1 must not be negative"),
    (lambda: FastDllmV2(MASK, 0), "FastDllmV2: block=0 must be at least 1"),
    (lambda: EfficientDlm(MASK, 4, half_life=0.0), "half_life=0.0 must be positive"),
    (lambda: EfficientDlm(MASK, 4, context="dirty"), "context='dirty' is not one of clean, noisy"),
    (lambda: Uniform(MASK, 4, 1), "Uniform: vocab=1 must be at least 2"),
    (lambda: Llada2Sft(MASK, 4, window=(0.8, 0.3)), r"window=\(0.8, 0.3\) must hold"),
    (lambda: Llada2Sft(MASK, 4, confidence=-1.0), "confidence=-1.0 must not be negative"),
    (lambda: Llada2Sft(MASK, 4, shift=2), "shift=2 must be 0 or 1"),
    (lambda: IDlm(MASK, 2, clean_weight=-0.1), "clean_weight=-0.1 must not be negative"),
    (lambda: D2f(MASK, 2, window=(0.0, 0.7)), r"D2f: window=\(0.0, 0.7\) must hold"),
  ],
)
def test_mistakes_are_named(make, words):
  with pytest.raises(ValueError, match=words):
    make()
