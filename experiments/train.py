"""Trains a model: `python experiments/train.py --config=configs/train/NAME.py --workdir=DIR`.

Every field of the config can be set: `--config.optimizer.lr=1e-3`. The same command goes on from
the newest checkpoint in DIR. Ends with 0 when done; with 143 when stopped and saved, by SIGTERM (a
machine that is taken away) or Ctrl-C: start it again; with 2 on a mistake of the caller (one line,
nothing written); with 1 when the loss is no longer finite, or when another process is gone, of
several (--distributed).
"""

import sys

from absl import flags

from dlm import build, command, generate, processes, train

CONFIG = flags.DEFINE_string("config", None, "The run: FILE.py or FILE.py:ARGUMENT.")
WORKDIR = flags.DEFINE_string("workdir", None, "Checkpoints, metrics and samples go here.")


def main() -> None:
  training = build.everything(build.RunConfig.read(CONFIG.value, command.FIELDS.value))
  try:
    state = train.train(training, WORKDIR.value, generate.samples(training))
  except FloatingPointError as error:
    print(f"train: {error}", file=sys.stderr)
    sys.exit(1)
  if int(state.step) < training.run.steps:
    sys.exit(processes.STOPPED)


if __name__ == "__main__":
  command.run(main, required=(CONFIG, WORKDIR), distributed=True)
