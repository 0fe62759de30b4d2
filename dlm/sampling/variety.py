"""When a text that is written block by block should end: the rule of BD3-LM's code (2503.09573).

A model that samples on and on falls into repetition at some point; few different tokens betray it.
These are functions on the host, of the ids of one text.
"""

from collections.abc import Sequence

import numpy as np

WINDOW, LEAST = 256, 4.0  # tokens, nats


def entropy(ids_L: np.ndarray) -> float:
  """Of the tokens' own frequencies, in nats."""
  counts = np.unique(ids_L, return_counts=True)[1]
  p = counts / counts.sum()
  return float(-(p * np.log(p)).sum())


def is_lost(ids_L: np.ndarray, least: float = LEAST) -> bool:
  """Has the text's last `WINDOW` tokens' entropy fallen below `least`? Never of a shorter text.

  The authors throw such samples away where all are to have one length.
  """
  return len(ids_L) > WINDOW and entropy(ids_L[-WINDOW:]) < least


def end(ids_L: np.ndarray, eos_ids: Sequence[int], least: float = LEAST) -> int | None:
  """Where the text ends, judged when it is as long as this; None: it goes on.

  Before its last `WINDOW` tokens if they are lost, else after its second stop id: GPT-2's begins
  texts too.
  """
  if is_lost(ids_L, least):
    return len(ids_L) - WINDOW
  stops = np.flatnonzero(np.isin(ids_L, eos_ids))
  return int(stops[1]) + 1 if len(ids_L) > WINDOW and len(stops) > 1 else None


def lost_from(ids_L: np.ndarray, block: int, begin: int, least: float = LEAST) -> int | None:
  """The same of a text that is written already, for repetition alone: the first `end` of any block.

  Blocks are cut from the first token, and those that end before `begin` were not written.
  """
  ends = [at for at in range(block, len(ids_L) + 1, block) if at > begin]
  return next((at - WINDOW for at in ends if is_lost(ids_L[:at], least)), None)
