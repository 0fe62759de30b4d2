#!/bin/sh
# reasoning-gym: some tasks pay for nonsense, and some have no answer to compare with or to learn.
#
# Guess: every entry has an "answer", for which score_answer gives 1, and text that is no answer earns
#   0: so one loop over create_dataset(...) is a benchmark, its score a reward, and its answers are
#   training data.
# Seen (reasoning-gym 0.1.25): in game_of_life_halting "zzz" scores 1 wherever the right answer is
#   False; in propositional_logic "zzz" scores 0.05 and on some items more; in countdown even None
#   earns 0.01. The "answer" of propositional_logic, graph_color, boxnet and rush_hour is None, on all
#   items, and scores 0: a formatted training text then ends in the word None. chain_sum and
#   spell_backward are as guessed.
# It matters for whoever trains by these rewards or averages over tasks: a model that writes anything
#   is paid, and no error says so. Before a task is used: the stored answer must score 1, "zzz" 0.
# Needs a C compiler: pycosat, of its dependencies, has no wheel.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile reasoning-gym==0.1.25 setuptools

"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import reasoning_gym

print("reasoning-gym", version("reasoning-gym"))
TASKS = (
  "propositional_logic", "graph_color", "boxnet", "rush_hour", "game_of_life_halting", "countdown",
  "chain_sum", "spell_backward",
)


def scores(task):
  """Over five items: is there an answer; its least score, and the best of nonsense and of None."""
  items = reasoning_gym.create_dataset(task, seed=1, size=5)
  there = all(item["answer"] is not None for item in items)
  own = min(items.score_answer(item["answer"], item) for item in items)
  return there, own, *(max(items.score_answer(text, item) for item in items) for text in ("zzz", None))


seen = {task: scores(task) for task in TASKS}
print(f"{'':22} stored  its score  'zzz'  None    (expected True, 1, 0, 0)")
for task, (there, own, nonsense, nothing) in seen.items():
  print(f"{task:22} {there!s:6}  {own:9.2f}  {nonsense:5.2f}  {nothing:4.2f}")
for task in ("propositional_logic", "graph_color", "boxnet", "rush_hour"):
  assert seen[task][:2] == (False, 0), f"{task} has answers now"
assert seen["propositional_logic"][2] >= 0.05, "nonsense earns nothing in propositional_logic now"
assert seen["game_of_life_halting"][2] == 1, "nonsense is no answer to game_of_life_halting now"
assert seen["countdown"][3] == 0.01, "no answer earns nothing in countdown now"
for task in ("chain_sum", "spell_backward"):
  assert seen[task] == (True, 1, 0, 0), f"{task} is not as guessed now"
print("as found")
PYTHON
