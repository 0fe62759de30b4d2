"""What the study of post-training says of its numbers, on given ones, and what it asks."""

from dlm.evaluation.parallelism import CurvePoint
from tests.experiments import mains

study = mains.load("experiments/studies/post_training.py")


def asked(stage, *points):
  """The same curve on every task, (accuracy, tokens a forward) of each setting."""
  told = [
    CurvePoint("p", speed, task, accuracy, tpf, tpf, 1.0, 1.0, 1)
    for task in study.TASKS
    for speed, (accuracy, tpf) in zip(study.SPEEDS, points, strict=True)
  ]
  return study.Asked(stage, 1, told, 0.0)


def test_speeds_are_compared_at_the_accuracy_that_was_there_before():
  before = asked("begun", (80.0, 1.0), (80.0, 1.5), (79.0, 2.0), (78.9, 3.0), (10.0, 7.0))
  faster = asked("distilled", (90.0, 1.0), (85.0, 2.0), (79.5, 3.0), (79.0, 5.0), (70.0, 7.0))
  spoilt = asked("distilled", (78.0, 1.0), (70.0, 2.0), (60.0, 3.0), (50.0, 4.0), (40.0, 5.0))
  rows = study.comparisons(before, [faster, spoilt])
  assert [row["task"] for row in rows] == list(study.TASKS)
  for row in rows:
    assert row["at least"] == "79.0 %"
    assert row["ratio"] == "1.25 ± 1.77", "5 over 2, and 0 where none is accurate enough"
    assert row["0.9"] == "1.50 ± 0.00 times: 79.0 % @ 2.00, now 69.75 ± 13.79 % @ 3.00 ± 0.00"


def test_held_out_lists_are_asked_once_and_never_written_by_the_teacher():
  told, learned = (study.examples(split, 200) for split in ("test", "train"))
  for task in study.TASKS:
    lists = [each.meta["items"] for each in told if each.meta["task"] == task]
    assert len(lists) == len({*lists}) == 166
    assert not {*lists} & {each.meta["items"] for each in learned}
