"""Strictness for every test: keys used once, ranks explicit, float32 matmuls exact.

Tests that need several devices live in tests/multidevice/ and run in a process of their own
(`make test`), which asks for 8 forced CPU devices before jax starts.
"""

import os
import pathlib
from importlib.metadata import version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests run their programs a few times: optimising them would cost more than it saves. The last flag
# saves two thirds of what remains; later versions do not have it.
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
  "--xla_cpu_parallel_codegen_split_count=1"
  + " --xla_cpu_use_fusion_emitters=false"
  * version("jaxlib").startswith("0.10."),
)
# Threads of XLA. The interpreter of GPU kernels needs one for each warpgroup that waits for others.
os.environ.setdefault("NPROC", "8")

import jax
import pytest

jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  jax.config.update(
    "jax_compilation_cache_dir", str(pathlib.Path(__file__).parents[1] / ".cache" / "jax")
  )
# Small programs too: each module compiles them anew, see below, and most modules need the same.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


@pytest.fixture(scope="session")
def conformance_dir() -> pathlib.Path:
  """Golden data of the authors' own code; DLM_CONFORMANCE_DIR points to unseen cases."""
  default = pathlib.Path(__file__).parent / "conformance"
  return pathlib.Path(os.environ.get("DLM_CONFORMANCE_DIR", default))


@pytest.fixture(scope="module", autouse=True)
def _programs_of_one_module():
  """XLA on CPU maps memory for every program; with a whole suite's a process meets its limit."""
  yield
  jax.clear_caches()
