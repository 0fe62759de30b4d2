"""What only the TPU kernel has: tiles in an order, sizes of them, and what it leaves to others."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas.token_stats import IMPLEMENTATIONS, Inputs, StatSpec, token_stats, tpu
from kernels_pallas.vocabulary import Held
from tests.kernels_pallas import races

SPEC = StatSpec(top2=True, entropy=True, current=True, temperature=1.0)


def run(implementation):
  hidden_RxD = jax.random.normal(jax.random.key(0), (20, 8))
  unembed_VxD = jax.random.normal(jax.random.key(1), (40, 8))
  key_data_Rx2 = jax.random.key_data(jax.random.split(jax.random.key(2), 20))
  inputs = Inputs(key_data_Rx2=key_data_Rx2, current_R=jnp.arange(20))
  return implementation(hidden_RxD, unembed_VxD, SPEC, inputs, held=Held(0, 40), soft_cap=None)


def races_of_a_run():
  """Two cores share three tiles of rows; each tile of rows meets three tiles of ids."""
  return races.seen(lambda: run(functools.partial(IMPLEMENTATIONS["tpu"], tile=(8, 16))))


def test_tiles_do_not_race():
  stats, raced = races_of_a_run()
  assert raced == [False]
  expected = vars(run(IMPLEMENTATIONS["reference"]))
  for name, value in expected.items():
    if value is not None:
      np.testing.assert_allclose(getattr(stats, name), value, rtol=1e-5, atol=4e-6, err_msg=name)


def test_tiles_of_ids_in_any_order_would_race(monkeypatch):
  """The check above can fail."""
  params = functools.partial(pltpu.CompilerParams, dimension_semantics=("parallel", "parallel"))
  monkeypatch.setattr(
    tpu.pltpu, "CompilerParams", lambda *, dimension_semantics, **others: params(**others)
  )
  assert races_of_a_run()[1] == [True]


@pytest.mark.parametrize(
  "spec,match",
  [
    (StatSpec(temperature=1.0, top_k=1), "top-k and top-p cut"),
    (StatSpec(confidence="shaped", top_p=0.9), "top-k and top-p cut"),
    (StatSpec(soft=True), "averages no embeddings"),
  ],
  ids=str,
)
def test_what_is_left_to_others(spec, match):
  call = functools.partial(
    token_stats,
    jnp.ones((2, 4)),
    jnp.ones((5, 4)),
    spec,
    key_R=jax.random.split(jax.random.key(0), 2),
    embed_VxD=jnp.ones((5, 3)),
  )
  with pytest.raises(NotImplementedError, match=match):
    call(implementation="tpu")
