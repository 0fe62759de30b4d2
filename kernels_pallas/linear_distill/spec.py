"""What `linear_distill` computes: static, one compile for equal ones."""

import dataclasses

import jax
import jax.numpy as jnp

from kernels_pallas import vocabulary

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Spec:
  """Which divergence, and how logits become distributions.

  Args:
    reverse: share of KL(student || teacher); the rest is KL(teacher || student).
    temperature, teacher_temperature: the student's and the teacher's logits are divided by them.
    soft_cap, teacher_soft_cap: before that, logits become `soft_cap * tanh(l / soft_cap)`.
    forbidden: ids that are in neither softmax.
  """

  reverse: float = 0.0
  temperature: float = 1.0
  teacher_temperature: float = 1.0
  soft_cap: float | None = None
  teacher_soft_cap: float | None = None
  forbidden: tuple[int, ...] = ()

  def __post_init__(self):
    if not 0 <= self.reverse <= 1:
      raise ValueError(f"linear_distill: reverse={self.reverse} must lie in [0, 1]")
    for name in ("temperature", "teacher_temperature"):
      if not getattr(self, name) > 0:
        raise ValueError(f"linear_distill: {name}={getattr(self, name)} must be positive")

  def student(self, hidden_RxD: Array, unembed_TxD: Array) -> Array:
    """Float32 [R, T]."""
    return vocabulary.logits(hidden_RxD, unembed_TxD, self.soft_cap) / self.temperature

  def teacher(self, hidden_RxE: Array, unembed_TxE: Array) -> Array:
    """Float32 [R, T]."""
    z_RxT = vocabulary.logits(hidden_RxE, unembed_TxE, self.teacher_soft_cap)
    return z_RxT / self.teacher_temperature

  def slope(self, z_RxT: Array) -> Array | float:
    """Derivative of the student's divided logits by hidden @ unembed.T."""
    if self.soft_cap is None:
      return 1 / self.temperature
    return (1 - jnp.square(z_RxT * self.temperature / self.soft_cap)) / self.temperature
