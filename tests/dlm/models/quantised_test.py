"""Kernels kept as codes: a model computes what the numbers do that they stand for."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from dlm.models import LoraConfig, MoeConfig
from dlm.models.apart import apart
from dlm.models.quantised import (
  CLIPS,
  TILE_BYTES,
  Codes,
  Format,
  as_dicts,
  as_kept,
  check,
  coded,
  from_dicts,
  packed,
  quantise,
  quantised,
  unpacked,
)
from tests.dlm.models.small import canvas_logits, init, jitter, random_tokens, variant

MODELS = {
  "biases and adapters": variant(
    layers=2, qkv_bias=True, out_bias=True, lora=LoraConfig(rank=2, alpha=4.0)
  ),
  "experts": variant(
    layers=2, moe=MoeConfig(experts=4, per_token=2, mlp=8, shared=8, dense_layers=1)
  ),
  "DiT": variant(layers=2, dit=8, tied=False, kv_heads=4),
}


def meant(params):
  """The kernels that codes stand for, in numpy."""

  def of(path, leaf):
    if not isinstance(leaf, Codes):
      return leaf
    experts = "moe" in path and "shared" not in path
    lead = leaf.codes.shape[: 1 + experts]
    codes = np.asarray(leaf.codes).reshape(-1, *leaf.codes.shape[len(lead) :])
    if leaf.format.bits == 4:
      low, high = (codes & 15).astype(np.int8), (codes >> 4).astype(np.int8)
      codes = np.concatenate([low, high], axis=1)
      codes = np.where(codes > 7, codes - 16, codes)
    scale = np.asarray(leaf.scale).reshape(len(codes), -1, 1, *codes.shape[2:])
    if leaf.steps is not None:
      scale = scale * np.asarray(leaf.steps).reshape(len(codes), -1, 1, *codes.shape[2:])
    wide = codes.reshape(len(codes), scale.shape[1], -1, *codes.shape[2:])
    if leaf.zero is not None:
      wide = wide - np.asarray(leaf.zero, np.float32).reshape(scale.shape)
    wide = wide * scale
    return jnp.asarray(wide.reshape(SHAPES[path]), jnp.float32)

  flat = traverse_util.flatten_dict(params)
  return traverse_util.unflatten_dict({path: of(path, leaf) for path, leaf in flat.items()})


SHAPES = {}


@pytest.mark.parametrize(("name", "format"), zip(MODELS, ("int8z", "dgq4", "int4g4z"), strict=True))
def test_logits_are_those_of_the_numbers_meant(name, format):
  model, tokens_BxL = MODELS[name], random_tokens(2, 6)
  params = jitter(init(model))
  SHAPES.update({p: x.shape for p, x in traverse_util.flatten_dict(params).items()})
  own = quantised(params, quantise(format))
  np.testing.assert_allclose(
    canvas_logits(model, own, tokens_BxL),
    canvas_logits(model, meant(own), tokens_BxL),
    rtol=2e-5,
    atol=2e-5,
  )


def test_kernels_alone_become_codes_and_stay_so():
  params = init(MODELS["experts"])
  own = traverse_util.flatten_dict(quantised(params, quantise("int8")))
  codes = {"/".join(path) for path, leaf in own.items() if isinstance(leaf, Codes)}
  mlp = {f"mlp/{name}" for name in ("gate", "up", "down")}
  attention = {f"attention/{name}" for name in ("query", "key", "value", "out")}
  experts = {f"moe/{under}{name}" for name in ("gate", "up", "down") for under in ("", "shared/")}
  expected = {f"dense_layers/{name}/kernel" for name in mlp | attention}
  assert codes == expected | {f"layers/{name}/kernel" for name in experts | attention}
  own = traverse_util.unflatten_dict(own)
  assert jax.tree.structure(apart(own, least=0)) == jax.tree.structure(own)


def test_a_kernel_takes_the_bytes_of_its_format():
  kernel = jnp.ones((2, 64, 8))
  of = {name: quantise(name)(("layers", "up", "kernel"), kernel) for name in ("int8", "int4g16")}
  assert of["int8"].codes.nbytes + of["int8"].scale.nbytes == 2 * (64 * 8 + 4 * 8)
  assert of["int4g16"].codes.nbytes + of["int4g16"].scale.nbytes == 2 * (32 * 8 + 4 * 4 * 8)


def test_four_bits_come_back_to_the_bit():
  codes = np.arange(-8, 8, dtype=np.int8).reshape(8, 2)[:, ::-1]
  assert np.array_equal(unpacked(packed(jnp.asarray(codes))), codes)


def test_what_is_rounded_is_a_sum_of_whole_numbers():
  """w8a8, in numpy: both sides rounded, the sum exact, then the two scales."""
  x_RxI = np.random.default_rng(0).normal(size=(3, 24)).astype(np.float32)
  x_RxI[:, 0] = 4  # the largest are positive: the least code of a channel lies near a tie
  kernel_IxO = np.random.default_rng(1).normal(size=(24, 5)).astype(np.float32)
  codes = quantise("w8a8")(("layers", "up", "kernel"), jnp.asarray(kernel_IxO[None]))
  codes = jax.tree.map(lambda x: x[0], codes)
  scale_R = np.abs(x_RxI).max(1) / np.float32(127.5)
  rounded_RxI = np.clip(np.round(x_RxI / scale_R[:, None]), -128, 127).astype(np.int64)
  expected = rounded_RxI @ np.asarray(codes.codes, np.int64) * scale_R[:, None] * codes.scale
  np.testing.assert_allclose(codes.product(jnp.asarray(x_RxI)), expected, rtol=1e-6)


def test_whole_steps_inside_the_scale_of_a_channel():
  """DGQ in numpy, channel by channel, each trial of a scale written out."""
  kernel_IxO = np.random.default_rng(2).normal(size=(24, 5)).astype(np.float32)
  kernel_IxO[3, 1], kernel_IxO[:, 2] = 9, 0  # one outlier, a channel of nothing
  made = jax.jit(coded, static_argnums=0)(Format.of("dgq8"), kernel_IxO)
  whole = np.asarray(made.whole)
  for channel, w in enumerate(kernel_IxO.T.astype(np.float64)):
    tried = []
    for clip in CLIPS:
      scale = np.abs(w).max() * clip / 127 or 1.0
      steps = np.clip(np.round(np.abs(w).reshape(3, 8).max(1) / 7.5 / scale), 1, 127)[:, None]
      most, least = np.minimum(127 // steps, 7), -np.minimum(128 // steps, 8)
      codes = np.clip(np.round(w.reshape(3, 8) / (scale * steps)), least, most)
      tried.append((np.square(codes * steps * scale - w.reshape(3, 8)).sum(), codes, steps, scale))
    _, codes, steps, scale = min(tried, key=lambda each: each[0])
    assert np.array_equal(made.steps[:, channel], steps[:, 0])
    assert np.array_equal(whole[:, channel], (codes * steps).reshape(-1))
    np.testing.assert_allclose(made.scale[0, channel], scale, rtol=1e-6)
  x_RxI = np.random.default_rng(3).normal(size=(2, 24)).astype(np.float32)
  both = dataclasses.replace(made.format, activations=True)
  y_RxO = jax.jit(lambda codes, x: codes.product(x))(made.replace(format=both), x_RxI)
  np.testing.assert_allclose(y_RxO, x_RxI @ (whole * np.asarray(made.scale)), atol=0.2)


FORMATS = ("int8", "int8z", "int8g32", "int4", "int4g64z", "int4g256", "dgq64", "w8a8", "w4a8g64")


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
  ("format", "dtype"),
  [*((name, "float32") for name in FORMATS), ("int8", "bfloat16"), ("int4g32", "bfloat16")],
)
def test_tiles_of_a_stack_give_its_product(format, dtype, rows, monkeypatch):
  """Tiles inside a group, of one and of several."""
  monkeypatch.setattr("dlm.models.quantised.TILE_BYTES", 64 * 40 * jnp.dtype(dtype).itemsize)
  draw = np.random.default_rng(0)
  kernels_YxIxNxH = jnp.asarray(draw.normal(size=(2, 512, 4, 10)), jnp.float32)
  x_RxI = jnp.asarray(draw.normal(size=(rows, 512)), dtype)
  x_RxI = x_RxI.at[:, 0].set(5)  # the largest: of a negative one the code lies near a tie
  stack = quantise(format)(("layers", "up", "kernel"), kernels_YxIxNxH)
  y_RxO = jax.jit(lambda stack, x, layer: stack.product(x, layer))(stack, x_RxI, 1)
  own = jax.tree.map(lambda leaf: leaf[1], stack)
  x_RxI, wide_IxO = np.asarray(x_RxI, np.float64), np.asarray(own.wide(jnp.float32), np.float64)
  if own.format.activations:
    scale_Rx1 = 5 / 127.5
    x_RxI = np.clip(np.round(x_RxI / scale_Rx1), -128, 127) * scale_Rx1
  near = 1e-5 if dtype == "float32" else 1e-2
  assert y_RxO.dtype == dtype
  np.testing.assert_allclose(y_RxO, x_RxI @ wide_IxO, rtol=near, atol=near * 30)


@pytest.mark.parametrize("rows", [1, 16])
@pytest.mark.parametrize("format", ["int8", "int4g128", "w8a8", "w4a8g128"])
def test_no_kernel_is_widened_or_taken_from_its_stack(format, rows):
  """A tile is held, and the sums: XLA's CPU backend would write a kernel of 4 bytes a code."""
  kernels = jax.ShapeDtypeStruct((3, 2048, 1024), jnp.float32)
  stack = jax.eval_shape(lambda k: quantise(format)(("layers", "up", "kernel"), k), kernels)
  x = jax.ShapeDtypeStruct((rows, 2048), jnp.float32)
  layer = jax.ShapeDtypeStruct((), jnp.int32)
  compiled = jax.jit(lambda stack, x, i: stack.product(x, i)).lower(stack, x, layer).compile()
  rest = 16 * 4 * 4 * 2048
  assert compiled.memory_analysis().temp_size_in_bytes < 2 * TILE_BYTES + rest < 4 * 2048 * 1024


def test_codes_come_back_from_dicts():
  shapes = nn.unbox(MODELS["experts"].abstract())

  def made(name):
    return jax.eval_shape(functools.partial(quantised, of=quantise(name)), shapes)

  assert from_dicts(as_dicts(made("w4a8g4")), "dgq4") == made("dgq4")
  assert made("dgq4")["layers"]["moe"]["up"]["kernel"].format == Format.of("dgq4")


def test_codes_are_split_as_their_kernel_is_where_they_divide():
  mesh = jax.sharding.AbstractMesh((2, 4, 2), ("fsdp", "tensor", "sequence"))

  def of(shape, *spec):
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(shape, jnp.float32), spec

  whole = {
    "out": of((2, 8, 2, 6), None, "tensor", None, "fsdp"),  # heads and their channels come in
    "up": of((2, 16, 12), None, ("fsdp", "sequence"), "tensor"),
  }
  shapes, places = (
    {"layers": {name: {"kernel": both[i]} for name, both in whole.items()}} for i in (0, 1)
  )
  _, found = as_kept("dgq8", shapes, places)
  specs = jax.tree.map(lambda place: tuple(place.spec), found["layers"])
  assert specs["out"]["kernel"] == {
    "codes": (None, "tensor", "fsdp"),  # 8 bytes of inputs
    "steps": (None, None, "fsdp"),  # 2 groups do not divide over 4 devices
    "scale": (None, None, "fsdp"),
  }
  assert specs["up"]["kernel"]["codes"] == (None, ("fsdp", "sequence"), "tensor")
  assert specs["up"]["kernel"]["steps"] == (None, None, "tensor")


@pytest.mark.parametrize(
  "name", ["int3", "int8g0", "w4a8", "dgq", "w4a8g0", "int4g", "int8 ", "w8a8z"]
)
def test_unknown_formats_are_named(name):
  with pytest.raises(ValueError, match=f"weights='{name}' must be int8, int4"):
    Format.of(name)


@pytest.mark.parametrize(
  "name", ["int8", "int4", "int4g32", "int8g64", "w8a8", "dgq64", "w4a8g8", "int8z", "int4g8z"]
)
def test_formats_know_their_names(name):
  assert Format.of(name).name == name


def test_groups_must_divide_the_inputs():
  shapes = {"layers": {"mlp": {"up": {"kernel": jax.ShapeDtypeStruct((2, 24, 8), jnp.float32)}}}}
  check("int4g8", shapes)
  with pytest.raises(ValueError, match="'int4g5': the 24 inputs of layers/mlp/up/kernel must be a"):
    check("int4g5", shapes)
