"""Rounds against bits: a law with one hard token that decides all others, and many easy ones.

The support is enumerated, so every conditional is exact: the bits that a round writes are counted
with the model's own probabilities, given what stood there before the round.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks
from dlm.sampling import loop
from dlm.sampling.caching import NoCache
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policies import Ete, Threshold
from dlm.sampling.sampler import Sampler
from dlm.types import KVCache, LogitHead, ModelOutput

BITS = 3
VOCAB, MASK = 10, 9  # tokens 0..7 for the hard slot, 0 and 1 for its bits
HARD = 2  # its slot
SUPPORT = np.array([[z & 1, z >> 1 & 1, z, z >> 2 & 1] * 2 for z in range(2**BITS)])
BLOCK, SLOTS = 4, SUPPORT.shape[1]
SUPPORT[:, BLOCK + HARD] = SUPPORT[:, 0]  # in the second block nothing is hard


@dataclasses.dataclass(frozen=True)
class Law:
  """p(token at a slot | tokens that are written), every string of `params` equally likely."""

  def __call__(
    self, params, tokens_BxW, *, slot_BxW, mask, time_BxW=None, soft_BxWxD=None, cache=None,
    write_BxW=None, ask_BxA=None,
  ):  # fmt: skip
    agree_BxKxW = (tokens_BxW[:, None] == params[None]) | (tokens_BxW == MASK)[:, None]
    weight_BxK = agree_BxKxW.all(-1).astype(jnp.float32)
    prob_BxWxV = jnp.einsum("bk,kwv->bwv", weight_BxK, jax.nn.one_hot(params, VOCAB))
    logit_BxWxV = jnp.log(prob_BxWxV / weight_BxK.sum(-1)[:, None, None])
    hidden_BxWxV = jnp.maximum(logit_BxWxV, -30.0)  # e**-30: hidden rows must be finite
    if ask_BxA is not None:
      hidden_BxWxV = jnp.take_along_axis(hidden_BxWxV, ask_BxA[..., None], axis=1)
    return ModelOutput(LogitHead(hidden_BxWxV, jnp.eye(VOCAB)), None, {})

  def empty_cache(self, batch: int, slots: int) -> KVCache:
    raise NotImplementedError("a law has no cache")


def rounds(policy, batch: int = 4, support=SUPPORT):
  """Draws from the law: tokens, the forward that wrote each [batch, SLOTS], forwards."""
  rows = [np.full(SLOTS, MASK)] * batch
  canvas = make_canvas(
    rows, [row == MASK for row in rows], list(range(batch)), slots=SLOTS, block=BLOCK,
    align="prompt", mask_id=MASK, seed=1,
  )  # fmt: skip
  sampler = Sampler(
    Law(), policy, NoCache(), masks.Full(), block=BLOCK, max_forwards=30, mask_id=MASK,
    temperature=1.0, scope="canvas",
  )  # fmt: skip
  out = jax.jit(loop.run, static_argnums=0)(sampler, jnp.asarray(support), canvas)
  return np.asarray(out.tokens_BxL), np.asarray(out.when_BxL), np.asarray(out.forwards_Bx3.sum(-1))


def bits_of(tokens, when, forwards, support=SUPPORT):
  """Bits of each round of a row: the sum over what it wrote of -log2 p(token | written before)."""
  spent = []
  for turn in range(1, forwards + 1):
    before = (when < turn) & (when > 0)
    alive = support[(support[:, before] == tokens[before]).all(1)]
    now = np.flatnonzero(when == turn)
    spent.append(sum(-np.log2((alive[:, i] == tokens[i]).mean()) for i in now))
  return np.array(spent)


CAREFUL, BOLD = Threshold(0.9), Ete(0.9, span=SLOTS)


@pytest.mark.parametrize("policy", [CAREFUL, BOLD, Ete(0.9, span=BLOCK)], ids=str)
def test_no_fewer_rounds_than_bits_over_a_rounds_budget(policy):
  """One unsure token a round never splits the law, so rounds add up to the text's own bits."""
  budget = {Threshold: 1.0, Ete: BITS}[type(policy)]  # what one unsure token can carry here
  for row, when, forwards in zip(*rounds(policy), strict=True):
    assert (row == SUPPORT).all(1).any(), "a string of the law"
    spent = bits_of(row, when, forwards)
    assert spent.sum() == pytest.approx(BITS) and spent.max() <= budget
    assert forwards >= BITS / budget


def test_exploring_the_hard_token_sets_off_a_cascade():
  """Surest first: a bit a round, then each block's rest. Hardest first: it, then all the rest."""
  _, _, careful = rounds(CAREFUL)
  assert careful.tolist() == [BITS + 2] * len(careful)
  _, when, bold = rounds(BOLD)
  assert bold.tolist() == [2] * len(bold)
  assert (when[:, HARD] == 1).all() and (np.delete(when, HARD, axis=1) == 2).all()


def test_the_span_bounds_how_far_sure_tokens_are_written():
  _, when, forwards = rounds(Ete(0.9, span=BLOCK + 1))
  assert forwards.tolist() == [3] * len(forwards)
  assert (when[:, BLOCK] == 2).all() and (when[:, BLOCK + 1 :] == 3).all()


def test_it_explores_below_so_many_sure_tokens():
  """Two free bits a, b and one sure slot: with least=1 that alone, with least=2 a bit too."""
  support = np.array([[a, 0, b, b, *[a] * 4] for a in (0, 1) for b in (0, 1)])
  _, when, _ = rounds(Ete(0.9, span=SLOTS), support=support)
  assert (when == [2, 1, 4, 5, 3, 3, 3, 3]).all()
  _, when, _ = rounds(Ete(0.9, span=SLOTS, least=2), support=support)
  assert (when == [1, 1, 3, 4, 2, 2, 2, 2]).all()


@pytest.mark.parametrize(
  ("fields", "message"),
  [({"threshold": 1.5}, "threshold=1.5"), ({"span": 0}, "span=0"), ({"least": 0}, "least=0")],
)
def test_bad_settings_are_refused_by_name(fields, message):
  with pytest.raises(ValueError, match=message):
    Ete(**fields)
