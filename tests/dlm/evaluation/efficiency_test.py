"""eff@k against all draws of k, and the time of programs beside a reference."""

import itertools
import random

import pytest

from dlm.data import Example
from dlm.evaluation import tasks
from dlm.evaluation.tasks import efficiency
from dlm.evaluation.tasks.published import TASKS
from dlm.rewards import bounded


def test_eff_at_k_is_the_mean_of_the_best_over_all_draws():
  assert efficiency.eff_at_k([0.9, 0.2, 0.5], 2) == pytest.approx(0.766667, abs=1e-6)
  rng = random.Random(0)
  for n in range(1, 8):
    scores = [rng.choice((0.0, 0.3, rng.random(), 1.2)) for _ in range(n)]
    for k in range(1, n + 1):
      draws = [max(draw) for draw in itertools.combinations(scores, k)]
      assert efficiency.eff_at_k(scores, k) == pytest.approx(sum(draws) / len(draws))
  with pytest.raises(ValueError, match=r"eff_at_k: k=4 must lie in 1\.\.n=3"):
    efficiency.eff_at_k([1, 1, 1], 4)


def test_a_typical_time_minds_no_outlier():
  assert efficiency.typical([1.0]) == 1
  assert efficiency.typical([1.0, 3.0]) == 2  # 1, 2, 3
  assert efficiency.typical([1.0, 1.0, 1.0, 1.0, 1.0, 90.0]) == 1


def test_efficiency_falls_to_nothing_at_twice_the_time():
  assert [efficiency.efficiency(s, 2.0) for s in (1.0, 2.0, 3.0, 4.0, 9.0)] == [1.5, 1, 0.5, 0, 0]
  assert efficiency.efficiency(None, 2.0) == 0
  with pytest.raises(ValueError, match=r"reference=0\.0 must be positive"):
    efficiency.efficiency(1.0, 0.0)


def test_processor_time_is_told_of_what_passes():
  """Sleep is none, and the interpreter's start is left out."""
  busy = "import time\nwhile time.process_time() < {}: pass"
  began = "import time\nbegan = time.process_time()\n"
  took = bounded.seconds_of(f"{began}while time.process_time() < began + 0.2: pass")
  assert 0.2 <= took < 1
  assert bounded.seconds_of("import time\ntime.sleep(0.3)") < 0.1
  assert bounded.seconds_of("assert False") is None
  assert bounded.seconds_of(busy.format(9), seconds=0.2) is None


def test_answers_are_timed_beside_the_reference(monkeypatch):
  """Of MBPP's and HumanEval's kinds, with times in place of programs' own."""
  row = {
    "prompt": "def f():\n", "canonical_solution": "  return 1\n", "entry_point": "f",
    "test": "def check(g): g()", "code": "slow", "test_list": ["assert 1"],
  }  # fmt: skip
  seconds = {"def f():\n  return 1": 2.0, "def f():\n  return 2": 3.0, "slow": 4.0, "fast": 2.0}

  def told(program):
    (name,) = [each for each in seconds if each in program]
    return seconds[name]

  monkeypatch.setattr(bounded, "seconds_of", told)
  efficiency._reference.cache_clear()
  humaneval = tasks.Question("humaneval", TASKS["humaneval"].kind, Example(row["prompt"], "", row))
  assert humaneval.efficiency("  return 2\nprint()", chat=False) == 0.5
  mbpp = tasks.Question("mbpp", TASKS["mbpp"].kind, Example("", "", row))
  assert mbpp.efficiency("fast\n[DONE]", chat=False) == 1.5
  rates = tasks.efficiencies([mbpp, mbpp, humaneval, humaneval], [1.5, 0, 0.5, 0.5], 2)
  assert rates == {"mbpp": {1: 0.75, 2: 1.5}, "humaneval": {1: 0.5, 2: 0.5}}
  other = tasks.Question("gsm8k", TASKS["gsm8k"].kind, Example("", ""))
  with pytest.raises(ValueError, match="gsm8k asks for no program"):
    other.efficiency("4", chat=False)
