"""WeDLM's window: against its rules said token by token, with the cache and without."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks
from dlm.sampling import loop
from dlm.sampling.caching import PLANS
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policies import Threshold, WeDlm
from dlm.sampling.sampler import Sampler
from tests.dlm.sampling.cache_test import MASK, MODEL, params_of

WINDOW, SLOTS = 4, 16
M = MASK
ROWS = [
  [1, 2, 3, 4, 5] + [M] * 9,
  [7] * 6 + [M] * 10,
  [6, M],
  [M, 1, 2, M] + [3, 4] * 4 + [M, M, 5],  # holes further apart than a window
]
CHOSEN = WeDlm(1.4, penalty=0.1)


def sampler_of(cache="block", **fields):
  fields = dict(sees=masks.Causal(), block=WINDOW, policy=CHOSEN) | fields
  return Sampler(
    denoise=MODEL, plan=PLANS[cache](), max_forwards=64, mask_id=MASK, eos_ids=(3,), **fields
  )


run = jax.jit(loop.run, static_argnums=0)


@functools.cache
def sampled(rows, cache="block"):
  canvas = make_canvas(
    [np.asarray(ROWS[row]) for row in rows], [np.asarray(ROWS[row]) == M for row in rows],
    list(rows), slots=SLOTS, block=WINDOW, align="prompt", mask_id=M, seed=1,
  )  # fmt: skip
  return run(sampler_of(cache), params_of(MODEL), canvas)


@functools.cache
def _logits():
  """Of inputs in any order: [1, SLOTS] tokens at their positions, causal in the order given."""

  @jax.jit
  def of(tokens, slots):
    order = jnp.arange(SLOTS)[None]
    out = MODEL(params_of(MODEL), tokens, slot_BxW=slots, mask=masks.Causal()(order, SLOTS))
    return (out.head.hidden_BxAxD @ out.head.unembed_VxD.T)[0]

  return lambda tokens, slots: np.asarray(of(tokens[None], slots[None]), np.float64)


def by_hand(row):
  """Tokens, and the forward that wrote each (1, 2, ...; -1: given); every one reads all the row."""
  tokens, when, forwards = list(ROWS[row]), [-1] * len(ROWS[row]), 0
  while M in tokens:
    first = tokens.index(M)
    window = range(first, min(first + WINDOW, len(tokens)))
    open_ = [i for i in window if tokens[i] == M]
    known = [*range(first), *(i for i in window if tokens[i] != M)]
    order = known + open_
    order += [i for i in range(SLOTS) if i not in order]  # which nothing before them sees
    read = np.array([(tokens + [0] * SLOTS)[i] for i in order], np.int32)
    logits = _logits()(read, np.array(order, np.int32))[len(known) : len(known) + len(open_)]
    logits[:, M] = -np.inf
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(-1)
    cost = entropy + CHOSEN.penalty * (np.array(open_) - first)
    forwards += 1
    chosen = [k for k in range(len(open_)) if cost[k] < CHOSEN.threshold] or [int(cost.argmin())]
    for k in chosen:
      tokens[open_[k]], when[open_[k]] = int(logits[k].argmax()), forwards
    wrote = [i for i, token in enumerate(tokens) if token == 3 and when[i] > 0]
    if wrote and M not in tokens[first : wrote[0]]:
      break
  return tokens, when, forwards


def test_the_window_slides_as_by_hand():
  canvas = sampled((0, 1, 2, 3))
  several = 0
  for row in range(4):
    tokens, when, forwards = by_hand(row)
    n = len(tokens)
    np.testing.assert_array_equal(canvas.tokens_BxL[row, :n], tokens)
    np.testing.assert_array_equal(canvas.when_BxL[row, :n], when)
    assert canvas.forwards_Bx3[row].sum() == forwards
    several += (np.bincount([turn for turn in when if turn > 0]) > 1).sum()
  assert several > 1  # some forwards write more than one token
  assert canvas.forwards_Bx3[0].tolist()[0] == 1  # one reads the prompt, windows the rest
  assert (
    canvas.forwards_Bx3[3].tolist()[0] == 1
  )  # one for the hole that is behind more than a window


@pytest.mark.parametrize("rows", [(0, 1, 2, 3), (3,)], ids=str)
def test_a_row_is_the_same_alone_in_a_batch_and_without_the_cache(rows):
  whole, other = sampled((0, 1, 2, 3)), sampled(rows, cache="none")
  for i, row in enumerate(rows):
    for name in ("tokens_BxL", "when_BxL"):
      np.testing.assert_array_equal(getattr(other, name)[i], getattr(whole, name)[row], name)
  np.testing.assert_array_equal(sampled(rows[:1]).tokens_BxL[0], whole.tokens_BxL[rows[0]])


@pytest.mark.parametrize(
  "fields",
  [{"sees": masks.Full()}, {"shift": 1}, {"commit": "separate"}, {"on_eos": "fill"}],
  ids=str,
)
def test_what_would_not_stand_behind_what_is_known_is_refused(fields):
  with pytest.raises(ValueError, match=r"slides on, which needs a causal model|cache 'block'"):
    sampler_of(**fields)
  if "sees" not in fields:
    assert sampler_of(**fields, policy=Threshold(0.5)).policy == Threshold(0.5)


def test_settings_are_refused_by_name():
  with pytest.raises(ValueError, match=r"wedlm: threshold=-1\.0 must not be negative"):
    WeDlm(-1.0)
  with pytest.raises(ValueError, match=r"wedlm: penalty=-0\.1 must not be negative"):
    dataclasses.replace(CHOSEN, penalty=-0.1)
