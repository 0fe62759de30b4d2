"""Noise schedules of absorbing diffusion: how likely a token is masked at time t.

Every schedule says the same thing in four ways: `masked(t)` = p, the probability that a token is
masked; `alpha(t)` = 1 - p; `dalpha(t)`, negative; `weight(t)` = -alpha'/(1 - alpha), which makes
the weighted cross-entropy of masked tokens a bound on the likelihood. `masked` is
written out for each of them: 1 - alpha would lose the digits of a small p in float32.

"Cosine" means three curves in the literature. Here the class names the authors: `MdlmCosine`
(alpha = eps + (1-eps) cos(pi t/2)), `Bd3Cosine` (alpha = (1-eps) cos(pi t/2)) and `Md4Cosine`
(alpha = 1 - sin(pi t/2), softened by eps).
"""

import dataclasses
import math
from typing import ClassVar, Protocol

import jax.numpy as jnp

from dlm.types import Array, Schedule


class MaskSchedule(Schedule, Protocol):
  """What objectives ask of a schedule; t is float32 of any shape, as is the answer."""

  bound: bool  # False: its loss is no likelihood, for a reason the schedule's docstring gives

  def masked(self, t: Array) -> Array:
    """Probability p = 1 - alpha(t) that a token is masked."""
    ...

  def weight(self, t: Array) -> Array:
    """Weight of the cross-entropy of a masked token, positive."""
    ...


class _FromMasked:
  """alpha and weight of a schedule that gives `masked` and `dalpha`."""

  bound: ClassVar[bool] = True

  def alpha(self, t: Array) -> Array:
    return 1 - self.masked(t)

  def weight(self, t: Array) -> Array:
    return -self.dalpha(t) / self.masked(t)


def _check_eps(schedule) -> None:
  if not 0 <= schedule.eps < 1:
    raise ValueError(f"{type(schedule).__name__}: eps={schedule.eps} must lie in [0, 1)")


@dataclasses.dataclass(frozen=True)
class LogLinear(_FromMasked):
  """p = (1 - eps) t, weight 1/t. MDLM's `loglinear` (arXiv 2406.07524)."""

  eps: float = 1e-3
  __post_init__ = _check_eps

  def masked(self, t: Array) -> Array:
    return (1 - self.eps) * t

  def dalpha(self, t: Array) -> Array:
    return jnp.full_like(t, self.eps - 1)

  def weight(self, t: Array) -> Array:
    return 1 / t


@dataclasses.dataclass(frozen=True)
class Linear(LogLinear):
  """p = t, weight 1/t. BD3-LM's `loglinear` (arXiv 2503.09573)."""

  eps: float = 0.0


@dataclasses.dataclass(frozen=True)
class MdlmCosine(_FromMasked):
  """alpha = eps + (1 - eps) cos(pi t / 2). MDLM's `cosine` (arXiv 2406.07524, 5 and App. E)."""

  eps: float = 1e-3
  __post_init__ = _check_eps

  def masked(self, t: Array) -> Array:
    return 2 * (1 - self.eps) * jnp.sin(jnp.pi / 4 * t) ** 2

  def dalpha(self, t: Array) -> Array:
    return -(1 - self.eps) * jnp.pi / 2 * jnp.sin(jnp.pi / 2 * t)


@dataclasses.dataclass(frozen=True)
class MdlmCosineSquared(_FromMasked):
  """alpha = eps + (1 - eps) cos^2(pi t / 2). MDLM's `cosinesqr`."""

  eps: float = 1e-3
  __post_init__ = _check_eps

  def masked(self, t: Array) -> Array:
    return (1 - self.eps) * jnp.sin(jnp.pi / 2 * t) ** 2

  def dalpha(self, t: Array) -> Array:
    return -(1 - self.eps) * jnp.pi / 2 * jnp.sin(jnp.pi * t)


@dataclasses.dataclass(frozen=True)
class MdlmLogUniform(_FromMasked):
  """p = p0^(1-t) p1^t, weight -log p0. MDLM's `change_of_variables` (arXiv 2406.07524).

  From p0 = 1 - exp(-eps) to p1 = 1 - eps, so all weights are equal. The weight of that curve alone
  is log(p1 / p0); the authors', a little above, counts the levels from p1 to 1 too.
  """

  eps: float = 1e-3

  def __post_init__(self):
    if not 0 < self.eps < 0.5:
      raise ValueError(f"MdlmLogUniform: eps={self.eps} must lie in (0, 0.5)")

  @property
  def _logs(self) -> tuple[float, float]:
    """log p0 and log p1."""
    return math.log(-math.expm1(-self.eps)), math.log1p(-self.eps)

  def masked(self, t: Array) -> Array:
    first, last = self._logs
    return jnp.exp(first + t * (last - first))

  def dalpha(self, t: Array) -> Array:
    first, last = self._logs
    return (first - last) * self.masked(t)

  def weight(self, t: Array) -> Array:
    return jnp.full_like(t, -self._logs[0])


class _FromSigma(_FromMasked):
  """Schedules told by the total noise sigma = -log alpha, between sigma_min and sigma_max."""

  def __post_init__(self):
    if not 0 < self.sigma_min < self.sigma_max:
      raise ValueError(
        f"{type(self).__name__}: sigma_min={self.sigma_min} must be positive and below "
        f"sigma_max={self.sigma_max}"
      )

  def masked(self, t: Array) -> Array:
    return -jnp.expm1(-self.sigma(t))

  def dalpha(self, t: Array) -> Array:
    return -self.dsigma(t) * jnp.exp(-self.sigma(t))


@dataclasses.dataclass(frozen=True)
class LinearSigma(_FromSigma):
  """sigma = sigma_min + t (sigma_max - sigma_min). MDLM's `linear` with its config's bounds."""

  sigma_min: float = 1e-3
  sigma_max: float = 7.0

  def sigma(self, t: Array) -> Array:
    return self.sigma_min + t * (self.sigma_max - self.sigma_min)

  def dsigma(self, t: Array) -> Array:
    return jnp.full_like(t, self.sigma_max - self.sigma_min)


@dataclasses.dataclass(frozen=True)
class GeometricSigma(_FromSigma):
  """sigma = sigma_min^(1-t) sigma_max^t. MDLM's `geometric`.

  At t = 1 the authors' sigma_max of 1 masks 63 % only: noise levels above are never drawn.
  """

  bound: ClassVar[bool] = False
  sigma_min: float = 1e-3
  sigma_max: float = 1.0

  def sigma(self, t: Array) -> Array:
    return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

  def dsigma(self, t: Array) -> Array:
    return self.sigma(t) * math.log(self.sigma_max / self.sigma_min)


def _check_md4(schedule) -> None:
  if not 0 <= schedule.eps < 0.5:
    raise ValueError(f"{type(schedule).__name__}: eps={schedule.eps} must lie in [0, 0.5)")


@dataclasses.dataclass(frozen=True)
class Md4Poly(_FromMasked):
  """alpha = eps + (1 - 2 eps)(1 - t^power). MD4's `polyK` (arXiv 2406.04329)."""

  power: float = 2.0
  eps: float = 1e-4
  __post_init__ = _check_md4

  def masked(self, t: Array) -> Array:
    return self.eps + (1 - 2 * self.eps) * t**self.power

  def dalpha(self, t: Array) -> Array:
    return -(1 - 2 * self.eps) * self.power * t ** (self.power - 1)


@dataclasses.dataclass(frozen=True)
class Md4Linear(Md4Poly):
  """alpha = eps + (1 - 2 eps)(1 - t). MD4's `linear`."""

  power: float = 1.0


@dataclasses.dataclass(frozen=True)
class Md4Cosine(_FromMasked):
  """alpha = eps + (1 - 2 eps)(1 - cos(pi (1-t) / 2)). MD4's `cosine` (arXiv 2406.04329)."""

  eps: float = 1e-4
  __post_init__ = _check_md4

  def masked(self, t: Array) -> Array:
    return self.eps + (1 - 2 * self.eps) * jnp.sin(jnp.pi / 2 * t)

  def dalpha(self, t: Array) -> Array:
    return -(1 - 2 * self.eps) * jnp.pi / 2 * jnp.cos(jnp.pi / 2 * t)


@dataclasses.dataclass(frozen=True)
class DuoCosine(_FromMasked):
  """alpha = 1 - cos(pi (1-s) / 2) at s = (1 - eps) t. Duo's `cosine` (arXiv 2506.10892).

  As in the authors' code the derivative is that by s: weights lie above the bound's, by eps.
  """

  eps: float = 1e-3
  __post_init__ = _check_eps

  def masked(self, t: Array) -> Array:
    return jnp.sin(jnp.pi / 2 * (1 - self.eps) * t)

  def dalpha(self, t: Array) -> Array:
    return -jnp.pi / 2 * jnp.cos(jnp.pi / 2 * (1 - self.eps) * t)


@dataclasses.dataclass(frozen=True)
class Bd3Power(_FromMasked):
  """p = max(t^power, eps). BD3-LM's `square` (arXiv 2503.09573, 5.3).

  As in the authors' code the derivative ignores the floor, so where t^power < eps the weight is
  that of the bare power over eps: not a bound there.
  """

  bound: ClassVar[bool] = False
  power: float = 2.0
  eps: float = 1e-3
  __post_init__ = _check_eps

  def masked(self, t: Array) -> Array:
    return jnp.maximum(t**self.power, self.eps)

  def dalpha(self, t: Array) -> Array:
    return -self.power * t ** (self.power - 1)


@dataclasses.dataclass(frozen=True)
class Bd3SquareRoot(Bd3Power):
  """p = max(sqrt(t), eps). BD3-LM's `square_root`."""

  power: float = 0.5


@dataclasses.dataclass(frozen=True)
class Bd3Log(_FromMasked):
  """p = log2(1 + t). BD3-LM's `log`."""

  def masked(self, t: Array) -> Array:
    return jnp.log1p(t) / math.log(2)

  def dalpha(self, t: Array) -> Array:
    return -1 / ((1 + t) * math.log(2))


@dataclasses.dataclass(frozen=True)
class Bd3Cosine(_FromMasked):
  """alpha = (1 - eps) cos(pi t / 2). BD3-LM's `cosine`: eps is masked already at t = 0.

  The authors add eps once more to the weight's denominator: a little below the bound's weight.
  """

  bound: ClassVar[bool] = False
  eps: float = 1e-3
  __post_init__ = _check_eps

  def masked(self, t: Array) -> Array:
    return self.eps + 2 * (1 - self.eps) * jnp.sin(jnp.pi / 4 * t) ** 2

  def dalpha(self, t: Array) -> Array:
    return -(1 - self.eps) * jnp.pi / 2 * jnp.sin(jnp.pi / 2 * t)

  def weight(self, t: Array) -> Array:
    return -self.dalpha(t) / (self.masked(t) + self.eps)


@dataclasses.dataclass(frozen=True)
class LladaLinear(_FromMasked):
  """p = (1 - eps) t + eps with weight 1/p. LLaDA's GUIDELINES.md (arXiv 2502.09992); also SMDM.

  1/p and not (1-eps)/p: p is uniform on [eps, 1], and the weight is divided by its density.
  """

  eps: float = 1e-3
  __post_init__ = _check_eps

  def masked(self, t: Array) -> Array:
    return (1 - self.eps) * t + self.eps

  def dalpha(self, t: Array) -> Array:
    return jnp.full_like(t, self.eps - 1)

  def weight(self, t: Array) -> Array:
    return 1 / self.masked(t)


LOG_LINEAR = LogLinear()
LINEAR = Linear()
LLADA_LINEAR = LladaLinear()
MD4_LINEAR = Md4Linear()

SCHEDULES: dict[str, type[MaskSchedule]] = {
  "linear": Linear,
  "log_linear": LogLinear,
  "mdlm_cosine": MdlmCosine,
  "mdlm_cosine_squared": MdlmCosineSquared,
  "mdlm_log_uniform": MdlmLogUniform,
  "linear_sigma": LinearSigma,
  "geometric_sigma": GeometricSigma,
  "md4_linear": Md4Linear,
  "md4_poly": Md4Poly,
  "md4_cosine": Md4Cosine,
  "duo_cosine": DuoCosine,
  "bd3_square": Bd3Power,
  "bd3_square_root": Bd3SquareRoot,
  "bd3_log": Bd3Log,
  "bd3_cosine": Bd3Cosine,
  "llada_linear": LladaLinear,
}
