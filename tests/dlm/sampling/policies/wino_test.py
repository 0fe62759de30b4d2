"""WINO: what its shadow block may see, and which tokens go in and out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks
from dlm.models import ModelConfig, bind
from dlm.sampling import loop, shadow
from dlm.sampling.caching import Dual, NoCache
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policies import Wino
from dlm.sampling.sampler import Sampler
from tests.dlm.models.small import jitter
from tests.dlm.sampling.policies.views import keys, view_of

MASK, BLOCK = 22, 4
M = MASK
CONFIG = ModelConfig(vocab=23, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=48)
MODEL, SHALLOW = bind(CONFIG), bind(dataclasses.replace(CONFIG, layers=1))
ROW = [1, 2, 3, M, 5, 6, M, M, M, M]  # the active block holds slots 2 to 5


@pytest.fixture(scope="module")
def params():
  return jitter(jax.jit(MODEL.init)(jax.random.key(0)))


def sampler(plan=None, sees=None, model=MODEL, **fields):
  return Sampler(
    model, Wino(0.1, 0.3), plan or NoCache(), sees or masks.Full(), block=BLOCK, max_forwards=40,
    mask_id=MASK, **fields,
  )  # fmt: skip


def hidden(params, row, pad=0, model=MODEL):
  tokens_BxL = jnp.asarray([row + [0] * pad])
  slot_BxL = jnp.arange(len(row) + pad)[None, :]
  length_B = jnp.array([len(row)])
  mask = masks.within(masks.Full()(slot_BxL, len(row) + pad), length_B)
  plain = model(params, tokens_BxL, slot_BxW=slot_BxL, mask=mask)
  judged = shadow.denoise(
    sampler(model=model), params, tokens_BxL, slot_BxL < len(row), start_B=jnp.array([2]),
    length_B=length_B, slot_BxW=slot_BxL, mask=mask, time_BxW=None,
  )  # fmt: skip
  return plain.head.hidden_BxAxD[0, : len(row)], judged.head.hidden_BxAxD[0, : len(row)]


def test_only_written_slots_of_the_active_block_answer_otherwise(params):
  plain, judged = hidden(params, ROW)
  differ = ~np.isclose(plain, judged, atol=1e-5).all(-1)
  assert np.flatnonzero(differ).tolist() == [2, 4, 5]
  np.testing.assert_allclose(hidden(params, ROW, pad=6)[1], judged, atol=1e-5)


def test_a_shadow_sees_every_token_but_the_one_that_it_judges():
  """Shown on one layer: in deeper models the others tell it, in the authors' too."""
  params = jitter(jax.jit(SHALLOW.init)(jax.random.key(0)))
  _, judged = hidden(params, ROW, model=SHALLOW)
  for changed in (0, 2, 4, 5):
    row = ROW.copy()
    row[changed] = 11
    same = np.isclose(hidden(params, row, model=SHALLOW)[1], judged, atol=1e-6).all(-1)
    assert [slot for slot in (2, 4, 5) if same[slot]] == [s for s in (2, 4, 5) if s == changed]


def decided(policy, prob, masked, judged, state=30):
  view = view_of([prob], [masked], tokens_BxA=jnp.where(jnp.array([masked]), 99, 0))
  view.stats.current = jnp.log(jnp.array([judged]))
  decision, state = policy.decide(view, jnp.array([state]), keys(1))
  undone = decision.write_BxA & (decision.token_BxA == 99)
  return np.flatnonzero(decision.write_BxA & ~undone), np.flatnonzero(undone), int(state[0])


def test_wide_in_and_narrow_out():
  """Two of the three written ones are doubted; those just written are not judged."""
  prob, masked = [0.9, 0.2, 0.7, 0.1, 0.1, 0.1], [True, True, True, False, False, False]
  judged = [0.1, 0.1, 0.1, 0.5, 0.95, 0.3]
  wrote, undone, state = decided(Wino(), prob, masked, judged)
  assert (wrote.tolist(), undone.tolist(), state) == ([0, 2], [3, 5], 2)
  _, undone, _ = decided(Wino(), prob, masked, judged, state=2)
  assert undone.tolist() == [5], "fewer than the forward before wrote, the least likely first"
  wrote, undone, _ = decided(Wino(0.8), prob, masked, judged)
  assert (wrote.tolist(), undone.tolist()) == ([0], []), "a single token puts nothing in doubt"
  assert decided(Wino(0.99), prob, masked, judged)[0].tolist() == [0], "always the surest"


def test_at_most_seven_tenths_of_the_masks_within_bounds():
  for n, most in ((4, 4), (6, 5), (10, 7), (40, 20)):
    wrote, _, _ = decided(Wino(), [0.9] * n, [True] * n, [0.1] * n)
    assert len(wrote) == most


def test_a_row_alone_equals_the_row_in_a_batch(params):
  run = jax.jit(loop.run, static_argnums=0)

  def canvas_of(rows, ids, slots):
    rows = [np.array(row) for row in rows]
    return make_canvas(
      rows, [row == M for row in rows], ids, slots=slots, block=BLOCK, align="prompt", mask_id=M,
      seed=0,
    )  # fmt: skip

  rows = [ROW, [M] * 7, [4, M, 5, M, M, 6, M, M, M, M, M]]
  together = run(sampler(), params, canvas_of(rows, [0, 1, 2], 16))
  assert not (together.tokens_BxL == M).any()
  for i, row in enumerate(rows):
    alone = run(sampler(), params, canvas_of([row], [i], 12))
    for one, other in (
      (alone.tokens_BxL, together.tokens_BxL),
      (alone.when_BxL, together.when_BxL),
    ):
      np.testing.assert_array_equal(one[0, : len(row)], other[i, : len(row)])
    forwards = int(alone.forwards_Bx3.sum())
    assert int(alone.queries_B[0]) == forwards * (len(row) + BLOCK)


@pytest.mark.parametrize(
  "bad", [{"plan": Dual()}, {"sees": masks.Causal()}, {"guidance": 1.0}, {"shift": 1}], ids=str
)
def test_what_a_shadow_block_cannot_go_with_is_refused(bad):
  with pytest.raises(ValueError, match="needs cache 'none', no guidance"):
    sampler(**bad)


def test_mistakes():
  with pytest.raises(ValueError, match=r"back=1\.5"):
    Wino(back=1.5)
