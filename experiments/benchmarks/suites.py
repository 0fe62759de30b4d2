"""What is measured, by the name that `--suite` takes: one file each, with `run(size) -> tables`."""

from experiments.benchmarks import (
  alone,
  block,
  compilation,
  correct,
  decoding,
  kernels,
  large,
  memory,
  moe,
  ragged,
  rollouts,
  sampling,
  scoring,
  serving,
  smollm,
  training,
  weights,
)

SUITES = {
  "training": training.run,
  "sampling": sampling.run,
  "decoding": decoding.run,
  "block": block.run,
  "kernels": kernels.run,
  "compile": compilation.run,
  "memory": memory.run,
  "weights": weights.run,
  "moe": moe.run,
  "rollouts": rollouts.run,
  "smollm": smollm.run,
  "scoring": scoring.run,
  "ragged": ragged.run,
  "serving": serving.run,
  "alone": alone.run,
  "correct": correct.run,
  "large_sampling": large.sampling,
  "large_training": large.update,
}
SIZES = ("tiny", "default")
