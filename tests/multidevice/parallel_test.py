"""Eight devices compute what one does, however parameters and batch are split."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks, parallel
from dlm.models import ModelConfig, bind

MODEL = bind(ModelConfig(vocab=24, width=16, layers=2, heads=4, kv_heads=2, head_dim=4, mlp=32))
B, L, V = 8, 6, 24
MESHES = [(8, 1, 1, 1), (2, 2, 2, 1), (1, 4, 2, 1)]


@pytest.fixture(scope="module")
def params():
  return jax.jit(MODEL.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def tokens_BxL():
  return np.random.default_rng(0).integers(0, V, (B, L)).astype(np.int32)


def logits_and_loss(params, tokens_BxL):
  slot_BxL = jnp.broadcast_to(jnp.arange(L, dtype=jnp.int32), tokens_BxL.shape)
  mask = masks.BlockCausal(2)(slot_BxL, L)
  head = MODEL(params, tokens_BxL, slot_BxW=slot_BxL, mask=mask).head
  logits_BxLxV = jnp.einsum("BAD,VD->BAV", head.hidden_BxAxD, head.unembed_VxD)
  log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits_BxLxV), tokens_BxL[..., None], -1)
  return logits_BxLxV, -log_prob.sum()


@jax.jit
def reference(params, tokens_BxL):
  logits, loss = logits_and_loss(params, tokens_BxL)
  return logits, loss, jax.grad(lambda p: logits_and_loss(p, tokens_BxL)[1])(params)


def gradient_step(mesh, driver="shard_map"):
  """As `dlm.train`: the gradient of each shard's sum, summed over shards inside."""

  def per_shard(params, tokens):
    (loss, logits), grads = jax.value_and_grad(
      lambda p: logits_and_loss(p, tokens)[::-1], has_aux=True
    )(params)
    return logits, *parallel.sum_over_batch((loss, grads), mesh)

  return parallel.over_batch(
    per_shard,
    mesh,
    batched_in=(False, True),
    batched_out=(True, False, False),
    driver=driver,
  )


def assert_close(got, want):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, want)


@pytest.mark.parametrize("sizes", MESHES)
@pytest.mark.parametrize("mesh_is_set", [False, True])
def test_sharded_parameters_give_the_same_logits_and_gradients(
  params, tokens_BxL, sizes, mesh_is_set
):
  mesh = parallel.make_mesh(*sizes)
  shardings = parallel.shard_params(MODEL.abstract(), mesh)

  def run():
    sharded = jax.jit(MODEL.init, out_shardings=shardings)(jax.random.key(0))
    assert_close(sharded, params)
    tokens = jax.device_put(tokens_BxL, parallel.batch_sharding(mesh))
    out = jax.jit(gradient_step(mesh))(sharded, tokens)
    assert_close(out, reference(params, tokens_BxL))

  if mesh_is_set:
    with jax.set_mesh(mesh):
      run()
  else:
    run()


def test_names_decide_what_is_split():
  mesh = parallel.make_mesh(1, 4, 2)
  shardings = parallel.shard_params(MODEL.abstract(), mesh)
  spec = jax.tree.map(lambda s: tuple(s.spec), shardings)
  attention, mlp = spec["layers"]["attention"], spec["layers"]["mlp"]
  width = ("fsdp", "sequence")
  assert spec["embed"] == ("tensor", width)
  assert attention["query"]["kernel"] == (None, width, "tensor", None)
  assert attention["out"]["kernel"] == (None, "tensor", None, width)
  assert mlp["down"]["kernel"] == (None, "tensor", width)
  assert tuple(parallel.batch_sharding(mesh).spec) == (("data", "fsdp", "expert"),)
  assert parallel.batch_shards(mesh) == 4
  embed = jax.jit(MODEL.init, out_shardings=shardings)(jax.random.key(0))["embed"]
  assert {shard.data.shape for shard in embed.addressable_shards} == {(12, 4)}


@pytest.mark.parametrize("driver", ["shard_map", "pmap"])
@pytest.mark.parametrize("jitted", [False, True])
def test_both_drivers_sum_the_gradient_of_the_whole_batch(params, tokens_BxL, driver, jitted):
  step = gradient_step(parallel.make_mesh(8), driver)
  out = (jax.jit(step) if jitted else step)(params, tokens_BxL)
  assert_close(out, reference(params, tokens_BxL))


@pytest.mark.parametrize("driver", ["shard_map", "pmap"])
def test_structures_keys_and_single_outputs_pass_through(driver):
  mesh = parallel.make_mesh(8)

  def draw(rows):
    noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(rows["key"])
    return {"noise": noise, "rows": jnp.full((rows["x"].shape[0],), rows["x"].shape[0])}

  key_B = jax.random.split(jax.random.key(0), 16)
  rows = {"key": key_B, "x": jnp.zeros((16, 2))}
  split = parallel.over_batch(draw, mesh, batched_in=(True,), batched_out=True, driver=driver)
  out = split(rows)
  want = jax.vmap(lambda key: jax.random.normal(key, (3,)))(key_B)
  np.testing.assert_array_equal(out["noise"], want)
  np.testing.assert_array_equal(out["rows"], np.full(16, 2))


@pytest.mark.parametrize("driver", ["shard_map", "pmap"])
def test_every_shard_stops_by_itself(driver):
  """A loop without collectives runs only as long as the shard's own rows ask."""
  mesh = parallel.make_mesh(8)

  def count_down(left_B):
    def body(carry):
      left, turns = carry
      return left - 1, turns + 1

    zero = jnp.zeros_like(left_B)
    return jax.lax.while_loop(lambda c: (c[0] > 0).any(), body, (left_B, zero))[1]

  run = parallel.over_batch(count_down, mesh, batched_in=(True,), batched_out=True, driver=driver)
  np.testing.assert_array_equal(run(jnp.arange(16)), np.arange(16) // 2 * 2 + 1)


def test_a_cached_forward_is_the_same_when_sharded(params, tokens_BxL):
  """Cache rows follow the batch: window forward and write on every shard."""
  mesh = parallel.make_mesh(2, 2, 2)

  def two_blocks(params, tokens):
    cache = MODEL.empty_cache(tokens.shape[0], L)
    for start in (0, 4):
      width = 4 if start == 0 else 2
      slot = jnp.broadcast_to(
        jnp.arange(start, start + width, dtype=jnp.int32), (tokens.shape[0], width)
      )
      out = MODEL(
        params, tokens[:, start : start + width], slot_BxW=slot,
        mask=masks.BlockCausal(2)(slot, L), cache=cache, write_BxW=slot >= 0,
      )  # fmt: skip
      cache = out.cache
    return out.head.hidden_BxAxD, cache.filled_BxS

  shardings = parallel.shard_params(MODEL.abstract(), mesh)
  split = parallel.over_batch(two_blocks, mesh, batched_in=(False, True), batched_out=True)
  got = jax.jit(split)(
    jax.device_put(params, shardings), jax.device_put(tokens_BxL, parallel.batch_sharding(mesh))
  )
  assert_close(got, jax.jit(two_blocks)(params, tokens_BxL))


@pytest.mark.parametrize("sizes", [(1, 8), (4, 2), (2, 2, 2)])
def test_beside_other_axes_the_function_runs_once_and_knows_the_mesh(sizes):
  mesh = parallel.make_mesh(*sizes)

  def rows_and_axes(x_B):
    return len(x_B), jax.sharding.get_abstract_mesh().axis_names

  run = parallel.over_batch(rows_and_axes, mesh, batched_in=(True,), batched_out=True)
  assert run(jnp.zeros(8)) == (8, parallel.AXES)
  assert parallel.sum_over_batch({"x": 3}, mesh) == {"x": 3}


def test_mesh_takes_the_devices_that_are_left():
  assert dict(parallel.make_mesh().shape) == {**dict.fromkeys(parallel.AXES, 1), "data": 8}
  assert dict(parallel.make_mesh(tensor=2).shape)["data"] == 4
  assert dict(parallel.make_mesh(2, -1, 2).shape)["fsdp"] == 2


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: parallel.make_mesh(3), "'data': 3.* must multiply to the number of devices, 8"),
    (lambda: parallel.make_mesh(-1, 3), "must multiply to the number of devices, 8"),
    (lambda: parallel.make_mesh(-1, -1), "but one may be -1"),
    (lambda: parallel.make_mesh(8, 0), "must be positive"),
  ],
)
def test_wrong_mesh_sizes_are_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()


@pytest.mark.parametrize(
  "sizes,processes,found",
  [
    ({"data": 2, "sequence": 4}, [0, 0, 1, 1, 2, 2, 3, 3], [(0, 2), (0, 2), (1, 2), (1, 2)]),
    ({"fsdp": 4, "tensor": 2}, [0, 0, 0, 0, 1, 1, 1, 1], [(0, 2), (1, 2)]),
    ({"data": 4, "tensor": 2}, [0, 1, 0, 1, 2, 3, 2, 3], [(0, 2), (0, 2), (1, 2), (1, 2)]),
    ({"data": 1, "sequence": 8}, [0, 0, 0, 0, 1, 1, 1, 1], [(0, 1), (0, 1)]),
  ],
)
def test_processes_whose_devices_share_rows_give_the_same(sizes, processes, found, monkeypatch):
  mesh = pods_mesh(sizes, processes)
  for process, want in enumerate(found):
    monkeypatch.setattr(jax, "process_index", lambda process=process: process)
    assert parallel.feeders(mesh) == want


def test_processes_that_share_a_part_of_their_rows_are_refused():
  with pytest.raises(ValueError, match="shares the rows of a batch unevenly among 2 processes"):
    parallel.feeders(pods_mesh({"data": 8}, [0, 0, 0, 1, 1, 1, 1, 1]))


def pods_mesh(sizes, processes):
  """As far as it is asked who owns its devices."""
  shape = dict.fromkeys(parallel.AXES, 1) | sizes
  owners = np.array([types.SimpleNamespace(process_index=p) for p in processes])
  return types.SimpleNamespace(
    axis_names=parallel.AXES, shape=shape, devices=owners.reshape(*shape.values())
  )


def test_what_does_not_divide_is_refused():
  identity = functools.partial(
    parallel.over_batch, lambda x: x, batched_in=(True,), batched_out=True
  )
  mesh = parallel.make_mesh(8)
  for driver in ("shard_map", "pmap"):
    with pytest.raises(ValueError, match="12 rows must divide by data=8"):
      identity(mesh, driver=driver)(jnp.zeros((12, 2)))
  with pytest.raises(ValueError, match="unknown driver 'pjit'; known: shard_map, pmap"):
    identity(mesh, driver="pjit")
  with pytest.raises(ValueError, match="pmap splits the batch only"):
    identity(parallel.make_mesh(4, 2), driver="pmap")
  with pytest.raises(ValueError, match=r"layers/attention/key/kernel.* does not divide"):
    parallel.shard_params(MODEL.abstract(), parallel.make_mesh(1, 1, 8))


@dataclasses.dataclass(frozen=True)
class Gpu:
  """Of a host that is not here."""

  id: int
  process_index: int
  slice_index: int
  platform: str = "gpu"
  device_kind: str = "gpu"


def hosts(count, told=True):
  """Two GPUs each, listed in no order; they may tell of which host they are."""
  own = [Gpu(i, i // 2, i // 2 if told else 0) for i in range(2 * count)]
  return own[::2] + own[1::2]


@pytest.mark.parametrize(
  ("count", "told", "sizes", "rows"),
  [
    (2, True, dict(fsdp=2, dcn=2), [[0, 1], [2, 3]]),  # a row of the mesh is a host
    (2, True, dict(fsdp=2, dcn=-1), [[0, 1], [2, 3]]),
    (2, True, dict(fsdp=4), [[0, 1, 2, 3]]),  # hosts with GPUs may share parameters, too
    (4, False, dict(fsdp=4, dcn=2), [[0, 1, 2, 3], [4, 5, 6, 7]]),  # two processes a slice
    (4, False, dict(fsdp=2, dcn=2), [[0, 1], [2, 3], [4, 5], [6, 7]]),
  ],
)
def test_slices_follow_each_other_along_data(count, told, sizes, rows):
  mesh = parallel.make_mesh(**sizes, devices=hosts(count, told=told))
  assert [[x.id for x in row] for row in mesh.devices.reshape(mesh.shape["data"], -1)] == rows


@pytest.mark.parametrize(
  ("dcn", "message"),
  [(3, "must be the number of slices, 2"), (0, "must be the number of slices, 2")],
)
def test_slices_that_are_not_there_are_refused(dcn, message):
  with pytest.raises(ValueError, match=f"mesh.dcn={dcn} {message}"):
    parallel.make_mesh(dcn=dcn, devices=hosts(2))
