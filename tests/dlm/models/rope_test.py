"""Frequencies of rotary positions against recorded numbers and the formulas, channel by channel."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from dlm.models import RopeScaling
from dlm.models.layers import rotary
from dlm.models.rope import frequencies

LLAMA3 = dict(
  rope_type="llama3", factor=8.0, original_max_position_embeddings=8192, low_freq_factor=1.0,
  high_freq_factor=4.0,
)  # fmt: skip
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=4096)


def plain(dim: int, base: float) -> list[float]:
  return [base ** (-2 * pair / dim) for pair in range(dim // 2)]


def test_unscaled():
  np.testing.assert_allclose(frequencies(16, 1e4), plain(16, 1e4), rtol=1e-7)
  assert frequencies(16, 1e4).dtype == np.float32


def test_linear_divides_all():
  got = frequencies(16, 1e4, RopeScaling("linear", 2.5))
  np.testing.assert_allclose(got, [each / 2.5 for each in plain(16, 1e4)], rtol=1e-7)


def test_llama3_by_the_wavelength_of_each_channel():
  want, kinds = [], set()
  for frequency in plain(128, 5e5):
    wavelength = 2 * math.pi / frequency
    if wavelength < 8192 / 4:
      kind = "kept"
    elif wavelength > 8192 / 1:
      kind, frequency = "divided", frequency / 8
    else:
      share = (8192 / wavelength - 1) / (4 - 1)
      kind, frequency = "mixed", (1 - share) * frequency / 8 + share * frequency
    want.append(frequency)
    kinds.add(kind)
  assert kinds == {"kept", "mixed", "divided"}
  np.testing.assert_allclose(frequencies(128, 5e5, RopeScaling(**LLAMA3)), want, rtol=1e-6)


# Of transformers 5.24, by channel: the published Nemotron-Labs-Diffusion-8B, and another.
RECORDED = {
  (128, 1e6, 16.0, 16384): {
    1: 0.8058422207832336, 20: 0.01333521492779255, 24: 0.004382954444736242,
    28: 0.0013251795899122953, 32: 0.0003382352879270911, 37: 2.123880221915897e-05,
    63: 7.75586102008674e-08,
  },
  (64, 5e5, 4.0, 4096): {
    1: 0.663601279258728, 7: 0.05666961893439293, 11: 0.007326353341341019,
    16: 0.0003535533614922315, 31: 7.5346451922087e-07,
  },
}  # fmt: skip


@pytest.mark.parametrize("model", RECORDED)
def test_yarn_as_recorded(model):
  dim, base, factor, original = model
  got = frequencies(dim, base, RopeScaling("yarn", factor, original))
  channels, want = zip(*RECORDED[model].items(), strict=True)
  np.testing.assert_allclose(got[list(channels)], want, rtol=5e-7)


def test_yarn_whose_ramp_does_not_end_at_whole_channels():
  """Turns over the original length: channel 7.66 turns 32 times, channel 15.80 once."""

  def turning(turns):
    return 64 * math.log(4096 / (2 * math.pi * turns)) / (2 * math.log(5e5))

  first, last = turning(32), turning(1)
  want = []
  for channel, frequency in enumerate(plain(64, 5e5)):
    divided = min(max((channel - first) / (last - first), 0), 1)
    want.append(frequency * (1 - divided) + frequency / 4 * divided)
  whole = frequencies(64, 5e5, RopeScaling(**YARN))
  got = frequencies(64, 5e5, RopeScaling(**YARN, truncate=False))
  np.testing.assert_allclose(got, want, rtol=1e-6)
  assert abs(whole[8] / got[8] - 1) > 1e-3


@pytest.mark.parametrize(
  ("fields", "amplitude"),
  [
    ({}, 1.138629436111989),
    ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
    ({"mscale": 0.707}, 1.138629436111989),  # alone it is not read
    ({"mscale": 0.5, "mscale_all_dim": 1.0}, (1 + 0.05 * math.log(4)) / (1 + 0.1 * math.log(4))),
    ({"attention_factor": 1.5, "mscale": 0.5, "mscale_all_dim": 1.0}, 1.5),
  ],
)
def test_yarn_scales_cosines_and_sines(fields, amplitude):
  scaling = RopeScaling(**YARN, **fields)
  assert scaling.amplitude == pytest.approx(amplitude, rel=1e-7)
  slot_1xW = jnp.arange(3)[None]
  cos, sin = rotary(slot_1xW, 8, 1e4, scaling)
  np.testing.assert_allclose(cos**2 + sin**2, amplitude**2, rtol=1e-6)


def test_yarn_below_1_quickens_what_it_divides():
  """As Nemotron-Labs-Diffusion-3B's base has it: factor 0.25, cosines and sines as they are."""
  scaling = RopeScaling("yarn", 0.25, 16384)
  assert scaling.amplitude == 1
  slow, whole = frequencies(128, 1e6, scaling)[[1, -1]] / frequencies(128, 1e6)[[1, -1]]
  assert slow == 1 and whole == pytest.approx(4)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"rope_type": "dynamic"}, "rope_type='dynamic' must be one of linear, llama3, yarn"),
    ({"factor": 0.0}, "factor=0.0 must be positive"),
    ({"factor": float("nan")}, "factor=nan must be positive"),
    ({"rope_type": "linear", "factor": 0.5, "original_max_position_embeddings": 0},
     "factor=0.5 must be at least 1"),
    ({"llama_4_scaling_beta": -0.1}, "llama_4_scaling_beta=-0.1 must not be negative"),
    ({"original_max_position_embeddings": 0}, "original_max_position_embeddings=0 must be at lea"),
    ({"beta_fast": 1.0}, "beta_slow=1.0 must be positive and below beta_fast=1.0"),
    ({"attention_factor": 0.0}, "attention_factor=0.0 must be positive"),
    ({"mscale": -1.0}, "mscale=-1.0 and mscale_all_dim=0.0 not negative"),
    ({"high_freq_factor": 2.0}, "high_freq_factor=2.0 is not of yarn"),
    ({"rope_type": "linear"}, "original_max_position_embeddings=4096 is not of linear"),
  ],
)  # fmt: skip
def test_what_cannot_be(fields, message):
  with pytest.raises(ValueError, match=message):
    RopeScaling(**YARN | fields)
