"""Likelihood of a text split: `python experiments/evaluate.py --checkpoint=DIR`.

Prints nats and bits per token and perplexity, each with its standard error over sequences. From a
diffusion model they are bounds, to be read as "at most".
"""

import math

import jax
from absl import flags

from dlm import build, checkpoint, command
from dlm.data import SPLITS
from dlm.evaluation import likelihood
from dlm.types import Batch

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A folder that training made.")
STEP = flags.DEFINE_string("step", "best", "best, latest or a number.")
SPLIT = flags.DEFINE_enum("split", "test", SPLITS, "Which part of the training config's sources.")
BATCHES = flags.DEFINE_integer("batches", 32, "How many batches of rows.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 0, "Rows a batch; 0: as in training.", lower_bound=0)
DRAWS = flags.DEFINE_integer("draws", 1, "Noise draws for each row.", lower_bound=1)
ESTIMATOR = flags.DEFINE_string("estimator", "auto", "auto, training, or an objective by name.")
SEED = flags.DEFINE_integer("seed", 0, "Of the noise.")


def measure() -> likelihood.Likelihood:
  config = build.plain(checkpoint.read_json(CHECKPOINT.value, "config.json"))
  config["batch"] = BATCH.value or config["batch"]
  tokenizer = build.saved_tokenizer(CHECKPOINT.value)
  rows = build.rows(config, tokenizer, SPLIT.value)
  estimator = build.estimator(config, tokenizer, ESTIMATOR.value)
  model = build.model(config, tokenizer)
  which = int(STEP.value) if STEP.value.isdigit() else STEP.value
  params, step = checkpoint.restore_params(CHECKPOINT.value, which)
  print(f"{CHECKPOINT.value} step {step}, {SPLIT.value} split, estimator {estimator}")
  batches = (Batch(*jax.device_put(tuple(rows[index]))) for index in range(BATCHES.value))
  key = jax.random.key(SEED.value)
  return likelihood.nelbo(estimator, model, params, batches, key, draws=DRAWS.value)


def main() -> None:
  with command.mistakes():
    found = measure()
  error = found.standard_error
  print(f"{found.sequences} sequences, {found.tokens} tokens, {found.draws} draws each")
  print(f"nats/token  {found.nats_per_token:.4f} +- {error:.4f}")
  print(f"bits/token  {found.bits_per_token:.4f} +- {error / math.log(2):.4f}")
  print(f"perplexity  {found.perplexity:.3f} +- {found.perplexity * error:.3f}")


if __name__ == "__main__":
  command.run(main, required=(CHECKPOINT,))
