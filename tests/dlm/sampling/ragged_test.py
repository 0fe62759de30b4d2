"""A row owes nothing to its neighbours, to the bit: each power of policies, every cache.

All at one compiled number of rows, and with windows of a row's own width (`Sampler.own_width`):
random rows have no margin that rounding could not use up. Policies run over whole batches, caches
over the rows that need the same forward, one or two at a time (`Sampler.positions`).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm import masks
from dlm.models import ModelConfig, bind
from dlm.sampling import loop
from dlm.sampling.caching import PLANS, Ahead, Dual, ExactBlock, Greedy, NoCache, Rolling, SubBlock
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policies import Introspective, Parts, Pipelined, Planned, Threshold
from dlm.sampling.sampler import Sampler
from tests.dlm.models.small import jitter
from tests.dlm.sampling.every import EVERY, each_power, warmth

MASK, SLOTS, BLOCK, BATCH = 22, 16, 4, 3
MODEL = bind(ModelConfig(vocab=23, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=48))


@functools.cache
def params_of():
  """Random and sure of itself: confidences spread over (0, 1)."""
  params = jitter(jax.jit(MODEL.init)(jax.random.key(0)))
  return params | {"final_norm": {"scale": 3 * params["final_norm"]["scale"]}}


@st.composite
def rows(draw):
  """A prompt of 1 to 9 tokens and 1 to 7 masks."""
  prompt = draw(st.lists(st.integers(0, MASK - 1), min_size=1, max_size=9))
  return [*prompt, *[MASK] * draw(st.integers(1, SLOTS - 9))]


@functools.partial(jax.jit, static_argnums=0)
def run(sampler, params, canvas):
  return loop.run(sampler, params, canvas)


def sampled(sampler, batch, ids, seed):
  arrays = [np.array(row) for row in batch]
  canvas = make_canvas(
    arrays, [row == MASK for row in arrays], ids, slots=SLOTS, block=BLOCK, align="prompt",
    mask_id=MASK, seed=seed,
  )  # fmt: skip
  return run(sampler, params_of(), canvas)


def same_among_any_neighbours(policy, plan, positions=0):
  drafts = policy.draft_span > 0
  causal = drafts or isinstance(plan, ExactBlock)
  sampler = Sampler(
    MODEL,
    policy,
    plan,
    masks.Causal() if causal else masks.Full(),
    block=policy.draft_span if drafts else BLOCK,
    max_forwards=60,
    mask_id=MASK,
    shift=int(drafts),
    temperature=warmth(policy),
    own_width=True,
    positions=positions,
  )

  @settings(max_examples=4, deadline=None, database=None)
  @given(
    rows(), *[rows()] * 4, st.integers(0, BATCH - 1), st.integers(0, BATCH - 1), st.integers(0, 99)
  )
  def check(row, a, b, c, d, here, there, seed):
    one, other = [a, b], [c, d]
    one.insert(here, row)
    other.insert(there, row)
    first = sampled(sampler, one, [7 if i == here else i for i in range(BATCH)], seed)
    second = sampled(sampler, other, [7 if i == there else i for i in range(BATCH)], seed)
    for field in ("tokens_BxL", "when_BxL", "logp_BxL", "forwards_Bx3", "queries_B"):
      got, want = getattr(first, field)[here], getattr(second, field)[there]
      np.testing.assert_array_equal(got, want, err_msg=field)
    assert bool(jnp.all(first.done_B) & jnp.all(second.done_B))

  check()


@pytest.mark.parametrize("policy", each_power(EVERY), ids=str)
def test_each_power_of_policies_over_a_cache(policy):
  # A shadow block goes with no cache, random ids and edits with an exact one.
  alone = policy.judges or policy.renoises or policy.shifts
  same_among_any_neighbours(policy, NoCache() if alone else Dual())


OWN = {  # plans that go with one policy
  "dkv_greedy": (Planned(steps=3), Greedy()),
  "rolling": (Introspective(2), Rolling()),
  "ahead": (Pipelined(BLOCK, 0.6, begin=0.3, eager=0.6), Ahead()),
  "sub_block": (Parts(Threshold(0.6), 2), SubBlock(2)),
}


# Cache "text" is for models that read text causally: tests/checkers/diffusion_gemma.py.
@pytest.mark.parametrize("name", sorted({*PLANS} - {"text"}))
def test_every_cache(name):
  policy, plan = OWN.get(name) or (Threshold(0.6), PLANS[name]())
  same_among_any_neighbours(policy, plan, positions=2 * BLOCK)
