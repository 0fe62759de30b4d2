"""What objectives declare is what they do; whoever stands in OBJECTIVES is tested here."""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks
from dlm.objectives import OBJECTIVES, Annealed, Bd3lm, ExactCount, Mdlm, Objective, Shifted
from dlm.objectives.objective import with_own
from dlm.types import LogitHead, ModelOutput
from kernels_pallas.block_attention import Keys, visible
from tests.dlm.objectives import oracle
from tests.dlm.objectives.oracle import MASK

LENGTH, STEPS = 8, 1000
# A document of one prompt token, whose tokens count on from there.
TOKENS = np.arange(2, 2 + LENGTH, dtype=np.int32)
MASK_ID = TOKENS[-1] + 2
MADE = {name: oracle.made(name, mask_id=MASK_ID, vocab=MASK_ID + 1) for name in OBJECTIVES}
# Of a drafter's, whose keys are the text and then the blocks: dflash_test.py.
OF_MODELS = [name for name, kind in OBJECTIVES.items() if not kind.drafts]
named = pytest.mark.parametrize("name", OF_MODELS)


def shifted(name):
  return Shifted(MADE[name]) if MADE[name].shiftable else MADE[name]


@dataclasses.dataclass(frozen=True)
class Counts:
  """Knows the token at `ahead` slots after the query's own, and nothing else."""

  ahead: int

  def __call__(self, params, tokens_BxW, *, slot_BxW, ask_BxA=None, **_):
    del params
    if ask_BxA is not None:
      slot_BxW = jnp.take_along_axis(slot_BxW, ask_BxA, axis=1)
    logits_BxAxV = 20.0 * jax.nn.one_hot(TOKENS[0] + slot_BxW + self.ahead, MASK_ID + 1)
    return ModelOutput(LogitHead(logits_BxAxV, jnp.eye(MASK_ID + 1)), None, {})


def batch_of(rows=6):
  batch = oracle.rows(np.tile(TOKENS, (rows, 1)))
  return batch.replace(noisable_BxL=batch.noisable_BxL.at[:, 0].set(False))


@functools.partial(jax.jit, static_argnums=0)
def measured(objective, step=STEPS):
  """What is asked, and who is asked in clean text; cross-entropies of who knows each slot's token
  and the next, loss, what is seen.

  Seen: [B, A, L], slots that the input which predicts a target sees, in either stream.
  """
  noisy = objective.corrupt(jax.random.key(1), batch_of(), step)

  def asked(ahead):
    own = with_own({}, objective.init(MASK_ID + 1))
    return oracle.asked(objective, Counts(ahead), own, Counts(objective.teacher_shift), {})

  own, following = (objective.losses(*asked(ahead), noisy)[1] for ahead in (0, 1))
  loss = objective.loss(*asked(objective.shift), noisy)[0].total
  rows, width = noisy.inputs_BxW.shape
  key_BxW = jnp.broadcast_to(jnp.arange(width), (rows, width))
  seen_BxWxW = visible(noisy.mask, Keys(key_BxW))
  seen_BxWxL = seen_BxWxW.reshape(rows, width, -1, LENGTH).any(2)
  clean_BxL = noisy.time_BxW[:, : own.shape[1]] == 0
  return noisy.weight_BxL > 0, clean_BxL, own, following, loss, seen_BxWxL[:, :LENGTH]


def check_asks(objective):
  """Only who knows the token that the declared shift is about pays nothing.

  Of clean text, where it is asked too, the next token.
  """
  asked, clean, *ce, loss, _ = map(np.asarray, measured(objective))
  assert asked.any() and np.isfinite(loss)
  shift = np.where(clean, 1, objective.shift)
  assert (np.where(shift, ce[1], ce[0]) < 1e-3).all()
  assert (np.where(shift, ce[0], ce[1])[asked] > 10).all()


@named
def test_logits_predict_the_token_that_the_shift_says(name):
  check_asks(MADE[name])


@named
def test_attention_is_what_training_shows(name):
  """So a sampler that follows it asks the model for nothing it was not trained on.

  Blocks after a causal context begin with the document in training, and behind a prompt else.
  """
  objective = MADE[name]
  seen = np.asarray(measured(objective)[-1])
  slot = jnp.arange(LENGTH)[None]
  answer = jnp.full(1, int(not isinstance(objective.attention, masks.CausalContext)))
  mask = jax.jit(lambda: objective.attention(slot, LENGTH, answer, answer))()
  want = np.asarray(visible(mask, Keys(slot)))
  np.testing.assert_array_equal(seen, np.broadcast_to(want, seen.shape))


@named
def test_what_is_shiftable_predicts_the_next_token_and_the_rest_refuses(name):
  objective = MADE[name]
  if objective.shiftable:
    assert (objective.shift, Shifted(objective).shift) == (0, 1)
    check_asks(Shifted(objective))
  else:
    with pytest.raises(ValueError, match=f"shift=1 does not go with {type(objective).__name__}"):
      Shifted(objective)


@named
def test_what_is_annealable_opens_its_attention_and_the_rest_refuses(name):
  objective = shifted(name)
  if not objective.annealable:
    with pytest.raises(ValueError, match=f"anneal=9 does not go with {type(objective).__name__}"):
      Annealed(objective, 9)
    return
  whole = np.asarray(measured(objective)[-1])
  *_, loss, closed = map(np.asarray, measured(Annealed(objective, STEPS), -1))
  np.testing.assert_array_equal(closed, whole & np.tri(LENGTH, dtype=bool))
  *_, opened = map(np.asarray, measured(Annealed(objective, STEPS)))
  np.testing.assert_array_equal(opened, whole)
  assert np.isfinite(loss)


@named
def test_what_exact_count_measures_it_asks_as_the_objective_does(name):
  objective = MADE[name]
  if not objective.exact_count:
    return  # refused where an estimator is chosen: tests/dlm/build/training_test.py
  exact = ExactCount(MASK_ID, block=objective.block)
  exact = Shifted(exact) if objective.shift else exact
  assert (exact.attention, exact.shift) == (objective.attention, objective.shift)
  assert exact.not_a_likelihood() is None
  check_asks(exact)


def test_what_goes_around_an_objective_keeps_all_that_it_declares():
  derived = {"corrupt", "corrupt_with", "token_losses"}
  declared = {name for name in vars(Objective) if not name.startswith("_")} - derived
  around = Annealed.__mro__[1]
  assert declared <= vars(around).keys()
  inner = Bd3lm(MASK, 4)
  for outer in (Annealed(Shifted(inner), 3), Shifted(Annealed(inner, 3))):
    assert (outer.block, outer.attention, outer.shift) == (4, masks.BlockCausal(4), 1)
    assert outer.forbidden == (MASK,) and outer.exact_count
    assert outer.not_a_likelihood() == inner.not_a_likelihood()
    assert not outer.shiftable and not outer.annealable


@named
def test_a_block_has_no_default_but_the_whole_row(name):
  """A field `block: int` would take the None of `Objective` for its default."""
  parameter = inspect.signature(OBJECTIVES[name]).parameters.get("block")
  if parameter is not None and parameter.default is None:
    assert MADE[name].attention == masks.Full() and parameter.annotation == int | None


def test_what_is_no_objective_is_not_built():
  class Half(Mdlm):
    corrupt_with = Objective.corrupt_with

  with pytest.raises(TypeError, match="corrupt_with"):
    Half(MASK)
