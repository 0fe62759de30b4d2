"""How likely text is under a diffusion model: bounds over a corpus.

An estimator is an objective whose loss is a bound (or exact), asked for each row's sum instead of
the batch's: `ExactCount` (default: least variance), `Mdlm` or `Llada` (every token masked by
itself), the same within blocks (`ExactCount(block=...)`, `Bd3lm`), `Autoregressive` (exact).
`chain_rule` is the exact likelihood of one order of writing. Answers given a prompt:
`answer_likelihood`.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from dlm import parallel
from dlm.objectives import Objective, streams
from dlm.objectives.cross_entropy import cross_entropy, predict
from dlm.objectives.objective import informed
from dlm.types import Array, Batch, Denoiser, Params


@dataclasses.dataclass(frozen=True)
class Likelihood:
  """Nats per token with its standard error over sequences. From a bound, read it as "at most"."""

  nats_per_token: float
  standard_error: float
  tokens: int
  sequences: int
  draws: int  # of the estimator, for each sequence

  @property
  def bits_per_token(self) -> float:
    return self.nats_per_token / math.log(2)

  @property
  def perplexity(self) -> float:
    return math.exp(self.nats_per_token)


def summarise(nll_n: np.ndarray, count_n: np.ndarray, draws: int = 1) -> Likelihood:
  """Total nats over total tokens; rows without tokens are left out. Sums in float64.

  The standard error is that of a ratio of means, from the spread of nll - mean * count; it needs
  two sequences and is NaN for one.
  """
  nll_n, count_n = np.asarray(nll_n, np.float64), np.asarray(count_n, np.float64)
  nll_n, count_n = nll_n[count_n > 0], count_n[count_n > 0]
  n = len(nll_n)
  if n == 0:
    raise ValueError("no row has a token to score")
  mean = nll_n.sum() / count_n.sum()
  rest_n = nll_n - mean * count_n
  error = math.sqrt(n / (n - 1) * (rest_n**2).sum()) / count_n.sum() if n > 1 else math.nan
  return Likelihood(float(mean), error, int(count_n.sum()), n, draws)


@functools.partial(jax.jit, static_argnums=(0, 1))
def row_losses(
  estimator: Objective, denoise: Denoiser, params: Params, key: Array, batch: Batch
) -> tuple[Array, Array]:
  """One draw: nats of each row and its number of scored tokens, [B] each."""
  noisy = estimator.corrupt(key, informed(batch, params), jnp.int32(0))
  return estimator.token_losses(denoise, params, noisy).sum(-1), noisy.count_B


def nelbo(
  estimator: Objective,
  denoise: Denoiser,
  params: Params,
  batches: Iterable[Batch],
  key: Array,
  *,
  draws: int = 1,
) -> Likelihood:
  """The estimator's mean over a corpus, every sequence noised `draws` times.

  Of several processes each scores its share of the batches, and all get the mean over all.

  Raises:
    ValueError: the estimator's loss is not a likelihood (clipped windows, per-row weights, ...).
  """
  reason = estimator.not_a_likelihood()
  if reason is not None:
    raise ValueError(f"{type(estimator).__name__} is not a likelihood: {reason}")
  if draws < 1:
    raise ValueError(f"draws={draws} must be at least 1")
  own = []
  for index, batch in parallel.share(enumerate(batches)):
    key_batch = jax.random.fold_in(key, index)
    total_B = 0.0
    for draw in range(draws):
      key_draw = jax.random.fold_in(key_batch, draw)
      nll_B, count_B = row_losses(estimator, denoise, params, key_draw, batch)
      total_B = total_B + np.asarray(nll_B, np.float64)
    own.append(((total_B / draws).tolist(), np.asarray(count_B).tolist()))
  found = parallel.joined(own)
  if not found:
    raise ValueError("there is no batch to score")
  nll, count = zip(*found, strict=True)
  return summarise(np.concatenate(nll), np.concatenate(count), draws)


@functools.partial(jax.jit, static_argnames=("denoise", "mask_id", "backward"))
def chain_rule(
  denoise: Denoiser, params: Params, batch: Batch, *, mask_id: int, backward: bool = False
) -> tuple[Array, Array]:
  """Exact nats of each row, written one token at a time from left to right (or right to left).

  L forwards of the whole row: what is still to be written is masked. Also gives the number of
  tokens; `summarise` both.
  """
  noisable_BxL = streams.noisable(batch)
  length = noisable_BxL.shape[1]
  index_L = jnp.arange(length)

  def nats_of(i: Array) -> Array:
    hidden_L = index_L <= i if backward else index_L >= i
    masked_BxL = noisable_BxL & hidden_L[None]
    noisy = streams.one_stream(
      batch,
      masked_BxL=masked_BxL,
      weight_BxL=jnp.broadcast_to((index_L == i)[None], masked_BxL.shape),
      level_BxL=_share(masked_BxL, noisable_BxL),
      count_B=noisable_BxL.sum(-1),
      mask_id=mask_id,
    )
    head, _ = predict(denoise, params, noisy)
    return cross_entropy(head, noisy, (mask_id,)).sum(-1)

  return jax.lax.map(nats_of, index_L).sum(0), noisable_BxL.sum(-1)


def _share(masked_BxL: Array, noisable_BxL: Array) -> Array:
  """The masked share of each row's noisable tokens, told to every slot."""
  share_B = masked_BxL.sum(-1) / jnp.maximum(noisable_BxL.sum(-1), 1)
  return jnp.broadcast_to(share_B[:, None], masked_BxL.shape)
