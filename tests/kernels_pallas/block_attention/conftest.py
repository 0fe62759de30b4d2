"""Every test of the op runs on every implementation; kernels run interpreted, in small tiles."""

import contextlib
import functools

import jax
import pytest
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas.block_attention import IMPLEMENTATIONS, block_attention
from kernels_pallas.block_attention.spec import Heads
from kernels_pallas.block_attention.tiles import Tiles


@pytest.fixture(params=["reference", "xla", "tpu"])
def attend(request):
  """`prepare` and `block_attention` in one jitted call: attend(q, parts, ranges, keys)."""
  prepare, mode = IMPLEMENTATIONS[request.param], contextlib.nullcontext()
  if request.param == "tpu":
    prepare = functools.partial(prepare, tiles=Tiles(queries=16, keys=8))
    mode = pltpu.force_tpu_interpret_mode(pltpu.InterpretParams())

  @jax.jit
  def run(q_BxWxNxH, parts, ranges, keys):
    sight = prepare(ranges, keys, Heads(q_BxWxNxH.shape[2], parts[0].k.shape[-2]))
    return block_attention(q_BxWxNxH, parts, sight)

  with mode:
    yield run
