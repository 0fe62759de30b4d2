"""Insertion and deletion against lists in Python, and that given text moves as a whole or not."""

import jax.numpy as jnp
import numpy as np
import pytest

from dlm import edits, masks
from dlm.sampling import shifts
from dlm.sampling.caching import ExactBlock, NoCache, SubBlock
from dlm.sampling.policy import Policy
from dlm.sampling.sampler import Sampler
from dlm.types import Decision
from tests.dlm.sampling.loop_test import MASK, canvas_of
from tests.dlm.sampling.policies.views import view_of
from tests.dlm.sampling.table import Lookup

NO_CACHE = NoCache()
NEW, PADDING = edits.NEW, shifts.PADDING
ROWS, WIDTH = 40, 12


def views():
  """Random rows: where they end, which slots are open, where is inserted and deleted."""
  rng = np.random.default_rng(0)
  inside_BxA = np.arange(WIDTH) < rng.integers(3, WIDTH + 1, ROWS)[:, None]
  open_BxA = (rng.random((ROWS, WIDTH)) < 0.7) & inside_BxA
  insert_BxA, delete_BxA = rng.random((2, ROWS, WIDTH)) < 0.3
  delete_BxA[0], insert_BxA[0] = True, False  # holes that go altogether
  delete_BxA[1], insert_BxA[1] = False, True  # more than there is room for
  view = view_of(np.ones((ROWS, WIDTH)), open_BxA, open_BxA=open_BxA, inside_BxA=inside_BxA)
  return view, insert_BxA, delete_BxA


def edited(places, inserts, deletes):
  out = []
  for place in places:
    out += [NEW] * bool(inserts[place]) + [place] * (not deletes[place])
  return out


def in_holes(open_A, insert_A, delete_A):
  out, hole = [], []
  for place in range(WIDTH + 1):
    if place < WIDTH and open_A[place]:
      hole.append(place)
      continue
    out += (edited(hole, insert_A, delete_A) + [NEW] * WIDTH)[: len(hole)]
    out.append(place)
    hole = []
  return out[:-1]


def in_the_row(open_A, length, insert_A, delete_A):
  insert_A, delete_A = insert_A & open_A, delete_A & open_A
  room = WIDTH - length + delete_A.sum()
  out = edited(range(length), insert_A & (insert_A.cumsum() <= room), delete_A)
  return out + [PADDING] * (WIDTH - len(out))


@pytest.mark.parametrize("scope", ["block", "canvas"])
def test_slots_move_as_the_edits_of_a_list(scope):
  view, insert_BxA, delete_BxA = views()
  source_BxA = np.asarray(shifts.sources(view, insert_BxA, delete_BxA, scope))
  for row in range(ROWS):
    inside_A, open_A = np.asarray(view.inside_BxA[row]), np.asarray(view.open_BxA[row])
    edits = insert_BxA[row], delete_BxA[row]
    if scope == "block":
      assert source_BxA[row].tolist() == in_holes(open_A, *edits)
    else:
      assert source_BxA[row].tolist() == in_the_row(open_A, inside_A.sum(), *edits)
    given = np.flatnonzero(inside_A & ~open_A)  # none is lost, and they keep their order
    assert source_BxA[row][np.isin(source_BxA[row], given)].tolist() == given.tolist()


class Within(Policy):
  shifts = True

  def decide(self, view, state, key_B):
    raise NotImplementedError("the tests decide")


class Growing(Within):
  scope = "canvas"


def sampler(policy, plan=NO_CACHE, **fields):
  fields = {"block": 4, "max_forwards": 9, "mask_id": MASK, **fields}
  return Sampler(Lookup(), policy, plan, masks.BlockCausal(4), **fields)


@pytest.mark.parametrize(
  ("policy", "insert", "delete", "tokens", "when", "open_"),
  [
    (Within(), 2, -1, [1, 2, MASK, 4, 0, MASK, 3], [-1, -1, -1, 7, 9, -1, -1], "..xxxx."),
    (Within(), -1, 2, [1, 2, 5, MASK, 0, MASK, 3], [-1, -1, 8, -1, 9, -1, -1], "..xxxx."),
    (Growing(), 3, -1, [1, 2, 4, MASK, 5, 0, MASK, 3], [-1, -1, 7, -1, 8, 9, -1, -1], "..xxxxx."),
    (Growing(), -1, 2, [1, 2, 5, 0, MASK, 3], [-1, -1, 8, 9, -1, -1], "..xxx."),
  ],
)
def test_a_slot_moves_with_all_that_is_known_of_it(policy, insert, delete, tokens, when, open_):
  """The second row holds the same, and takes no part."""
  canvas = canvas_of([[1, 2, MASK, MASK, MASK, MASK, 3]] * 2, slots=8, align="canvas")
  when_A = jnp.array([7, 8, 9])
  canvas = canvas.replace(
    tokens_BxL=canvas.tokens_BxL.at[:, 2:5].set(jnp.array([4, 5, 0])),
    when_BxL=canvas.when_BxL.at[:, 2:5].set(when_A),
    logp_BxL=canvas.logp_BxL.at[:, 2:5].set(-when_A),
  )
  width = 4 if policy.scope == "block" else 8
  slot_BxA = jnp.broadcast_to(jnp.arange(width), (2, width))
  open_BxA = canvas.open_BxL[:, :width]
  view = view_of(
    jnp.ones((2, width)), open_BxA, open_BxA=open_BxA, slot_BxA=slot_BxA, inside_BxA=slot_BxA < 7
  )
  decision = Decision(
    open_BxA, slot_BxA, insert_BxA=slot_BxA == insert, delete_BxA=slot_BxA == delete
  )
  rows_B = jnp.array([True, False])
  after = shifts.carry_out(sampler(policy), canvas, view, decision, rows_B)
  n = int(after.length_B[0])
  assert after.tokens_BxL[0, :n].tolist() == tokens
  assert after.when_BxL[0, :n].tolist() == when
  np.testing.assert_array_equal(after.logp_BxL[0, :n], [-w if w > 0 else np.nan for w in when])
  assert after.open_BxL[0].tolist() == [c == "x" for c in open_.ljust(8, ".")]
  for name in ("tokens_BxL", "when_BxL", "logp_BxL", "open_BxL", "length_B"):
    np.testing.assert_array_equal(getattr(after, name)[1], getattr(canvas, name)[1])


def test_keys_of_slots_that_move_on_are_not_kept():
  sampler(Within(), ExactBlock())  # the keys of the active block are new with every forward
  for policy, plan, fields in (
    (Within(), SubBlock(size=2), {}),
    (Within(), NoCache(), {"scope": "canvas"}),
    (Growing(), ExactBlock(), {}),
  ):
    with pytest.raises(ValueError):
      sampler(policy, plan, **fields)
