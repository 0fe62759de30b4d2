"""The outer loop on a model whose tests all look alike: what is released, and what it saves."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks
from dlm.data.tokenizers import ByteTokenizer
from dlm.difftester.languages import python
from dlm.difftester.release import agreed
from dlm.difftester.sampling import sample
from dlm.sampling import loop
from dlm.sampling.caching import Dual, NoCache
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policies import Fixed
from dlm.sampling.sampler import Sampler
from tests.dlm.sampling.table import Lookup

TOKENIZER = ByteTokenizer()
SAMPLES = 3
PROMPT = "test f:\n```python\n"
TEXT = "assert f(#) == #\nassert f(#, #) == #\n```\n"  # every # is any digit
PLAIN = -(-len(TEXT) // 2)  # forwards of a policy that writes two tokens in each


def model():
  """All of the text is known but the digits, of which each is as likely; nothing else is sure."""
  text = PROMPT + TEXT
  own = np.zeros((len(text), TOKENIZER.vocab_size), np.float32)
  for slot, character in enumerate(text):
    likely = "0123456789" if character == "#" else character
    own[slot, [ord(c) for c in likely]] = 11.0
  nothing = jnp.zeros((TOKENIZER.vocab_size, TOKENIZER.vocab_size))
  return {"own": jnp.asarray(own), "left": nothing, "right": nothing}


def canvas_of(prompt=PROMPT):
  row = np.concatenate([TOKENIZER.encode(prompt), np.full(len(TEXT), TOKENIZER.mask_id)])
  return make_canvas(
    [row] * SAMPLES, [row == TOKENIZER.mask_id] * SAMPLES, list(range(SAMPLES)), slots=len(row),
    block=64, align="prompt", mask_id=TOKENIZER.mask_id, seed=0,
  )  # fmt: skip


def sampler(**fields):
  fields = {"plan": NoCache(), "block": 64, "eos_ids": (TOKENIZER.eos_id,), **fields}
  return Sampler(
    Lookup(), Fixed(k=2), sees=masks.Full(), max_forwards=80, mask_id=TOKENIZER.mask_id,
    temperature=1.0, **fields,
  )  # fmt: skip


AGREED = functools.partial(
  agreed, spell=lambda i: TOKENIZER.decode([i]), parse=python, language="python"
)


def watched(log):
  def agreed(tokens_BxL, masked_BxL):
    released_BxL = AGREED(tokens_BxL, masked_BxL)
    log.append((tokens_BxL, masked_BxL, released_BxL))
    return released_BxL

  return agreed


def texts(canvas):
  return [TOKENIZER.decode(row[len(PROMPT) :]) for row in np.asarray(canvas.tokens_BxL)]


@pytest.fixture(scope="module")
def plain():
  return jax.jit(loop.run, static_argnums=0)(sampler(scope="canvas"), model(), canvas_of())


def test_common_syntax_is_written_at_once_and_forwards_are_saved(plain):
  log = []
  out = sample(sampler(), model(), canvas_of(), watched(log))
  assert not (out.tokens_BxL == TOKENIZER.mask_id).any() and out.done_B.all()
  assert plain.forwards_Bx3.sum(-1).tolist() == [PLAIN] * SAMPLES
  assert (out.forwards_Bx3.sum(-1) <= 2 * PLAIN // 3).all()
  first = log[0][2][:, len(PROMPT) :]
  assert len(log) >= 2 and first.sum(-1).min() > 12
  known = np.array([c != "#" for c in TEXT])
  assert not (first & ~known).any(), "digits differ: nobody confirms them"
  for text in texts(out):
    assert [c for c, k in zip(text, known, strict=True) if k] == [c for c in TEXT if c != "#"]


def test_released_tokens_are_candidates_of_masked_slots_and_stay():
  log = []
  out = sample(sampler(), model(), canvas_of(), watched(log))
  final_BxL, when_BxL = np.asarray(out.tokens_BxL), np.asarray(out.when_BxL)
  for turn, (tokens_BxL, masked_BxL, released_BxL) in enumerate(log):
    assert not (released_BxL & ~masked_BxL).any()
    np.testing.assert_array_equal(final_BxL[released_BxL], tokens_BxL[released_BxL])
    assert (when_BxL[released_BxL] == 1 + 2 * turn).all(), "after the first of every two forwards"
  assert log[0][2].any()


def test_threshold_and_share_hold_candidates_back(plain):
  """Each of 40 candidates has about a fortieth of the row's confidence."""
  for fields in ({"threshold": 1.0}, {"threshold": 0.2, "share": 1.0}):
    out = sample(sampler(), model(), canvas_of(), AGREED, **fields)
    np.testing.assert_array_equal(out.tokens_BxL, plain.tokens_BxL)
    np.testing.assert_array_equal(out.when_BxL, plain.when_BxL)
  out = sample(sampler(), model(), canvas_of(), AGREED, threshold=0.01, share=1.0)
  assert (out.forwards_Bx3.sum(-1) < plain.forwards_Bx3.sum(-1)).all()


def test_what_stands_behind_a_stop_id_is_filled():
  params = model()
  end = len(PROMPT) + TEXT.index("\n")
  params["own"] = params["own"].at[end, TOKENIZER.eos_id].set(60.0)
  out = sample(sampler(), params, canvas_of(), AGREED)
  assert (out.tokens_BxL[:, end:] == TOKENIZER.eos_id).all()
  assert (out.forwards_Bx3.sum(-1) < PLAIN // 2).all()


@pytest.mark.parametrize(
  ("fields", "options", "message"),
  [
    ({"block": 8}, {}, "block=8 must hold"),
    ({"plan": Dual()}, {}, "needs cache 'none'"),
    ({}, {"every": 0}, "every=0"),
    ({}, {"threshold": -1.0}, "threshold=-1.0"),
    ({}, {"share": -1.0}, "share=-1.0"),
    ({}, {"threshold": math.nan}, "threshold=nan must be finite"),
    ({}, {"share": math.inf}, "share=inf must be finite"),
  ],
)
def test_bad_settings_are_refused_by_name(fields, options, message):
  with pytest.raises(ValueError, match=message):
    sample(sampler(**fields), model(), canvas_of(), AGREED, **options)
