"""How far a student's softmax(hidden @ unembed.T) lies from a teacher's, and its gradient.

Both vocabularies are walked together, a tile of ids at a time.
"""

import jax

from kernels_pallas import dispatch, vocabulary
from kernels_pallas.linear_distill import reference, tpu, xla
from kernels_pallas.linear_distill.spec import Spec

__all__ = ["IMPLEMENTATIONS", "Spec", "linear_distill"]

Array = jax.Array

IMPLEMENTATIONS = {
  "reference": reference.linear_distill,
  "xla": xla.linear_distill,
  "tpu": tpu.linear_distill,
}


def linear_distill(
  hidden_RxD: Array,
  unembed_VxD: Array,
  teacher_hidden_RxE: Array,
  teacher_unembed_VxE: Array,
  spec: Spec,
  *,
  implementation: str | None = None,
) -> Array:
  """KL of teacher and student per row, in nats, float32 [R]: weights are the caller's.

  (1 - reverse) KL(teacher || student) + reverse KL(student || teacher).

  The teacher is a constant: gradients go to the student's hidden states and unembedding alone. A
  row whose cotangent is 0 has gradient exactly 0, even where its hidden is NaN ("reference"
  differentiates by the book). On a mesh each device has its rows and ids, as in `linear_xent`.

  Args:
    hidden_RxD, unembed_VxD, teacher_hidden_RxE, teacher_unembed_VxE: float32 or bfloat16; the
      teacher may have another width. Gradients have their operands' types; sums are in float32.
    implementation: one of `IMPLEMENTATIONS`; None: the best for this backend.
  """
  for hidden, unembed, soft_cap in (
    (hidden_RxD, unembed_VxD, spec.soft_cap),
    (teacher_hidden_RxE, teacher_unembed_VxE, spec.teacher_soft_cap),
  ):
    vocabulary.check("linear_distill", hidden, unembed, forbidden=spec.forbidden, soft_cap=soft_cap)
  for name, own, teacher in (
    ("rows", hidden_RxD, teacher_hidden_RxE),
    ("ids", unembed_VxD, teacher_unembed_VxE),
  ):
    if own.shape[0] != teacher.shape[0]:
      raise ValueError(
        f"linear_distill: student and teacher must have equally many {name}, not {own.shape[0]} "
        f"and {teacher.shape[0]}"
      )
  return dispatch.run(
    "linear_distill",
    IMPLEMENTATIONS,
    implementation,
    hidden_RxD,
    unembed_VxD,
    *jax.lax.stop_gradient((teacher_hidden_RxE, teacher_unembed_VxE)),
    spec,
  )
