"""The loop holds its cache in place: one cache, and what XLA lays aside for one of its tensors."""

import functools

import jax
import numpy as np
import pytest

from dlm import masks
from dlm.models import ModelConfig, bind
from dlm.sampling import loop
from dlm.sampling.caching import PLANS
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policies import Threshold
from dlm.sampling.sampler import Sampler

ROWS, SLOTS, BLOCK = 8, 512, 32
# All but its cache is small: 256 MiB beside 1 MiB of activations.
MODEL = bind(ModelConfig(vocab=30, width=8, layers=8, heads=8, kv_heads=8, head_dim=128, mlp=8))


@pytest.mark.parametrize(
  "plan,sees", [("block", masks.BlockCausal(BLOCK)), ("prefix", masks.Full())], ids=str
)
def test_a_forward_copies_no_cache(plan, sees):
  sampler = Sampler(
    denoise=MODEL,
    policy=Threshold(),
    plan=PLANS[plan](),
    sees=sees,
    block=BLOCK,
    max_forwards=100,
    mask_id=29,
  )
  canvas = make_canvas(
    [np.zeros(SLOTS, np.int32)] * ROWS,
    [np.arange(SLOTS) >= BLOCK] * ROWS,
    list(range(ROWS)),
    slots=SLOTS,
    block=BLOCK,
    align="canvas",
    mask_id=29,
    seed=0,
  )
  params = jax.eval_shape(MODEL.init, jax.random.key(0))
  cache = jax.eval_shape(functools.partial(MODEL.empty_cache, ROWS, SLOTS))
  compiled = jax.jit(loop.run, static_argnums=0).lower(sampler, params, canvas).compile()
  used = compiled.memory_analysis().temp_size_in_bytes
  assert used < 2.6 * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
