"""Eight devices write what one does, however rows and parameters are split."""

import dataclasses

import jax
import numpy as np
import pytest

from dlm import masks, parallel
from dlm.data import ByteTokenizer
from dlm.generate import Generator, Request
from dlm.models import ModelConfig, bind
from dlm.sampling.caching import ExactBlock, NoCache
from dlm.sampling.policies import DreamOn, Threshold
from dlm.sampling.sampler import Sampler
from tests.dlm.sampling.table import Lookup, random_table

MODEL = bind(ModelConfig(vocab=260, width=16, layers=2, heads=4, kv_heads=2, head_dim=4, mlp=32))
BYTES = ByteTokenizer()
SAMPLER = Sampler(
  MODEL, Threshold(0.4), ExactBlock(), masks.BlockCausal(4), block=4, max_forwards=32,
  mask_id=BYTES.mask_id, eos_ids=(BYTES.eos_id,), temperature=1.0,
)  # fmt: skip
TEXTS = ["0", "hello", "a[[3]]b[[2]]", "0123456789ab", "xy", "[[2]]z", "q", "[[1]]ab", "last"]
REQUESTS = [
  Request.from_text(id, text, BYTES, slots=16, infill=True) for id, text in enumerate(TEXTS)
]
SEED = 3


@pytest.fixture(scope="module")
def params():
  params = jax.jit(MODEL.init)(jax.random.key(0))
  return params | {"final_norm": {"scale": 3 * params["final_norm"]["scale"]}}


def complete(generator, params):
  """What rounding does not touch: these rows' decisions have a margin (tests/margins.py)."""
  return [dataclasses.replace(c, logprobs=[]) for c in exact(generator, params, REQUESTS)]


def exact(generator, params, requests):
  """All but times: log-probabilities are equal only where they are to the bit."""
  done = generator(params, requests, seed=SEED)
  return [dataclasses.replace(c, seconds=0.0) for c in done]


@pytest.fixture(scope="module")
def alone(params):
  """All nine rows on one of the devices."""
  mesh = parallel.make_mesh(1, devices=jax.devices()[:1])
  done = complete(Generator(SAMPLER, BYTES, mesh, batch=9), params)
  assert len({sum(c.forwards.values()) for c in done}) > 2, "rows end at different times"
  return done


@pytest.mark.parametrize(
  ("sizes", "driver"),
  [((8,), "shard_map"), ((8,), "pmap"), ((2, 2, 2), "shard_map")],
  ids=["shard_map", "pmap", "data_fsdp_tensor"],
)
def test_eight_devices_write_what_one_does(params, alone, sizes, driver):
  mesh = parallel.make_mesh(*sizes)
  sharded = jax.device_put(params, parallel.shard_params(MODEL.abstract(), mesh))
  generator = Generator(SAMPLER, BYTES, mesh, batch=5, driver=driver)
  assert generator.batch == 8, "rounded up to a whole number of rows a device"
  assert complete(generator, sharded) == alone  # nine rows: the second batch is filled up


@pytest.mark.parametrize(("tile", "driver"), [(1, "shard_map"), (2, "pmap")])
def test_with_a_row_tile_rows_are_equal_to_the_bit_on_any_devices_and_in_any_batch(
  params, tile, driver
):
  """All shapes are equal: the rows a device computes, canvases, windows."""
  meshes = (parallel.make_mesh(n, devices=jax.devices()[:n]) for n in (1, 8))
  one, eight = (
    Generator(SAMPLER, BYTES, mesh, batch=11, row_tile=tile, driver=driver) for mesh in meshes
  )
  requests = [dataclasses.replace(REQUESTS[i % 9], id=i) for i in range(11)]
  many = exact(eight, params, requests)
  assert all(c.logprobs and None not in c.logprobs for c in many)
  assert exact(one, params, requests) == many
  for request, done in zip(requests, many, strict=True):
    assert exact(one, params, [request]) == [done]
  for generator in (one, eight):
    assert exact(generator, params, requests[2:5]) == many[2:5]
  assert exact(eight, params, requests[:1]) == many[:1]


def test_rows_that_grow_are_the_same_on_any_devices():
  """Of a table of logits by which three letters and the end token are likely."""
  policy = DreamOn(ord("x"), 9, end_ids=(ord("."),))
  sampler = Sampler(
    Lookup(), policy, NoCache(), masks.Full(), block=16, shift=1, max_forwards=64,
    mask_id=BYTES.mask_id, temperature=1.0,
  )  # fmt: skip
  params = random_table(0, 64, 260, scale=0.1)
  params["own"] = params["own"].at[:, np.array(list(b"xyz."))].add(99)
  one, eight = (
    Generator(sampler, BYTES, parallel.make_mesh(n, devices=jax.devices()[:n]), batch=9, row_tile=1)
    for n in (1, 8)
  )
  many = exact(eight, params, REQUESTS)
  assert exact(one, params, REQUESTS) == many
  assert exact(one, params, REQUESTS[2:3]) == many[2:3]
  grown = [len(done.row) - len(asked.tokens) for done, asked in zip(many, REQUESTS, strict=True)]
  assert min(grown) < 0 < max(grown)


def test_stream_beside_sharded_parameters_writes_the_same(params, alone):
  mesh = parallel.make_mesh(2, 2, 2)
  sharded = jax.device_put(params, parallel.shard_params(MODEL.abstract(), mesh))
  generator = Generator(SAMPLER, BYTES, mesh, batch=4)
  *_, last = generator.stream(sharded, REQUESTS[:4], seed=SEED)
  for row, done in enumerate(alone[:4]):
    np.testing.assert_array_equal(last.tokens_BxL[row, : len(done.row)], done.row)
    np.testing.assert_array_equal(last.when_BxL[row, : len(done.row)], done.when)
