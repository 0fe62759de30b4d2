"""Every test of the op runs on every implementation; the kernels run interpreted, in small tiles."""

import contextlib

import jax
import pytest

from kernels_pallas.block_attention import block_attention, prepare


@pytest.fixture(params=["reference", "xla"])
def attend(request):
  """`prepare` and `block_attention` in one jitted call: attend(q, parts, ranges, keys)."""

  @jax.jit
  def run(q_BxWxNxH, parts, ranges, keys):
    sight = prepare(
      ranges,
      keys,
      heads=q_BxWxNxH.shape[2],
      kv_heads=parts[0].k.shape[-2],
      implementation=request.param,
    )
    return block_attention(q_BxWxNxH, parts, sight)

  with contextlib.nullcontext():
    yield run
