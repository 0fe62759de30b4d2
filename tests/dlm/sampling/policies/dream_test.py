"""Dream's schedule digit by digit, its choices against a slow twin, and how its blocks end."""

import dataclasses
import fractions
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from dlm import masks
from dlm.sampling import chance, loop
from dlm.sampling.caching import NoCache
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policies import Dream, DreamThreshold, Threshold
from dlm.sampling.policies.dream import ALGORITHMS, shares
from dlm.sampling.sampler import Sampler
from tests.dlm.sampling.policies.views import keys, view_of
from tests.dlm.sampling.table import Lookup, logits_by_hand, random_table

MASK, VOCAB, SLOTS = 6, 7, 13
ROWS = [[1, 2] + [MASK] * 11, [3] * 5 + [MASK] * 8]
run = jax.jit(loop.run, static_argnums=0)


def sampler(policy, **fields):
  fields = {"block": SLOTS, "max_forwards": 60, "mask_id": MASK, "may_predict_mask": True} | fields
  return Sampler(Lookup(), policy, NoCache(), masks.Full(), **fields)


def canvas_of(rows=ROWS):
  rows = [np.asarray(row) for row in rows]
  free = [row == MASK for row in rows]
  return make_canvas(
    rows, free, list(range(len(rows))), slots=SLOTS, block=SLOTS, align="prompt", mask_id=MASK,
    seed=0,
  )  # fmt: skip


def no_masks_predicted(seed):
  params = random_table(seed, SLOTS, VOCAB)
  return params | {"own": params["own"].at[:, MASK].add(-1e4)}


def quotas(steps, eps, masked):
  """The tokens that each step writes of a block, by the policy's own table."""
  written = []
  for share in shares(steps, eps)[:-1]:
    written.append(int(np.float32(masked) * share))
    masked -= written[-1]
  return written


# ---------------------------------------------------------------------------------------------
# The schedule


def rounded(x: fractions.Fraction) -> np.float32:
  """The nearest float32, rounded once: float64 holds x without error."""
  assert fractions.Fraction(float(x)) == x
  return np.float32(float(x))


def slow_shares(steps, eps):
  """Every time by exact arithmetic, then one rounding; the rest in float32."""
  last = np.float32(eps)
  step = fractions.Fraction(float((last - np.float32(1)) / np.float32(steps)))
  half = (steps + 1) // 2
  times = [rounded(1 + step * i) for i in range(half)]
  times += [
    rounded(fractions.Fraction(float(last)) - step * (steps - i)) for i in range(half, steps + 1)
  ]
  share = [np.float32(1) - s / t for t, s in itertools.pairwise(times)]
  return np.array([*share[:-1], 1, 0], np.float32)


@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.2])
@pytest.mark.parametrize("steps", [1, 2, 5, 8, 16, 33, 128])
def test_the_schedule_is_float32_to_the_last_digit(steps, eps):
  np.testing.assert_array_equal(shares(steps, eps), slow_shares(steps, eps))


def test_quotas_of_a_token_a_step_two_and_half():
  for n in (8, 64, 512):
    assert quotas(n, 1e-3, n) == [0] + [1] * (n - 2) + [2]
    assert quotas(n // 2, 1e-3, n) == [1] + [2] * (n // 2 - 2) + [3]
    twice = quotas(2 * n, 1e-3, n)
    assert sum(twice) == n and len(twice) == 2 * n and sum(k == 0 for k in twice[:-1]) > n
  assert quotas(1, 1e-3, 7) == [7]


@pytest.mark.parametrize(
  ("steps", "eps", "masked", "want"),
  [
    (10, 0.2, 20, [1, 1, 1, 1, 1, 2, 1, 2, 2, 8]),
    (12, 0.2, 8, [0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 1, 5]),
    (16, 0.2, 10, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 6]),
    (16, 0.2, 16, [0, 0, 0, 0, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 6]),
    (12, 0.1, 30, [2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 7]),
    (8, 0.001, 24, [2, 3, 3, 3, 3, 3, 3, 4]),
  ],
)
def test_quotas_next_to_whole_numbers_are_those_of_torch(steps, eps, masked, want):
  """Recorded from torch 2.13: times rounded twice, or not to float32, give others."""
  assert quotas(steps, eps, masked) == want


# ---------------------------------------------------------------------------------------------
# Against a twin


def cut(p, top_p, top_k):
  """Top-p of all, then top-k; what is left is a distribution again."""
  order = np.argsort(-p)
  before = np.cumsum(p[order]) - p[order]
  kept = order[before <= top_p][: top_k or None]
  return np.where(np.isin(np.arange(len(p)), kept), p, 0) / p[kept].sum()


def scores(params, row, alg, top_p=1.0, top_k=0):
  """Candidates and their scores, in float64, written as one would explain it."""
  p = np.stack([cut(one, top_p, top_k) for one in softmax(logits_by_hand(params, row), axis=-1)])
  best = -np.sort(-p, axis=-1)
  logs = np.log(p, where=p > 0, out=np.zeros_like(p))
  score = {
    "maskgit_plus": best[:, 0],
    "topk_margin": best[:, 0] - best[:, 1],
    "entropy": (p * logs).sum(-1),
  }
  return p.argmax(-1), score[alg]


def written_by_forward(out, b, row):
  """The canvas of row b after each forward, from when its slots were written."""
  tokens, when = np.asarray(out.tokens_BxL[b]), np.asarray(out.when_BxL[b])
  for turn in range(1, int(out.forwards_Bx3[b].sum()) + 1):
    yield np.where((when >= 0) & (when <= turn), tokens, np.pad(row, (0, SLOTS - len(row))))


@pytest.mark.parametrize("cuts", [{}, {"top_p": 0.7}, {"top_k": 2}, {"top_p": 0.9, "top_k": 3}])
@pytest.mark.parametrize("alg", ALGORITHMS[1:])
def test_the_best_are_those_of_the_twin(alg, cuts):
  params, steps = no_masks_predicted(7), 5
  out = run(sampler(Dream(steps, alg), **cuts), params, canvas_of())
  for b, row in enumerate(map(np.array, ROWS)):
    todo = quotas(steps, 1e-3, (row == MASK).sum())
    assert out.forwards_Bx3[b].tolist() == [steps, 0, 0]
    for n, got in zip(todo, written_by_forward(out, b, row), strict=True):
      token, score = scores(params, row, alg, **cuts)
      order = np.argsort(np.where(row == MASK, -score, np.inf), kind="stable")[:n]
      row[order] = token[order]
      np.testing.assert_array_equal(got[: len(row)], row)


def threshold_twin(params, row, threshold, steps):
  """The authors' loop: a budget, what was too unsure is carried over, then steps are added."""
  q, left, i, total = (row == MASK).sum() // steps, 0, 0, steps
  canvases = []
  while i < total:
    token, score = scores(params, row, "maskgit_plus")
    ranked = np.argsort(np.where(row == MASK, -score, np.inf), kind="stable")[: q + left]
    sure = [slot for k, slot in enumerate(ranked) if k == 0 or score[slot] >= threshold]
    row[sure] = token[sure]
    canvases.append(row.copy())
    left = len(ranked) - len(sure)
    if left and i == total - 1:
      q, total = 0, total + 1
    i += 1
  return canvases


@pytest.mark.parametrize(("length", "steps"), [(10, 5), (12, 4), (12, 1)])
@pytest.mark.parametrize("threshold", [0.0, 0.6, 0.99])
def test_a_budget_carries_over_what_was_too_unsure(threshold, length, steps):
  params, row = no_masks_predicted(3), np.array([1] * (SLOTS - length) + [MASK] * length)
  out = run(sampler(DreamThreshold(threshold, steps)), params, canvas_of([row] * 2))
  want = threshold_twin(params, row.copy(), threshold, steps)
  got = list(written_by_forward(out, 0, row))
  np.testing.assert_array_equal(got, want)
  if threshold == 0.99:
    assert len(want) > steps, "the case must need steps beyond the budgeted ones"


def test_an_uneven_budget_gives_its_rest_to_the_first_steps():
  """All are sure: 7 tokens in 3 steps."""
  view = view_of([[0.99] * 7], [[True] * 7])
  policy, masked_BxA, counts = DreamThreshold(0.5, steps=3), view.masked_BxA, []
  state = policy.enter(masked_BxA, None)
  for step in range(3):
    now = view.replace(masked_BxA=masked_BxA, step_B=jnp.array([step]))
    decision, state = policy.decide(now, state, keys(1))
    counts.append(int(decision.write_BxA.sum()))
    masked_BxA &= ~decision.write_BxA
    assert bool(decision.leave_B[0]) == (step == 2)
  assert counts == [3, 2, 2]


def test_without_steps_every_sure_token_is_written():
  view = view_of([[0.2, 0.95, 0.6, 0.9], [0.2, 0.1, 0.3, 0.95]], [[1, 1, 1, 1], [1, 1, 1, 0]])
  policy = DreamThreshold(0.9)
  decision, _ = policy.decide(view, policy.enter(view.masked_BxA, None), keys(2))
  np.testing.assert_array_equal(decision.write_BxA, [[0, 1, 0, 1], [0, 0, 1, 0]])
  assert decision.leave_B is None


# ---------------------------------------------------------------------------------------------
# Chance


def test_scores_are_those_of_what_candidates_are_drawn_from():
  for policy in (Dream(alg="topk_margin"), Dream(alg="entropy"), DreamThreshold()):
    spec = sampler(policy, temperature=0.5, top_p=0.9, top_k=4).spec()
    assert spec.confidence == "shaped" and spec.top_p_of == "all"
    assert (spec.temperature, spec.top_p, spec.top_k) == (0.5, 0.9, 4)
    assert spec.top2 == (policy == Dream(alg="topk_margin"))
    assert spec.entropy == (policy == Dream(alg="entropy"))


def test_a_sampler_sets_the_confidence_of_policies_that_take_any():
  assert sampler(Threshold(), confidence="tempered").spec().confidence == "tempered"
  with pytest.raises(ValueError, match="confidence='tempered' must be 'plain' or 'shaped', which"):
    sampler(Dream(), confidence="tempered")


def test_slots_are_drawn_without_replacement_from_the_scores():
  """Shares of two draws from p, none put back, over many rows; all masked slots are 0, 2, 3."""
  rows, alg_temp, prob = 6000, 0.25, np.array([0.3, 0.9, 0.6, 0.45])
  masked = np.array([True, False, True, True])
  view = view_of([prob] * rows, [masked] * rows)
  policy = Dream(steps=2, alg="maskgit_plus", alg_temp=alg_temp, eps=0.3)
  decide = jax.jit(lambda view, key_B: policy.decide(view, (), key_B)[0].write_BxA)
  write_BxA = np.asarray(decide(view, keys(rows)))
  assert quotas(2, 0.3, 3)[0] == 1 and (write_BxA.sum(-1) == 1).all()
  p = softmax(np.where(masked, prob / alg_temp, -np.inf))
  np.testing.assert_allclose(write_BxA.mean(0), p, atol=4 * np.sqrt(0.25 / rows))
  noise_BxA = np.asarray(chance.gumbel(keys(rows), view))
  two = np.argsort(-(np.log(p + 1e-30) + noise_BxA), axis=-1)[:, :2]
  for first, second in ((0, 2), (2, 0), (3, 2)):
    share = ((two[:, 0] == first) & (two[:, 1] == second)).mean()
    np.testing.assert_allclose(
      share, p[first] * p[second] / (1 - p[first]), atol=4 * np.sqrt(0.25 / rows)
    )


def test_origin_writes_at_the_scheduled_rate_and_all_at_last():
  steps, rows = 4, 96
  policy = Dream(steps, "origin")
  row = [1] + [MASK] * (SLOTS - 1)
  out = run(sampler(policy, temperature=1.0), no_masks_predicted(1), canvas_of([row] * rows))
  counts = np.bincount(np.asarray(out.when_BxL[:, 1:]).ravel(), minlength=steps + 1)
  assert counts[0] == 0 and counts.sum() == rows * (SLOTS - 1)
  want = np.full(steps, (1 - 1e-3) / steps)
  want[-1] += 1e-3
  np.testing.assert_allclose(
    counts[1:] / counts.sum(), want, atol=4 * np.sqrt(want * (1 - want) / counts.sum()).max()
  )


def test_exact_steps_are_taken_when_nothing_is_left():
  row, params = [1] * (SLOTS - 1) + [MASK], no_masks_predicted(1)
  rows, origin = [row] * 8, Dream(6, "origin")
  free = run(sampler(origin), params, canvas_of(rows))
  exact = run(sampler(dataclasses.replace(origin, exact_steps=True)), params, canvas_of(rows))
  np.testing.assert_array_equal(free.tokens_BxL, exact.tokens_BxL)
  np.testing.assert_array_equal(free.when_BxL, exact.when_BxL)
  assert set(exact.forwards_Bx3[:, 0].tolist()) == {6} != set(free.forwards_Bx3[:, 0].tolist())


# ---------------------------------------------------------------------------------------------
# Ends


@pytest.mark.parametrize("policy", [Dream(4), Dream(4, "origin"), DreamThreshold(0.5, 4)], ids=str)
def test_a_block_ends_after_its_steps_though_the_model_predicts_masks(policy):
  params = no_masks_predicted(4)
  params["own"] = params["own"].at[9, MASK].set(1e4)
  out = run(sampler(policy), params, canvas_of())
  assert (out.tokens_BxL[0] == MASK).tolist() == [slot == 9 for slot in range(SLOTS)]
  assert out.forwards_Bx3[0, 0] <= 4 + 11 and out.done_B.all()
  allowed = run(sampler(policy, may_predict_mask=False), params, canvas_of())
  assert not (allowed.tokens_BxL == MASK).any()


def test_behind_the_last_step_nothing_is_written_and_the_block_is_left():
  """So a block whose only step filled a cache keeps its masks, as in Fast-dLLM's code."""
  view = view_of([[0.9, 0.8]], [[True, True]], entropy=[[0.1, 0.2]], step_B=jnp.array([1]))
  decision, _ = Dream(steps=1).decide(view, (), keys(1))
  assert not decision.write_BxA.any() and decision.leave_B.all()


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: Dream(steps=0), "steps=0 must be at least 1"),
    (lambda: Dream(alg="best"), "origin, maskgit_plus, topk_margin, entropy"),
    (lambda: Dream(alg_temp=-0.1), "alg_temp=-0.1"),
    (lambda: Dream(alg="origin", alg_temp=0.1), "alg='origin'"),
    (lambda: Dream(eps=1.0), "eps=1.0"),
    (lambda: DreamThreshold(1.1), "threshold=1.1"),
    (lambda: DreamThreshold(steps=-1), "steps=-1"),
  ],
)
def test_bad_settings_are_refused_by_name(make, message):
  with pytest.raises(ValueError, match=message):
    make()
