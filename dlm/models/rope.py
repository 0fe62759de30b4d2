"""Frequencies of rotary positions, and how they are stretched over texts longer than trained on."""

import dataclasses
import math

import numpy as np

# The fields that each kind reads, by the names that config.json has for them.
KINDS: dict[str, tuple[str, ...]] = {
  "linear": ("factor",),
  "llama3": (
    "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor",
  ),
  "yarn": (
    "factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor",
    "mscale", "mscale_all_dim", "truncate", "llama_4_scaling_beta",
  ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Stretched rotary positions, by the rules and names of transformers 5.24.

  linear (2306.15595): every frequency is divided by `factor`.
  llama3 (2407.21783): only slow ones are. A channel that turns less than `low_freq_factor` times
    over the original length is divided, one that turns more than `high_freq_factor` times is kept,
    and between them the two are mixed by the number of turns.
  yarn (2309.00071): the same with `beta_slow` and `beta_fast` turns, mixed by the channel's index;
    then cosines and sines are multiplied by `amplitude`. A factor below 1 quickens what it divides.
    With `llama_4_scaling_beta` (Ministral 3) queries grow with their slot: see `query_scale`.
  """

  rope_type: str
  factor: float
  original_max_position_embeddings: int = 0  # tokens of a text, before it was stretched
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  attention_factor: float | None = None  # None: follows from factor and the two below
  mscale: float = 0.0
  mscale_all_dim: float = 0.0
  truncate: bool = True  # the mixed channels begin and end at whole indices
  llama_4_scaling_beta: float = 0.0  # 0: queries are not scaled

  def __post_init__(self):
    if self.rope_type not in KINDS:
      raise ValueError(
        f"RopeScaling: rope_type={self.rope_type!r:.80} must be one of {', '.join(KINDS)}"
      )
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.name not in ("rope_type", *KINDS[self.rope_type]) and value != field.default:
        raise ValueError(f"RopeScaling: {field.name}={value} is not of {self.rope_type}")
    if not (self.factor > 0 if self.rope_type == "yarn" else self.factor >= 1):
      least = "positive" if self.rope_type == "yarn" else "at least 1"
      raise ValueError(f"RopeScaling: factor={self.factor} must be {least}")
    if self.rope_type != "linear" and self.original_max_position_embeddings < 1:
      raise ValueError(
        "RopeScaling: original_max_position_embeddings="
        f"{self.original_max_position_embeddings} must be at least 1"
      )
    for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
      if not 0 < getattr(self, low) < getattr(self, high):
        raise ValueError(
          f"RopeScaling: {low}={getattr(self, low)} must be positive and below "
          f"{high}={getattr(self, high)}"
        )
    if min(self.mscale, self.mscale_all_dim) < 0 or not self.amplitude > 0:
      raise ValueError(
        f"RopeScaling: attention_factor={self.attention_factor} must be positive, "
        f"mscale={self.mscale} and mscale_all_dim={self.mscale_all_dim} not negative"
      )
    if not self.llama_4_scaling_beta >= 0:
      raise ValueError(
        f"RopeScaling: llama_4_scaling_beta={self.llama_4_scaling_beta} must not be negative"
      )

  @property
  def amplitude(self) -> float:
    """What cosines and sines are multiplied by."""
    if self.rope_type != "yarn":
      return 1.0
    if self.attention_factor is not None:
      return self.attention_factor
    if self.mscale and self.mscale_all_dim:
      return self._growth(self.mscale) / self._growth(self.mscale_all_dim)
    return self._growth(1.0)

  def _growth(self, mscale: float) -> float:
    return 0.1 * mscale * math.log(max(self.factor, 1)) + 1.0

  def kept(self, plain: np.ndarray, dim: int, base: float) -> np.ndarray:
    """Of each of the `plain` frequencies the share that stays as it is; the rest is divided."""
    original = self.original_max_position_embeddings
    if self.rope_type == "linear":
      return np.zeros_like(plain)
    if self.rope_type == "llama3":
      turns = original * plain / (2 * math.pi)
      low, high = self.low_freq_factor, self.high_freq_factor
      return np.clip((turns - low) / (high - low), 0, 1)

    def channel(turns: float) -> float:
      """The index, not whole, of the channel that turns so often over the original length."""
      return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = channel(self.beta_fast), channel(self.beta_slow)
    if self.truncate:
      first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    last += 0.001 * (first == last)
    return 1 - np.clip((np.arange(dim // 2) - first) / (last - first), 0, 1)


def frequencies(dim: int, base: float, scaling: RopeScaling | None = None) -> np.ndarray:
  """Radians per slot of each pair of channels, [dim / 2] in float32; computed in float64."""
  plain = base ** -(np.arange(0, dim, 2) / dim)
  if scaling is not None:
    kept = scaling.kept(plain, dim, base)
    plain = plain * (kept + (1 - kept) / scaling.factor)
  return plain.astype(np.float32)
