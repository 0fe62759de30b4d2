"""Likelihood of a text split: `python experiments/evaluate.py --checkpoint=DIR`.

DIR is a checkpoint folder or a Hugging Face directory. The text is that of the checkpoint's own
training, or with --config=FILE.py that of another training config's `data`: published weights come
without. Prints nats and bits per token and perplexity, each with its standard error over sequences;
from a diffusion model they are bounds, to be read as "at most".
"""

import dataclasses
import math

import jax
from absl import flags

from dlm import build, command
from dlm.data import SPLITS
from dlm.evaluation import likelihood
from dlm.seeds import check_seed
from dlm.types import Batch

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Of training, or a Hugging Face directory.")
CONFIG = flags.DEFINE_string("config", None, "Whose data to take: FILE.py or FILE.py:ARGUMENT.")
ADAPTER = flags.DEFINE_string("adapter", None, "Of the checkpoint, in PEFT's layout.")
STEP = flags.DEFINE_string("step", "best", "best, latest or a number.")
SPLIT = flags.DEFINE_enum("split", "test", SPLITS, "Which part of the training config's sources.")
BATCHES = flags.DEFINE_integer("batches", 32, "How many batches of rows.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 0, "Rows a batch; 0: as in training.", lower_bound=0)
DRAWS = flags.DEFINE_integer("draws", 1, "Noise draws for each row.", lower_bound=1)
ESTIMATOR = flags.DEFINE_string("estimator", "auto", "auto, training, or an objective by name.")
SEED = flags.DEFINE_integer("seed", 0, "Of the noise.")


def text_of(trained: build.Pretrained) -> build.RunConfig:
  """A training config whose data, batch and seed are to be measured."""
  if CONFIG.value is not None:
    run = build.RunConfig.read(CONFIG.value, command.FIELDS.value)
  elif (run := trained.run()) is None:
    raise ValueError(f"{CHECKPOINT.value} was trained on no data known here: give --config")
  return dataclasses.replace(run, batch=BATCH.value or run.batch)


def measure() -> likelihood.Likelihood:
  key = jax.random.key(check_seed(SEED.value, "--seed"))
  trained = build.pretrained(CHECKPOINT.value, STEP.value, ADAPTER.value)
  tokenizer, model = trained.tokenizer, trained.model
  rows = build.rows(text_of(trained), tokenizer, SPLIT.value)
  print("".join(f"{line}\n" for line in rows.notes()), end="")
  estimator = build.estimator(trained.objective, tokenizer, ESTIMATOR.value)
  params, step = trained.params()
  print(f"{CHECKPOINT.value} step {step}, {SPLIT.value} split, estimator {estimator}")
  batches = (Batch(*jax.device_put(tuple(rows[index]))) for index in range(BATCHES.value))
  return likelihood.nelbo(estimator, model, params, batches, key, draws=DRAWS.value)


def main() -> None:
  found = measure()
  error = found.standard_error
  print(f"{found.sequences} sequences, {found.tokens} tokens, {found.draws} draws each")
  print(f"nats/token  {found.nats_per_token:.4f} +- {error:.4f}")
  print(f"bits/token  {found.bits_per_token:.4f} +- {error / math.log(2):.4f}")
  print(f"perplexity  {found.perplexity:.3f} +- {found.perplexity * error:.3f}")


if __name__ == "__main__":
  command.run(main, required=(CHECKPOINT,))
