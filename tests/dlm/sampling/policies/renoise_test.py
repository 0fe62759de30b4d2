"""DiffusionGemma's sampler: random canvases, what is accepted, and when a block ends."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from dlm import masks
from dlm.sampling import chance, loop
from dlm.sampling.caching import Dual, NoCache
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policies import Renoise
from dlm.sampling.sampler import Sampler
from dlm.sampling.score import score
from dlm.types import LogitHead, StatSpec
from tests.dlm.sampling.policies.views import keys, view_of
from tests.dlm.sampling.table import Lookup, random_table

MASK, VOCAB, SLOTS, BLOCK = 6, 7, 16, 4
M = MASK
run = jax.jit(loop.run, static_argnums=0)
step = jax.jit(loop.step, static_argnums=0)


def sampler(policy=Renoise(VOCAB), **fields):  # noqa: B008
  fields = {"plan": NoCache(), "temperature": 1.0, **fields}
  return Sampler(
    Lookup(), policy, sees=masks.Full(), block=BLOCK, max_forwards=400, mask_id=MASK, **fields
  )


def canvas_of(rows, row_ids=None, slots=SLOTS):
  rows = [np.asarray(row) for row in rows]
  row_ids = list(range(len(rows))) if row_ids is None else row_ids
  return make_canvas(
    rows, [row == M for row in rows], row_ids, slots=slots, block=BLOCK, align="canvas", mask_id=M,
    seed=0,
  )  # fmt: skip


def sure_table(answer):
  """Says `answer` whatever it sees."""
  own = 100.0 * jax.nn.one_hot(jnp.asarray(answer), VOCAB)
  return {"own": own, "left": jnp.zeros((VOCAB, VOCAB)), "right": jnp.zeros((VOCAB, VOCAB))}


# ---------------------------------------------------------------------------------------------
# One decision


def decided(policy, entropy, *, best=None, step_B=0, **fields):
  """Candidates are 10, 11, ..., likeliest 20, 21, ...; `best`: where they were a forward ago."""
  width = len(entropy)
  view = view_of([[0.5] * width], [[False] * width], entropy=[entropy], **fields)
  agrees = jnp.zeros((1, width), bool) if best is None else jnp.asarray([best])
  stats, likely_BxA = view.stats, 20 + jnp.arange(width, dtype=jnp.int32)[None]
  stats = dataclasses.replace(stats, token=stats.token + 10, best=likely_BxA[:, :, None])
  view = view.replace(stats=stats, step_B=jnp.array([step_B]))
  seen = policy.enter(agrees, None)
  seen = seen._replace(best_BxA=jnp.where(agrees, likely_BxA, seen.best_BxA))
  decision, _ = jax.jit(policy.decide)(view, seen, keys(1))
  write, token = np.asarray(decision.write_BxA[0]), np.asarray(decision.token_BxA[0])
  return write, token, not bool(decision.stay_B[0])


@pytest.mark.parametrize(
  ("budget", "taken"),
  [
    (0.0, [1]),
    (0.015, [1, 3]),
    (0.035, [1, 2, 3]),
    (0.1, [1, 2, 3]),
    (0.12, [0, 1, 2, 3]),
    (9, [0, 1, 2, 3, 4]),
  ],
)
def test_accepts_while_what_comes_before_fits_and_draws_the_rest_anew(budget, taken):
  """By entropy: .01 .02 .08 .30 .60; before them: 0 .01 .03 .11 .41."""
  write, token, ends = decided(Renoise(5, budget=budget), [0.3, 0.01, 0.08, 0.02, 0.6])
  assert write.all() and not ends
  accepted = np.flatnonzero(token >= 10)
  assert accepted.tolist() == taken and (token[accepted] == accepted + 10).all()


def test_one_is_accepted_even_of_a_broken_model():
  _, token, _ = decided(Renoise(5), [float("nan")] * 4)
  assert (token >= 10).tolist() == [True, False, False, False]


def test_closed_slots_are_no_part_of_it():
  open_ = jnp.array([[True, False, True]])
  write, token, _ = decided(Renoise(5, budget=0.0), [0.3, 0.0, 0.2], open_BxA=open_)
  assert write.tolist() == [True, False, True] and np.flatnonzero(token[write] >= 10) == 1
  # Neither its argmax nor its entropy keeps a block from ending.
  calm = [0.0, 0.9, 0.0]
  _, _, ends = decided(Renoise(5), calm, best=[True, False, True], open_BxA=open_)
  assert ends


def test_a_block_ends_when_it_is_sure_and_what_is_likeliest_stays():
  calm, policy = [0.004, 0.006, 0.004], Renoise(5, steps=8)
  _, token, ends = decided(policy, calm, best=[True] * 3)
  assert ends and token.tolist() == [20, 21, 22], "no draw"
  assert not decided(policy, calm, best=[True, True, False])[2], "one argmax is another id"
  assert not decided(policy, [0.004, 0.006, 0.006], best=[True] * 3)[2], "0.00533 > 0.005"
  twice = dataclasses.replace(policy, stable=2)
  assert not decided(twice, calm, best=[True] * 3)[2], "once again is not twice"
  assert decided(dataclasses.replace(policy, stable=0), calm)[2]
  assert not decided(policy, [0.9] * 3, step_B=6)[2]
  _, token, ends = decided(policy, [0.9] * 3, step_B=7)
  assert ends and token.tolist() == [20, 21, 22]


def test_the_temperature_falls_and_comes_before_all_else():
  policy = Renoise(VOCAB, steps=4, hot=0.8, cold=0.4)
  np.testing.assert_allclose(policy.temperature(jnp.arange(4)), [0.8, 0.7, 0.6, 0.5], rtol=1e-6)
  logits = np.random.default_rng(0).normal(size=(2, 3, VOCAB)).astype(np.float32)
  head = LogitHead(jnp.asarray(logits), jnp.eye(VOCAB))
  zeros_BxA = jnp.zeros((2, 3), jnp.int32)
  rest = {"current_BxA": zeros_BxA, "key_B": keys(2), "slot_BxA": zeros_BxA}
  for cap in (None, 1.5):
    capped = logits if cap is None else cap * np.tanh(logits / cap)
    stats = score(
      head.replace(soft_cap=cap),
      StatSpec(entropy=True),
      temperature_B=jnp.array([0.8, 0.5]),
      **rest,
    )
    logp = log_softmax(capped / np.array([0.8, 0.5])[:, None, None], axis=-1)
    np.testing.assert_allclose(stats.entropy, -(np.exp(logp) * logp).sum(-1), rtol=1e-5)


# ---------------------------------------------------------------------------------------------
# The canvas


@pytest.mark.parametrize("without", [2, 4, 9])
def test_random_ids_are_all_but_one_alike(without):
  ids = np.asarray(chance.ids(keys(400), 20, 5, without))
  count = np.bincount(ids.ravel(), minlength=5)
  want = [0 if i == without else ids.size / (5 - (without < 5)) for i in range(5)]
  np.testing.assert_allclose(count, want, atol=4.5 * np.sqrt(ids.size / 4))
  assert len(count) == 5


ROWS = [[1, 2] + [M] * 9, [3] * 5 + [M, 4, M], [M] * 12]


def test_a_block_begins_as_random_ids_of_the_rows_key_alone():
  begun = loop.start(sampler(), canvas_of(ROWS)).canvas
  for i, row in enumerate(ROWS):
    row, first = np.array(row), row.index(M) // BLOCK * BLOCK
    active = (np.arange(len(row)) // BLOCK == first // BLOCK) & (row == M)
    tokens = np.asarray(begun.tokens_BxL[i, : len(row)])
    assert (tokens[active] != M).all() and (tokens[active] < VOCAB).all()
    np.testing.assert_array_equal(tokens[~active], row[~active])
    alone = loop.start(sampler(), canvas_of([row], [i], slots=2 * SLOTS)).canvas
    np.testing.assert_array_equal(alone.tokens_BxL[0, : len(row)], tokens)
  assert (begun.when_BxL == -1).all(), "it is not written"
  others = loop.start(sampler(), canvas_of([ROWS[2]] * 20)).canvas.tokens_BxL[:, :BLOCK]
  assert len({tuple(row) for row in others.tolist()}) > 15


def test_a_sure_model_writes_its_argmax_in_two_forwards_a_block():
  """One accepts everything, one finds that it stands; later blocks are masked until then."""
  answer = np.arange(SLOTS) % MASK
  out = run(sampler(), sure_table(answer), canvas_of(ROWS))
  for i, row in enumerate(ROWS):
    row = np.array(row)
    np.testing.assert_array_equal(
      out.tokens_BxL[i, : len(row)], np.where(row == M, answer[: len(row)], row)
    )
    blocks = len(set(np.flatnonzero(row == M) // BLOCK))
    assert out.forwards_Bx3[i].tolist() == [2 * blocks, 0, 0]
    np.testing.assert_array_equal(out.when_BxL[i, : len(row)] >= 0, row == M)


def test_nothing_is_frozen_and_the_mask_is_never_seen():
  s, params = sampler(Renoise(VOCAB, steps=12)), random_table(3, SLOTS, VOCAB, 0.3)
  state, seen = loop.start(s, canvas_of([[M] * BLOCK] * 8)), []
  while not state.canvas.done_B.all():
    seen.append(np.asarray(state.canvas.tokens_BxL[:, :BLOCK]))
    state = step(s, params, state)
  seen.append(np.asarray(state.canvas.tokens_BxL[:, :BLOCK]))
  assert len(seen) == 13 and (np.array(seen) != M).all()
  changes = (np.diff(np.array(seen), axis=0) != 0).sum(0)
  assert (changes >= 3).all(), "all the slots, whatever was accepted in them"


def test_random_stop_ids_are_no_stops_and_written_ones_end_their_block():
  answer = [0, 1, 3, 4, 0, 2, 1, 3] + [1] * 8
  s = sampler(eos_ids=(2, 5), on_eos="stop_block")
  out = run(s, sure_table(answer), canvas_of([[M] * 16] * 6))
  np.testing.assert_array_equal(out.tokens_BxL[:, :8], np.tile(answer[:8], (6, 1)))
  assert (out.tokens_BxL[:, 8:] == M).all() and (out.forwards_Bx3[:, 0] == 4).all()
  filled = run(
    dataclasses.replace(s, on_eos="fill_block"), sure_table(answer), canvas_of([[M] * 16])
  )
  assert filled.tokens_BxL[0].tolist() == answer[:8] + [2] * 8


@pytest.mark.parametrize(
  "bad",
  [
    {"shift": 1},
    {"guidance": 1.0},
    {"plan": Dual()},
    {"scope": "canvas"},
    {"may_predict_mask": True},
  ],
  ids=str,
)
def test_what_a_random_canvas_cannot_go_with_is_refused(bad):
  with pytest.raises(
    ValueError, match=r"needs cache .none. or .block. .*, scope .block., no guidance"
  ):
    sampler(**bad)


@pytest.mark.parametrize("on_eos", ["stop", "fill"])
def test_rules_that_would_take_random_ids_for_stops_are_refused(on_eos):
  with pytest.raises(ValueError, match=f"on_eos='{on_eos}' would take random ids of Renoise"):
    sampler(on_eos=on_eos, eos_ids=(2,))
  sampler(on_eos=on_eos)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"vocab": 1}, "vocab=1 must be at least 2"),
    ({"steps": 0}, "steps=0"),
    ({"cold": 0.0}, "cold=0.0 must lie in"),
    ({"hot": 0.3}, "hot=0.3"),
    ({"budget": -1.0}, "budget=-1.0 must not be negative"),
    ({"still": float("nan")}, "still=nan must not be negative"),
  ],
)
def test_bad_settings_are_refused_by_name(fields, message):
  with pytest.raises(ValueError, match=message):
    Renoise(**{"vocab": 5, **fields})
