"""Every test of the op runs on every implementation, those in tiles also with ragged ones.

"tpu" leaves some specs to the next implementation, and so do tests that name both: see `dispatch`.
"""

import contextlib
import functools

import jax
import pytest
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas import dispatch
from kernels_pallas.token_stats import IMPLEMENTATIONS, Inputs
from kernels_pallas.vocabulary import Held

PARAMS = {
  "reference": ("reference", None),
  "xla": ("xla", None),
  "xla in tiles of 7": ("xla", 7),
  "tpu": ("tpu,xla", (128, 16)),  # at most
}


@functools.cache
def _jitted(param):
  names, tile = PARAMS[param]
  table = dict(IMPLEMENTATIONS)
  if tile is not None:
    first = names.split(",")[0]
    table[first] = functools.partial(table[first], tile=tile)

  def whole(hidden_RxD, unembed_VxD, *, spec, inputs, soft_cap):
    held = Held(0, unembed_VxD.shape[0])
    return dispatch.run(
      "token_stats",
      table,
      names,
      hidden_RxD,
      unembed_VxD,
      spec,
      inputs,
      held=held,
      soft_cap=soft_cap,
    )

  return jax.jit(whole, static_argnames=("spec", "soft_cap"))


def _run(param, hidden_RxD, unembed_VxD, spec, *, soft_cap=None, **inputs):
  """`token_stats` on raw key words, compiled once for equal specs and shapes."""
  return _jitted(param)(
    hidden_RxD, unembed_VxD, spec=spec, inputs=Inputs(**inputs), soft_cap=soft_cap
  )


@pytest.fixture(params=PARAMS)
def compute(request):
  """The op of one implementation; kernels are interpreted, which takes 10 ms a tile."""
  mode = pltpu.force_tpu_interpret_mode() if request.param == "tpu" else contextlib.nullcontext()
  with mode:
    yield functools.partial(_run, request.param)


@pytest.fixture(params=["reference", "xla", "xla in tiles of 7"])
def compute_in_xla(request):
  """Implementations that are fast with many rows, and that average embeddings."""
  return functools.partial(_run, request.param)
