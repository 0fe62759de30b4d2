"""The least that writing tokens together must cost: exact optima over all orders of a known law.

A schedule says, before it draws, which slots the next forward writes; their tokens are drawn each
from its exact conditional. What that loses is the total correlation of slots written together
(ParallelBench, 2510.04767, theorems 1 to 3). A policy that looks at what it drew before it writes,
or takes tokens back, is no schedule and may lose less.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from dlm.evaluation.laws import Law

# Prices of a forward, as shares of the highest that can matter. Each is a line of a bound, and
# between two of them the bound is too low by at most what they differ by for each forward.
PRICES = np.geomspace(1e-4, 1, 160)


Expected = Callable[[int, int, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Groups:
  """Of a set of slots: texts that agree on it."""

  of_S: np.ndarray  # each text's group
  p_S: np.ndarray  # probability of each text's group
  order_S: np.ndarray  # texts, group by group
  first_G: np.ndarray  # where each group begins among them

  def sums(self, x_PxS: np.ndarray) -> np.ndarray:
    """[P, G] sums over each group's texts."""
    return np.add.reduceat(x_PxS[:, self.order_S], self.first_G, axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class Limits:
  """What schedules of a law reach; sets of slots are bits of an integer."""

  law: Law

  @functools.cached_property
  def groups(self) -> list[Groups]:
    """By set of slots."""
    strings_SxN, found = self.law.strings_SxN, []
    digits_N = self.law.vocab ** np.arange(self.law.length, dtype=np.int64)
    for slots in range(2**self.law.length):
      code_S = strings_SxN @ (digits_N * _members(slots, self.law.length))
      _, of_S = np.unique(code_S, return_inverse=True)
      order_S = np.argsort(of_S, kind="stable")
      first_G = np.flatnonzero(np.diff(of_S[order_S], prepend=-1))
      p_S = np.bincount(of_S, self.law.p_S)[of_S]
      found.append(Groups(of_S, p_S, order_S, first_G))
    return found

  @functools.cached_property
  def _log_p_MxS(self) -> np.ndarray:
    return np.log2([group.p_S for group in self.groups])

  def lost_bits(self, known: int, new: int) -> np.ndarray:
    """[S] log2 of joint over product of the conditionals of `new` given `known`, at each text."""
    slots = [i for i in range(self.law.length) if new >> i & 1]
    each_KxS = self._log_p_MxS[[known | 1 << i for i in slots]]
    joint_S = self._log_p_MxS[known | new]
    return joint_S - each_KxS.sum(0) + (len(slots) - 1) * self._log_p_MxS[known]

  def schedule_bits(self, sets: list[list[int]]) -> float:
    """KL in bits of the schedule that writes these sets of slots, a forward each, in this order."""
    if sorted(slot for each in sets for slot in each) != [*range(self.law.length)]:
      raise ValueError(f"schedule_bits: {sets=} must name all {self.law.length} slots, each once")
    known, bits = 0, 0.0
    for each in sets:
      new = sum(1 << slot for slot in each)
      bits += float(self.law.p_S @ self.lost_bits(known, new))
      known |= new
    return bits

  @functools.cached_property
  def static_bits(self) -> np.ndarray:
    """[N] fewest bits lost in 1, 2, ... forwards by a schedule that is the same for all texts."""
    n = self.law.length
    best_MxT = np.full((2**n, n + 1), np.inf)
    best_MxT[-1] = 0
    for known in range(2**n - 2, -1, -1):
      for new in _subsets(2**n - 1 - known):
        bits = self.law.p_S @ self.lost_bits(known, new)
        rest_T = bits + best_MxT[known | new, :-1]
        best_MxT[known, 1:] = np.minimum(best_MxT[known, 1:], rest_T)
    return np.maximum(best_MxT[0, 1:], 0)

  def least_bits(self, forwards: float) -> float:
    """Fewest bits lost at so many forwards, a mean over the law's texts.

    The optimum over schedules that go by what is written, and over mixtures of them.
    """
    price_P = PRICES * self._at_once
    return max(0.0, float((self._bits_P - price_P * forwards).max()))

  def most_valid(self, forwards: float) -> float:
    """Largest share of texts that are the law's, at so many forwards, a mean over what is written.

    Over the same schedules; a row that has left the law is finished by its next forward.
    """
    return min(1.0, float((PRICES * forwards - self._valid_P).min()))

  @functools.cached_property
  def _at_once(self) -> float:
    """Bits that one forward loses: no forward saves more."""
    return float(self.law.p_S @ self.lost_bits(0, 2**self.law.length - 1))

  @functools.cached_property
  def _bits_P(self) -> np.ndarray:
    """[P] the least of bits + price * forwards."""

    def expected(known: int, new: int, rest_PxS: np.ndarray) -> np.ndarray:
      here = self.groups[known]
      p_S = self.law.p_S / here.p_S
      return here.sums(p_S * (self.lost_bits(known, new) + rest_PxS))

    return self._least(expected, PRICES * self._at_once, last=0.0)

  @functools.cached_property
  def _valid_P(self) -> np.ndarray:
    """[P] the least of price * forwards - share of valid texts."""

    def expected(known: int, new: int, rest_PxS: np.ndarray) -> np.ndarray:
      here = self.groups[known]
      # Texts are drawn with the product of their conditionals, not as the law does.
      drawn_S = np.exp2(-self.lost_bits(known, new)) * self.law.p_S / here.p_S
      lost_G = 1 - here.sums(drawn_S[None, :])
      unfinished = known | new != 2**self.law.length - 1
      return here.sums(drawn_S * rest_PxS) + PRICES[:, None] * lost_G * unfinished

    return self._least(expected, PRICES, last=-1.0)

  def _least(self, expected: Expected, price_P: np.ndarray, last: float) -> np.ndarray:
    """[P] of the empty canvas: price plus expectation, the least over sets, from the end back."""
    whole = 2**self.law.length - 1
    value: dict[int, np.ndarray] = {
      whole: np.full((len(PRICES), len(self.groups[whole].first_G)), last)
    }
    for known in range(whole - 1, -1, -1):
      best_PxG = np.inf
      for new in _subsets(whole - known):
        then = known | new
        rest_PxS = value[then][:, self.groups[then].of_S]
        best_PxG = np.minimum(best_PxG, price_P[:, None] + expected(known, new, rest_PxS))
      value[known] = best_PxG
    return value[0][:, 0]


def _members(slots: int, n: int) -> np.ndarray:
  return np.array([slots >> i & 1 for i in range(n)], np.int64)


def _subsets(slots: int) -> list[int]:
  """All but the empty one."""
  found, each = [], slots
  while each:
    found.append(each)
    each = (each - 1) & slots
  return found
