"""A reward that fails costs its row, and says why: once."""

import math
import sys
import types

import pytest

from dlm import rewards
from dlm.rewards.written import Written

ROWS = [Written("", text, "", (0,), True) for text in ("a", "b", "c")]


def leave(written):
  sys.exit(3)


def fail(written):
  if written.text == "b":
    raise KeyError("what\nis missing")
  return 0.5


def hang(written):
  while written.text == "b":
    pass
  return 1


@pytest.fixture
def of(monkeypatch):
  """Rewards as a user names them, none of which has failed before."""
  monkeypatch.setattr(rewards, "_told", set())
  mine = types.ModuleType("mine")
  mine.leave, mine.fail, mine.hang, mine.nothing = leave, fail, hang, lambda written: math.nan
  monkeypatch.setitem(sys.modules, "mine", mine)


@pytest.mark.parametrize(
  ("name", "wanted", "why"),
  [
    ("mine:leave", [math.nan] * 3, "SystemExit: 3"),
    ("mine:fail", [0.5, math.nan, 0.5], r"KeyError: 'what\nis missing'"),
    ("mine:hang", [1.0, math.nan, 1.0], "TimeoutError: it took longer than 0.05 s"),
    ("mine:nothing", [math.nan] * 3, "it gave nan"),
  ],
)
def test_a_failure_costs_its_row_and_is_told_once(of, capsys, name, wanted, why):
  for _ in range(2):
    assert rewards.scores(name, ROWS, seconds=0.05) == pytest.approx(wanted, nan_ok=True)
  told = f"reward {name} failed: {why} (told once; see rollout/failed)\n"
  assert capsys.readouterr().err == told
