"""How likely text is under a diffusion model: bounds over a corpus, and answers given a prompt.

An estimator is an objective whose loss is a bound (or exact), asked for each row's sum instead of
the batch's: `ExactCount` (default: least variance), `Mdlm` or `Llada` (every token masked by
itself), the same within blocks (`ExactCount(block=...)`, `Bd3lm`), `Autoregressive` (exact).
`chain_rule` is the exact likelihood of one order of writing.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from dlm.objectives import Objective, streams
from dlm.objectives.cross_entropy import cross_entropy, logits, predict
from dlm.objectives.objective import informed
from dlm.types import Array, Batch, Denoiser, Noisy, Params


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

  Raises:
    ValueError: the estimator's loss is not a likelihood (clipped windows, per-row weights, ...).
  """
  reason = estimator.not_a_likelihood()
  if reason is not None:
    raise ValueError(f"{type(estimator).__name__} is not a likelihood: {reason}")
  if draws < 1:
    raise ValueError(f"draws={draws} must be at least 1")
  nll, count = [], []
  for index, batch in enumerate(batches):
    key_batch = jax.random.fold_in(key, index)
    total_B = 0.0
    for draw in range(draws):
      key_draw = jax.random.fold_in(key_batch, draw)
      nll_B, count_B = row_losses(estimator, denoise, params, key_draw, batch)
      total_B = total_B + np.asarray(nll_B, np.float64)
    nll.append(total_B / draws)
    count.append(np.asarray(count_B))
  if not nll:
    raise ValueError("there is no batch to score")
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


# ---------------------------------------------------------------------------------------------
# An answer given its prompt (LLaDA, arXiv 2502.09992, Eq. 6 and get_log_likelihood.py)


def masked_counts(first: int, length: int, batch: int, *, authors: bool = False) -> np.ndarray:
  """How many answer tokens each of `batch` copies has masked, in 1..length, from the first copy's.

  Counts go round the circle in even steps, so they are spread where independent draws cluster.
  Rounding down leaves each copy uniform on 1..length if `first` is.

  Args:
    authors: LLaDA's own rule, rounding half to even: biased where ties occur (kept for replay).
  """
  if authors:
    steps = np.round(first + np.arange(batch) * length / batch).astype(np.int64) - 1
  else:
    steps = first - 1 + np.arange(batch) * length // batch
  return steps % length + 1


@dataclasses.dataclass(frozen=True)
class AnswerScorer:
  """Scores answers (token ids) given prompts; the prompt is never masked.

  Args:
    denoise: a model whose positions all see each other.
    mask_id: id of [MASK]; an answer must not hold it.
    draws: noised copies of an answer, in rounds of `batch`; 1 is enough for one-token answers.
    batch: rows of a forward; must divide `draws`.
    cfg: weight w of unsupervised guidance, un + (w + 1)(cond - un) where `un` has the prompt
      masked (2.4); 0: off. Guidance takes a second forward and forms [batch, L, V] logits.
    align: rows are padded to a multiple of this, so that answers of many lengths share a compile.
    authors_counts: see `masked_counts`.
  """

  denoise: Denoiser
  mask_id: int
  draws: int = 128
  batch: int = 32
  cfg: float = 0.0
  align: int = 1
  authors_counts: bool = False

  def __post_init__(self):
    if min(self.draws, self.batch, self.align) < 1:
      raise ValueError(f"draws={self.draws}, batch={self.batch}, align={self.align} must be >= 1")
    if self.draws % self.batch:
      raise ValueError(f"batch={self.batch} must divide draws={self.draws}")
    if self.cfg < 0:
      raise ValueError(f"cfg={self.cfg} must not be negative (0: off)")

  def log_likelihood(
    self, params: Params, prompt: np.ndarray, answer: np.ndarray, rng: np.random.Generator
  ) -> float:
    """Estimate of log p(answer | prompt) in nats, a lower bound on average."""
    rounds, n = self.draws // self.batch, len(answer)
    first = rng.integers(1, n + 1, rounds) if n else np.ones(rounds, np.int64)
    order = rng.permuted(np.tile(np.arange(n), (rounds, self.batch, 1)), axis=-1)
    return self.log_likelihood_with(params, prompt, answer, first, order)

  def log_likelihood_with(
    self,
    params: Params,
    prompt: np.ndarray,
    answer: np.ndarray,
    first: np.ndarray,
    order: np.ndarray,
  ) -> float:
    """The same for given draws.

    Args:
      first: [rounds] the first copy's number of masked tokens in each round.
      order: [rounds, batch, len(answer)] permutations: token i of a copy is masked if its rank
        `order[..., i]` is below the copy's count.
    """
    total = 0.0
    for k, order_bxn in zip(first, order, strict=True):
      noisy = self.noisy(prompt, answer, int(k), order_bxn)
      total += float(np.asarray(_row_nats(self, params, noisy, len(prompt)), np.float64).mean())
    return -total / len(first)

  def noisy(self, prompt: np.ndarray, answer: np.ndarray, first: int, order: np.ndarray) -> Noisy:
    """One round: copies of the row with 1..n answer tokens masked, weighed by n / count."""
    n = len(answer)
    batch = self._rows(prompt, answer, len(order))
    count_b = masked_counts(first, n, len(order), authors=self.authors_counts) if n else np.ones(1)
    masked = np.zeros(batch.tokens_BxL.shape, bool)
    masked[:, len(prompt) : len(prompt) + n] = order < count_b[:, None]
    return streams.one_stream(
      batch,
      masked_BxL=jnp.asarray(masked),
      weight_BxL=jnp.broadcast_to(jnp.asarray(n / count_b, jnp.float32)[:, None], masked.shape),
      level_BxL=_share(jnp.asarray(masked), batch.noisable_BxL),
      count_B=jnp.full((len(order),), n),
      mask_id=self.mask_id,
    )

  def is_greedy(self, params: Params, prompt: np.ndarray, answer: np.ndarray) -> bool:
    """Would decoding write exactly this answer, one most confident argmax token a forward?"""
    return bool((self.greedy_states(params, prompt, len(answer))[-1] == answer).all())

  def greedy_states(self, params: Params, prompt: np.ndarray, length: int) -> np.ndarray:
    """The answer before each of its `length` forwards and after the last, [length + 1, length]."""
    batch = self._rows(prompt, np.full(length, self.mask_id), 1)
    rows = [np.asarray(batch.tokens_BxL)]
    for _ in range(length):
      rows.append(np.asarray(_greedy_step(self, params, jnp.asarray(rows[-1]), batch, len(prompt))))
    return np.concatenate(rows)[:, len(prompt) : len(prompt) + length]

  def _rows(self, prompt: np.ndarray, answer: np.ndarray, rows: int) -> Batch:
    text = np.concatenate([prompt, answer]).astype(np.int32)
    pad = -len(text) % self.align
    index = np.arange(len(text) + pad)
    is_text = index < len(text)

    def tile(row: np.ndarray) -> Array:
      return jnp.asarray(np.tile(row, (rows, 1)))

    return Batch(
      tokens_BxL=tile(np.pad(text, (0, pad))),
      noisable_BxL=tile(is_text & (index >= len(prompt))),
      segment_BxL=tile(is_text.astype(np.int32)),
      position_BxL=tile(index.astype(np.int32)),
    )

  def guided(self, params: Params, noisy: Noisy, prompt: Array) -> Array:
    """Float32 logits [B, L, V] of cond and un mixed; `prompt` is the number of prompt slots."""
    is_prompt_L = jnp.arange(noisy.inputs_BxW.shape[1]) < prompt
    without = noisy.replace(inputs_BxW=jnp.where(is_prompt_L[None], self.mask_id, noisy.inputs_BxW))
    cond, un = (logits(predict(self.denoise, params, each)[0]) for each in (noisy, without))
    return un + (self.cfg + 1) * (cond - un)


@functools.partial(jax.jit, static_argnums=0)
def _row_nats(scorer: AnswerScorer, params: Params, noisy: Noisy, prompt: Array) -> Array:
  """Weighted cross-entropy of each copy, [B]. The softmax keeps the mask id, as LLaDA's does."""
  if not scorer.cfg:
    head, _ = predict(scorer.denoise, params, noisy)
    return (noisy.weight_BxL * cross_entropy(head, noisy, ())).sum(-1)
  logp = jax.nn.log_softmax(scorer.guided(params, noisy, prompt))
  target_BxL = jnp.take_along_axis(logp, noisy.targets_BxL[..., None], axis=-1)[..., 0]
  return -jnp.where(noisy.weight_BxL > 0, noisy.weight_BxL * target_BxL, 0).sum(-1)


@functools.partial(jax.jit, static_argnums=0)
def _greedy_step(
  scorer: AnswerScorer, params: Params, tokens_1xL: Array, batch: Batch, prompt: Array
) -> Array:
  """Writes the masked answer token whose argmax is the most probable."""
  masked_1xL = batch.noisable_BxL & (tokens_1xL == scorer.mask_id)
  noisy = streams.one_stream(
    batch.replace(tokens_BxL=tokens_1xL),
    masked_BxL=masked_1xL,
    weight_BxL=masked_1xL,
    level_BxL=_share(masked_1xL, batch.noisable_BxL),
    count_B=masked_1xL.sum(-1),
    mask_id=scorer.mask_id,
  )
  if scorer.cfg:
    logits_1xLxV = scorer.guided(params, noisy, prompt)
  else:
    logits_1xLxV = logits(predict(scorer.denoise, params, noisy)[0])
  best_1xL = jax.nn.log_softmax(logits_1xLxV).max(-1)
  slot = jnp.where(masked_1xL, best_1xL, -jnp.inf).argmax(-1)[0]
  return tokens_1xL.at[0, slot].set(logits_1xLxV.argmax(-1)[0, slot])
