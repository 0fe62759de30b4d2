"""Runs kernels for Hopper on a CPU, from jax 0.10.2 to 0.12."""

import contextlib
import os
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jax
from jax._src.interpreters import mlir
from jax._src.pallas.mosaic.interpret import thread_map
from jax._src.pallas.mosaic_gpu.core import layout_cast_p
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks
from jax.experimental.pallas import mosaic_gpu as plgpu

# jax 0.10.2 has GPU interpret mode and does not export it.
if hasattr(plgpu, "force_gpu_interpret_mode"):
  from jax.experimental.pallas.mosaic_gpu import InterpretGPUParams, force_gpu_interpret_mode
else:
  from jax._src.pallas.mosaic_gpu.interpret.params import (
    InterpretGPUParams,
    force_gpu_interpret_mode,
  )

# It knows no casts between layouts, which are of registers and change no number.
mlir.register_lowering(layout_cast_p, lambda ctx, x, **_: [x], platform="cpu")

_THREADS = 8
_operand = threading.local()  # a thread of the kernel is one of Python, and may outlive the context
_compiled: dict[Any, jax.stages.Compiled] = {}
_compiling = threading.Lock()
_QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def _run_compiled_once(jaxpr: Any, consts: Any, *args: Any) -> None:
  """A thread of a program: jax compiles each anew, which takes nearly all of a test's time."""
  with _compiling:
    if jaxpr not in _compiled:
      lowered = jax.jit(jax.core.eval_jaxpr, static_argnums=0).lower(jaxpr, consts, *args)
      _compiled[jaxpr] = lowered.compile(_QUICKLY)
  _compiled[jaxpr](consts, *args)


@contextlib.contextmanager
def interpret_gpu() -> Iterator[None]:
  """Within it `plgpu.kernel` runs on a CPU, slowly.

  A race between its threads is printed, and from jax 0.12 on raised. The interpreter of jax 0.10.2
  to 0.11.2 knows no transposed operands of `wgmma`, and none in registers; here it does.

  Raises:
    RuntimeError: XLA has so few threads that warpgroups waiting for each other would hang.
  """
  threads = int(os.environ.get("NPROC") or os.cpu_count() or 1)
  if threads < _THREADS:
    raise RuntimeError(
      f"interpret_gpu needs {_THREADS} threads, and XLA has {threads}: one for each processor, or "
      f"as many as the environment's NPROC says before jax starts"
    )
  numpy, wgmma, run = gpu_callbacks.np, gpu_callbacks.wgmma, thread_map._run_jaxpr

  def matmul(a: Any, b: Any, **kwargs: Any) -> Any:
    a = a if _operand.values is None else _operand.values
    with numpy.errstate(all="ignore"):  # hardware does not warn of NaN
      return numpy.matmul(a, b.T if _operand.transposed else b, **kwargs)

  def any_wgmma(*, b_transforms: tuple[Any, ...], **kwargs: Any) -> Any:
    _operand.transposed = bool(b_transforms) and hasattr(b_transforms[-1], "permutation")
    if _operand.transposed:
      b_transforms = b_transforms[:-1]
    a, b = "a_allocation_key_as_array", "b_allocation_key_as_array"
    _operand.values = None
    if kwargs[a].ndim == 2:  # values and no key: the other operand is read in their place
      _operand.values = numpy.asarray(kwargs[a])
      kwargs |= {a: kwargs[b], "a_transforms": b_transforms}
    return wgmma(b_transforms=b_transforms, **kwargs)

  gpu_callbacks.np = SimpleNamespace(**{**vars(numpy), "matmul": matmul})
  gpu_callbacks.wgmma, thread_map._run_jaxpr = any_wgmma, _run_compiled_once
  try:
    with force_gpu_interpret_mode(InterpretGPUParams(detect_races=True)):
      yield
  finally:
    gpu_callbacks.np, gpu_callbacks.wgmma, thread_map._run_jaxpr = numpy, wgmma, run
