"""Routers in training: losses in the gradient, numbers in the log, a load that evens."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import build, checkpoint, train
from dlm.models.moe import training
from dlm.optimizer import trained
from dlm.train import Step
from dlm.types import Batch

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


def batch_of(step):
  return Batch(*map(jnp.asarray, step.training.rows[0]))


def updated(step):
  """The state before the first update, that after it, and the loss in between."""
  before = step.init()
  state, loss, _ = step.update(jax.tree.map(jnp.copy, before), batch_of(step))
  return before, state, loss


def told_of(loss):
  return {name: float(value / loss.count) for name, value in loss.metrics.items()}


def aux_of(step, params):
  """What the routers tell of the whole first batch."""
  noisy = step.corrupt("train", batch_of(step), jnp.int32(0), params)
  inputs = {"slot_BxW": noisy.slot_BxW, "mask": noisy.mask, "time_BxW": noisy.time_BxW}
  return step.training.model(params, noisy.inputs_BxW, **inputs).aux


DESCENT = {"name": "sgd", "lr": 1.0, "clip": None}  # what it changes is the gradient


def test_router_losses_are_in_the_gradient_and_not_in_the_loss():
  moe = {"dense_layers": 1, "z_loss": 0.1, "balance_loss": 0.2}
  step = step_of(moe, optimizer=DESCENT)
  before, state, loss = updated(step)
  _, plain, plain_loss = updated(step_of({"dense_layers": 1}, optimizer=DESCENT))
  np.testing.assert_array_equal(loss.total, plain_loss.total)

  def penalty(params):
    aux = aux_of(step, params)
    return (0.1 * aux["z_loss_Y"] + 0.2 * aux["balance_loss_Y"]).sum(), aux

  want, aux = jax.jit(jax.grad(penalty, has_aux=True))(before.params)
  jax.tree.map(
    lambda a, b, c: np.testing.assert_allclose(b - a, c, rtol=1e-3, atol=1e-5),
    state.params, plain.params, want,
  )  # fmt: skip
  assert jnp.linalg.norm(want["layers"]["moe"]["router"]["kernel"]) > 1e-3
  told = told_of(loss)
  load_YxE = np.asarray(aux["load_YxE"], float)
  busiest_Y = load_YxE.max(1) / load_YxE.mean(1)
  for name, value in {
    "load": busiest_Y.mean(), "load_worst": busiest_Y.max(), "unchosen": 0, "unchosen_worst": 0,
    "dropped": 0, "per_token": 2, "z_loss": aux["z_loss_Y"].mean(),
    "balance_loss": aux["balance_loss_Y"].mean(),
  }.items():  # fmt: skip
    assert told[f"router/{name}"] == pytest.approx(float(value), rel=1e-5), name


def test_experts_that_choose_have_an_even_load_and_may_leave_tokens_out():
  step = step_of({"choice": "expert", "schedule": "linear_reverse", "per_token_range": (1, 3)})
  *_, loss = updated(step)
  told = told_of(loss)
  assert told["router/load"] == told["router/load_worst"] == pytest.approx(1.0)
  assert told["router/unchosen"] > 0 and told["router/per_token"] == pytest.approx(2, abs=0.3)


def test_a_model_without_experts_is_told_nothing():
  *_, loss = updated(step_of())
  assert loss.metrics and not [name for name in loss.metrics if name.startswith("router/")]


def test_a_loss_of_two_forwards_is_told_by_both():
  """Numbers are means of them, loads their sums: D3PM asks of the noisy text and of the clean."""
  step = step_of({}, objective={"name": "d3pm"})
  params, objective, model = step.init().params, step.training.objective, step.training.model

  @jax.jit
  def both(params):
    noisy = step.corrupt("train", batch_of(step), jnp.int32(0), params)
    loss, aux = objective.loss(model, params, noisy)
    one, two = (training.described(loss, (each,)).metrics["router/z_loss"] for each in aux)
    mean = training.described(loss, aux).metrics["router/z_loss"]
    loads = [training.load((each,)) for each in aux]
    return one, two, mean, loads, training.load(aux)

  one, two, mean, loads, load = both(params)
  assert one != two and float(mean) == pytest.approx(float(one + two) / 2, rel=1e-6)
  np.testing.assert_array_equal(load, loads[0] + loads[1])


BIASED = {"bias": True, "bias_rate": 0.1, "score": "sigmoid"}


def bias_of(params):
  return np.asarray(params["layers"]["moe"]["router"]["bias"])


def test_bias_moves_against_the_load_of_the_whole_update():
  step = step_of(BIASED, microbatches=2)
  before, state, _ = updated(step)
  aux = jax.jit(functools.partial(aux_of, step))(before.params)
  load = np.asarray(aux["load_YxE"], float)
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
  before, kernel = np.array(router["bias"]), np.array(router["kernel"])
  own = trained(step.training.run.optimizer, state.params)
  assert own["layers"]["moe"]["router"]["bias"] is None
  state, *_ = step.update(state, batch_of(step))
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
