"""Weighted cross-entropy of the asked tokens: the loss line that most objectives share."""

import jax
import jax.numpy as jnp

from dlm.types import Array, Aux, Denoiser, LogitHead, LossSum, Noisy, Params
from kernels_pallas.linear_xent import linear_xent
from kernels_pallas.shards import folded, unfolded

NOISE_BINS = 20


def predict(
  denoise: Denoiser, params: Params, noisy: Noisy, soft_BxWxD: Array | None = None
) -> tuple[LogitHead, Aux]:
  """One forward: the head at the inputs that predict the L targets, the noisy ones or `noisy.ask`.

  Also what the model tells besides. `soft` is added to the embeddings of the inputs.
  """
  length = noisy.targets_BxL.shape[1]
  ask_BxA = noisy.ask_BxL
  if ask_BxA is None and noisy.inputs_BxW.shape[1] != length:
    ask_BxA = jnp.broadcast_to(jnp.arange(length), noisy.targets_BxL.shape)
  output = denoise(
    params,
    noisy.inputs_BxW,
    slot_BxW=noisy.slot_BxW,
    mask=noisy.mask,
    time_BxW=noisy.time_BxW,
    soft_BxWxD=soft_BxWxD,
    ask_BxA=ask_BxA,
  )
  return output.head, (output.aux,)


def tempered(head: LogitHead, temperature: float) -> LogitHead:
  """The head whose logits are divided by the temperature."""
  cap = None if head.soft_cap is None else head.soft_cap / temperature
  return head.replace(hidden_BxAxD=head.hidden_BxAxD / temperature, soft_cap=cap)


def logits(head: LogitHead) -> Array:
  """Float32 [B, A, V]. For the few methods that need whole distributions: V times the memory."""
  logits_BxAxV = jnp.einsum(
    "bad,vd->bav", head.hidden_BxAxD, head.unembed_VxD, preferred_element_type=jnp.float32
  )
  if head.soft_cap is None:
    return logits_BxAxV
  return head.soft_cap * jnp.tanh(logits_BxAxV / head.soft_cap)


def cross_entropy(head: LogitHead, noisy: Noisy, forbidden: tuple[int, ...]) -> Array:
  """-log p(target) in nats, float32 [B, L], softmax without the forbidden ids; 0 where not asked.

  An asked target that is forbidden costs inf: the mask id must not occur in data.
  """
  ce_R = linear_xent(
    folded(head.hidden_BxAxD),
    head.unembed_VxD,
    folded(noisy.targets_BxL),
    forbidden=forbidden,
    soft_cap=head.soft_cap,
    implementation=head.implementation,
  )
  return jnp.where(noisy.weight_BxL > 0, unfolded(ce_R, noisy.weight_BxL.shape), 0)


def loss_sum(noisy: Noisy, loss_BxL: Array, ce_BxL: Array) -> LossSum:
  """Sums a loss over the batch, with what a log needs.

  Metrics (sums, divided by `count` like the total): "masked" the number of asked tokens, "ce"
  their unweighted cross-entropy, and both by noise level, "masked_at_noise/i" and "ce_at_noise/i"
  for levels in [i/20, (i+1)/20). Hence ce / masked is the mean cross-entropy of a masked token,
  however often the two were divided.
  """
  asked_BxL = noisy.weight_BxL > 0
  level_BxL = noisy.time_BxW[:, : asked_BxL.shape[1]]
  bin_BxL = jnp.clip((level_BxL * NOISE_BINS).astype(jnp.int32), 0, NOISE_BINS - 1)

  def by_noise(x_BxL: Array) -> Array:
    return jax.ops.segment_sum(x_BxL.ravel(), bin_BxL.ravel(), num_segments=NOISE_BINS)

  masked_N = by_noise(asked_BxL.astype(jnp.float32))
  ce_N = by_noise(ce_BxL)
  metrics = {"masked": masked_N.sum(), "ce": ce_N.sum()}
  for i in range(NOISE_BINS):
    metrics[f"masked_at_noise/{i}"] = masked_N[i]
    metrics[f"ce_at_noise/{i}"] = ce_N[i]
  return LossSum(total=loss_BxL.sum(), count=noisy.count_B.sum(), metrics=metrics)
