"""Every test of the op runs on every implementation; kernels run interpreted, in small tiles."""

import contextlib
import functools

import jax
import pytest
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas.block_attention import IMPLEMENTATIONS, block_attention
from kernels_pallas.block_attention.spec import Heads
from kernels_pallas.block_attention.tiles import Tiles


@functools.cache
def _jitted(name):
  prepare = IMPLEMENTATIONS[name]
  if name == "tpu":
    prepare = functools.partial(prepare, tiles=Tiles(queries=16, keys=8))

  @jax.jit
  def run(q_BxWxNxH, parts, mask, keys):
    sight = prepare(mask, keys, Heads(q_BxWxNxH.shape[2], parts[0].k.shape[-2]))
    return block_attention(q_BxWxNxH, parts, sight)

  return run


@pytest.fixture(params=["reference", "xla", "tpu"])
def attend(request):
  """`prepare` and `block_attention` in one jitted call: attend(q, parts, mask, keys)."""
  mode = pltpu.force_tpu_interpret_mode() if request.param == "tpu" else contextlib.nullcontext()
  with mode:
    yield _jitted(request.param)
