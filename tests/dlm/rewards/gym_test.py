"""The tasks that are rewards tell right answers from wrong ones, by what a row knows."""

import pytest

from dlm.rewards import reward
from dlm.rewards.gym import TASKS
from dlm.rewards.written import Written

package = pytest.importorskip("reasoning_gym")


@pytest.mark.parametrize("task", TASKS)
def test_own_answers_are_right_and_others_wrong(task):
  items = [*package.create_dataset(task, seed=1, size=3)]
  answers = {item["answer"].strip() for item in items}
  for item in items:
    right = item["answer"].strip()
    wrong = [*(answers - {right}), "zzz", "", f"{right} zzz", f"{right}1"]
    texts = [right, f" {right}\n", f"So <answer>{right}</answer> it is.", *wrong]
    score = [reward(f"reasoning_gym:{task}")(Written(item["question"], x, right)) for x in texts]
    assert score == [1.0] * 3 + [0.0] * len(wrong)


def test_other_tasks_are_refused():
  with pytest.raises(ValueError, match="'reasoning_gym:game_of_life_halting' is unknown; known: b"):
    reward("reasoning_gym:game_of_life_halting")
