"""dKV-Cache's plans: what a forward computes, what it keeps, and when that changes nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks
from dlm.models import ModelConfig, bind
from dlm.sampling import loop
from dlm.sampling.caching import PD, Decode, Greedy, NoCache
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policies import Fixed, LeftToRight, Planned, Threshold
from dlm.sampling.sampler import Sampler
from dlm.types import Progress
from tests.dlm.models.small import jitter

M = MASK = 22
SLOTS, BLOCK = 16, 6
MODEL = bind(
  ModelConfig(
    vocab=23, width=16, layers=1, heads=4, kv_heads=2, head_dim=8, mlp=24,
    implementation="reference",
  )
)  # fmt: skip
ROWS = [[3] + [M] * 12, [1, 2, 3, 4, 5] + [M] * 11, [7, 8, M, M, M], [6, M, 1, 2, M, 5, 5, 5, 5, M]]

run, start, step = (jax.jit(f, static_argnums=0) for f in (loop.run, loop.start, loop.step))


@functools.cache
def params():
  """Random and sure of itself: confidences spread over (0, 1)."""
  found = jitter(jax.jit(MODEL.init)(jax.random.key(0)))
  return found | {"final_norm": {"scale": 3 * found["final_norm"]["scale"]}}


@pytest.fixture(autouse=True)
def two_widths(monkeypatch, request):
  """Every width is a compile; the cases of the authors' code run them all."""
  if "widths" not in request.node.name:
    for plan in (Decode, PD, Greedy):
      monkeypatch.setattr(plan, "widths", lambda self, block, slots: (slots // 2, slots))


def sampler(plan, policy, **fields):
  fields = {"sees": masks.Full(), "block": BLOCK, "max_forwards": 60, "mask_id": MASK} | fields
  return Sampler(MODEL, policy, plan, **fields)


def canvas_of(rows, row_ids=None):
  rows = [np.asarray(row) for row in rows]
  row_ids = list(range(len(rows))) if row_ids is None else row_ids
  return make_canvas(
    rows, [row == MASK for row in rows], row_ids, slots=SLOTS, block=BLOCK, align="prompt",
    mask_id=MASK, seed=2,
  )  # fmt: skip


def same_text(a, b):
  np.testing.assert_array_equal(a.tokens_BxL, b.tokens_BxL)
  np.testing.assert_array_equal(a.when_BxL, b.when_BxL)


def queries(s, row):
  """Queries of every forward of a row."""
  state, found = start(s, canvas_of([row])), [0]
  while not state.canvas.done_B.all():
    state = step(s, params(), state)
    found.append(int(state.canvas.queries_B[0]))
  return np.diff(found).tolist()


@pytest.mark.parametrize(
  ("plan", "policy", "fields"),
  [
    (Decode(1), Threshold(0.4), {"temperature": 1.0}),
    (Decode(1), Fixed(steps=3), {"shift": 1}),
    (Greedy(1), Planned(steps=3), {"guidance": 0.5}),
  ],
  ids=str,
)
def test_refreshed_at_every_forward_it_is_no_cache(plan, policy, fields):
  cached, plain = (
    run(sampler(p, policy, **fields), params(), canvas_of(ROWS)) for p in (plan, NoCache())
  )
  same_text(cached, plain)
  np.testing.assert_array_equal(cached.forwards_Bx3, plain.forwards_Bx3)
  np.testing.assert_array_equal(cached.queries_B, plain.queries_B)


@pytest.mark.parametrize(
  ("plan", "shift"),
  [
    (Decode(50), 0), (Decode(3, second_full=True), 1), (Decode(50, shift_rule="un"), 1),
    (PD(3), 0), (PD(50), 1),
  ],
  ids=str,
)  # fmt: skip
def test_where_decided_keys_never_change_the_cache_is_exact(plan, shift):
  """A causal model, written left to right: true only if no key of a [MASK] is ever cached."""
  fields = {"sees": masks.Causal(), "shift": shift, "temperature": 1.0}
  rows = ROWS[:3]  # the last one writes in front of what is cached
  policy = LeftToRight(2)
  plain = run(sampler(NoCache(), policy, **fields), params(), canvas_of(rows))
  cached = run(sampler(plan, policy, **fields), params(), canvas_of(rows))
  same_text(cached, plain)
  assert (cached.queries_B[:2] < plain.queries_B[:2]).all()


def test_decode_computes_what_was_not_decided_a_forward_ago():
  """One token a forward, 3 of 13 given: forward i computes 13 - 3 - (i - 1) slots."""
  row = [3, 4, 5] + [M] * 10
  code = queries(sampler(Decode(4, second_full=True), Fixed(k=1), block=10), row)
  assert code == [13, 13, 9, 8, 13, 6, 5, 4, 13, 2]
  plain = queries(sampler(Decode(4), Fixed(k=1), block=10), row)
  assert plain == [13, 10, 9, 8, 13, 6, 5, 4, 13, 2]


def test_pd_never_computes_the_prompt_again():
  row = [3, 4, 5] + [M] * 10
  assert queries(sampler(PD(4), Fixed(k=1), block=10), row) == [13, 10, 9, 8, 10, 6, 5, 4, 10, 2]
  shifted = queries(sampler(PD(4), Fixed(k=1), block=10, shift=1), row)
  assert shifted[4] == 11, "the last token of the prompt predicts the first slot"


def test_greedy_computes_what_was_and_what_will_be_written_and_its_neighbours():
  row = [3, 4, 5] + [M] * 10
  policy = Planned(k=2)
  assert queries(sampler(Greedy(3, 0), policy, block=10), row) == [13, 4, 4, 13, 4]
  assert queries(sampler(Greedy(3, 1), policy, block=10), row) == [13, 6, 6, 13, 4]


@pytest.mark.parametrize(
  ("plan", "policy", "shift"),
  [
    (Decode(3), Fixed(k=1), 1), (Decode(4, second_full=True), Threshold(0.4), 0),
    (PD(3), Fixed(k=2), 1), (Greedy(3, 2), Planned(k=2), 0),
    (Greedy(2, 3, centre="last"), Planned(steps=3), 1),
  ],
  ids=str,
)  # fmt: skip
def test_a_row_alone_equals_the_row_in_a_batch_and_every_loop_ends(plan, policy, shift):
  s = sampler(plan, policy, temperature=1.0, shift=shift)
  together = run(s, params(), canvas_of(ROWS))
  assert together.done_B.all() and not (together.tokens_BxL == MASK).any()
  for i, row in enumerate(ROWS):
    alone = run(s, params(), canvas_of([row], row_ids=[i]))
    for name in ("tokens_BxL", "when_BxL", "forwards_Bx3", "queries_B"):
      np.testing.assert_array_equal(getattr(alone, name)[0], getattr(together, name)[i])
  broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params())
  out = run(s, broken, canvas_of(ROWS))
  assert out.done_B.all() and not (out.tokens_BxL == MASK).any()


def progress(**fields):
  """Where a row of 8 slots, one block, stands; what is not given is 0."""
  zeros = {"B": jnp.zeros(1, jnp.int32), "BxL": jnp.zeros((1, 8), bool)}
  names = [field.name for field in dataclasses.fields(Progress)]
  at = {name: zeros[name.split("_")[-1]] for name in names if name not in ("block", "shift")}
  at |= {"inside_BxL": jnp.ones((1, 8), bool), "next_BxL": None}
  return Progress(**at | fields, block=8)


def slots_of(*slots):
  return jnp.isin(jnp.arange(8), jnp.array(slots))[None, :]


def slots_in(x_BxL):
  return np.flatnonzero(x_BxL[0]).tolist()


def test_a_cached_slot_that_is_masked_or_written_again_is_computed():
  at = progress(
    filled_BxL=slots_of(0, 1, 2, 3), masked_BxL=slots_of(2, 6), wrote_BxL=slots_of(3, 7), shift=0
  )
  assert slots_in(Decode(8).window_BxL(at)) == [2, 3, 4, 5, 6, 7]
  assert slots_in(Decode(8).keep_BxL(at)) == [0, 1, 3, 4, 5, 7]


def test_shift_rules_say_whose_query_is_still_needed():
  at = progress(masked_BxL=slots_of(2, 3, 6), shift=1)
  assert slots_in(Decode(8, "un_right").keep_BxL(at)) == [0, 4, 7]
  assert slots_in(Decode(8, "un").keep_BxL(at)) == [0, 3, 4, 6, 7]
  assert slots_in(Decode(8, "un").keep_BxL(at.replace(shift=0))) == [0, 1, 4, 5, 7]


def neighbours_by_hand(window, centres, masked, size):
  window = list(window)
  for centre in centres:
    near = sorted(range(len(window)), key=lambda i: (abs(i - centre), i))
    for i in [i for i in near if masked[i] and not window[i]][:size]:
      window[i] = True
  return window


@pytest.mark.parametrize("seed", range(4))
def test_neighbours_are_taken_centre_by_centre_in_the_order_of_writing(seed):
  rng = np.random.default_rng(seed)
  masked = rng.random((3, 20)) < 0.7
  wrote = ~masked & (rng.random((3, 20)) < 0.3)
  place = np.where(
    rng.random((3, 20)) < 0.2, rng.permuted(np.tile(np.arange(1, 21), (3, 1)), axis=1), 0
  )
  place = place * masked
  at = progress(
    masked_BxL=jnp.asarray(masked),
    wrote_BxL=jnp.asarray(wrote),
    next_BxL=jnp.asarray(place),
    shift=0,
  )
  for plan in (Greedy(2, 3), Greedy(2, 2, centre="last")):
    got = np.asarray(plan.window_BxL(at))
    for b in range(3):
      centres = [i for i in np.argsort(place[b]) if place[b, i]]
      centres = centres if plan.centre == "next" else np.flatnonzero(wrote[b])
      want = neighbours_by_hand(wrote[b] | (place[b] > 0), centres, masked[b], plan.window)
      np.testing.assert_array_equal(got[b], want)


def test_widths_are_few_and_reach_the_canvas():
  for plan in (Decode(), PD(), Greedy()):
    for slots in (1, 9, 640):
      widths = plan.widths(32, slots)
      assert widths == tuple(sorted(set(widths))) and widths[-1] == slots and len(widths) <= 12


def test_a_planned_order_is_drawn_once_and_announced():
  policy = Planned(steps=3)
  s = sampler(Greedy(50, 0), policy, block=10, temperature=1.0)
  state = start(s, canvas_of(ROWS[:1] * 2))
  assert not policy.upcoming(state.policy, state.step_B).any()
  while not state.canvas.done_B.all():
    said = policy.upcoming(state.policy, state.step_B)
    state = step(s, params(), state)
    wrote = state.canvas.when_BxL == state.canvas.forwards_Bx3.sum(-1)[:, None]
    if said.any():
      np.testing.assert_array_equal(said > 0, wrote)
  sizes = np.bincount(state.canvas.when_BxL[0][1:13])
  assert sizes.tolist() == [0, 4, 3, 3, 1, 1], "10 over 3 forwards, then the block of 2"
  assert (state.canvas.when_BxL[0] != state.canvas.when_BxL[1]).any(), "another row, another order"


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: Decode(0), "interval=0 must be at least 1"),
    (lambda: PD(shift_rule="right"), "shift_rule='right' is not one of un_right, un"),
    (lambda: Greedy(window=-1), "window=-1 must not be negative"),
    (lambda: Greedy(centre="both"), "centre='both' is not one of next, last"),
    (lambda: sampler(Greedy(), Fixed(k=1, order="random")), "policy 'planned' can say"),
    (lambda: Planned(), "set one of"),
    (lambda: Planned(k=1, exact_steps=True), "exact_steps=True needs steps"),
  ],
)
def test_bad_settings_are_refused_by_name(make, message):
  with pytest.raises(ValueError, match=message):
    make()
