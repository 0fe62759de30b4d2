"""Likelihood of a text split: `python experiments/evaluate.py --checkpoint=DIR`.

DIR is a checkpoint folder or a Hugging Face directory. The text is that of the checkpoint's own
training, or with --config=FILE.py that of another training config's `data`: published weights come
without. Prints nats and bits per token and perplexity, each with its standard error over sequences;
from a diffusion model they are bounds, to be read as "at most".
"""

import math

import jax
from absl import flags
from ml_collections import config_flags

from dlm import build, command
from dlm.data import SPLITS
from dlm.evaluation import likelihood
from dlm.seeds import check_seed
from dlm.types import Batch

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Of training, or a Hugging Face directory.")
CONFIG = config_flags.DEFINE_config_file("config", None, "Whose data to take.", lock_config=True)
STEP = flags.DEFINE_string("step", "best", "best, latest or a number.")
SPLIT = flags.DEFINE_enum("split", "test", SPLITS, "Which part of the training config's sources.")
BATCHES = flags.DEFINE_integer("batches", 32, "How many batches of rows.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 0, "Rows a batch; 0: as in training.", lower_bound=0)
DRAWS = flags.DEFINE_integer("draws", 1, "Noise draws for each row.", lower_bound=1)
ESTIMATOR = flags.DEFINE_string("estimator", "auto", "auto, training, or an objective by name.")
SEED = flags.DEFINE_integer("seed", 0, "Of the noise.")


def text_of(trained: build.Pretrained) -> dict:
  """The checkpoint's config, with the data, batch and seed that are to be measured."""
  given = trained.config if CONFIG.value is None else build.plain(CONFIG.value)
  missing = [field for field in ("data", "batch", "seed") if field not in given]
  if missing:
    raise ValueError(f"{CHECKPOINT.value} was trained on no data known here: give --config")
  given = {field: given[field] for field in ("data", "batch", "seed")}
  return trained.config | given | ({"batch": BATCH.value} if BATCH.value else {})


def measure() -> likelihood.Likelihood:
  key = jax.random.key(check_seed(SEED.value, "--seed"))
  which = int(STEP.value) if STEP.value.isdigit() else STEP.value
  trained = build.pretrained(CHECKPOINT.value, which)
  config, tokenizer, model = text_of(trained), trained.tokenizer, trained.model
  rows = build.rows(config, tokenizer, SPLIT.value)
  print("".join(f"{line}\n" for line in rows.left_out()), end="")
  estimator = build.estimator(config, tokenizer, ESTIMATOR.value)
  params, step = trained.params()
  print(f"{CHECKPOINT.value} step {step}, {SPLIT.value} split, estimator {estimator}")
  batches = (Batch(*jax.device_put(tuple(rows[index]))) for index in range(BATCHES.value))
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
