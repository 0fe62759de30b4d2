"""Every test of the op runs on every implementation, the streamed one also with ragged tiles."""

import functools

import jax
import pytest

from kernels_pallas.token_stats import IMPLEMENTATIONS, Inputs


@functools.cache
def _jitted(param):
  name, _, tile = param.partition(" in tiles of ")
  implementation = IMPLEMENTATIONS[name]
  if tile:
    implementation = functools.partial(implementation, tile=int(tile))
  return jax.jit(implementation, static_argnames=("spec", "soft_cap"))


@pytest.fixture(params=["reference", "xla", "xla in tiles of 7"])
def compute(request):
  """`token_stats` on raw key words, compiled once for equal specs and shapes."""

  def run(hidden_RxD, unembed_VxD, spec, *, soft_cap=None, **inputs):
    return _jitted(request.param)(
      hidden_RxD, unembed_VxD, spec=spec, inputs=Inputs(**inputs), soft_cap=soft_cap
    )

  return run
