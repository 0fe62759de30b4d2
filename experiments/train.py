"""Trains a model: `python experiments/train.py --config=configs/train/NAME.py --workdir=DIR`.

Every field of the config can be set: `--config.optimizer.lr=1e-3`. The same command goes on from
the newest checkpoint in DIR. Ends with 0 when done or when stopped and saved, with 2 on a mistake
of the caller (one line, nothing written), with 1 when the loss is no longer finite.
"""

import sys

import jax
from absl import flags

from dlm import build, command, train
from dlm.checkpoint import CheckpointError
from dlm.generate import Generator, Request
from dlm.weights import WeightsError

CONFIG = flags.DEFINE_string("config", None, "The run: FILE.py or FILE.py:ARGUMENT.")
WORKDIR = flags.DEFINE_string("workdir", None, "Checkpoints, metrics and samples go here.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several processes: a TPU pod.")


def samples(training: build.Training) -> train.Writer | None:
  """What writes the samples that the config asks for along the way."""
  sample = training.run.sample
  if not sample.every:
    return None
  if jax.process_count() > 1:
    raise ValueError("sample.every needs a single process: sample from the checkpoints instead")
  config = build.SamplingConfig.read(sample.config)
  sampler, own = build.sampling(config, training.model, training.facts)
  room = {"slots": own.slots, "max_new_tokens": own.max_new_tokens}
  prompts = enumerate(sample.prompts)
  requests = [Request.from_text(i, text, training.tokenizer, **room) for i, text in prompts]
  generator = Generator(
    sampler,
    training.tokenizer,
    training.mesh,
    align=own.align,
    batch=len(requests),
    row_tile=own.row_tile,
  )
  return lambda params, step: [c.text for c in generator(params, requests, seed=step)]


def main() -> None:
  if DISTRIBUTED.value:
    jax.distributed.initialize()
  with command.mistakes():
    training = build.everything(build.RunConfig.read(CONFIG.value, command.FIELDS.value))
    writes = samples(training)
  try:
    with command.mistakes((CheckpointError, WeightsError)):
      train.train(training, WORKDIR.value, writes)
  except FloatingPointError as error:
    print(f"train: {error}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
  command.run(main, required=(CONFIG, WORKDIR))
