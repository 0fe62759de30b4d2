"""Trains a model: `python experiments/train.py --config=configs/train/NAME.py --workdir=DIR`.

Every field of the config can be set: `--config.optimizer.lr=1e-3`. The same command goes on from
the newest checkpoint in DIR. Ends with 0 when done or when stopped and saved, with 2 on a mistake
of the caller (one line, nothing written), with 1 when the loss is no longer finite.
"""

import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from dlm import build, train
from dlm.checkpoint import CheckpointError

CONFIG = config_flags.DEFINE_config_file("config", None, "The run.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Checkpoints, metrics and samples go here.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several processes: a TPU pod.")


def refuse(error: Exception) -> None:
  """Says what the caller got wrong, in one line, and exits with 2."""
  print("train: " + " ".join(str(error).split()), file=sys.stderr)
  sys.exit(2)


def parse(arguments: list[str]) -> list[str]:
  try:
    rest = flags.FLAGS(arguments)
    for flag in (CONFIG, WORKDIR):
      if flag.value is None:
        raise ValueError(f"--{flag.name} is missing")
    return rest
  except (AttributeError, KeyError) as error:
    refuse(ValueError(f"unknown config field {error.args[0]}"))
  except (flags.Error, ValueError, TypeError, OSError) as error:
    refuse(error)


def main(_) -> None:
  logging.set_verbosity(logging.ERROR)  # orbax tells its life at INFO
  if DISTRIBUTED.value:
    jax.distributed.initialize()
  try:
    training = build.everything(CONFIG.value)
  except (ValueError, OSError, ModuleNotFoundError) as error:
    refuse(error)
  try:
    train.train(training, WORKDIR.value)
  except CheckpointError as error:
    refuse(error)
  except FloatingPointError as error:
    print(f"train: {error}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
  app.run(main, flags_parser=parse)
