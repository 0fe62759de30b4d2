"""Kernels held apart: views that give the same logits, of large models on a CPU alone."""

import jax
import numpy as np
import pytest

from dlm.models import LoraConfig, MoeConfig, apart
from tests.dlm.models.small import SMALL, canvas_logits, init, jitter, random_tokens, variant

MOE = MoeConfig(experts=4, per_token=2, mlp=8, shared=8, dense_layers=1)
MODELS = {
  "llama": SMALL,
  "biases": variant(qkv_bias=True, qk_norm=True),
  "DiT": variant(dit=8, tied=False, kv_heads=4),
  "experts": variant(moe=MOE),
  "adapters": variant(lora=LoraConfig(rank=2, alpha=4.0)),
}


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_stack(name):
  model, tokens_BxL = MODELS[name], random_tokens(2, 6)
  params = jitter(init(model))
  held = apart.apart(params, least=0)
  assert jax.tree.structure(held) != jax.tree.structure(params)
  expected_BxLxV = canvas_logits(model, params, tokens_BxL)
  np.testing.assert_allclose(
    canvas_logits(model, held, tokens_BxL), expected_BxLxV, rtol=1e-5, atol=1e-5
  )


def test_each_layer_has_its_own_kernel_and_large_ones_are_views():
  model = variant(width=64, mlp=64)
  params = init(model)
  held = apart.apart(params, least=0)
  kernels = held["layers"]["mlp"]["up"]["kernel"]
  stack = np.asarray(params["layers"]["mlp"]["up"]["kernel"])
  assert len(kernels) == len(stack) == model.config.layers
  for kernel, layer in zip(kernels, stack, strict=True):
    assert np.array_equal(kernel, layer)
    assert kernel.unsafe_buffer_pointer() == layer.ctypes.data
  assert held["embed"] is params["embed"]
  assert held["layers"]["mlp_norm"] == params["layers"]["mlp_norm"]


def test_small_models_and_arrays_of_the_host_stay_as_they_are():
  params = init(SMALL)
  assert apart.apart(params) is params
  on_host = jax.device_get(params)
  assert apart.apart(on_host, least=0) is on_host
  assert apart.apart((), least=0) == ()


def test_experts_stay_stacked():
  held = apart.apart(init(MODELS["experts"]), least=0)
  assert isinstance(held["dense_layers"]["mlp"]["up"]["kernel"], tuple)
  assert not any(isinstance(leaf, tuple) for leaf in held["layers"]["moe"].values())
  assert held["layers"]["moe"]["shared"]["up"]["kernel"].ndim == 3
