"""Compiles for accelerators that are not here. `make aot` puts their compilers on the path."""

import importlib.util

import jax
import pytest

from kernels_pallas import aot

# What the other tests ask for, so that CPU results are exact, is not what accelerators run.
jax.config.update("jax_default_matmul_precision", None)
jax.config.update("jax_enable_compilation_cache", False)  # it cannot read what is of no device here

COMPILERS = {"tpu": "libtpu", "cuda": "jax_cuda13_plugin"}
TPUS = [
  pytest.param("v5e", marks=pytest.mark.tpu),
  *(pytest.param(name, marks=(pytest.mark.tpu, pytest.mark.long)) for name in ("v5p", "v6e")),
]
H100 = pytest.param("h100", marks=pytest.mark.cuda)


def pytest_runtest_setup(item):
  for mark, package in COMPILERS.items():
    if item.get_closest_marker(mark) and importlib.util.find_spec(package) is None:
      pytest.skip(f"{package} is not on the path: make aot")


@pytest.fixture(params=[*TPUS, H100])
def mesh(request):
  """One device of each kind."""
  return aot.mesh(request.param)
