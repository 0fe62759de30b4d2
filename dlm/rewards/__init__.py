"""What a completion is worth: rewards by name, and advantages made of them.

A reward is a function of what was written: prompt, completion, how it came to be. One that raises
or takes too long costs its row, not the run.
"""

import contextlib
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from dlm import named
from dlm.rewards import gym
from dlm.rewards.formats import (
  format_soft,
  format_strict,
  tagged_answer,
  tagged_integer,
  xml_count,
  xml_count_from_answer,
)
from dlm.rewards.programs import program
from dlm.rewards.puzzles import countdown, sudoku
from dlm.rewards.written import Written

Reward = Callable[[Written], float]
GYM = "reasoning_gym:"
SECONDS = 5.0  # that a reward may take over a row
LINE = 200  # characters of a failure that are told

_told: set[str] = set()  # rewards that have failed


def exact(written: Written) -> float:
  """1.0 if the completion is the data's answer, blanks about both aside; else 0.0."""
  return float(written.text.strip() == written.answer.strip())


def fields_right(written: Written) -> float:
  """The share of the answer's fields, cut at blanks, that stand where they should."""
  found, wanted = written.text.split(), written.answer.split()
  hits = sum(a == b for a, b in zip(found, wanted, strict=False))
  return hits / max(len(found), len(wanted), 1)


def tokens_per_forward(written: Written) -> float:
  """LightningRL (2603.13319): tokens of the completion by the forwards that wrote any of them."""
  return written.tokens_per_forward


def ended(written: Written) -> float:
  """1.0 if the model ended its answer itself."""
  return float(written.ended)


REWARDS: dict[str, Reward] = {
  "exact": exact,
  "fields_right": fields_right,
  "tokens_per_forward": tokens_per_forward,
  "ended": ended,
  "countdown": countdown,  # d1, 2504.12216
  "sudoku": sudoku,  # d1
  "program": program,  # its tests are the data's answer
  "tagged_answer": tagged_answer,  # d1's rewards for GSM8K, five terms
  "tagged_integer": tagged_integer,
  "format_strict": format_strict,
  "format_soft": format_soft,
  "xml_count": xml_count,
  "xml_count_from_answer": xml_count_from_answer,  # SPG's
}


def reward(name: str) -> Reward:
  """Of a name in REWARDS, "reasoning_gym:TASK" (`dlm.rewards.gym`), or "package.module:function".

  Raises:
    ValueError: there is none; names the known ones.
  """
  if name in REWARDS:
    return REWARDS[name]
  if name.startswith(GYM):
    return gym.of_task(name.removeprefix(GYM))
  return named.function("rewards", name, (*REWARDS, f"{GYM}TASK"))


def scores(name: str, rows: Sequence[Written], seconds: float = SECONDS) -> list[float]:
  """Of each row; NaN where the reward raised, took longer, or gave no finite number.

  Why a reward failed first is told on stderr, once in a process: a run goes on without it. Time is
  bounded in the main thread alone: nothing else can be interrupted.
  """
  of, found = reward(name), []
  for each in rows:
    try:
      with _bounded(seconds):
        score = float(of(each))
      failed = None if math.isfinite(score) else f"it gave {score}"
    except (Exception, SystemExit) as error:  # the user's code, and what it reads is the model's
      failed = f"{type(error).__name__}: {error}"
    found.append(score if failed is None else math.nan)
    if failed is not None and name not in _told:
      _told.add(name)
      line = " ".join(failed.split())[:LINE]
      print(f"reward {name} failed: {line} (told once; see rollout/failed)", file=sys.stderr)
  return found


@contextlib.contextmanager
def _bounded(seconds: float) -> Iterator[None]:
  """TimeoutError after so many seconds."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def ring(*_) -> None:
    raise TimeoutError(f"it took longer than {seconds:g} s")

  before = signal.signal(signal.SIGALRM, ring)
  signal.setitimer(signal.ITIMER_REAL, seconds)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
