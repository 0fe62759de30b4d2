import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks
from dlm.models import LoraConfig, MoeConfig, bind, lora
from tests.dlm.models.small import (
  SMALL,
  canvas_logits,
  dense_logits,
  init,
  jitter,
  random_tokens,
  slots_like,
  variant,
)

MASK = 22
PLAIN = LoraConfig(rank=3, alpha=6.0)
GATED = dataclasses.replace(PLAIN, gated=True, mask_id=MASK)
TOKENS = jnp.asarray([[5, 3, MASK, MASK, 7, 1, MASK, 2]], jnp.int32)
DIT = dict(dit=10, tied=False, kv_heads=4)


def trees(model):
  """Parameters with adapters that are not zero, and those of the model without."""
  params = jitter(init(model))
  return params, lora.frozen(params)


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": True}, DIT], ids=["plain", "bias", "dit"])
def test_training_starts_at_the_base_model(changes):
  model = variant(lora=PLAIN, **changes)
  params = init(model)
  base = canvas_logits(variant(**changes), lora.frozen(params), TOKENS)
  np.testing.assert_array_equal(canvas_logits(model, params, TOKENS), base)
  sums = [float(jnp.abs(x).sum()) for x in jax.tree.leaves(lora.adapters(params))]
  assert sum(value == 0 for value in sums) * 2 == len(sums)  # each B, and no A


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("changes", [{}, DIT], ids=["plain", "dit"])
def test_merged_weights_compute_the_same(changes, rslora):
  own = dataclasses.replace(PLAIN, rslora=rslora)
  model = variant(lora=own, **changes)
  params, base = trees(model)
  want = canvas_logits(model, params, TOKENS)
  merged = lora.merged(params, own)
  assert jax.tree.structure(merged) == jax.tree.structure(base)
  np.testing.assert_allclose(canvas_logits(variant(**changes), merged, TOKENS), want, atol=2e-5)
  assert np.abs(want - canvas_logits(variant(**changes), base, TOKENS)).max() > 1e-2


def test_scale_is_alpha_over_the_rank_or_its_root():
  assert PLAIN.scale == 2.0
  assert dataclasses.replace(PLAIN, rank=4, rslora=True).scale == 3.0


def test_clean_causal_text_is_the_base_models_to_the_bit():
  """A mask changes what comes after it; what is before the first one does not see it."""
  model = variant(lora=GATED)
  params, base = trees(model)
  causal = masks.Causal()
  gated = np.asarray(canvas_logits(model, params, TOKENS, rule=causal))
  plain = np.asarray(canvas_logits(SMALL, base, TOKENS, rule=causal))
  np.testing.assert_array_equal(gated[:, :2].view(np.uint8), plain[:, :2].view(np.uint8))
  assert (np.abs(gated[:, 2:] - plain[:, 2:]).max(-1) > 1e-3).all()


def test_clean_text_beside_masks_that_it_does_not_see_is_the_base_models_to_the_bit():
  """[noisy; clean] of I-DLM: all of the clean copy."""
  model = variant(lora=GATED)
  params, base = trees(model)
  clean = random_tokens(2, 8) % MASK
  tokens = jnp.concatenate([jnp.full_like(clean, MASK), clean], axis=1)
  slots = slots_like(clean)
  start = slots // 4 * 4
  rule = masks.noisy_clean_from(start, 4, causal_noise=True, causal_clean=True)
  slots = jnp.concatenate([slots, slots], axis=1)

  @jax.jit
  def loss(params, own):
    out = model(lora.joined(params, own), tokens, slot_BxW=slots, mask=rule)
    return dense_logits(out.head)

  @jax.jit
  def of_base(params):
    return dense_logits(SMALL(params, tokens, slot_BxW=slots, mask=rule).head)

  own = lora.adapters(params)
  gated, plain = np.asarray(loss(base, own)), np.asarray(of_base(base))
  np.testing.assert_array_equal(gated[:, 8:].view(np.uint8), plain[:, 8:].view(np.uint8))
  assert np.abs(gated[:, :8] - plain[:, :8]).max() > 1e-2

  clean_loss = lambda own: jnp.square(loss(base, own)[:, 8:]).sum()  # noqa: E731
  noisy_loss = lambda own: jnp.square(loss(base, own)[:, :8]).sum()  # noqa: E731
  zero = jax.tree.leaves(jax.grad(clean_loss)(own))
  assert all(not np.asarray(g).any() for g in zero)
  assert all(np.asarray(g).any() for g in jax.tree.leaves(jax.grad(noisy_loss)(own)))


def test_trees_come_apart_and_together():
  params, base = trees(variant(lora=PLAIN))
  own = lora.adapters(params)
  assert jax.tree.structure(lora.joined(base, own)) == jax.tree.structure(params)
  jax.tree.map(np.testing.assert_array_equal, lora.joined(base, own), params)
  assert lora.adapters(base) == {} and lora.frozen(base).keys() == base.keys()


@pytest.mark.parametrize(
  ("fields", "names"),
  [
    ({}, lora.PROJECTIONS),
    ({"targets": "query,value"}, ("query", "value")),
    ({"targets": ("down",)}, ("down",)),
  ],
)
def test_targets_are_the_projections_that_have_adapters(fields, names):
  model = variant(lora=dataclasses.replace(PLAIN, **fields))
  layers = init(model)["layers"]
  found = {n for part in ("attention", "mlp") for n, x in layers[part].items() if lora.A in x}
  assert found == set(names)


@pytest.mark.parametrize(
  ("lora_fields", "model_fields", "message"),
  [
    ({"rank": 0}, {}, "model.lora.rank=0 must be at least 1"),
    ({"alpha": 0.0}, {}, "model.lora.alpha=0.0 must be positive"),
    ({"targets": "q_proj"}, {}, "model.lora.targets='q_proj' must name some of query, key"),
    ({"targets": ()}, {}, r"model.lora.targets=\(\) must name some of"),
    ({}, {"moe": MoeConfig(experts=4, per_token=2, mlp=5)}, "experts have no adapters"),
    ({"targets": "gate"}, DIT, "the MLP of a DiT has no gate"),
  ],
)
def test_adapters_that_cannot_be_are_refused(lora_fields, model_fields, message):
  with pytest.raises(ValueError, match=message):
    variant(lora=dataclasses.replace(PLAIN, **lora_fields), **model_fields)


def test_gate_needs_a_mask_id_and_forbids_merging():
  model = bind(dataclasses.replace(SMALL.config, lora=dataclasses.replace(GATED, mask_id=None)))
  with pytest.raises(ValueError, match=r"model.lora.gated=True needs model.lora.mask_id"):
    canvas_logits(model, init(variant(lora=GATED)), TOKENS)
  with pytest.raises(ValueError, match="cannot be merged into weights"):
    lora.merged(init(variant(lora=GATED)), GATED)
