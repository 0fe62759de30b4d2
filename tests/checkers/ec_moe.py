"""Routing, capacities, losses and a whole layer of experts, against EC-DLM's authors' code.

Recorded arrays are sequence-first: token s of sample b is row s * B + b, and a sample is a pool.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dlm.models import ModelConfig, MoeConfig
from dlm.models.moe import capacity, expert_choice, gate_scales, router_losses
from dlm.models.moe.layer import Moe
from dlm.models.moe.token_choice import capacity as token_capacity
from dlm.models.moe.token_choice import drop_rank, keep, token_choice
from tests.checkers.objectives import Case, largest

BF16_ULP = 2**-7  # relative, at most


def close(got, want, rtol=1e-5, atol=1e-5):
  atol *= largest(want)
  np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=rtol, atol=atol)


def same(got, want):
  np.testing.assert_array_equal(np.asarray(got), want)


def scaling(case: Case, experts: int) -> dict:
  """Of the routing methods: their factors as fields of MoeConfig."""
  factors, shared, constant = case.arg("scaling"), case.arg("n_shared"), case.arg("const_scale")
  fields = {"scale": constant or 1.0}
  if factors == "auto":
    return fields | {"match_shared": True, "shared": shared}
  return fields if factors is None else fields | {"gate_scales": tuple(factors)}


def routed(case: Case, gates_and_map, logits) -> None:
  """Gates and map [T, E] of `gates_and_map(logits)`, and the gradient."""
  dtype = jnp.dtype(case.arg("dtype"))
  logits = jnp.asarray(logits, dtype)

  def total(logits):
    gates, is_chosen, facts = gates_and_map(logits)
    return (gates * case.inputs["cotangent"]).sum(), (gates, is_chosen, facts)

  run = jax.jit(jax.value_and_grad(total, has_aux=True))
  (_, (gates, is_chosen, facts)), grad_logits = run(logits)
  same(is_chosen, case.outputs["map"])
  if dtype == jnp.float32:
    close(gates, case.outputs["gates"])
    close(grad_logits, case.outputs["grad_logits"])
  else:
    close(gates, case.outputs["gates"], rtol=BF16_ULP, atol=0)
  for name, fact in facts.items():
    same(fact, case.outputs[name])


def capacity_schedule(case: Case):
  experts, ends = case.arg("num_experts"), (case.arg("kmin"), case.arg("kmax"))
  moe = MoeConfig(
    experts, 1, 1, choice="expert", schedule=case.arg("scheduler"), per_token_range=ends,
    sigma=case.arg("sigma"),
  )  # fmt: skip
  k = capacity.per_token(moe, jnp.asarray(case.inputs["mask_ratio"]))
  same(k, case.outputs["k"])
  length = jnp.full(k.shape, case.arg("seq_len"))
  same(capacity.tokens_per_expert(k, length, experts), case.outputs["c"])


def ec_route(case: Case):
  experts = case.arg("num_experts")
  moe = MoeConfig(
    experts, case.arg("topk"), 1, choice="expert", score=case.arg("activation"),
    renormalise=not case.arg("pre_softmax"), **scaling(case, experts),
  )  # fmt: skip
  length, batch, _ = case.inputs["logits"].shape
  k_B = case.arg("dynamic_topk") or [moe.per_token] * batch
  one_pool = case.arg("batch_level")
  k_P = jnp.array([max(k_B)] if one_pool else k_B)
  size = length * batch if one_pool else length
  count_P = capacity.tokens_per_expert(k_P, jnp.full(k_P.shape, size), experts)
  places, used = int(count_P.max()), int(count_P.sum())

  def gates_and_map(logits_SxBxE):
    cut = (1, size, experts) if one_pool else (length, batch, experts)
    logits_PxSxE = logits_SxBxE.reshape(cut)
    logits_PxSxE = logits_PxSxE if one_pool else logits_PxSxE.swapaxes(0, 1)
    live_PxS = jnp.ones(logits_PxSxE.shape[:2], bool)
    choice = expert_choice.choose(moe, logits_PxSxE, live_PxS, count_P, places)
    first_P = jnp.arange(len(k_P)) * size
    slots = expert_choice.pack(choice, count_P, first_P, used)
    expert = jnp.arange(experts)[:, None]

    def recorded(x_ExC):
      x_TxE = (
        jnp.zeros((length * batch, experts), x_ExC.dtype).at[slots.token_ExC, expert].add(x_ExC)
      )
      return x_TxE if one_pool else in_order(x_TxE, batch)

    is_chosen = recorded(jnp.ones_like(slots.token_ExC))
    per_sample = is_chosen.reshape(length, batch, experts).sum(0)
    facts = {"experts_per_token": is_chosen.sum(1), "tokens_per_sample_expert": per_sample}
    choosers = choice.choosers_PxS.reshape(-1, 1)
    same_count = (choosers if one_pool else in_order(choosers, batch))[:, 0] == is_chosen.sum(1)
    return recorded(slots.gates_ExC), (is_chosen == 1) & same_count[:, None], facts

  routed(case, gates_and_map, case.inputs["logits"])


def in_order(x_TxE, batch: int):
  """Rows sample by sample -> sequence-first."""
  return x_TxE.reshape(batch, -1, x_TxE.shape[-1]).swapaxes(0, 1).reshape(x_TxE.shape)


def gates_of_tokens(moe: MoeConfig, logits_TxE, bias_E=None):
  """Gates and map [T, E] after dropping, and the load before."""
  tokens, experts = logits_TxE.shape
  chosen_TxK, weight_TxK = token_choice(moe, logits_TxE, bias_E)
  token_Tx1 = jnp.arange(tokens)[:, None]
  load_E = jnp.bincount(chosen_TxK.ravel(), length=experts)
  nothing_TxE = jnp.zeros((tokens, experts))
  if not moe.capacity_factor:
    is_chosen = nothing_TxE.astype(bool).at[token_Tx1, chosen_TxK].set(True)
    return nothing_TxE.at[token_Tx1, chosen_TxK].set(weight_TxK.astype(float)), is_chosen, load_E
  rank_TxK = drop_rank(moe, logits_TxE, bias_E, chosen_TxK, weight_TxK)
  places = min(token_capacity(chosen_TxK.size, experts, moe.capacity_factor), tokens)
  slots, kept_TxK = keep(chosen_TxK, weight_TxK, rank_TxK, jnp.ones(tokens, bool), experts, places)
  is_chosen = nothing_TxE.astype(bool).at[token_Tx1, chosen_TxK].set(kept_TxK)
  gates_TxE = nothing_TxE.at[slots.token_ExC, jnp.arange(experts)[:, None]].set(slots.gates_ExC)
  return gates_TxE, is_chosen, load_E


def tc_route(case: Case):
  experts, factor = case.arg("num_experts"), case.arg("capacity_factor")
  assert not case.arg("pad_to_capacity")
  moe = MoeConfig(
    experts, case.arg("topk"), 1, renormalise=not case.arg("pre_softmax"),
    capacity_factor=factor or 0, **scaling(case, experts),
  )  # fmt: skip

  def gates_and_map(logits_TxE):
    gates_TxE, is_chosen, load_E = gates_of_tokens(moe, logits_TxE)
    return gates_TxE, is_chosen, {"tokens_per_expert_before_drop": load_E}

  routed(case, gates_and_map, case.inputs["logits"])
  if "capacity" in case.expected:
    pairs = len(case.inputs["logits"]) * moe.per_token
    assert token_capacity(pairs, experts, factor) == case.expected["capacity"]


def capacity_tc(case: Case):
  got = [token_capacity(*row) for row in case.arg("tokens_experts_factor")]
  assert got == case.expected["capacity"]


def loss_and_gradient(case: Case, loss, name: str) -> None:
  logits_TxE = jnp.asarray(case.inputs["logits"])
  value, grad_logits = jax.value_and_grad(loss)(logits_TxE)
  coefficient = case.arg("coeff")
  close(coefficient * value, case.expected[name])
  close(coefficient * grad_logits, case.outputs["grad_logits"])
  if f"{name}_unscaled" in case.expected:
    close(value, case.expected[f"{name}_unscaled"])


def everywhere(logits_TxE):
  return jnp.ones(len(logits_TxE), bool)


def z_loss(case: Case):
  loss_and_gradient(case, lambda x: router_losses.z_loss(x, everywhere(x)), "z_loss")


def switch_aux_loss(case: Case):
  load_E, k = jnp.asarray(case.inputs["tokens_per_expert"]), case.arg("topk")
  loss_and_gradient(
    case, lambda x: router_losses.token_balance(x, load_E, k, everywhere(x)), "aux_loss"
  )


def ec_aux_loss(case: Case):
  choosers_T, k = jnp.asarray(case.inputs["experts_per_token"]), case.arg("topk")
  loss_and_gradient(
    case, lambda x: router_losses.expert_balance(x, choosers_T, k, everywhere(x)), "aux_loss"
  )


def scaling_factors_ec(case: Case):
  assert case.arg("num_samples") == gate_scales.DRAWS
  table = gate_scales.by_choosers(case.arg("num_experts"), case.arg("n_shared"))
  close(table, case.outputs["table"], rtol=1e-6, atol=0)


def scaling_factor_tc(case: Case):
  assert case.arg("num_samples") == gate_scales.DRAWS
  factor = gate_scales.of_best(
    case.arg("num_experts"), case.arg("topk"), case.arg("n_shared"), case.arg("act"),
    renormalise=case.arg("renorm"),
  )  # fmt: skip
  close(factor, case.expected["factor"], rtol=1e-6, atol=0)


def loss_free_bias(case: Case):
  """Shared experts and pre-softmax say nothing here: gates are scores over all experts."""
  case.used.update({"n_shared", "pre_softmax"})
  experts = case.arg("num_experts")
  moe = MoeConfig(
    experts, case.arg("topk"), 1, bias=True, bias_to="logits", bias_rate=case.arg("rate"),
    capacity_factor=case.arg("capacity_factor") or 0,
  )  # fmt: skip
  steps = case.inputs["logits"]
  run = jax.jit(functools.partial(gates_of_tokens, moe))
  bias_E = jnp.zeros(experts)
  for step, micro_batches in enumerate(steps):
    load_E = 0
    for micro, logits in enumerate(micro_batches):
      gates, is_chosen, load = run(jnp.asarray(logits.reshape(-1, experts)), bias_E)
      index = step * len(micro_batches) + micro
      same(is_chosen, case.outputs["map"][index])
      close(gates, case.outputs["gates"][index])
      load_E += load
    bias_E = router_losses.updated_bias(bias_E, load_E, moe.bias_rate)
    close(bias_E, case.outputs["bias_after_step"][step], atol=1e-7)


def layer_of(case: Case) -> ModelConfig:
  mlp, shared = case.arg("ffn"), case.arg("n_shared")
  assert case.arg("scaling") in (None, "auto")
  fields = dict(
    experts=case.arg("num_experts"), per_token=case.arg("topk"), mlp=mlp, shared=shared * mlp,
    score=case.arg("activation"), z_loss=case.arg("z_coeff") or 0,
    balance_loss=case.arg("aux_coeff"),
    match_shared=case.arg("scaling") == "auto",
  )  # fmt: skip
  if case.arg("kind") == "ec":
    fields |= {"choice": "expert", "renormalise": True}
    if schedule := case.arg("schedule"):
      fields |= {
        "schedule": schedule["name"],
        "per_token_range": (schedule["kmin"], schedule["kmax"]),
        "sigma": schedule.get("sigma", 0.2),
      }
  else:
    assert case.arg("balance") in ("aux_loss", "none")
    fields["renormalise"] = not case.arg("pre_softmax")
    fields["capacity_factor"] = case.arg("capacity_factor") or 0
  return ModelConfig(
    vocab=1, width=case.arg("hidden"), layers=1, heads=1, kv_heads=1, head_dim=2, mlp=1,
    moe=MoeConfig(**fields),
  )  # fmt: skip


def layer_params(inputs: dict) -> dict:
  def halves(x):  # [..., 2F, D]: gate, then up
    gate, up = jnp.split(jnp.asarray(x).mT, 2, axis=-1)
    return {"gate": {"kernel": gate}, "up": {"kernel": up}}

  params = {
    "router": {"kernel": jnp.asarray(inputs["router_weight"]).T},
    **halves(inputs["fc1"]),
    "down": {"kernel": jnp.asarray(inputs["fc2"]).mT},
  }
  if "shared_fc1" in inputs:
    down = {"down": {"kernel": jnp.asarray(inputs["shared_fc2"]).T}}
    params["shared"] = halves(inputs["shared_fc1"]) | down
  return params


def layer_log(config: ModelConfig, facts: dict, level_B, batch: int) -> dict:
  """What the authors log, by their names."""
  moe, found = config.moe, {"z_loss": facts["z_loss_Y"]}

  def spread(name: str, x):
    x = np.asarray(x, np.float64)
    found.update({f"{name}_max": x.max(), f"{name}_min": x.min(), f"{name}_mean": x.mean()})
    found[f"{name}_std"] = x.std(ddof=1)

  found["load_balancing_loss"] = facts["balance_loss_Y"]
  tokens = facts["router_logits_YxBxWxE"].size // moe.experts
  if moe.choice == "expert":
    spread("ec_experts_per_token", facts["choosers_YxBxW"])
    found["ec_token_drop_ratio"] = facts["unchosen_Y"]
    if moe.reads_noise:
      k_B = np.asarray(capacity.per_token(moe, level_B))
      spread("dynamic_topk", k_B)
      spread("dynamic_topk_compute_cost_per_sample", tokens // batch * k_B)
      found["dynamic_topk_compute_cost_ratio"] = k_B.mean() / moe.per_token
    return found
  pairs = tokens * moe.per_token
  spread("topk_expert_capacity_utilization_ratio", facts["load_YxE"] / -(-pairs // moe.experts))
  if moe.capacity_factor:
    found["topk_capacity_drop_ratio"] = facts["dropped_Y"]
    kept = facts["per_token_Y"] / moe.per_token
    found["topk_token_drop_ratio"] = 1 - kept / moe.capacity_factor
  return found


def moe_layer_forward(case: Case):
  config, train = layer_of(case), case.arg("train")
  inputs = {name: jnp.asarray(x) for name, x in case.inputs.items()}
  cotangent_BxWxD = inputs["cotangent"].swapaxes(0, 1)
  batch, window, _ = cotangent_BxWxD.shape
  level_B = inputs.get("mask_ratio", jnp.zeros(batch))

  def total(inputs):
    y_BxWxD, facts = Moe(config, 1.0).apply(
      {"params": layer_params(inputs)},
      inputs["hidden"].swapaxes(0, 1),
      jnp.ones((batch, window), bool),
      jnp.broadcast_to(level_B[:, None], (batch, window)),
    )
    added = facts["router_loss_Y"] if train else 0
    return (y_BxWxD * cotangent_BxWxD).sum() + added, (y_BxWxD, facts)

  grads, (y_BxWxD, facts) = jax.jit(jax.grad(total, has_aux=True))(inputs)
  close(y_BxWxD.swapaxes(0, 1), case.outputs["output"])
  for name, want in case.outputs.items():
    if name.startswith("grad_"):
      close(grads[name.removeprefix("grad_")], want)
  log = layer_log(config, facts, level_B, batch)
  for name, want in case.expected.get("log", {}).items():
    close(log[name], want)


METHODS = {
  "capacity_schedule": capacity_schedule,
  "ec_route": ec_route,
  "tc_route": tc_route,
  "capacity_tc": capacity_tc,
  "z_loss": z_loss,
  "switch_aux_loss": switch_aux_loss,
  "ec_aux_loss": ec_aux_loss,
  "scaling_factors_ec": scaling_factors_ec,
  "scaling_factor_tc": scaling_factor_tc,
  "loss_free_bias": loss_free_bias,
  "moe_layer_forward": moe_layer_forward,
}
