"""What training makes of what routers tell: their losses, numbers for the log, an even load.

Where a loss takes several forwards, losses and numbers are means over them and loads are summed.
"""

import jax
import jax.numpy as jnp

from dlm.models.moe.config import MoeConfig
from dlm.models.moe.router_losses import updated_bias
from dlm.types import Array, Aux, LossSum, Params


def penalised(loss: LossSum, aux: Aux) -> Array:
  """The total to take the gradient of: each layer's router losses weigh as the mean loss does.

  Balance is that of the rows at hand, those of a microbatch on a device.
  """
  if not _routed(aux):
    return loss.total
  return loss.total + _mean("router_loss_Y", aux).sum() * loss.count


def described(loss: LossSum, aux: Aux) -> LossSum:
  """The loss, unchanged, with the routers' numbers among its metrics.

  Names follow "router/": load, tokens of the busiest expert over the mean; unchosen, share of
  tokens without an expert; dropped, share of pairs that capacity drops; per_token, experts of a
  token; z_loss and balance_loss without their coefficients. Means over layers; load and unchosen
  also of the worst layer, "..._worst".
  """
  if not _routed(aux):
    return loss
  load_YxE = _mean("load_YxE", aux)
  load_Y = load_YxE.max(1) / jnp.maximum(load_YxE.mean(1), 1e-9)
  unchosen_Y = _mean("unchosen_Y", aux)
  told = {"load": load_Y.mean(), "load_worst": load_Y.max()}
  told |= {"unchosen": unchosen_Y.mean(), "unchosen_worst": unchosen_Y.max()}
  for name in ("dropped", "per_token", "z_loss", "balance_loss"):
    told[name] = _mean(f"{name}_Y", aux).mean()
  sums = {f"router/{name}": value * loss.count for name, value in told.items()}
  return loss.replace(metrics=loss.metrics | sums)


def load(aux: Aux) -> Array | None:
  """Tokens of each expert in all forwards, [Y, E], before any is dropped; None without experts."""
  routed = _routed(aux)
  return sum(each["load_YxE"] for each in routed) if routed else None


def _routed(aux: Aux) -> Aux:
  """Of the forwards that have routers."""
  return tuple(each for each in aux if each)


def _mean(name: str, aux: Aux) -> Array:
  routed = _routed(aux)
  return sum(each[name].astype(jnp.float32) for each in routed) / len(routed)


def balanced(moe: MoeConfig | None, params: Params, load_YxE: Array | None) -> Params:
  """The parameters, the router's bias moved against the load of a whole update if `moe` asks."""
  if moe is None or not moe.bias_rate:
    return params
  layers = params["layers"]
  router = layers["moe"]["router"]
  bias_YxE = jax.vmap(updated_bias, (0, 0, None))(router["bias"], load_YxE, moe.bias_rate)
  moved = layers["moe"] | {"router": router | {"bias": bias_YxE}}
  return params | {"layers": layers | {"moe": moved}}
