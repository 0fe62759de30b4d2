"""Rows that are held to sets of tokens, under policies that mind none."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks
from dlm.data import ByteTokenizer
from dlm.sampling import loop
from dlm.sampling.caching import NoCache
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policies import Threshold, Wino
from dlm.sampling.policy import Policy
from dlm.sampling.sampler import Sampler
from dlm.sampling.state import Served
from dlm.serving.grammars import Words
from dlm.serving.holds import Hold, Part, together
from dlm.types import Decision
from tests.dlm.sampling.table import Lookup, random_table

SLOTS, BLOCK, VOCAB, MASK = 12, 6, 8, 7
LETTERS = "abcdefg"


class Letters(ByteTokenizer):
  vocab_size, mask_id = VOCAB, MASK

  def encode(self, text):
    return np.array([LETTERS.index(letter) for letter in text])

  def pieces(self):
    return [letter.encode() for letter in LETTERS] + [None]


WORDS = Words(Letters(), never=(MASK,), stops=())
CHOICES = ("abcab", "abcde", "gabba", "fedga")
TABLE = random_table(seed=3, slots=SLOTS, vocab=VOCAB)


@functools.partial(jax.jit, static_argnums=0)
def forward(sampler, state, rule):
  state = state.replace(served=state.served.replace(held=rule))
  state = loop.step(sampler, TABLE, state)
  return state.replace(served=state.served.replace(held=None))


def written(policy, temperature, seed):
  """Three rows: held from end to end, held in one place, and not held."""
  sampler = Sampler(
    Lookup(VOCAB), policy, NoCache(), masks.Full(), block=BLOCK, max_forwards=99, mask_id=MASK
  )
  rows = [np.full(SLOTS, MASK) for _ in range(3)]
  canvas = make_canvas(
    rows, [row == MASK for row in rows], [0, 1, 2],
    slots=SLOTS, block=BLOCK, align="canvas", mask_id=MASK, seed=seed,
  )  # fmt: skip
  own = np.full(3, temperature, np.float32)
  served = Served(own, own * np.nan, own * 0 + 1, np.zeros(3, bool), np.full((3, SLOTS), np.nan))
  parts = {
    0: [Part(0, 5, WORDS.choice(CHOICES)), Part(5, 10, WORDS.choice(CHOICES)),
        Part(10, 12, WORDS.tokens(["a", "b"]))],
    1: [Part(4, 9, WORDS.choice(CHOICES))],
  }  # fmt: skip
  holds = {row: Hold(own, rows[row], MASK, BLOCK, VOCAB) for row, own in parts.items()}
  state = loop.start(sampler, canvas, jax.tree.map(jnp.asarray, served))
  while not state.canvas.done_B.all():
    state = forward(sampler, state, together(holds, 3))
    for row, hold in holds.items():
      hold.read(np.asarray(state.canvas.tokens_BxL[row]))
  return jax.device_get(state)


def check(state):
  text, part, _ = ("".join((LETTERS + "?")[i] for i in row) for row in state.canvas.tokens_BxL)
  one = "|".join(CHOICES)
  assert re.fullmatch(f"({one})({one})[ab][ab]", text) and re.fullmatch(one, part[4:9])
  entropy = state.served.entropy_BxL
  assert (entropy[0] >= 0).all() and (entropy[1, 4:9] >= 0).all()


@dataclasses.dataclass(frozen=True)
class Rude(Policy):
  """Writes any ids anywhere, masks among them, whatever stands there; leaves and ends at will."""

  def decide(self, view, state, key_B):
    key_Bx4 = jax.vmap(lambda key: jax.random.split(key, 4))(key_B)
    shape = view.tokens_BxA.shape[1:]
    write_BxA = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, shape))(key_Bx4[:, 0])
    own_BxA = jax.vmap(lambda key: jax.random.randint(key, shape, 0, VOCAB))(key_Bx4[:, 1])
    ends_B, leaves_B = (
      jax.vmap(lambda key: jax.random.bernoulli(key, 0.3))(key_Bx4[:, n]) for n in (2, 3)
    )
    return Decision(write_BxA, own_BxA, stop_B=ends_B, leave_B=leaves_B), state


@pytest.mark.parametrize("policy", [Rude(), Wino(0.5, 0.6)], ids=["anything", "takes back"])
def test_whatever_a_policy_decides_what_is_written_is_allowed(policy):
  for temperature in (0.0, 1.0):
    for seed in range(6):
      check(written(policy, temperature, seed))


def test_a_row_beside_held_rows_is_what_it_is_in_a_run_of_its_own():
  policy = Threshold(0.3)
  state = written(policy, 1.0, 5)
  check(state)
  sampler = Sampler(
    Lookup(VOCAB), policy, NoCache(), masks.Full(), block=BLOCK, max_forwards=99, mask_id=MASK,
    temperature=1.0,
  )  # fmt: skip
  canvas = make_canvas(
    [np.full(SLOTS, MASK)], [np.ones(SLOTS, bool)], [2],
    slots=SLOTS, block=BLOCK, align="canvas", mask_id=MASK, seed=5,
  )  # fmt: skip
  alone = jax.jit(functools.partial(loop.run, sampler))(TABLE, canvas)
  np.testing.assert_array_equal(state.canvas.tokens_BxL[2], alone.tokens_BxL[0])
  np.testing.assert_array_equal(state.canvas.when_BxL[2], alone.when_BxL[0])
