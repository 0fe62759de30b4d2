"""The jitted loop against its slow Python twin, and what must hold for every policy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from dlm import masks
from dlm.diffusion.schedules import LogLinear
from dlm.sampling import loop
from dlm.sampling.caching import NoCache
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policies import Ancestral, Factor, Fixed, LeftToRight, Saber, Threshold
from dlm.sampling.sampler import Sampler
from tests.dlm.sampling.every import EVERY, warmth
from tests.dlm.sampling.table import Lookup, logits_by_hand, random_table

MASK, VOCAB, SLOTS, BLOCK = 6, 7, 16, 4
run = jax.jit(loop.run, static_argnums=0)


def sampler(policy, **fields):
  fields = {"block": BLOCK, "max_forwards": 40, "mask_id": MASK, **fields}
  return Sampler(Lookup(), policy, NoCache(), masks.Full(), **fields)


def canvas_of(rows, row_ids=None, slots=SLOTS, align="prompt", seed=0, block=BLOCK):
  """Rows as lists of ids; MASK where the sampler writes."""
  rows = [np.asarray(r) for r in rows]
  row_ids = list(range(len(rows))) if row_ids is None else row_ids
  return make_canvas(
    rows, [r == MASK for r in rows], row_ids, slots=slots, block=block, align=align, mask_id=MASK,
    seed=seed,
  )  # fmt: skip


ROWS = [[1, 2] + [MASK] * 9, [3] * 5 + [MASK] * 4, [0, MASK, MASK, 4, 5, MASK, 1, MASK]]


def twin(params, policy, row, block, start):
  """One row, one forward and one token at a time, in float64; returns tokens, when, forwards."""
  row, when, turn = np.array(row), np.full(len(row), -1), 0
  free = row == MASK
  while True:
    block_slots = [i for i in range(start, min(start + block, len(row)))]
    todo = [i for i in block_slots if free[i] and row[i] == MASK]
    entry = len(todo)
    step = 0
    while todo:
      logits = logits_by_hand(params, row)
      logits[:, MASK] = -np.inf
      logp = log_softmax(logits, axis=-1)
      token = logp.argmax(-1)
      sure = np.exp(logp.max(-1))
      chosen = choose(policy, todo, sure, logp, entry, step)
      turn, step = turn + 1, step + 1
      for i in chosen:
        row[i], when[i] = token[i], turn
      todo = [i for i in todo if i not in chosen]
    later = [i for i in range(start + block, len(row)) if free[i] and row[i] == MASK]
    if not later:
      return row, when, turn
    start += (later[0] - start) // block * block


def choose(policy, todo, sure, logp, entry, step):
  match policy:
    case Fixed():
      second = np.sort(np.exp(logp), axis=-1)[:, -2]
      with np.errstate(invalid="ignore"):
        entropy = -np.nansum(np.where(np.exp(logp) > 0, np.exp(logp) * logp, 0), axis=-1)
      score = {"confidence": sure, "margin": sure - second, "entropy": -entropy}[policy.order]
      n = policy.k or entry // policy.steps + (step < entry % policy.steps)
      return sorted(todo, key=lambda i: -score[i])[:n]
    case Threshold():
      best = max(todo, key=lambda i: sure[i])
      return [i for i in todo if sure[i] >= policy.threshold or i == best]
    case Factor():
      ranked = sorted(todo, key=lambda i: -sure[i])
      fits = [
        n for n in range(1, len(todo) + 1) if (n + 1) * (1 - sure[ranked[n - 1]]) < policy.factor
      ]
      return ranked[: max(fits, default=1)]
    case LeftToRight():
      return todo[: policy.k]
  raise AssertionError(policy)


@pytest.mark.parametrize(
  "policy",
  [
    Fixed(k=1), Fixed(k=3, order="margin"), Fixed(steps=3, order="entropy"), Fixed(steps=2),
    Threshold(0.5), Threshold(0.9), Factor(1.0), Factor(0.4), LeftToRight(1), LeftToRight(3),
  ],
  ids=str,
)  # fmt: skip
@pytest.mark.parametrize("align", ["prompt", "canvas"])
def test_the_loop_equals_its_python_twin(policy, align):
  params = random_table(1, SLOTS, VOCAB)
  out = run(sampler(policy), params, canvas_of(ROWS, align=align))
  for i, row in enumerate(ROWS):
    first = row.index(MASK)
    start = first // BLOCK * BLOCK if align == "canvas" else first
    tokens, when, forwards = twin(params, policy, row, BLOCK, start)
    np.testing.assert_array_equal(out.tokens_BxL[i, : len(row)], tokens)
    np.testing.assert_array_equal(out.when_BxL[i, : len(row)], when)
    assert out.forwards_Bx3[i].tolist() == [forwards, 0, 0]
    assert int(out.queries_B[i]) == forwards * len(row)


@pytest.mark.parametrize("policy", EVERY, ids=str)
def test_a_row_alone_equals_the_row_in_a_batch(policy):
  """Here beside rows of one free slot, at another place. The twin shows it at temperature 0.

  One shape, hence one program a policy; batches of other sizes are generate_test's.
  """
  params = random_table(2, 2 * SLOTS, VOCAB)
  s = sampler(policy, temperature=warmth(policy))
  together = run(s, params, canvas_of(ROWS, slots=2 * SLOTS, seed=3))
  for i, row in enumerate(ROWS):
    canvas = canvas_of([[0, MASK], row, [MASK]], row_ids=[7, i, 8], slots=2 * SLOTS, seed=3)
    alone = run(s, params, canvas)
    np.testing.assert_array_equal(alone.tokens_BxL[1], together.tokens_BxL[i])
    np.testing.assert_array_equal(alone.when_BxL[1], together.when_BxL[i])
    assert alone.forwards_Bx3[1].tolist() == together.forwards_Bx3[i].tolist()


@pytest.mark.parametrize("policy", EVERY, ids=str)
@pytest.mark.parametrize("broken", ["nan", "mask", "minus_inf"])
def test_every_loop_ends(policy, broken):
  params = random_table(4, 2 * SLOTS, VOCAB)
  if broken == "nan":
    params["own"] = params["own"] * jnp.nan
  elif broken == "mask":
    params["own"] = params["own"].at[:, MASK].set(1e4)
  else:
    params["own"] = jnp.full_like(params["own"], -jnp.inf)
  s = sampler(policy, temperature=warmth(policy))
  out = run(s, params, canvas_of(ROWS, slots=2 * SLOTS))
  assert out.done_B.all() and (out.forwards_Bx3.sum(-1) <= 40).all()
  if broken == "mask":
    assert not (out.tokens_BxL == MASK).any(), "the mask id is never written"


def test_remasked_tokens_are_counted():
  """Every write but the last to a slot was undone."""
  params, s = random_table(1, SLOTS, VOCAB), sampler(Saber(2))
  step = jax.jit(loop.step, static_argnums=0)
  state, undone = loop.start(s, canvas_of(ROWS)), 0
  while not state.canvas.done_B.all():
    before = state.canvas.tokens_BxL
    state = step(s, params, state)
    undone += ((before != MASK) & (state.canvas.tokens_BxL == MASK)).sum(-1)
  assert (state.canvas.remasked_B == undone).all() and state.canvas.remasked_B.sum() > 0


def test_max_forwards_ends_a_row_with_masks_left():
  out = run(sampler(Fixed(k=1), max_forwards=3), random_table(1, SLOTS, VOCAB), canvas_of(ROWS))
  assert out.forwards_Bx3.sum(-1).tolist() == [3, 3, 3]
  assert (out.tokens_BxL[0] == MASK).sum() == 6


def test_closed_slots_and_padding_are_never_written():
  out = run(sampler(LeftToRight(3)), random_table(1, SLOTS, VOCAB), canvas_of(ROWS))
  for i, row in enumerate(ROWS):
    given = np.asarray(row) != MASK
    np.testing.assert_array_equal(out.tokens_BxL[i, : len(row)][given], np.asarray(row)[given])
    assert (out.tokens_BxL[i, len(row) :] == 0).all() and (out.when_BxL[i, len(row) :] == -1).all()


def test_a_mask_id_in_the_prompt_is_text():
  row, free = np.array([1, MASK, MASK, MASK]), np.array([False, False, True, True])
  canvas = make_canvas(
    [row] * 3, [free] * 3, [0, 1, 2], slots=SLOTS, block=BLOCK, align="prompt", mask_id=MASK, seed=0
  )
  out = run(sampler(Fixed(k=1)), random_table(0, SLOTS, VOCAB), canvas)
  assert int(out.tokens_BxL[0, 1]) == MASK and int(out.forwards_Bx3[0].sum()) == 2


def test_a_stop_id_ends_the_row_once_all_before_it_is_written():
  params = random_table(1, SLOTS, VOCAB)
  params["own"] = params["own"].at[5, 2].set(100.0)  # slot 5, in the second block, says 2
  row = [1] + [MASK] * 15
  s = sampler(Fixed(k=1), eos_ids=(2,))
  out = run(s, params, canvas_of([row], align="canvas"))
  first = 1 + int(np.flatnonzero(np.asarray(out.tokens_BxL[0, 1:]) == 2)[0])
  assert bool(out.done_B[0]) and first <= 5
  assert (out.tokens_BxL[0, :first] != MASK).all(), "nothing before the stop id is left open"
  last = int(out.when_BxL[0].max())
  assert int(out.when_BxL[0, 1 : first + 1].max()) == last == int(out.forwards_Bx3.sum())
  # The same id in the prompt is no stop.
  out = run(s, params, canvas_of([[2] + [MASK] * 3]))
  assert (out.tokens_BxL[0, :4] != MASK).all()


def test_a_stop_id_fills_what_stands_behind_its_block():
  params = random_table(1, SLOTS, VOCAB)
  params["own"] = params["own"].at[2, 2].set(100.0)  # slot 2, in the first block, says 2
  row = [1] + [MASK] * 15
  out = run(sampler(Fixed(k=1), eos_ids=(2,), on_eos="fill_block"), params, canvas_of([row]))
  plain = run(sampler(Fixed(k=1)), params, canvas_of([row]))
  np.testing.assert_array_equal(out.tokens_BxL[0, :5], plain.tokens_BxL[0, :5])
  assert (out.tokens_BxL[0, 3:5] != 2).any(), "the block itself is written to its end"
  assert (out.tokens_BxL[0, 5:] == 2).all() and int(out.forwards_Bx3.sum()) == 4


def test_shift_reads_the_logits_of_the_slot_before():
  params = random_table(5, SLOTS, VOCAB)
  row = [1, 2, MASK, MASK]
  plain = run(sampler(LeftToRight(1)), params, canvas_of([row] * 3))
  shifted = run(sampler(LeftToRight(1), shift=1), params, canvas_of([row] * 3))
  first = logits_by_hand(params, np.array(row))
  assert int(plain.tokens_BxL[0, 2]) == first[2, :MASK].argmax()
  assert int(shifted.tokens_BxL[0, 2]) == first[1, :MASK].argmax()


def test_streaming_takes_the_same_steps_as_the_loop():
  params, s = random_table(1, SLOTS, VOCAB), sampler(Threshold(0.5))
  state, turns = loop.start(s, canvas_of(ROWS)), 0
  step = jax.jit(loop.step, static_argnums=0)
  while not state.canvas.done_B.all():
    state, turns = step(s, params, state), turns + 1
  whole = run(s, params, canvas_of(ROWS))
  np.testing.assert_array_equal(state.canvas.tokens_BxL, whole.tokens_BxL)
  assert turns == int(whole.forwards_Bx3.sum(-1).max())


def test_equal_samplers_compile_once():
  traced = []

  @functools.partial(jax.jit, static_argnums=0)
  def counted(s, params, canvas):
    traced.append(s)
    return loop.run(s, params, canvas)

  params = random_table(1, SLOTS, VOCAB)
  for _ in range(2):
    counted.eval_shape(sampler(Threshold(0.7)), params, canvas_of(ROWS))
  assert len(traced) == 1
  assert sampler(Threshold(0.7)) == sampler(Threshold(0.7)) != sampler(Threshold(0.8))


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: Fixed(), "set one of"),
    (lambda: Fixed(k=1, order="best"), "confidence, margin, entropy, random"),
    (lambda: Threshold(1.5), "threshold=1.5"),
    (lambda: Factor(0), "factor=0"),
    (lambda: LeftToRight(0), "k=0"),
    (lambda: Ancestral(LogLinear(eps=0.0), 0), "steps=0"),
    (lambda: sampler(Fixed(k=1), commit="later"), "fused, separate"),
    (lambda: sampler(Fixed(k=1), block=0), "block=0"),
    (lambda: sampler(Fixed(k=1), temperature=-1.0), "temperature=-1.0"),
    (lambda: sampler(Fixed(k=1), top_p=0.0), "top_p=0.0"),
    (lambda: canvas_of([[1] * 20 + [MASK]]), "exceed the canvas of 16"),
    (lambda: canvas_of([[1, 2]]), "nothing to write"),
    (lambda: canvas_of(ROWS, align="left"), "canvas, prompt"),
  ],
)
def test_bad_settings_are_refused_by_name(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_samplers_are_hashable_and_say_what_they_need():
  spec = sampler(Fixed(k=1, order="margin"), temperature=0.5, forbidden=(3,)).spec()
  assert spec.top2 and not spec.entropy and spec.temperature == 0.5 and spec.forbidden == (MASK, 3)
  assert hash(sampler(Fixed(k=1))) == hash(dataclasses.replace(sampler(Fixed(k=1))))
