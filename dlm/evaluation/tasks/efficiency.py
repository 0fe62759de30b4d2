"""How fast programs that a model wrote are, beside a reference: ENAMEL's efficiency and eff@k."""

import functools
import itertools
import math
import statistics
from collections.abc import Sequence

from dlm.rewards import bounded

REPEATS = 6  # runs of a program
ALLOWED = 2.0  # times the reference's time, after which a program is worth nothing


def eff_at_k(scores: Sequence[float], k: int) -> float:
  """ENAMEL (2406.06647): the expected best efficiency of `k` drawn from all samples, unbiased.

  Sorted from the least on, the r-th is the best of a draw in C(r - 1, k - 1) of C(n, k) draws.
  """
  n = len(scores)
  if not 1 <= k <= n:
    raise ValueError(f"eff_at_k: {k=} must lie in 1..{n=}")
  ranked = enumerate(sorted(scores), start=1)
  return sum(math.comb(r - 1, k - 1) * score for r, score in ranked) / math.comb(n, k)


def typical(seconds: Sequence[float]) -> float:
  """Hodges and Lehmann's estimate: the median of the means of all pairs, each with itself too."""
  pairs = itertools.combinations_with_replacement(seconds, 2)
  return statistics.median((a + b) / 2 for a, b in pairs)


def efficiency(seconds: float | None, reference: float) -> float:
  """Of a program that took so long; None: it did not pass.

  1: as fast as the reference, above: faster. It falls linearly to 0 at ALLOWED times its time. This
  is ENAMEL's score of one level of tests.
  """
  if not reference > 0:
    raise ValueError(f"efficiency: {reference=} must be positive seconds")
  if seconds is None:
    return 0.0
  limit = ALLOWED * reference
  return max(0.0, limit - seconds) / (limit - reference)


def timed(program: str) -> float | None:
  """Typical processor seconds of a program that holds its own tests; None: it does not pass."""
  found = []
  for _ in range(REPEATS):
    took = bounded.seconds_of(program)
    if took is None:
      return None
    found.append(took)
  return typical(found)


def beside(program: str, reference: str) -> float:
  """Efficiency of a program next to a reference with the same tests, which must pass them."""
  took = _reference(reference)
  if took is None:
    raise ValueError("efficiency: the reference program does not pass its own tests")
  return efficiency(timed(program), took)


_reference = functools.lru_cache(maxsize=None)(timed)
