"""What may stand at each open slot of a row, given what stands at the others, forward by forward.

The rule, for a hole of n slots and a grammar. A token is allowed at an open slot if the grammar has
a text of n tokens that holds it there and agrees with all slots that are written: found from the
states that the slots before it reach, and those from which the slots behind it reach an end. So
whichever allowed token is written, in whatever order, the hole can still be completed; and what is
completed is a text of the grammar.

Of two tokens that are written together each is allowed, and both may not be. A hole is therefore
parted where only one state is possible. Parts in which all possible states allow the same tokens
are independent slot by slot, and any number of tokens may be written there at once. So may a token
that is the only one allowed. Of each other part a forward writes one token: its slots are a group.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dlm.sampling.state import FREE, WAITS, Held
from dlm.serving.grammars import Automaton


@dataclasses.dataclass
class Part:
  """Slots `begin .. end` of a row, and what they may say."""

  begin: int
  end: int
  grammar: Automaton


class Hold:
  """The sets of one row, as `Held` takes them.

  Attributes:
    ready: they are those of the row as it stands: it may run.
    sets_KxU, set_L, group_L: see `dlm.sampling.state.Held`.

  Args:
    holes: with a grammar each.
    row_L: the row's ids, the mask's where it is open.
    most: sets that fit; slots that need more wait, the last ones first.

  Raises:
    ValueError: names the hole whose grammar has no text of so many tokens.
  """

  def __init__(self, holes: Sequence[Part], row_L: np.ndarray, mask_id: int, most: int, vocab: int):
    self._holes, self._mask_id, self._most, self._vocab = list(holes), mask_id, most, vocab
    self._known: dict[tuple[int, bytes], np.ndarray] = {}  # words of a grammar's set of classes
    self.read(row_L)

  def read(self, row_L: np.ndarray) -> None:
    """The row now holds these ids."""
    sets: dict[tuple[int, bytes], int] = {}
    self.sets_KxU = np.zeros((self._most, -(-self._vocab // 32)), np.uint32)
    self.set_L = np.full(len(row_L), FREE, np.int32)
    self.group_L = np.zeros(len(row_L), np.int32)
    groups = 0
    for number, hole in enumerate(self._holes):
      ids_N = row_L[hole.begin : hole.end]
      open_N = ids_N == self._mask_id
      if not open_N.any():
        self.set_L[hole.begin : hole.end] = WAITS  # nothing is: it is written
        continue
      ways = _Ways(hole.grammar, np.where(open_N, -1, ids_N))
      if not ways.possible:
        raise ValueError(f"hole {number} has no text of exactly {len(ids_N)} tokens")
      loose_N, part_N = ways.loose()
      seen: dict[int, int] = {}
      for n in range(len(ids_N)):
        slot = hole.begin + n
        self.set_L[slot] = WAITS
        if not open_N[n]:
          continue
        some_C = ways.allowed(n)
        key = id(hole.grammar), some_C.tobytes()
        if key not in sets:
          if len(sets) == self._most:
            continue
          sets[key] = len(sets)
          self.sets_KxU[sets[key]] = self._words(key, hole.grammar, some_C)
        self.set_L[slot] = sets[key]
        if not loose_N[n] and hole.grammar.sizes_C[some_C].sum() > 1:
          if part_N[n] not in seen and groups == self._most:
            self.set_L[slot] = WAITS
            continue
          if part_N[n] not in seen:
            groups += 1
            seen[part_N[n]] = groups
          self.group_L[slot] = seen[part_N[n]]
    self.ready = True

  def _words(self, key: tuple[int, bytes], grammar: Automaton, some_C: np.ndarray) -> np.ndarray:
    """Bits of the ids that are in these classes."""
    if key not in self._known:
      packed = np.packbits(some_C[grammar.class_V], bitorder="little").tobytes()
      padded = packed.ljust(4 * self.sets_KxU.shape[1], b"\0")
      self._known[key] = np.frombuffer(padded, np.dtype("<u4"))
    return self._known[key]


class _Ways:
  """A hole as it stands: -1 where it is open."""

  def __init__(self, grammar: Automaton, ids_N: np.ndarray):
    self._grammar = grammar
    size, states = len(ids_N), len(grammar.ends_S)
    edges_N = [
      np.ones(grammar.class_E.size, bool)
      if token < 0
      else (grammar.class_E == grammar.class_V[token])
      for token in ids_N.tolist()
    ]
    reached = np.zeros((size + 1, states), bool)
    leads = np.zeros((size + 1, states), bool)
    reached[0, grammar.start] = True
    leads[size] = grammar.ends_S
    for n in range(size):
      reached[n + 1, grammar.target_E[edges_N[n] & reached[n][grammar.source_E]]] = True
    for n in reversed(range(size)):
      leads[n, grammar.source_E[edges_N[n] & leads[n + 1][grammar.target_E]]] = True
    self._states = reached & leads
    self._edges_N = [
      edges_N[n] & reached[n][grammar.source_E] & leads[n + 1][grammar.target_E]
      for n in range(size)
    ]

  @property
  def possible(self) -> bool:
    return bool(self._states[0].any())

  def allowed(self, n: int) -> np.ndarray:
    """Bool [C]: the classes of tokens that may stand there."""
    some_C = np.zeros(len(self._grammar.sizes_C), bool)
    some_C[self._grammar.class_E[self._edges_N[n]]] = True
    return some_C

  def loose(self) -> tuple[np.ndarray, np.ndarray]:
    """Of each slot: may it be written whatever else is, and the part of the hole that it is in."""
    states_N = self._states.sum(1)
    part_N = np.cumsum(states_N[:-1] == 1)  # a part begins where one state alone is possible
    classes = self._grammar.class_E
    alike_N = np.array(
      [
        edges.sum() == states * np.unique(classes[edges]).size
        for edges, states in zip(self._edges_N, states_N[:-1], strict=True)
      ]
    )
    return np.array([alike_N[part_N == part].all() for part in part_N]), part_N


def together(holds: dict[int, Hold], rows: int) -> Held:
  """Of a tile of so many rows: those of `holds` by their place, and no rule for the others."""
  like = next(iter(holds.values()))
  sets_BxKxU = np.zeros((rows, *like.sets_KxU.shape), np.uint32)
  set_BxL = np.full((rows, like.set_L.size), FREE, np.int32)
  group_BxL = np.zeros((rows, like.set_L.size), np.int32)
  for place, hold in holds.items():
    sets_BxKxU[place], set_BxL[place] = hold.sets_KxU, hold.set_L
    group_BxL[place] = hold.group_L
  return Held(sets_BxKxU, set_BxL, group_BxL)
