"""Do the cores of a TPU kernel race? jax's interpreter sees it."""

import dataclasses
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

PARAMS = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)
if hasattr(PARAMS, "on_race"):  # jax 0.12 ends the program at the first by default
  PARAMS = dataclasses.replace(PARAMS, on_race="warn")


def seen(run: Callable[[], Any]) -> tuple[Any, list[bool]]:
  """What it gives, and of each of its kernels, one after the other, whether two cores raced."""
  kernels, state = [], interpret_pallas_call.RaceDetectionState

  def remember(**options: Any) -> Any:
    kernels.append(state(**options))
    return kernels[-1]

  with (
    mock.patch.object(interpret_pallas_call, "RaceDetectionState", remember),
    pltpu.force_tpu_interpret_mode(PARAMS),
  ):
    result = jax.block_until_ready(run())
  return result, [kernel.races_found for kernel in kernels]
