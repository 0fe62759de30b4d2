import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlm import optimizer
from dlm.optimizer import OptimizerConfig


def rates(config, steps, at):
  schedule = optimizer.learning_rate(config, steps)
  return [float(schedule(step)) for step in at]


@pytest.mark.parametrize(
  ("fields", "at", "expected"),
  [
    ({}, (0, 4, 9), (1.0, 1.0, 1.0)),
    ({"warmup": 4}, (0, 1, 3, 4, 9), (0.25, 0.5, 1.0, 1.0, 1.0)),
    ({"warmup": 1}, (0, 1), (1.0, 1.0)),
    ({"schedule": "linear", "end_lr": 0.2}, (0, 5, 10), (1.0, 0.6, 0.2)),
    ({"schedule": "cosine", "end_lr": 0.2}, (0, 5, 10), (1.0, 0.6, 0.2)),
    ({"schedule": "wsd", "warmup": 2, "decay": 4}, (0, 2, 6, 8, 10), (0.5, 1.0, 1.0, 0.5, 0.0)),
    (
      {"schedule": "stages", "warmup": 2, "stages": ((4, 1.0, 1.0), (2, 0.5, 0.5), (2, 0.5, 0.0))},
      (1, 2, 5, 6, 8, 9, 10),
      (1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.0),
    ),
  ],
)
def test_learning_rate_by_update(fields, at, expected):
  np.testing.assert_allclose(rates(OptimizerConfig(lr=1.0, **fields), 10, at), expected, atol=1e-6)


def test_weight_decay_spares_norms_biases_and_embeddings():
  params = {
    "embed": jnp.ones((3, 2)),
    "layers": {
      "norm": {"scale": jnp.ones((4, 2))},
      "mlp": {"up": jnp.ones(2), "bias": jnp.ones(4)},
    },
  }
  config = OptimizerConfig(lr=1.0, weight_decay=0.5)
  update = optimizer.transformation(config, 10)
  zeros = optax.tree.zeros_like(params)
  moved, _ = update.update(zeros, update.init(params), params)
  assert moved["layers"]["mlp"]["up"].tolist() == [-0.5, -0.5]
  moved["layers"]["mlp"]["up"] *= 0
  assert optax.tree.norm(moved) == 0
  everything = OptimizerConfig(lr=1.0, weight_decay=0.5, decay_embeddings=True)
  assert optimizer.is_decayed(everything, params)["embed"]


@pytest.mark.parametrize("name", sorted(optimizer.OPTIMIZERS))
def test_every_optimizer_descends(name):
  update = optimizer.transformation(OptimizerConfig(lr=0.1, name=name), 40)
  params = {"w": jnp.array([1.0, -2.0])}
  state = update.init(params)
  for _ in range(40):
    moved, state = update.update(params, state, params)  # gradient of |w|^2 / 2
    params = optax.apply_updates(params, moved)
  assert optax.tree.norm(params) < 1.0


def test_clipping_bounds_the_global_norm():
  config = OptimizerConfig(lr=1.0, name="sgd", b1=0.0, clip=0.5)
  params = {"a": jnp.zeros(2), "b": jnp.zeros(())}
  update = optimizer.transformation(config, 10)
  gradient = {"a": jnp.array([30.0, 0.0]), "b": jnp.array(40.0)}
  moved, _ = update.update(gradient, update.init(params), params)
  np.testing.assert_allclose(moved["a"], [-0.3, 0.0], rtol=1e-6)
  np.testing.assert_allclose(moved["b"], -0.4, rtol=1e-6)


def test_average_warms_up_as_mdlm_does():
  ema, params = {"w": jnp.zeros(())}, {"w": jnp.ones((), jnp.bfloat16)}
  warm = OptimizerConfig(lr=1.0, ema=0.5)
  constant = OptimizerConfig(lr=1.0, ema=0.5, ema_warmup=False)
  first = optimizer.averaged(warm, ema, params, jnp.int32(0))["w"]
  np.testing.assert_allclose(first, 1 - 2 / 11, rtol=1e-6)
  assert first.dtype == jnp.float32
  assert optimizer.averaged(warm, ema, params, jnp.int32(100))["w"] == 0.5
  assert optimizer.averaged(constant, ema, params, jnp.int32(0))["w"] == 0.5


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"name": "adamv"}, "known: adamw, lion, sgd"),
    ({"schedule": "cos"}, "known: constant, cosine, linear, stages, wsd"),
    ({"warmup": -1}, "warmup=-1 must not be negative"),
    ({"b2": 1.0}, "must lie in"),
    ({"clip": 0.0}, "clip=0.0 must be positive"),
    ({"schedule": "wsd"}, "decay=0 must be positive"),
    ({"stages": ((1, 1.0, 1.0),)}, "goes with schedule='stages'"),
  ],
)
def test_bad_table_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    OptimizerConfig(lr=1.0, **fields)


def test_schedule_that_does_not_fit_is_refused():
  with pytest.raises(ValueError, match=r"warmup=10 .* do not fit into steps=10"):
    optimizer.learning_rate(OptimizerConfig(lr=1.0, warmup=10), 10)
