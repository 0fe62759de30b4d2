"""Statistics of the plain logits against float64 numpy, where the numbers are ordinary or not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import token_stats as ops
from kernels_pallas.token_stats import Inputs, StatSpec, token_stats
from kernels_pallas.vocabulary import Held
from tests.kernels_pallas.token_stats.twin import assert_equal_stats, lse, truth

ALL = StatSpec(top2=True, entropy=True, current=True)


def of_logits(compute, logits_RxV, spec, current_R=None):
  """The op on given finite logits: the unembedding is the identity."""
  hidden_RxV = jnp.asarray(logits_RxV, jnp.float32)
  return compute(hidden_RxV, jnp.eye(hidden_RxV.shape[1]), spec, current_R=current_R)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("soft_cap", [None, 5.0])  # and with it rows that are divided
def test_all_statistics(compute, dtype, soft_cap, vocab=38):
  rng = np.random.default_rng(0)
  hidden_RxD = jnp.asarray(rng.normal(size=(9, 8)) * 2, dtype)
  unembed_VxD = jnp.asarray(rng.normal(size=(vocab, 8)), dtype)
  current_R = np.arange(9) * 4 + 1  # 33 is met twice in tiles of 7
  rest = {"current_R": jnp.asarray(current_R)}
  spec = StatSpec(top2=True, entropy=True, current=True, forbidden=(4, vocab - 1))
  z_RxV = np.asarray(hidden_RxD, np.float64) @ np.asarray(unembed_VxD, np.float64).T
  if soft_cap is not None:
    divide_R = np.linspace(0.4, 1.6, 9, dtype=np.float32)
    z_RxV = soft_cap * np.tanh(z_RxV / soft_cap) / divide_R[:, None]
    rest["divide_R"] = jnp.asarray(divide_R)
  stats = compute(hidden_RxD, unembed_VxD, spec, soft_cap=soft_cap, **rest)
  assert_equal_stats(stats, truth(z_RxV, spec, current_R))


def test_what_is_not_asked_is_not_there(compute):
  stats = of_logits(compute, np.eye(3), StatSpec())
  there = {name for name, value in vars(stats).items() if value is not None}
  assert there == {"token", "logit", "top1", "lse"}


def test_ties_go_to_the_lowest_id_and_top2_equals_top1(compute):
  logits_RxV = np.zeros((4, 20))
  logits_RxV[1, [3, 4]] = 2  # in one tile of 7
  logits_RxV[2, [6, 7]] = 2  # in two
  logits_RxV[3, [13, 19]] = 2  # 13 is met twice where the last tile is moved back
  stats = of_logits(compute, logits_RxV, StatSpec(top2=True))
  np.testing.assert_array_equal(stats.token, [0, 3, 6, 13])
  np.testing.assert_array_equal(stats.top1, [0, 2, 2, 2])
  np.testing.assert_array_equal(stats.top2, stats.top1)


def test_a_single_best_id_is_not_its_own_second(compute):
  logits_RxV = np.zeros((20, 20)) + 3 * np.eye(20)
  stats = of_logits(compute, logits_RxV, StatSpec(top2=True))
  np.testing.assert_array_equal(stats.token, np.arange(20))
  np.testing.assert_array_equal(stats.top2, np.zeros(20))


def test_huge_logits_keep_their_differences(compute):
  logits_RxV = np.linspace(0, 3, 16) + np.array([[1e4], [-1e4], [0]])
  logits_RxV = logits_RxV.astype(np.float32)
  current_R = np.array([15, 0, 3])
  expected = truth(logits_RxV.astype(np.float64), ALL, current_R)
  stats = of_logits(compute, logits_RxV, ALL, jnp.asarray(current_R))
  assert_equal_stats(stats, expected, rtol=2e-7)


def test_spread_of_1e4_has_no_entropy(compute):
  stats = of_logits(compute, [[1e4, -1e4, 0, 0], [-1e4, 0, 0, 1e4]], StatSpec(entropy=True))
  np.testing.assert_array_equal(stats.token, [0, 3])
  np.testing.assert_array_equal(stats.lse, [1e4, 1e4])
  np.testing.assert_array_equal(stats.entropy, [0, 0])


def of_column(compute, logits_V, spec, rows=2, **kwargs):
  """The op on one column of logits that need not be finite, the same for all rows."""
  unembed_Vx1 = jnp.asarray(logits_V, jnp.float32)[:, None]
  return compute(jnp.ones((rows, 1)), unembed_Vx1, spec, **kwargs)


def test_logits_of_minus_infinity_are_outside_the_softmax(compute):
  stats = of_column(
    compute, [-np.inf] * 8 + [1, 2] + [-np.inf] * 9, ALL, current_R=jnp.array([0, 9])
  )
  expected = truth(np.array([[1.0, 2.0]] * 2), StatSpec(), np.array([0, 1]))
  assert_equal_stats(stats, {name: expected[name] for name in ("logit", "top1", "lse", "top2")})
  assert_equal_stats(stats, {"token": [9, 9], "current": [-np.inf, 2]})
  np.testing.assert_allclose(stats.entropy, expected["entropy"], rtol=1e-6)


def test_a_nan_logit_is_never_chosen_and_makes_the_row_undefined(compute):
  logits_V = np.arange(20.0)
  logits_V[[12, 19]] = np.nan
  stats = of_column(compute, logits_V, ALL, current_R=jnp.array([12, 3]))
  np.testing.assert_array_equal(stats.token, [18, 18])
  np.testing.assert_array_equal(stats.logit, [18, 18])
  np.testing.assert_array_equal(stats.top2, [17, 17])
  np.testing.assert_array_equal(stats.current, [np.nan, 3])
  assert np.isnan(stats.lse).all() and np.isnan(stats.entropy).all()


@pytest.mark.parametrize(
  "draw",
  [
    {},
    {"temperature": 0.5},
    {"temperature": 0.5, "top_k": 3, "top_p": 0.5},
    {"temperature": 0.5, "top_p": 0.5},
    {"confidence": "shaped", "top_k": 3, "top_p": 0.5, "top_p_of": "all"},
    {"confidence": "shaped", "top_p": 0.5},
  ],
  ids=str,
)
@pytest.mark.parametrize("fill,log_mass", [(np.nan, np.nan), (-np.inf, -np.inf)])
def test_a_row_without_any_logit_gets_the_lowest_allowed_id(compute, draw, fill, log_mass):
  spec = StatSpec(entropy=True, forbidden=(0, 1), **draw)
  key_data_Rx2 = jax.random.key_data(jax.random.split(jax.random.key(0), 2))
  stats = of_column(compute, np.full(20, fill), spec, key_data_Rx2=key_data_Rx2)
  np.testing.assert_array_equal(stats.token, [2, 2])
  np.testing.assert_array_equal(stats.logit, [-np.inf] * 2)
  np.testing.assert_array_equal(stats.top1, [-np.inf] * 2)
  np.testing.assert_array_equal(stats.lse, [log_mass] * 2)
  assert np.isnan(stats.entropy).all()


def test_a_bad_row_leaves_the_others_alone(compute):
  rng = np.random.default_rng(1)
  hidden_RxD = rng.normal(size=(3, 4)).astype(np.float32)
  unembed_VxD = jnp.asarray(rng.normal(size=(19, 4)), jnp.float32)
  good = compute(jnp.asarray(hidden_RxD), unembed_VxD, StatSpec(entropy=True))
  hidden_RxD[1] = np.nan
  bad = compute(jnp.asarray(hidden_RxD), unembed_VxD, StatSpec(entropy=True))
  for name in ("token", "logit", "lse", "entropy"):
    np.testing.assert_array_equal(getattr(good, name)[::2], getattr(bad, name)[::2])
  assert bad.token[1] == 0 and np.isnan(bad.lse[1])


def test_forbidden_ids_do_not_exist(compute):
  logits_RxV = np.tile(np.arange(20.0), (3, 1))
  spec = StatSpec(top2=True, entropy=True, current=True, forbidden=(19, 18, 7))
  stats = of_logits(compute, logits_RxV, spec, jnp.array([19, 17, 7]))
  expected = truth(np.delete(logits_RxV, spec.forbidden, axis=1), StatSpec(), np.zeros(3, int))
  assert_equal_stats(stats, {name: expected[name] for name in ("top1", "top2", "lse", "entropy")})
  np.testing.assert_array_equal(stats.token, [17, 17, 17])
  np.testing.assert_array_equal(stats.current, [-np.inf, 17, -np.inf])


def test_lse_outside_is_exact_where_the_rest_is_nothing(compute):
  logits_RxV = np.zeros((3, 20))
  logits_RxV[0, 3] = 1e3  # all the mass, and outside
  logits_RxV[1, 19] = 80
  logits_RxV[2] = np.linspace(-1e4, 1e4, 20)
  spec = StatSpec(outside=(3, 19), forbidden=(19, 7, 8))
  stats = of_logits(compute, logits_RxV, spec)
  rest_RxV = np.delete(logits_RxV, (3, 7, 8, 19), axis=1)
  np.testing.assert_allclose(stats.lse_outside, lse(rest_RxV), rtol=1e-6)
  assert stats.lse[0] == 1e3


def test_lse_outside_of_undefined_or_empty_rows(compute):
  logits_V = np.zeros(20)
  logits_V[12] = np.nan
  spec = StatSpec(outside=(12,))
  np.testing.assert_allclose(
    of_column(compute, logits_V, spec).lse_outside, np.log([19, 19]), rtol=1e-6
  )
  spec = StatSpec(outside=(11,))
  assert np.isnan(of_column(compute, logits_V, spec).lse_outside).all()
  spec = StatSpec(outside=tuple(range(20)))
  np.testing.assert_array_equal(of_column(compute, logits_V, spec).lse_outside, [-np.inf] * 2)


def test_a_current_id_outside_the_vocabulary_is_minus_infinity(compute):
  stats = of_logits(compute, np.ones((2, 9)), StatSpec(current=True), jnp.array([-1, 9]))
  np.testing.assert_array_equal(stats.current, [-np.inf] * 2)


@pytest.mark.parametrize("check_vma", [True, False])
def test_runs_inside_while_loop_and_shard_map(check_vma):
  mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  rows = jax.sharding.PartitionSpec("data")
  implementation = functools.partial(
    ops.IMPLEMENTATIONS["xla"], held=Held(0, 20), soft_cap=None, tile=7
  )
  hidden_RxD = jax.random.normal(jax.random.key(0), (4, 8))
  unembed_VxD = jax.random.normal(jax.random.key(1), (20, 8))
  key_R = jax.random.split(jax.random.key(2), 4)
  spec = StatSpec(
    top2=True,
    entropy=True,
    current=True,
    gather=True,
    soft=True,
    outside=(3,),
    confidence="shaped",
    temperature=1.0,
    top_p=0.9,
  )

  def walk(hidden_RxD, unembed_VxD, key_data_Rx2):
    def step(state):
      i, token_R = state
      inputs = Inputs(key_data_Rx2, token_R, token_R[:, None], unembed_VxD)
      stats = implementation(hidden_RxD, unembed_VxD, spec, inputs)
      return i + 1, stats.token

    start_R = jnp.zeros_like(hidden_RxD[:, 0], dtype=jnp.int32)
    return jax.lax.while_loop(lambda state: state[0] < 2, step, (0, start_R))[1]

  sharded = jax.shard_map(
    walk,
    mesh=mesh,
    in_specs=(rows, jax.sharding.PartitionSpec(), rows),
    out_specs=rows,
    check_vma=check_vma,
  )
  token_R = jax.jit(sharded)(hidden_RxD, unembed_VxD, jax.random.key_data(key_R))
  expected = token_stats(hidden_RxD, unembed_VxD, StatSpec(temperature=1.0, top_p=0.9), key_R=key_R)
  np.testing.assert_array_equal(token_R, expected.token)


@pytest.mark.parametrize(
  "spec",
  [
    StatSpec(top2=True, entropy=True, current=True, temperature=1.0),
    StatSpec(gather=True, soft=True, best=3),
    StatSpec(temperature=1.0, top_k=9, top_p=0.9),
    StatSpec(temperature=1.0, top_p=0.9),
    StatSpec(
      top2=True,
      entropy=True,
      current=True,
      confidence="shaped",
      outside=(3,),
      top_k=9,
      top_p=0.9,
      top_p_of="all",
    ),
  ],
  ids=["drawn", "gather, soft", "top_k", "top_p", "shaped"],
)
def test_memory_does_not_grow_with_the_vocabulary(spec):
  def temporaries(implementation, rows, vocab):
    shapes = [(rows, 8), (vocab, 8)]
    call = functools.partial(token_stats, spec=spec, implementation=implementation)
    compiled = (
      jax.jit(
        lambda h, u, c, k: call(
          h,
          u,
          current_R=c,
          key_R=jax.random.wrap_key_data(k),
          gather_id_RxJ=c[:, None],
          embed_VxD=u,
        )
      )
      .lower(
        *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes),
        jax.ShapeDtypeStruct((rows,), jnp.int32),
        jax.ShapeDtypeStruct((rows, 2), jnp.uint32),
      )
      .compile()
    )
    return compiled.memory_analysis().temp_size_in_bytes

  for rows in (512, 2048):
    small, large = (temporaries("xla", rows, vocab) for vocab in (8192, 65_536))
    assert large - small < 4 * 65_536, (rows, small, large)
    tile = 4 * rows * max(512, (1 << 20) // rows)
    assert large < 8 * tile, (rows, large)
  # The reference does grow, so this test can fail.
  assert temporaries("reference", 512, 65_536) >= 4 * 512 * 65_536
