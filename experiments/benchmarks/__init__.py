"""What is measured, by the name that `--suite` takes: one file each, with `run(size) -> tables`."""

from experiments.benchmarks import compilation, memory, sampling, training

SUITES = {
  "training": training.run,
  "sampling": sampling.run,
  "compile": compilation.run,
  "memory": memory.run,
}
SIZES = ("tiny", "default")
