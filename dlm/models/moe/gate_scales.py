"""Factors under which gated experts add up to as much as ungated shared ones (EC-DLM).

arXiv 2604.01622. With gates g the routed sum is about ||g|| times one
expert, that of n shared ones sqrt(n) times. Means over draws of standard normal logits; the draws
are those of the authors' code, so that their checkpoints find the same factors.
"""

import functools

import numpy as np

DRAWS = 10_000
SEED = 42  # numpy's legacy generator


def _scores(random: np.random.RandomState, experts: int, score: str) -> np.ndarray:
  logits = random.randn(DRAWS, experts)
  if score == "sigmoid":
    return 1 / (1 + np.exp(-logits))
  weights = np.exp(logits - logits.max(1, keepdims=True))
  return weights / weights.sum(1, keepdims=True)


def _factor(gates: np.ndarray, shared: int) -> float:
  return float(np.mean(np.sqrt(shared) / np.linalg.norm(gates, axis=1)))


@functools.cache
def by_choosers(experts: int, shared: int) -> tuple[float, ...]:
  """Expert choice: the factor of a token by the number of its choosers, 0 to `experts`.

  About a second at 64 experts, a quarter of a minute at 256, over a minute at 512: there
  `MoeConfig.gate_scales` may say them instead.
  """
  random = np.random.RandomState(SEED)
  factors = [1.0]
  for choosers in range(1, experts + 1):
    score = _scores(random, experts, "softmax")[:, :choosers]
    factors.append(_factor(score / score.sum(1, keepdims=True), shared))
  return tuple(factors)


@functools.cache
def of_best(
  experts: int, per_token: int, shared: int, score: str = "softmax", *, renormalise: bool = True
) -> float:
  """Token choice: the factor of every token, from the `per_token` best scores."""
  best = np.sort(_scores(np.random.RandomState(SEED), experts, score))[:, -per_token:]
  return _factor(best / best.sum(1, keepdims=True) if renormalise else best, shared)
