"""Codes and scales of qwix and of KIVI, from tests/conformance/quant."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dlm.models import packed, quantised
from dlm.models.quantised import Format


def kivi(x, bits, group, axis):
  """Codes packed along `axis` in int32 words, scales and zeros, each group's along that axis."""
  words, back, scale, zero, wide = jax.device_get(_kivi(x, bits, group, axis % x.ndim))
  assert words.dtype == np.uint32
  return words.view(np.int32), scale, zero, wide, back


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _kivi(x, bits, group, axis):
  split = (*x.shape[:axis], -1, group, *x.shape[axis + 1 :])
  code, scale, zero = packed.rounded(x.reshape(split), bits, axis + 1, jnp.float32)
  words = packed.packed(code.reshape(x.shape), bits, axis)
  back = packed.unpacked(words, bits, axis)
  return words, back, scale, zero, (back.reshape(code.shape) * scale + zero).reshape(x.shape)


def check_codes(case):
  """Keys share scales over tokens, values over channels, "last_dim" is the deployed path."""
  x, bits, group = case.inputs["x"], case.arg("bits"), case.arg("group")
  axis = -2 if case.method == "kivi_kcache" else -1
  words, scale, zero, wide, back = kivi(x, bits, group, axis)
  want = case.outputs
  np.testing.assert_array_equal(words, want["code"])
  half = case.arg("dtype") == "float16"  # theirs computes in it
  near = {"rtol": 2e-3, "atol": 2e-3} if half else {"rtol": 1e-5, "atol": 1e-6}
  np.testing.assert_allclose(scale.reshape(want["scale"].shape), want["scale"], **near)
  np.testing.assert_allclose(zero.reshape(want["zero"].shape), want["zero"], **near)
  np.testing.assert_allclose(wide, want["dequant"], atol=2e-2 if half else 1e-5)
  if "unpacked" in want:
    np.testing.assert_array_equal(back, want["unpacked"])


def check_attention(case):
  """Their rule for what waits, with our codes: ours packs blocks as they are committed instead."""
  heads, dim, group = case.arg("heads"), case.arg("head_dim"), case.arg("group")
  residual, prefill = case.arg("residual"), case.arg("prefill")
  bits = case.arg("k_bits"), case.arg("v_bits")
  q, k, v = (case.inputs[name].reshape(-1, heads, dim).swapaxes(0, 1) for name in "qkv")
  total, outputs, lengths = q.shape[1], [], []
  keys, values = prefill - prefill % residual, max(prefill - residual, 0)  # packed so far

  def attend(first, last, k, v):
    scores = np.einsum("htd,hsd->hts", q[:, first:last], k[:, :last]) / np.sqrt(dim)
    future = np.arange(last)[None, :] > np.arange(first, last)[:, None]
    weights = np.exp(np.where(future, -np.inf, scores) - scores.max(-1, keepdims=True))
    return np.einsum("hts,hsd->thd", weights / weights.sum(-1, keepdims=True), v[:, :last])

  def tell(last):
    lengths.append([keys, last - keys, values, last - values, last])

  outputs.append(attend(0, prefill, k, v))
  tell(prefill)
  # A group's codes are of its own numbers alone, so all of them are found at once.
  whole = total - total % group
  k_words, k_scale, k_zero, k_wide, _ = kivi(k[:, :whole], bits[0], group, 1)
  v_words, v_scale, v_zero, v_wide, _ = kivi(v, bits[1], group, 2)
  for last in range(prefill + 1, total + 1):
    read = np.concatenate([k_wide[:, :keys], k[:, keys:]], 1)
    seen = np.concatenate([v_wide[:, :values], v[:, values:]], 1)
    outputs.append(attend(last - 1, last, read, seen))
    keys += residual if last - keys == residual else 0
    values += last - values > residual
    tell(last)
  want = case.outputs
  np.testing.assert_array_equal(np.asarray(lengths), want["cache_lengths"])
  found = np.concatenate(outputs).reshape(want["attn_output"].shape)
  np.testing.assert_allclose(found, want["attn_output"], atol=1e-5)
  each = 32 // bits[0]
  np.testing.assert_array_equal(k_words[:, : keys // each].swapaxes(1, 2), want["key_code"][0])
  np.testing.assert_array_equal(v_words[:, :values], want["value_code"][0])
  for name, of in (("scale", k_scale), ("zero", k_zero)):
    own = of[:, : keys // group, 0].swapaxes(1, 2)
    np.testing.assert_allclose(own, want[f"key_{name}"][0], rtol=1e-5, atol=1e-6)
  for name, of in (("scale", v_scale), ("zero", v_zero)):
    own = of[:, :values, :, 0]
    np.testing.assert_allclose(own, want[f"value_{name}"][0], rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(k[:, keys:], want["key_residual"][0])
  np.testing.assert_array_equal(v[:, values:], want["value_residual"][0])


def check_quantise(case):
  """All numbers along the axes that are neither channels nor tiles share a scale."""
  x, bits = case.inputs["x"], {"int8": 8, "int4": 4, "int2": 2}[case.arg("qtype")]
  assert (case.arg("dtype"), x.ndim) == ("float32", 2)
  tiles = {int(axis): size for axis, size in case.arg("tiled_axes").items()}
  shape, shared = [], []
  for axis, size in enumerate(x.shape):
    if axis in tiles:
      shape += [size // tiles[axis], tiles[axis]]
      shared.append(len(shape) - 1)
    else:
      shape.append(size)
      if axis not in case.arg("channelwise_axes"):
        shared.append(len(shape) - 1)
  how = {"absmax": quantised.rounded, "minmax": quantised.spanned}[case.arg("calibration")]
  codes, scale, *zero = how(jnp.asarray(x.reshape(shape)), bits, tuple(shared))
  near = 1 if "negative_extreme" in case.name else 0  # the least code of a channel may be two
  found = np.asarray(codes, np.int32).reshape(x.shape)
  difference = np.abs(found - case.outputs["qvalue"])
  assert difference[np.abs(case.outputs["qvalue"]) < 127].max() == 0
  assert difference.max() <= near
  np.testing.assert_allclose(
    np.asarray(scale).reshape(case.outputs["scale"].shape), case.outputs["scale"], rtol=1e-6
  )
  same = found == case.outputs["qvalue"]
  zero = np.asarray(zero[0], np.float32) if zero else 0
  if "zero_point" in case.outputs:
    want = case.outputs["zero_point"]
    assert np.array_equal(zero.reshape(want.shape), want)
  wide = np.asarray((codes - zero) * scale).reshape(x.shape)
  np.testing.assert_allclose(wide[same], case.outputs["dequant"][same], rtol=1e-6)


def check_dense(case):
  format = Format.of("w8a8" if case.arg("act_int8") else "int8")
  codes = quantised.coded(format, jnp.asarray(case.inputs["w"]))
  assert np.array_equal(codes.codes, case.outputs["qvalue"])
  np.testing.assert_allclose(codes.scale, case.outputs["scale"], rtol=1e-6)
  y = codes.product(jnp.asarray(case.inputs["x"]))
  np.testing.assert_allclose(y, case.outputs["y"], rtol=1e-5, atol=1e-5)


METHODS = {
  "qwix_quantize": check_quantise,
  "qwix_dense": check_dense,
  "kivi_kcache": check_codes,
  "kivi_vcache": check_codes,
  "kivi_last_dim": check_codes,
  "kivi_attention_cache": check_attention,
}
