"""DiffusionGemma's objective: what it shows is what sampling shows; its two parts; adapters."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks
from dlm.models import GemmaConfig, LoraConfig, ModelConfig, MoeConfig, bind, lora
from dlm.objectives import DiffusionGemma
from dlm.types import Batch
from tests.checkers.diffusion_gemma import TOLERANCE, forward
from tests.checkers.models import loaded

MODEL = pathlib.Path(__file__).parents[2] / "conformance" / "diffusion_gemma" / "model"
LENGTH, PROMPT, CANVAS = 16, 4, 8
HERE = slice(PROMPT, PROMPT + CANVAS)


def batch_of(rows: int, vocab: int) -> Batch:
  """A prompt, a canvas, and a shorter one."""
  slot = jnp.broadcast_to(jnp.arange(LENGTH), (rows, LENGTH))
  tokens = jnp.asarray(np.random.default_rng(0).integers(0, vocab, (rows, LENGTH)), jnp.int32)
  ones = jnp.ones_like(tokens)
  return Batch(tokens, noisable_BxL=slot >= PROMPT, segment_BxL=ones, position_BxL=slot)


def test_training_shows_what_sampling_shows():
  """Of the authors' tiny model: a canvas after clean text, and that text read causally."""
  _, model, params = loaded(MODEL)
  objective = DiffusionGemma(mask_id=127, block=CANVAS, vocab=128)
  batch = batch_of(2, 127)
  noisy = objective.corrupt(jax.random.key(0), batch, 0)
  changed = np.asarray(noisy.inputs_BxW[:, :LENGTH] != batch.tokens_BxL)
  assert changed[:, PROMPT:].any() and not changed[:, :PROMPT].any()
  soft = jnp.zeros((2, 2 * LENGTH, model.width))

  def run(tokens, slot, mask, time):
    return np.asarray(forward(model, params, tokens, slot, mask, time, soft, None, None)[0])

  got = run(noisy.inputs_BxW, noisy.slot_BxW, noisy.mask, noisy.time_BxW)
  # As sampled: clean text, then the canvas; what follows is padding.
  slot = jnp.broadcast_to(jnp.arange(2 * LENGTH, dtype=jnp.int32), (2, 2 * LENGTH))
  for start in (PROMPT, PROMPT + CANVAS):
    end = min(start + CANVAS, LENGTH)
    mask = masks.Canvas(CANVAS)(slot, 2 * LENGTH, start_B=jnp.full(2, start))
    tokens = jnp.concatenate([batch.tokens_BxL[:, :start], noisy.inputs_BxW[:, start:]], axis=1)
    want = run(
      tokens, slot, masks.within(mask, jnp.full(2, end)), (slot >= start).astype(jnp.float32)
    )
    np.testing.assert_allclose(got[:, start:end], want[:, start:end], atol=TOLERANCE)
    clean = slice(LENGTH, LENGTH + start)
    np.testing.assert_allclose(got[:, clean], want[:, :start], atol=TOLERANCE)


SMALL = ModelConfig(
  vocab=20, width=12, layers=2, heads=2, kv_heads=2, head_dim=4, mlp=10, qk_norm=True,
  soft_cap=30.0, moe=MoeConfig(experts=3, per_token=2, mlp=6, renormalise=True),
  gemma=GemmaConfig(full=(1,), window=5, kv_heads=1, head_dim=8), lora=LoraConfig(2, 4.0),
)  # fmt: skip


@pytest.fixture(scope="module")
def trained():
  """A model with adapters that are not zero, its loss by parts and its gradient."""
  model = bind(SMALL)
  params = model.init(jax.random.key(0))
  random = np.random.default_rng(1)
  params = jax.tree.map(lambda x: x + 0.1 * random.normal(size=x.shape).astype(np.float32), params)
  objective = DiffusionGemma(mask_id=19, block=CANVAS, vocab=20, next_weight=0.5)
  noisy = objective.corrupt(jax.random.key(1), batch_of(4, 19), 0)
  conditioned = jnp.array([True, False, True, False])
  noisy = noisy.replace(extra={"conditioned": conditioned})

  @jax.jit
  def run(params, noisy):
    def loss(params):
      loss_BxT, ce_BxT, _ = objective.losses(model, params, noisy)
      return loss_BxT.sum(), (loss_BxT, ce_BxT)

    return jax.value_and_grad(loss, has_aux=True)(params)

  return run, params, noisy


def test_all_tokens_of_canvases_count_and_next_tokens_beside_them(trained):
  run, params, noisy = trained
  (total, (loss, ce)), _ = run(params, noisy)
  ce = np.asarray(ce)
  answers = 4 * (LENGTH - PROMPT)
  want = ce[:, PROMPT:LENGTH].sum() + 0.5 * ce[:, LENGTH + PROMPT :].sum()
  assert float(total) == pytest.approx(want, rel=1e-5)
  assert float(noisy.count_B.sum()) == answers
  assert (np.asarray(loss)[:, :PROMPT] == 0).all()


def test_rows_are_conditioned_on_their_first_prediction_or_on_nothing(trained):
  run, params, noisy = trained
  ce = np.asarray(run(params, noisy)[0][1][1])
  none = noisy.replace(extra={"conditioned": jnp.zeros(4, bool)})
  plain = np.asarray(run(params, none)[0][1][1])
  same = (ce[:, HERE] == plain[:, HERE]).all(1)
  np.testing.assert_array_equal(same, [False, True, False, True])
  np.testing.assert_array_equal(ce[:, LENGTH:], plain[:, LENGTH:])


def test_adapters_of_every_layer_learn_and_layer_scales_do_not(trained):
  run, params, noisy = trained
  _, gradient = run(params, noisy)
  own = lora.adapters(gradient)
  assert own.keys() == {"layers_0", "layers_1"}
  projections = {"query", "key", "value", "out"}
  assert own["layers_0"]["attention"].keys() == projections
  assert own["layers_1"]["attention"].keys() == projections - {"value"}, "its keys are its values"
  assert own["layers_0"]["mlp"].keys() == {"gate", "up", "down"}
  assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(own))
  for stack in ("layers_0", "layers_1"):
    for name in ("clean_scale", "noisy_scale"):
      assert not np.asarray(gradient[stack][name]).any()
  merged = lora.merged(params, SMALL.lora)
  assert not lora.adapters(merged)
  plain = jax.eval_shape(bind(dataclasses.replace(SMALL, lora=None)).init, jax.random.key(0))
  assert jax.tree.structure(merged) == jax.tree.structure(plain)


@pytest.mark.parametrize(
  ("changes", "match"),
  [
    ({"vocab": 1}, "vocab=1 must be at least 2"),
    ({"conditioned": 1.5}, "conditioned=1.5 must lie in 0..1"),
    ({"least": 0.0}, "level 0 means clean text"),
    ({"next_weight": -1.0}, "next_weight=-1.0 must not be negative"),
  ],
)
def test_settings_that_cannot_be(changes, match):
  with pytest.raises(ValueError, match=match):
    DiffusionGemma(**{"mask_id": 3, "block": 4, "vocab": 5} | changes)
