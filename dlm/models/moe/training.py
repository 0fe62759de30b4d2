"""What training asks of a model's routers, in any objective: their own losses, and an even load."""

import jax
import jax.numpy as jnp

from dlm.models.moe.config import MoeConfig
from dlm.models.moe.router_losses import updated_bias
from dlm.types import Array, Denoiser, LossSum, ModelOutput, Params


class Observed:
  """A denoiser that keeps what its routers say (`dlm.models.moe.layer`), for one trace of a loss.

  Where a loss asks the model more than once, losses and statistics are means over its calls.
  """

  def __init__(self, denoise: Denoiser):
    self._denoise = denoise
    self._facts: list[dict[str, Array]] = []
    self.width = denoise.width
    self.empty_cache = denoise.empty_cache

  def __call__(self, params: Params, tokens_BxW: Array, **inputs: object) -> ModelOutput:
    output = self._denoise(params, tokens_BxW, **inputs)
    if output.aux:
      self._facts.append(output.aux)
    return output

  def penalised(self, loss: LossSum) -> Array:
    """The total to take the gradient of: each layer's losses weigh as the mean loss does.

    Balance is that of the rows at hand, those of a microbatch on a device.
    """
    if not self._facts:
      return loss.total
    return loss.total + self._mean("router_loss_Y").sum() * loss.count

  def described(self, loss: LossSum) -> LossSum:
    """The loss, unchanged, with the routers' statistics among its metrics.

    Names follow "router/": load, tokens of the busiest expert over the mean; unchosen, share of
    tokens without an expert; dropped, share of pairs that capacity drops; per_token, experts of a
    token; z_loss and balance_loss without their coefficients. Means over layers; load and unchosen
    also of the worst layer, "..._worst".
    """
    if not self._facts:
      return loss
    load_YxE = self._mean("load_YxE")
    load_Y = load_YxE.max(1) / jnp.maximum(load_YxE.mean(1), 1e-9)
    unchosen_Y = self._mean("unchosen_Y")
    told = {"load": load_Y.mean(), "load_worst": load_Y.max()}
    told |= {"unchosen": unchosen_Y.mean(), "unchosen_worst": unchosen_Y.max()}
    for name in ("dropped", "per_token", "z_loss", "balance_loss"):
      told[name] = self._mean(f"{name}_Y").mean()
    sums = {f"router/{name}": value * loss.count for name, value in told.items()}
    return loss.replace(metrics=loss.metrics | sums)

  def load(self) -> Array | None:
    """Tokens of each expert in all calls, [Y, E], before any is dropped; None without experts."""
    return sum(facts["load_YxE"] for facts in self._facts) if self._facts else None

  def _mean(self, name: str) -> Array:
    return sum(facts[name].astype(jnp.float32) for facts in self._facts) / len(self._facts)


def balanced(moe: MoeConfig | None, params: Params, load_YxE: Array | None) -> Params:
  """The parameters, the router's bias moved against the load of a whole update if `moe` asks."""
  if moe is None or not moe.bias_rate:
    return params
  layers = params["layers"]
  router = layers["moe"]["router"]
  bias_YxE = jax.vmap(updated_bias, (0, 0, None))(router["bias"], load_YxE, moe.bias_rate)
  moved = layers["moe"] | {"router": router | {"bias": bias_YxE}}
  return params | {"layers": layers | {"moe": moved}}
