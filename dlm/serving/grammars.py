"""What a hole may say: automata over tokens, of sets of tokens, choices and regular expressions.

A grammar's text is all of its tokens' bytes, and any tokens that make it up will do: "yes" may be
one token, or "y" and "es". A model that writes in any order need not cut as the tokenizer does.
"""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np

from dlm.data import Tokenizer
from dlm.data.install import require

LONGEST_PATTERN = 1 << 14  # characters
LONGEST_WAIT = 30  # seconds, on a busy machine; regular.py bounds the processor's time
MOST_EDGES = 1 << 24  # from a state by a token


@dataclasses.dataclass(frozen=True, eq=False)
class Automaton:
  """Deterministic, over classes of tokens that no state tells apart; class 0 goes nowhere.

  Attributes:
    class_V: of each id.
    source_E, class_E, target_E: from a state by a class to a state.
    ends_S: bool: states in which a text may end.
  """

  start: int
  class_V: np.ndarray
  source_E: np.ndarray
  class_E: np.ndarray
  target_E: np.ndarray
  ends_S: np.ndarray

  @functools.cached_property
  def sizes_C(self) -> np.ndarray:
    """Tokens of each class."""
    return np.bincount(self.class_V, minlength=int(self.class_E.max(initial=0)) + 1)

  def fits(self, size: int, early: bool = False) -> bool:
    """Whether it has a text of so many tokens; `early`: or of fewer."""
    at_S, fewer = np.arange(len(self.ends_S)) == self.start, False
    for _ in range(size):
      fewer |= early and bool((at_S & self.ends_S).any())
      next_S = np.zeros_like(at_S)
      next_S[self.target_E[at_S[self.source_E]]] = True
      at_S = next_S
    return fewer or bool((at_S & self.ends_S).any())

  def closed(self, stop_ids: Sequence[int]) -> Self:
    """Whose texts may be followed by stop ids, and by nothing else."""
    last, stop = len(self.ends_S), int(self.class_V.max()) + 1
    class_V = self.class_V.copy()
    class_V[list(stop_ids)] = stop
    source_N = np.append(np.flatnonzero(self.ends_S), last)
    return dataclasses.replace(
      self,
      class_V=class_V,
      source_E=np.concatenate([self.source_E, source_N]),
      class_E=np.concatenate([self.class_E, np.full(source_N.size, stop)]),
      target_E=np.concatenate([self.target_E, np.full(source_N.size, last)]),
      ends_S=np.append(self.ends_S, True),
    )


class Words:
  """A vocabulary as grammars read it: the bytes of ids that may be written.

  Args:
    never: ids that may not be.
    stops: those that end a row, and are in no set and no text.
  """

  def __init__(self, tokenizer: Tokenizer, never: Sequence[int], stops: Sequence[int]):
    self.tokenizer, self._never = tokenizer, frozenset((*never, *stops))
    self.stops = tuple(sorted(set(stops) - set(never)))
    self.size = tokenizer.vocab_size
    self.regex = functools.lru_cache(64)(self._regex)
    self.choice = functools.lru_cache(64)(self.choice_once)

  @functools.cached_property
  def _bytes(self) -> tuple[np.ndarray, np.ndarray]:
    """[V, M] bytes of each id, and their number [V]; 0: it is in no text."""
    pieces = [
      b"" if piece is None or i in self._never else piece
      for i, piece in enumerate(self.tokenizer.pieces())
    ]
    size_V = np.array([len(piece) for piece in pieces])
    width = int(size_V.max())
    joined = b"".join(piece.ljust(width, b"\0") for piece in pieces)
    return np.frombuffer(joined, np.uint8).reshape(len(pieces), width), size_V

  def tokens(self, named: Sequence[int | str]) -> Automaton:
    """Any of these tokens at each position; a text among them must be one token."""
    class_V = np.zeros(self.size, np.int64)
    for each in named:
      ids = [each] if isinstance(each, int) else self.tokenizer.encode(each).tolist()
      if len(ids) != 1:
        raise ValueError(f"{each!r:.80} is {len(ids)} tokens; a choice may be several")
      if not 0 <= ids[0] < self.size or ids[0] in self._never:
        raise ValueError(f"{each!r:.80} is no token that may be written")
      class_V[ids[0]] = 1
    return _loop(class_V)

  def within(self, grammar: Automaton, last: bool) -> Automaton:
    """As of a hole: the `last` thing in a row may end earlier, by a stop id."""
    return grammar.closed(self.stops) if last and self.stops else grammar

  def any(self) -> Automaton:
    """Any token that ends no text."""
    class_V = np.ones(self.size, np.int64)
    class_V[[i for i in self._never if i < self.size]] = 0
    return _loop(class_V)

  def choice_once(self, texts: tuple[str, ...]) -> Automaton:
    """One of the texts, as `choice`; it is not kept for the next to ask."""
    next_, ends = [[-1] * 256], set()
    for text in texts:
      state = 0
      for byte in text.encode():
        if next_[state][byte] < 0:
          next_[state][byte] = len(next_)
          next_.append([-1] * 256)
        state = next_[state][byte]
      ends.add(state)
    return self._over_tokens(np.array(next_), 0, lambda state: state in ends)

  def _regex(self, regex: str, schema: bool = False) -> Automaton:
    """Of a regular expression, or of the JSON that a schema describes.

    Raises:
      ValueError: it is none, no finite automaton knows it, or its automaton is too large.
    """
    require("outlines_core", "serve")
    if len(regex) > LONGEST_PATTERN:
      raise ValueError(f"{len(regex)} characters exceed {LONGEST_PATTERN}")
    here = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # and nothing that is secret
    worker = [sys.executable, "-P", str(pathlib.Path(__file__).with_name("regular.py"))]
    job = json.dumps({"schema" if schema else "regex": regex})
    try:
      done = subprocess.run(
        worker, input=job, capture_output=True, text=True, env=here, timeout=LONGEST_WAIT
      )
    except subprocess.TimeoutExpired as error:
      raise ValueError("it takes too long to compile") from error
    if done.returncode:  # the system ended it
      raise ValueError("it takes more time or memory to compile than it may")
    result = json.loads(done.stdout)
    if "error" in result:
      raise ValueError(f"it has no automaton: {result['error']}")
    edge_Ex3 = np.array(result["edges"], np.int64).reshape(-1, 3)
    states, place = np.unique(
      np.concatenate([[result["start"]], edge_Ex3[:, 0], edge_Ex3[:, 2]]), return_inverse=True
    )
    source_E, target_E = place[1:].reshape(2, -1)
    next_SxN = np.full((len(states), 256), -1)
    next_SxN[source_E, edge_Ex3[:, 1]] = target_E
    ends_S = np.isin(states, result["ends"])[next_SxN[:, 0]] & (next_SxN[:, 0] >= 0)
    next_SxN[:, 0] = -1
    return self._over_tokens(next_SxN, int(place[0]), lambda state: bool(ends_S[state]))

  def _over_tokens(
    self, next_SxN: np.ndarray, start: int, ends: Callable[[int], bool]
  ) -> Automaton:
    """From an automaton over bytes; states that no token reaches are left out."""
    byte_VxM, size_V = self._bytes
    number, order, found, edges = {start: 0}, [start], [], 0
    for state in order:  # which grows meanwhile
      id_N = np.flatnonzero((size_V > 0) & (next_SxN[state][byte_VxM[:, 0]] >= 0))
      at_N = next_SxN[state][byte_VxM[id_N, 0]]
      for m in range(1, byte_VxM.shape[1]):
        more_N = size_V[id_N] > m
        if not more_N.any():
          break
        at_N[more_N] = next_SxN[at_N[more_N], byte_VxM[id_N[more_N], m]]
        id_N, at_N = id_N[at_N >= 0], at_N[at_N >= 0]
      edges += id_N.size
      if edges > MOST_EDGES:
        raise ValueError(f"its automaton over tokens has more than {MOST_EDGES} edges")
      for target in np.unique(at_N).tolist():
        if target not in number:
          number[target] = len(order)
          order.append(target)
      found.append((id_N, np.array([number[target] for target in at_N.tolist()], np.int64)))
    return _classed(found, self.size, np.array([ends(state) for state in order]))


def _loop(class_V: np.ndarray) -> Automaton:
  """All tokens of class 1, again and again."""
  zero, one = np.zeros(1, np.int64), np.ones(1, np.int64)
  return Automaton(0, class_V, zero, one, zero, np.ones(1, bool))


def _classed(
  edges: list[tuple[np.ndarray, np.ndarray]], vocab: int, ends_S: np.ndarray
) -> Automaton:
  """Tokens are of one class if they lead from every state to the same one."""
  class_V, count = np.zeros(vocab, np.int64), 1
  for id_N, target_N in edges:
    pair_N = class_V[id_N] * len(edges) + target_N
    pairs, class_N = np.unique(pair_N, return_inverse=True)
    class_V[id_N] = count + class_N  # new ones: what stays behind in a class does not go on here
    count += len(pairs)
  class_V = np.unique(np.append(0, class_V), return_inverse=True)[1][1:]
  source, classes, target = [], [], []
  for state, (id_N, target_N) in enumerate(edges):
    each, first = np.unique(class_V[id_N], return_index=True)
    source.append(np.full(each.size, state))
    classes.append(each)
    target.append(target_N[first])
  return Automaton(
    0, class_V, *(np.concatenate(each) for each in (source, classes, target)), ends_S
  )
