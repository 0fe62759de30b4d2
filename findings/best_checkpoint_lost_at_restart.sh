#!/bin/sh
# orbax: a preservation policy BestN deletes the best checkpoint at the first save after a restart.
#
# Guess: BestN(get_metric_fn=...) needs nothing else. Metrics are handed to save(), so a manager that
#   is opened again knows them, and the best step of the whole run is kept.
# Seen (orbax-checkpoint 0.12.8): metrics are written to disk only where the options have a best_fn
#   too, which the policy itself never reads. Without it the policy works within one process, no file
#   of metrics exists, and after a restart the earlier steps count as never measured: the next save
#   deletes the best one. No error and no warning says so. With best_fn beside the policy the best
#   step stays.
# It matters for every run that is preempted and resumed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile \
  orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6

JAX_PLATFORMS=cpu "$folder/venv/bin/python" - "$folder" <<'PYTHON'
import logging
import pathlib
import sys

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

logging.disable(logging.WARNING)
LOSSES = {1: 1.0, 2: 3.0, 3: 2.0, 4: 4.0, 5: 5.0}  # step 1 is the best
print("orbax-checkpoint", ocp.__version__, "jax", jax.__version__)


def loss_of(metrics):
  return metrics["loss"]


def run(name, *, restart_after=None, **options):
  """Saves all steps, in one process or with the manager opened anew; the steps left, and files."""
  folder = pathlib.Path(sys.argv[1], name)

  def opened():
    best = checkpoint_managers.BestN(
      get_metric_fn=loss_of, reverse=True, n=1, keep_checkpoints_without_metrics=False
    )
    return ocp.CheckpointManager(
      folder, options=ocp.CheckpointManagerOptions(preservation_policy=best, **options)
    )

  manager = opened()
  for step, loss in LOSSES.items():
    state = ocp.args.StandardSave({"x": jnp.arange(3.0)})
    manager.save(step, args=state, metrics={"loss": loss})
    manager.wait_until_finished()
    if step == restart_after:
      manager.close()
      manager = opened()
  steps = list(manager.all_steps())
  manager.close()
  return steps, len(list(folder.glob("*/metrics/*")))


best_fn = {"best_fn": loss_of, "best_mode": "min"}
alone = run("alone")
restarted = run("restarted", restart_after=3)
beside = run("beside", restart_after=3, **best_fn)
print("losses by step:", LOSSES)
print(f"policy alone, one process:     expected step 1 kept; seen {alone[0]}")
print(f"policy alone, restarted at 3:  expected step 1 kept; seen {restarted[0]}")
print(f"  files of metrics:            expected some;        seen {restarted[1]}")
print(f"policy and best_fn, restarted: expected step 1 kept; seen {beside[0]}")
assert alone == ([1], 0), "one process behaves otherwise now"
assert restarted == ([4], 0), "the best step survives a restart now: this finding is out of date"
assert beside[0] == [1] and beside[1] > 0, "best_fn does not help any more"
print("as found")
PYTHON
