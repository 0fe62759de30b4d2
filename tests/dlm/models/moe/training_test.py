"""Routers in training: losses in the gradient, numbers in the log, a load that evens."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import build, checkpoint, train
from dlm.optimizer import trained
from dlm.train import Step
from dlm.types import Batch, LossSum

MOE = {"experts": 4, "per_token": 2, "mlp": 8}
CONFIG = {
  "seed": 0,
  "steps": 4,
  "batch": 8,
  "log_every": 2,
  "model": {"width": 16, "layers": 3, "heads": 2, "kv_heads": 1, "head_dim": 8, "mlp": 16},
  "objective": {"name": "ec_dlm", "times": "shared_offset"},
  "data": {"sources": (("lists", 1.0, (("mode", "pad"),)),), "length": 32},
  "optimizer": {"lr": 1e-2},
  "checkpoint": {"keep_best": 0},
}


def step_of(moe=None, **tables):
  config = json.loads(json.dumps(CONFIG | tables))
  if moe is not None:
    config["model"]["moe"] = MOE | moe
  return Step(build.everything(config))


def noisy_of(step):
  batch = Batch(*map(jnp.asarray, step.training.rows[0]))
  return jax.jit(lambda: step.corrupt("train", batch, jnp.int32(0)))()


def gradients(step, params, noisy):
  return jax.jit(step._over_batch(step.gradients))(params, noisy)


@pytest.fixture(scope="module")
def started():
  """Parameters of a token-choice model, and the noise that all of these runs draw."""
  step = step_of({"dense_layers": 1, "z_loss": 0.1, "balance_loss": 0.2})
  return step, step.init().params, noisy_of(step)


def norm_of_routers(grads):
  return float(jnp.linalg.norm(grads["layers"]["moe"]["router"]["kernel"]))


def test_router_losses_are_in_the_gradient_and_not_in_the_loss(started):
  step, params, noisy = started
  loss, grads, load = gradients(step, params, noisy)
  plain_loss, plain, _ = gradients(step_of({"dense_layers": 1}), params, noisy)
  np.testing.assert_array_equal(loss.total, plain_loss.total)

  @jax.jit
  def penalty(params):
    aux = step.training.model(
      params, noisy.inputs_BxW, slot_BxW=noisy.slot_BxW, mask=noisy.mask, time_BxW=noisy.time_BxW
    ).aux
    each_Y = 0.1 * aux["z_loss_Y"] + 0.2 * aux["balance_loss_Y"]
    return each_Y.sum() * noisy.count_B.sum(), aux

  want, aux = jax.grad(penalty, has_aux=True)(params)
  jax.tree.map(
    lambda a, b, c: np.testing.assert_allclose(a - b, c, rtol=1e-3, atol=2e-3), grads, plain, want
  )
  assert norm_of_routers(want) > 0.1
  np.testing.assert_array_equal(load, aux["load_YxE"])
  told = {name: value / loss.count for name, value in loss.metrics.items()}
  load_YxE = np.asarray(load, float)
  busiest_Y = load_YxE.max(1) / load_YxE.mean(1)
  for name, value in {
    "load": busiest_Y.mean(), "load_worst": busiest_Y.max(), "unchosen": 0, "unchosen_worst": 0,
    "dropped": 0, "per_token": 2, "z_loss": aux["z_loss_Y"].mean(),
    "balance_loss": aux["balance_loss_Y"].mean(),
  }.items():  # fmt: skip
    assert told[f"router/{name}"] == pytest.approx(float(value), rel=1e-5), name


def test_experts_that_choose_have_an_even_load_and_may_leave_tokens_out():
  step = step_of({"choice": "expert", "schedule": "linear_reverse", "per_token_range": (1, 3)})
  loss, _, load = gradients(step, step.init().params, noisy_of(step))
  told = {name: float(value / loss.count) for name, value in loss.metrics.items()}
  assert told["router/load"] == told["router/load_worst"] == pytest.approx(1.0)
  assert told["router/unchosen"] > 0 and told["router/per_token"] == pytest.approx(2, abs=0.3)
  assert (np.asarray(load) == np.asarray(load)[:, :1]).all()


def test_a_model_without_experts_is_told_nothing():
  step = step_of()
  loss, _, load = gradients(step, step.init().params, noisy_of(step))
  assert load is None and not [name for name in loss.metrics if name.startswith("router/")]


BIASED = {"bias": True, "bias_rate": 0.1, "score": "sigmoid"}


def bias_of(params):
  return np.asarray(params["layers"]["moe"]["router"]["bias"])


def test_bias_moves_against_the_load_of_the_whole_update():
  step = step_of(BIASED, microbatches=2)
  state, noisy = step.init(), noisy_of(step)
  _, _, whole = gradients(step_of(BIASED), state.params, noisy)
  loss, grads, load = gradients(step, state.params, noisy)
  np.testing.assert_array_equal(load, whole)
  state, *_ = jax.jit(step.apply)(state, loss, grads, load)
  load = np.asarray(load, float)
  want = 0.1 * np.sign(load.mean(1, keepdims=True) - load)
  assert (want != 0).any()
  np.testing.assert_allclose(bias_of(state.params), want, rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "lion", "sgd"])
def test_no_optimizer_moves_the_bias(name):
  """Neither by a gradient nor by decay; what the norm is of has no bias in it."""
  table = {"name": name, "lr": 0.1, "weight_decay": 0.5}
  step = step_of(BIASED | {"bias_rate": 0}, optimizer=table)
  state = step.init()
  router = state.params["layers"]["moe"]["router"]
  router["bias"] += jnp.arange(12.0).reshape(3, 4)
  before, kernel = bias_of(state.params), np.asarray(router["kernel"])
  own = trained(step.training.optimizer, state.params)
  assert own["layers"]["moe"]["router"]["bias"] is None
  loss = LossSum(jnp.float32(1), jnp.float32(1), {})
  load = jnp.arange(12).reshape(3, 4)
  state, *_ = jax.jit(step.apply)(state, loss, jax.tree.map(jnp.ones_like, own), load)
  np.testing.assert_array_equal(bias_of(state.params), before)
  assert (np.asarray(state.params["layers"]["moe"]["router"]["kernel"]) != kernel).all()


def test_a_run_evens_the_load_and_goes_on_bit_for_bit(tmp_path):
  table = {"lr": 1e-2, "ema": 0.9}
  unbroken = train.train(step_of(BIASED, optimizer=table).training, tmp_path / "unbroken")
  train.train(step_of(BIASED, optimizer=table, steps=2).training, tmp_path / "run")
  resumed = train.train(step_of(BIASED, optimizer=table).training, tmp_path / "run")
  jax.tree.map(np.testing.assert_array_equal, resumed, unbroken)
  assert bias_of(unbroken.params).any()
  records = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  assert [r["router/load"] >= 1 for r in records if "router/load" in r] == [True, True]


def test_frozen_parameters_stay_and_have_no_moments(tmp_path):
  run = step_of({}, optimizer={"lr": 0.1, "weight_decay": 0.1, "trainable": "router"})
  start = run.init()
  kept = jax.tree.map(np.asarray, start.params)
  moments = [leaf for leaf in jax.tree.leaves(start.opt_state) if leaf.ndim]
  assert [m.shape for m in moments] == 2 * [kept["layers"]["moe"]["router"]["kernel"].shape]
  end = train.train(run.training, tmp_path / "run").params
  moved = jax.tree_util.tree_leaves_with_path(
    jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), end, kept)
  )
  names = [jax.tree_util.keystr(path) for path, was_moved in moved if was_moved]
  assert names == ["['layers']['moe']['router']['kernel']"]
  saved, _ = checkpoint.restore_params(tmp_path / "run", "latest")
  jax.tree.map(np.testing.assert_array_equal, saved, end)
