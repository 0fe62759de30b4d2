#!/bin/sh
# reasoning-gym: data sets of neighbouring seeds hold nearly the same items.
#
# Guess: create_dataset(name, seed=0, size=n) and seed=1 are two independent draws, so one is to train
#   on and the other to test on, and a run over three seeds has three data sets.
# Seen (reasoning-gym 0.1.25): item i is drawn with the seed "seed + i". Of 1,000 items with seed 0
#   and 1,000 with seed 1, 999 are the same items, one place apart; they are listed in another order,
#   so a comparison place by place finds hardly any. Seeds must lie further apart than a set is long.
# It matters for every held-out score: with seeds 0 and 1 the test set was trained on.
# Needs a C compiler: pycosat, of its dependencies, has no wheel.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile reasoning-gym==0.1.25 setuptools

"$folder/venv/bin/python" -W ignore - <<'PYTHON'
from importlib.metadata import version

import reasoning_gym

print("reasoning-gym", version("reasoning-gym"))
SIZE = 1000


def questions(task, seed):
  items = reasoning_gym.create_dataset(task, seed=seed, size=SIZE)
  return [item["question"] for item in items]


for task in ("chain_sum", "spell_backward", "number_sorting"):
  first, second, far = (questions(task, seed) for seed in (0, 1, 10 * SIZE))
  shifted = sum(a == b for a, b in zip(first[1:], second, strict=False))
  placed = sum(a == b for a, b in zip(first, second, strict=True))
  apart = len({*first} & {*far})
  print(
    f"{task:16} seeds 0 and 1: expected few of {SIZE} shared, seen {shifted}, {placed} of them at "
    f"the same place; seeds 0 and {10 * SIZE}: {apart}"
  )
  assert shifted == SIZE - 1, f"{task}: neighbouring seeds are independent now"
print("as found")
PYTHON
