"""Layers whose experts choose, inside the model: pools, padding, noise levels, rows alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks
from dlm.models import MoeConfig
from tests.dlm.models.small import (
  canvas_logits,
  dense_logits,
  init,
  jitter,
  random_tokens,
  slots_like,
  variant,
)

STATIC = MoeConfig(
  experts=4, per_token=2, mlp=6, shared=6, choice="expert", renormalise=True, match_shared=True
)
DYNAMIC = dataclasses.replace(STATIC, schedule="linear_reverse", per_token_range=(1, 3))
BY_ROWS, BY_BLOCKS = variant(moe=DYNAMIC), variant(moe=dataclasses.replace(DYNAMIC, pool=4))


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, tokens_BxW, slot_BxW, mask, level_BxW):
  """Logits of every input, and the router's facts."""
  out = model(params, tokens_BxW, slot_BxW=slot_BxW, mask=mask, time_BxW=level_BxW)
  return dense_logits(out.head), out.aux


def canvas(model, params, tokens_BxL, level_B, length_B=None, rule=masks.Full()):  # noqa: B008
  batch, slots = tokens_BxL.shape
  slot_BxL = slots_like(tokens_BxL)
  length_B = jnp.full(batch, slots) if length_B is None else jnp.asarray(length_B)
  level_BxL = jnp.broadcast_to(jnp.asarray(level_B, jnp.float32)[:, None], tokens_BxL.shape)
  mask = masks.within(rule(slot_BxL, slots), length_B)
  return run(model, params, tokens_BxL, slot_BxL, mask, level_BxL)


@pytest.mark.parametrize("model", [variant(moe=STATIC), BY_ROWS, BY_BLOCKS])
def test_facts_of_every_layer(model):
  """Load is even; the three rows have 3, 2 and 1 experts a token."""
  params, tokens = jitter(init(model)), random_tokens(3, 8)
  _, facts = canvas(model, params, tokens, [0.0, 0.5, 1.0])
  scalars = ("per_token", "unchosen", "dropped", "z_loss", "balance_loss", "router_loss")
  assert {name: fact.shape for name, fact in facts.items()} == {
    "router_logits_YxBxWxE": (2, 3, 8, 4),
    "choosers_YxBxW": (2, 3, 8),
    "load_YxE": (2, 4),
    **{f"{name}_Y": (2,) for name in scalars},
  }
  load_YxE, choosers_YxBxW = facts["load_YxE"], facts["choosers_YxBxW"]
  assert (load_YxE == 3 * 8 * 2 // 4).all(), "max / mean = 1"
  np.testing.assert_array_equal(choosers_YxBxW.sum((1, 2)), load_YxE.sum(1))
  want = [16, 16, 16] if model.config.moe == STATIC else [24, 16, 8]
  assert choosers_YxBxW.sum(2).tolist() == [want, want]
  np.testing.assert_allclose(facts["per_token_Y"], 2.0)
  np.testing.assert_allclose(facts["unchosen_Y"], (choosers_YxBxW == 0).mean((1, 2)))
  assert (facts["dropped_Y"] == 0).all() and (facts["router_loss_Y"] == 0).all()


@pytest.mark.parametrize("model", [BY_ROWS, BY_BLOCKS])
def test_a_row_alone_is_the_row_in_a_batch(model):
  params, tokens = jitter(init(model)), random_tokens(3, 10)
  levels, lengths = [0.1, 0.9, 0.5], [10, 7, 5]
  together, _ = canvas(model, params, tokens, levels, lengths)
  for row in range(3):
    one = slice(row, row + 1)
    alone, _ = canvas(model, params, tokens[one], levels[one], lengths[one])
    real = lengths[row]
    np.testing.assert_allclose(alone[0, :real], together[row, :real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", [BY_ROWS, BY_BLOCKS])
def test_padding_is_never_chosen_and_takes_nobodys_place(model):
  """As shorter rows without it; what stands there changes nothing."""
  params, tokens = jitter(init(model)), random_tokens(2, 12)
  padded, facts = canvas(model, params, tokens, [0.3, 0.3], [9, 9])
  short, short_facts = canvas(model, params, tokens[:, :9], [0.3, 0.3])
  np.testing.assert_allclose(padded[:, :9], short, rtol=1e-5, atol=1e-5)
  other, _ = canvas(model, params, tokens.at[:, 9:].set(5), [0.3, 0.3], [9, 9])
  np.testing.assert_array_equal(other[:, :9], padded[:, :9])
  assert not facts["choosers_YxBxW"][:, :, 9:].any()
  for name in ("load_YxE", "per_token_Y", "unchosen_Y", "z_loss_Y", "balance_loss_Y"):
    np.testing.assert_allclose(facts[name], short_facts[name], rtol=1e-5)


def test_segment_0_is_padding_too():
  params, tokens = jitter(init(BY_ROWS)), random_tokens(1, 8)
  slot = slots_like(tokens)
  segment = jnp.array([[1, 1, 1, 2, 2, 2, 0, 0]])
  mask = masks.in_segments(masks.Full()(slot, 8), segment)
  _, facts = run(BY_ROWS, params, tokens, slot, mask, jnp.zeros((1, 8)))
  assert not facts["choosers_YxBxW"][:, :, 6:].any()
  assert (facts["load_YxE"] == 6 * 3 // 4).all()


def test_noisy_and_clean_copies_of_blocks_are_pools_of_their_own():
  """Clean blocks say level 0; a block's logits are those of a canvas with it as the last."""
  params, text = jitter(init(BY_BLOCKS)), random_tokens(1, 8)
  noisy = text.at[:, 1::2].set(22)
  level_BxL = jnp.repeat(jnp.array([[0.25, 1.0]]), 4, axis=1)
  both = jnp.concatenate([noisy, text], axis=1)
  slot = jnp.tile(slots_like(text), (1, 2))
  level_BxW = jnp.concatenate([level_BxL, jnp.zeros_like(level_BxL)], axis=1)
  logits, facts = run(BY_BLOCKS, params, both, slot, masks.noisy_clean(1, 8, 4), level_BxW)
  per_block_YxG = facts["choosers_YxBxW"].reshape(2, 4, 4).sum(-1)
  assert per_block_YxG.tolist() == [[8, 4, 12, 12]] * 2

  canvas_tokens = jnp.concatenate([text[:, :4], noisy[:, 4:]], axis=1)
  levels = jnp.concatenate([jnp.zeros((1, 4)), level_BxL[:, 4:]], axis=1)
  slot = slots_like(text)
  last, _ = run(BY_BLOCKS, params, canvas_tokens, slot, masks.BlockCausal(4)(slot, 8), levels)
  np.testing.assert_allclose(logits[:, 4:8], last[:, 4:], rtol=1e-5, atol=1e-5)


def test_the_level_of_a_pool_is_that_of_its_noisy_tokens():
  """A clean prompt says 0 in a row whose answer is noisy."""
  params, tokens = jitter(init(BY_ROWS)), random_tokens(1, 8)
  slot = slots_like(tokens)
  mask = masks.Full()(slot, 8)
  part, _ = run(BY_ROWS, params, tokens, slot, mask, jnp.where(slot < 3, 0.0, 1.0))
  whole, _ = run(BY_ROWS, params, tokens, slot, mask, jnp.ones(slot.shape))
  clean, _ = run(BY_ROWS, params, tokens, slot, mask, jnp.zeros(slot.shape))
  np.testing.assert_array_equal(part, whole)
  assert np.abs(part - clean).max() > 1e-3


def test_the_level_must_be_told_where_it_is_read():
  params, tokens = init(BY_ROWS), random_tokens(1, 8)
  with pytest.raises(ValueError, match="needs time_BxW"):
    canvas_logits(BY_ROWS, params, tokens)
  canvas_logits(variant(moe=STATIC), params, tokens)


def test_parameters_are_those_of_token_choice():
  """A checkpoint changes sides by its config alone, its bias too."""
  before = MoeConfig(experts=4, per_token=2, mlp=6, shared=6, bias=True, score="sigmoid")
  after = dataclasses.replace(before, choice="expert", pool=4)
  models = [variant(moe=moe) for moe in (before, after)]
  trees = [jax.eval_shape(model.init, jax.random.key(0)) for model in models]
  assert trees[0] == trees[1]
  count = sum(leaf.size for leaf in jax.tree.leaves(trees[1]))
  assert [model.config.n_params() for model in models] == [count, count]


def test_an_expert_has_no_use_for_its_bias():
  moe = dataclasses.replace(DYNAMIC, bias=True)
  params, tokens = jitter(init(variant(moe=moe))), random_tokens(2, 8)
  logits, _ = canvas(variant(moe=moe), params, tokens, [0.2, 0.7])
  params["layers"]["moe"]["router"]["bias"] += jnp.arange(4.0)[None]
  np.testing.assert_array_equal(canvas(variant(moe=moe), params, tokens, [0.2, 0.7])[0], logits)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("moe", [STATIC, DYNAMIC])
def test_gradients_reach_every_parameter(moe, remat):
  """Through the switch, the scan and what is recomputed; and the router's own losses do."""
  moe = dataclasses.replace(moe, z_loss=0.1, balance_loss=0.2)
  model = variant(moe=moe, remat=remat)
  params, tokens = jitter(init(model)), random_tokens(2, 8)

  def total(params):
    logits, facts = canvas(model, params, tokens, [0.1, 0.8])
    return (logits**2).sum() + facts["router_loss_Y"].sum(), facts

  gradient, facts = jax.jit(jax.grad(total, has_aux=True))(params)
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
    assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path
  want = 0.1 * facts["z_loss_Y"] + 0.2 * facts["balance_loss_Y"]
  np.testing.assert_allclose(facts["router_loss_Y"], want, rtol=1e-6)


def test_what_is_recomputed_changes_no_gradient():
  params, tokens = jitter(init(BY_ROWS)), random_tokens(2, 8)

  def gradient(model):
    def total(params):
      return (canvas(model, params, tokens, [0.1, 0.8])[0] ** 2).sum()

    return jax.jit(jax.grad(total))(params)

  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  jax.tree.map(close, gradient(BY_ROWS), gradient(variant(moe=DYNAMIC, remat=True)))
