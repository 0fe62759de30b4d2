"""Who runs next: order, fairness, budgets, and that nobody waits for ever."""

import pytest

from dlm.serving.scheduler import Job, Limits, Overloaded, Scheduler


def scheduler(rows=None, decode=8, fill=16, **limits):
  return Scheduler(Limits(**limits), rows or {64: 2}, decode=decode, fill=fill)


def submitted(plan, *jobs):
  for job in jobs:
    plan.submit(job)


def admitted(plan, fills=0):
  keys = []
  for job in plan.admit():
    job.fills = fills
    keys.append(job.key)
  return keys


def test_first_come_first_served_and_online_before_offline():
  plan = scheduler({64: 3})
  submitted(plan, Job(0, 64, offline=True), *[Job(key, 64) for key in (1, 2)], Job(3, 64))
  assert admitted(plan) == [1, 2, 3]
  assert admitted(plan) == []
  assert sorted(job.row for job in plan.running.values()) == [0, 1, 2]
  row = plan.running[2].row
  assert plan.remove(2, now=1.0).key == 2 and admitted(plan) == [0]
  assert plan.running[0].row == row, "a row is used again"
  assert plan.remove(2, now=1.0) is None


def test_offline_jobs_are_passed_over_so_many_times_and_then_go_first():
  plan = scheduler({64: 1}, patience=2)
  submitted(plan, Job(0, 64, offline=True), *[Job(key, 64) for key in range(1, 6)])
  order = []
  while keys := admitted(plan):
    order += keys
    plan.remove(keys[0], now=0.0)
  assert order == [1, 2, 0, 3, 4, 5]


def test_a_full_size_does_not_hold_up_another():
  plan = scheduler({64: 1, 128: 1})
  submitted(plan, Job(0, 64), Job(1, 64), Job(2, 128))
  assert admitted(plan) == [0, 2]


def test_prompts_get_what_decoding_leaves_of_the_budget_in_order_of_admission():
  plan = scheduler({64: 4}, budget=40)
  submitted(plan, Job(0, 64), Job(1, 64))
  assert admitted(plan, fills=3) == [0, 1]
  assert [(job.key, n) for job, n in plan.parts()] == [(0, 2)], "40 tokens: two parts of 16"
  assert [(job.key, n) for job, n in plan.parts()] == [(0, 1), (1, 1)], "then the next"
  assert plan.running[0].fills == 0
  assert [(job.key, n) for job, n in plan.parts()] == [(1, 2)], "row 0 decodes for 8 of the 40"
  plan.remove(1, now=0.0)
  assert plan.parts() == []


def test_two_canvas_sizes_share_the_budget():
  plan = scheduler({64: 1, 128: 1}, budget=48)
  submitted(plan, Job(0, 64), Job(1, 128))
  assert admitted(plan, fills=2) == [0, 1]
  assert [(job.key, n) for job, n in plan.parts()] == [(0, 2), (1, 1)]


def test_a_prompt_longer_than_the_budget_is_cached_all_the_same():
  """dLLM-Serve's rule would leave it, and all behind it, for ever."""
  plan = scheduler({64: 2}, budget=10, patience=3)
  submitted(plan, Job(0, 64), Job(1, 64))
  plan_keys = admitted(plan)
  plan.running[plan_keys[1]].fills = 2
  ticks = [bool(plan.parts()) for _ in range(9)]
  assert ticks == [False] * 3 + [True] + [False] * 3 + [True, False]
  plan.remove(0, now=0.0)
  plan.running[1].fills = 1
  assert [n for _, n in plan.parts()] == [1], "where nothing decodes it need not wait"


def test_whole_canvases_have_what_decoding_leaves_of_the_budget_and_one_turn_at_least():
  plan = scheduler({64: 4}, budget=8 * 3 + 2 * 128)
  submitted(plan, *[Job(key, 64) for key in range(3)])
  admitted(plan)
  assert plan.refreshes([64, 128], turns=4) == [2, 1], "128 tokens each"
  assert plan.refreshes([64, 0], turns=3) == [2, 3]
  assert plan.refreshes([1000], turns=4) == [1], "longer than the budget: it waits for nothing"
  assert plan.refreshes([], turns=4) == []
  assert scheduler({64: 4}).refreshes([1000], turns=4) == [4]


def test_a_full_queue_says_when_to_come_again():
  plan = scheduler({64: 1}, waiting=2, waiting_slots=200)
  submitted(plan, Job(0, 64), Job(1, 64))
  with pytest.raises(Overloaded, match="2 requests of 128 slots are waiting") as full:
    plan.submit(Job(2, 64))
  assert full.value.retry_after == 2, "a second each, as long as nothing is known"
  assert admitted(plan) == [0]
  with pytest.raises(Overloaded, match="1 requests of 64 slots"):
    plan.submit(Job(3, 192))
  for key, now in ((0, 0.0), (1, 100.0)):
    plan.remove(key, now=now)
    submitted(plan, Job(10 + key, 64))
    admitted(plan)
  submitted(plan, Job(20, 64))
  with pytest.raises(Overloaded) as slow:
    plan.submit(Job(21, 64))
  assert slow.value.retry_after > 10


def test_what_is_late_is_told_wherever_it_is():
  plan = scheduler({64: 1})
  submitted(plan, Job(0, 64, start_by=1, end_by=9), Job(1, 64, start_by=5), Job(2, 64, end_by=6))
  assert admitted(plan) == [0]
  assert [job.key for job in plan.late(5.0)] == []
  assert [job.key for job in plan.late(5.5)] == [1]
  assert [job.key for job in plan.late(9.5)] == [1, 2, 0]
  assert plan.remove(1, now=9.5).row == -1
  assert [job.key for job in plan.queued()] == [2]


def test_without_a_budget_prompts_have_as_much_as_all_rows_that_decode():
  plan = scheduler({64: 4})
  submitted(plan, *[Job(key, 64) for key in range(4)])
  for job in plan.admit():
    job.fills = 9 * (job.key == 3)
  assert [(job.key, n) for job, n in plan.parts()] == [(3, (2 * 4 * 8 - 3 * 8) // 16)]


@pytest.mark.parametrize(
  ("field", "value", "least"),
  [("waiting", 0, 1), ("waiting_slots", 0, 1), ("budget", -1, 0), ("patience", 0, 1)],
)
def test_limits_that_let_nothing_run_are_refused(field, value, least):
  with pytest.raises(ValueError, match=f"serving: {field}={value} must be at least {least}"):
    Limits(**{field: value})
