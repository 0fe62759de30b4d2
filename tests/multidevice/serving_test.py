"""Eight devices serve what one does, rows that come and go spread over all of them."""

import dataclasses

import jax
import numpy as np
import pytest

from dlm import masks, parallel
from dlm.data import ByteTokenizer
from dlm.generate import Generator, Request
from dlm.models import ModelConfig, bind
from dlm.sampling.caching import ExactBlock
from dlm.sampling.policies import Threshold
from dlm.sampling.sampler import Sampler
from dlm.serving.asks import Ask
from dlm.serving.engine import Engine, Serving

MODEL = bind(ModelConfig(vocab=260, width=16, layers=1, heads=4, kv_heads=2, head_dim=4, mlp=32))
BYTES = ByteTokenizer()
SLOTS = 32


SAMPLER = Sampler(
  MODEL, Threshold(0.4), ExactBlock(), masks.BlockCausal(4), block=4, max_forwards=64,
  mask_id=BYTES.mask_id, eos_ids=(BYTES.eos_id,), temperature=1.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def params():
  params = jax.jit(MODEL.init)(jax.random.key(0))
  return params | {"final_norm": {"scale": 3 * params["final_norm"]["scale"]}}


def requests(count):
  """Some begin alike, none is longer than the canvas."""
  rng = np.random.default_rng(1)
  shared, made = rng.integers(97, 123, 20), []
  for i in range(count):
    own = rng.integers(97, 123, 24)
    prompt = np.concatenate([shared[: 20 * (i % 2)], own])[: 4 + 3 * i % 22]
    made.append(Request.from_ids(i, "", prompt, BYTES.mask_id, slots=SLOTS))
  return made


def serve(mesh, params, **settings):
  own = Serving((SLOTS,), rows=8, row_tile=1, turns=3, **settings)
  return Engine(SAMPLER, BYTES, params, own, align="canvas", mesh=mesh)


def asks():
  return [Ask(each, seed=3) for each in requests(12)]


@pytest.fixture(scope="module")
def one(params):
  """What a Generator writes on one of the devices, row by row."""
  mesh = parallel.make_mesh(1, devices=jax.devices()[:1])
  own = dataclasses.replace(SAMPLER, plan=ExactBlock(fill=8))
  return Generator(own, BYTES, mesh, row_tile=1)(params, requests(12), seed=3)


def exact(done, **without):
  """All but times, and forwards: they are fewer where a prefix was found."""
  costs = {"seconds": 0.0, "forwards": {}, "queries": 0, "tpf": 0.0}
  return [dataclasses.replace(c, **costs | without) for c in done]


def test_eight_devices_serve_what_one_does_to_the_bit(params, one):
  eight = serve(parallel.make_mesh(8), params, fill=8, prefixes=16)
  assert exact(eight.run(asks())) == exact(one)
  assert eight.prefixes.hits > 0 == eight.compiles
  (tile,) = eight._canvases[SLOTS].tiles
  assert {part.data.shape[1] for part in tile.cache.k_YxBxSxKxH.addressable_shards} == {1}
  weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  assert (eight.memory.rows, eight.memory.weights) == (1, weights), "on each device"


def test_so_do_devices_that_split_parameters_too(params, one):
  """Rows over four devices, which decide by rounding alone where they do otherwise."""
  mesh = parallel.make_mesh(2, 2, 2)
  sharded = jax.device_put(params, parallel.shard_params(MODEL.abstract(), mesh))
  with pytest.raises(ValueError, match="fill=8 needs devices that hold all parameters"):
    serve(mesh, sharded, fill=8)
  with pytest.raises(ValueError, match="exact=False is for one device"):
    serve(mesh, sharded, fill=0, exact=False)
  split = serve(mesh, sharded, fill=0)
  assert exact(split.run(asks()), logprobs=[]) == exact(one, logprobs=[])
  weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  assert split.compiles == 0 and split.memory.weights < weights / 2
