"""Spans of ids that are read and not learned, as a tool's answer within an agent's trajectory."""

import numpy as np


def outside(ids_T: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
  """DLLM-Searcher (2602.07035): false from each `left` to the end of the next `right`, bool [T].

  Both are runs of ids. A span that is not closed goes on to the end of the text.
  """
  kept_T = np.ones(ids_T.size, bool)
  begins, ends = _places(ids_T, left), _places(ids_T, right) + right.size
  stop = 0
  for begin in begins:
    if begin >= stop:
      closed = ends[ends >= begin + left.size + right.size]
      stop = int(closed[0]) if closed.size else ids_T.size
      kept_T[begin:stop] = False
  return kept_T


def _places(ids_T: np.ndarray, run_K: np.ndarray) -> np.ndarray:
  """Where a run of ids begins."""
  if ids_T.size < run_K.size:
    return np.zeros(0, int)
  windows_NxK = np.lib.stride_tricks.sliding_window_view(ids_T, run_K.size)
  return np.flatnonzero((windows_NxK == run_K[None]).all(-1))
