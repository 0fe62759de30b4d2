"""Strictness for every test: ranks explicit, float32 matmuls exact; keys used once, where told.

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


# Folders and files of tests that draw. The watch costs a seventh of the time, so that others, which
# run the same code at greater length, do without.
KEYS_ARE_WATCHED = (
  "dlm/diffusion", "dlm/objectives", "dlm/rewarded_test.py",
  "dlm/rollout_test.py", "dlm/sampling/loop", "dlm/sampling/policies", "dlm/train_test.py",
  "kernels_pallas/token_stats",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _programs_of_one_module(request: pytest.FixtureRequest):
  """XLA on CPU maps memory for every program; with a whole suite's a process meets its limit."""
  place = request.path.relative_to(pathlib.Path(__file__).parent).as_posix()
  jax.config.update("jax_debug_key_reuse", place.startswith(KEYS_ARE_WATCHED))
  yield
  jax.clear_caches()
