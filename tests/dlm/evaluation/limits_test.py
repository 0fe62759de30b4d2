"""Optima of schedules: closed forms, and brute force over every schedule of tiny laws."""

import functools
import itertools

import numpy as np
import pytest

from dlm.evaluation import laws, parallelism
from dlm.evaluation.limits import Limits

NEAR = functools.partial(pytest.approx, abs=1e-6)
ODD = laws.Law("odd", "p grows", laws.chain(3).strings_SxN, np.arange(1, 9) / 36)


def blocks(n, k):
  return [[*range(n)][i : i + k] for i in range(0, n, k)]


@pytest.mark.parametrize(
  ("law", "sets", "bits"),
  [
    (laws.chain(8), blocks(8, 8), 3.7170308),
    (laws.chain(8), [[0, 2, 4, 6], [1, 3, 5, 7]], 0.9597689),
    (laws.chain(8), blocks(8, 4), 2.5430766),
    (laws.chain(8), blocks(8, 2), 1.1642488),
    (laws.chain(7, 0.2), [[3], [1, 5], [0, 2, 4, 6]], 0),
    (laws.replace(8), blocks(8, 2), 0.373441),
    (laws.replace(8), blocks(8, 3), 0.484309),
    (laws.replace(8), blocks(8, 8), 1.348516),
    (laws.parity(8), blocks(8, 4), 1),
    (laws.parity(8), [[*range(7)], [7]], 0),
    (laws.copy(8), [[0, 1, 2, 3], [4, 5, 6, 7]], 0),
    (laws.copy(8), blocks(8, 8), 4 * np.log2(3)),
    *((laws.shuffle(5), blocks(5, k), parallelism.shuffle_bits(5, k)) for k in range(1, 6)),
  ],
)
def test_bits_of_schedules(law, sets, bits):
  assert Limits(law).schedule_bits(sets) == NEAR(bits)


def partitions(slots):
  """Every order of every way to cut `slots` into sets."""
  if not slots:
    yield []
  for size in range(1, len(slots) + 1):
    for first in itertools.combinations(slots, size):
      rest = [slot for slot in slots if slot not in first]
      yield from ([[*first], *others] for others in partitions(rest))


@pytest.mark.parametrize(
  "law",
  [laws.chain(4), laws.replace(4), laws.shuffle(3), laws.brackets(4)],
  ids=lambda law: law.name,
)
def test_the_best_fixed_schedule_is_the_best_of_all(law):
  limits, n = Limits(law), law.length
  tried = [(len(sets), limits.schedule_bits(sets)) for sets in partitions(range(n))]
  for forwards in range(1, n + 1):
    best = min(bits for count, bits in tried if count <= forwards)
    assert limits.static_bits[forwards - 1] == NEAR(best)
    assert limits.least_bits(forwards) <= best + 1e-9


def trees(law, known):
  """(bits, forwards over the law, valid, forwards as written) of every schedule from here on."""
  n = law.length
  here = [(s, p) for s, p in zip(law.strings_SxN, law.p_S, strict=True)
          if all(s[i] == v for i, v in known.items())]  # fmt: skip
  rest = [i for i in range(n) if i not in known]
  if not rest:
    return [(0.0, 0.0, 1.0, 0.0)]
  mass, found = sum(p for _, p in here), []
  for size in range(1, len(rest) + 1):
    for new in itertools.combinations(rest, size):
      outcomes = sorted({tuple(s[i] for i in new) for s, _ in here})
      joint = [sum(p for s, p in here if tuple(s[i] for i in new) == o) / mass for o in outcomes]
      drawn = [
        np.prod([sum(p for s, p in here if s[i] == v) / mass for i, v in zip(new, o, strict=True)])
        for o in outcomes
      ]
      bits = sum(p * np.log2(p / q) for p, q in zip(joint, drawn, strict=True))
      dead = (1 - sum(drawn)) * (size < len(rest))
      later = [trees(law, known | dict(zip(new, o, strict=True))) for o in outcomes]
      for chosen in itertools.product(*later):
        found.append((
          bits + sum(p * each[0] for p, each in zip(joint, chosen, strict=True)),
          1 + sum(p * each[1] for p, each in zip(joint, chosen, strict=True)),
          sum(q * each[2] for q, each in zip(drawn, chosen, strict=True)),
          1 + dead + sum(q * each[3] for q, each in zip(drawn, chosen, strict=True)),
        ))  # fmt: skip
  return found


def envelope(points, forwards):
  """The least value of mixtures of two points at so many forwards."""
  found = []
  for (x, y), (more, z) in itertools.product(points, repeat=2):
    if x <= forwards <= more and x < more:
      found.append(y + (z - y) * (forwards - x) / (more - x))
  return min(found)


@pytest.mark.parametrize(
  "law", [laws.replace(3), laws.shuffle(3), laws.chain(3), ODD], ids=lambda law: law.name
)
def test_schedules_that_go_by_what_is_written(law):
  """Bounds by prices lie below the best mixture of any two trees, by no more than their grid."""
  limits, every = Limits(law), sorted(set(trees(law, {})))
  bits = sorted({(forwards, bits) for bits, forwards, _, _ in every})
  wrong = sorted({(forwards, -valid) for _, _, valid, forwards in every})
  for forwards in (1.0, 1.3, 2.0, 2.6, 3.0):
    best, found = envelope(bits, forwards), limits.least_bits(forwards)
    assert best - 0.02 * limits.static_bits[0] < found + 1e-9 and found <= best + 1e-9
    best, found = -envelope(wrong, forwards), limits.most_valid(forwards)
    assert best - 1e-9 <= found < best + 0.01


def test_going_by_what_is_written_pays():
  """Once the new item of `replace` is found, all else is free."""
  limits = Limits(laws.replace(5))
  assert limits.least_bits(2) < limits.static_bits[1] - 0.02
  assert Limits(laws.independent(4)).least_bits(1) == NEAR(0)


def test_a_schedule_must_name_every_slot():
  with pytest.raises(ValueError, match="must name all 4 slots, each once"):
    Limits(laws.chain(4)).schedule_bits([[0, 1], [2]])
