"""-log softmax(hidden @ unembed.T)[target] and its gradient, in passes over vocabulary tiles."""

import jax

from kernels_pallas import dispatch, vocabulary
from kernels_pallas.linear_xent import gpu, reference, tpu, xla

__all__ = ["IMPLEMENTATIONS", "linear_xent"]

Array = jax.Array

IMPLEMENTATIONS = {
  "reference": reference.linear_xent,
  "xla": xla.linear_xent,
  "tpu": tpu.linear_xent,
  "gpu": gpu.linear_xent,
}


def linear_xent(
  hidden_RxD: Array,
  unembed_VxD: Array,
  target_R: Array,
  *,
  forbidden: tuple[int, ...] = (),
  soft_cap: float | None = None,
  implementation: str | None = None,
) -> Array:
  """-log softmax(hidden @ unembed.T)[target] per row, float32 [R]: weights are the caller's.

  Forbidden ids are not in the softmax. A target that is forbidden, or outside [0, V), costs inf.
  Drop such rows with `where(weight > 0, weight * ce, 0)`: a row whose cotangent is 0 then has
  gradient exactly 0, even where its hidden is NaN ("reference" differentiates by the book).

  On a mesh of several devices each has its rows and ids, see `kernels_pallas.shards`; gradients are
  those of the whole. Inside `jax.shard_map` use `check_vma=False`: the gradient of a replicated
  `unembed` is then the shard's own share, for the caller to sum.

  Args:
    hidden_RxD, unembed_VxD: float32 or bfloat16, and so are their gradients; sums in float32.
    target_R: int32.
    soft_cap: logits become `soft_cap * tanh(l / soft_cap)`.
    implementation: one of `IMPLEMENTATIONS`; None: the best for this backend.
  """
  vocabulary.check("linear_xent", hidden_RxD, unembed_VxD, forbidden=forbidden, soft_cap=soft_cap)
  vocabulary.check_per_row("linear_xent", "target_R", target_R, hidden_RxD.shape[0])
  return dispatch.run(
    "linear_xent",
    IMPLEMENTATIONS,
    implementation,
    hidden_RxD,
    unembed_VxD,
    target_R,
    forbidden=forbidden,
    soft_cap=soft_cap,
  )
