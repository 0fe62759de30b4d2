"""Codes, scales and products of qwix, from tests/conformance/quant."""

import jax.numpy as jnp
import numpy as np

from dlm.models import quantised
from dlm.models.quantised import Format

UNCHECKED = {
  "kivi_kcache": "caches are not quantised",
  "kivi_vcache": "caches are not quantised",
  "kivi_last_dim": "caches are not quantised",
  "kivi_attention_cache": "caches are not quantised",
}


def unchecked(case):
  """Why a case is not checked; None: it is."""
  if case.method in UNCHECKED:
    return UNCHECKED[case.method]
  return (
    "scales with a zero point are not offered" if case.args.get("calibration") == "minmax" else None
  )


def check_quantise(case):
  """All numbers along the axes that are neither channels nor tiles share a scale."""
  x, bits = case.inputs["x"], {"int8": 8, "int4": 4, "int2": 2}[case.arg("qtype")]
  assert (case.arg("calibration"), case.arg("dtype"), x.ndim) == ("absmax", "float32", 2)
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
  codes, scale = quantised.rounded(jnp.asarray(x.reshape(shape)), bits, tuple(shared))
  near = 1 if "negative_extreme" in case.name else 0  # the least code of a channel may be two
  found = np.asarray(codes, np.int32).reshape(x.shape)
  difference = np.abs(found - case.outputs["qvalue"])
  assert difference[np.abs(case.outputs["qvalue"]) < 127].max() == 0
  assert difference.max() <= near
  np.testing.assert_allclose(
    np.asarray(scale).reshape(case.outputs["scale"].shape), case.outputs["scale"], rtol=1e-6
  )
  same = found == case.outputs["qvalue"]
  wide = np.asarray(codes * scale).reshape(x.shape)
  np.testing.assert_allclose(wide[same], case.outputs["dequant"][same], rtol=1e-6)


def check_dense(case):
  format = Format.of("w8a8" if case.arg("act_int8") else "int8")
  codes = quantised.coded(format, jnp.asarray(case.inputs["w"]))
  assert np.array_equal(codes.codes, case.outputs["qvalue"])
  np.testing.assert_allclose(codes.scale, case.outputs["scale"], rtol=1e-6)
  y = codes.product(jnp.asarray(case.inputs["x"]))
  np.testing.assert_allclose(y, case.outputs["y"], rtol=1e-5, atol=1e-5)


METHODS = {"qwix_quantize": check_quantise, "qwix_dense": check_dense}
