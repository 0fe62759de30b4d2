r"""Likelihood of a text split: `python experiments/evaluate.py --checkpoint=DIR`.

DIR is a checkpoint folder, a Hugging Face directory, FILE.gguf or package:NAME. The text is that of
the checkpoint's own training, or with --config=FILE.py that of another training config's `data`:
published weights come without. Prints nats and bits per token and perplexity, each with its
standard error over sequences; from a diffusion model they are bounds, to be read as "at most".

With --task it answers held-out problems instead, and --config says how to sample:

python experiments/evaluate.py --checkpoint=DIR --config=configs/sample/ar.py --chat --shots=4 \
  --config.max_new_tokens=32 --task=reasoning_gym:chain_sum,gcd --out=RESULTS.json

It prints the share of right answers of each task (`dlm.evaluation.tasks` names them) with its
standard error, and tokens per forward. --chat asks through the checkpoint's chat template, else a
problem is text to continue; --shots=4 shows worked examples before each (from which a chat model
learns that the answer alone is wanted), --size=100 problems are asked of each task, and
--option='chain_sum={"max_digits": 2}' sets a task.
"""

import dataclasses
import math

import jax
from absl import flags

from dlm import build, command, files
from dlm.completions import conversed
from dlm.data import SPLITS
from dlm.evaluation import likelihood, tasks
from dlm.generate import Request, generator
from dlm.seeds import check_seed
from dlm.types import Batch

CHECKPOINT = flags.DEFINE_string(
  "checkpoint", None, "Of training, a Hugging Face directory, FILE.gguf or package:NAME."
)
CONFIG = flags.DEFINE_string(
  "config", None, "Whose data to take, or how to sample: FILE.py or FILE.py:ARGUMENT."
)
ADAPTER = flags.DEFINE_string("adapter", None, "Of the checkpoint, in PEFT's layout.")
STEP = flags.DEFINE_string("step", "best", "best, latest or a number.")
SPLIT = flags.DEFINE_enum("split", "test", SPLITS, "Which part of the training config's sources.")
BATCHES = flags.DEFINE_integer("batches", 32, "How many batches of rows.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 0, "Rows a batch; 0: as in training.", lower_bound=0)
DRAWS = flags.DEFINE_integer("draws", 1, "Noise draws for each row.", lower_bound=1)
ESTIMATOR = flags.DEFINE_string("estimator", "auto", "auto, training, or an objective by name.")
SEED = flags.DEFINE_integer("seed", 0, "Of the noise, or of the problems.")
TASK = flags.DEFINE_multi_string(
  "task", [], "KIND:NAMES, several times; unknown ones list the known."
)
SIZE = flags.DEFINE_integer("size", 100, "Problems of each task.", lower_bound=1)
OPTIONS = flags.DEFINE_multi_string("option", [], "NAME=VALUE for tasks, a Python literal.")
CHAT = flags.DEFINE_bool("chat", False, "A problem is a message, not a text to continue.")
SHOTS = flags.DEFINE_integer("shots", 0, "Worked examples before each problem.", lower_bound=0)
OUT = flags.DEFINE_string("out", None, "A JSON file of results and answers of --task.")


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
  params, step = trained.params(objective=True)
  print(f"{CHECKPOINT.value} step {step}, {SPLIT.value} split, estimator {estimator}")
  batches = (Batch(*jax.device_put(tuple(rows[index]))) for index in range(BATCHES.value))
  return likelihood.nelbo(estimator, model, params, batches, key, draws=DRAWS.value)


def answer() -> None:
  """Asks the problems of --task."""
  if CONFIG.value is None:
    raise ValueError("--task needs --config, which says how to sample")
  config = build.SamplingConfig.read(CONFIG.value, command.FIELDS.value)
  options, seed = command.options(OPTIONS.value), check_seed(SEED.value, "--seed")
  asked = [
    question
    for spec in TASK.value
    for question in tasks.questions(
      spec, size=SIZE.value, seed=seed, shots=SHOTS.value, options=options
    )
  ]
  trained = build.pretrained(CHECKPOINT.value, STEP.value, ADAPTER.value)
  sample, own = generator(config, trained)
  if CHAT.value:
    requests = conversed(trained, own, [question.talk for question in asked])
  else:
    requests = [
      Request.from_text(i, question.text, trained.tokenizer, bos=own.bos, **own.room)
      for i, question in enumerate(asked)
    ]
  params, step = trained.on(sample.mesh)
  print(f"{CHECKPOINT.value} step {step}, {len(asked)} problems", flush=True)
  done = sample(params, requests, seed=own.seed)
  scores = [q.score(c.text, CHAT.value) for q, c in zip(asked, done, strict=True)]
  found = tasks.results(asked, scores, done)
  for task, result in found.items():
    print(f"{task}  {result.describe()}")
  if OUT.value:
    how = {"seed": seed, "shots": SHOTS.value, "chat": CHAT.value, "options": options}
    answers = [
      {"task": q.task, "prompt": c.prompt, "text": c.text, "score": score}
      for q, c, score in zip(asked, done, scores, strict=True)
    ]
    record = {
      "checkpoint": CHECKPOINT.value,
      "step": step,
      "config": build.plain(config),
      "problems": how,
      "tasks": {task: result.record() for task, result in found.items()},
      "answers": answers,
    }
    files.write_json(OUT.value, record)


def main() -> None:
  if TASK.value:
    answer()
    return
  found = measure()
  error = found.standard_error
  print(f"{found.sequences} sequences, {found.tokens} tokens, {found.draws} draws each")
  print(f"nats/token  {found.nats_per_token:.4f} +- {error:.4f}")
  print(f"bits/token  {found.bits_per_token:.4f} +- {error / math.log(2):.4f}")
  print(f"perplexity  {found.perplexity:.3f} +- {found.perplexity * error:.3f}")


if __name__ == "__main__":
  command.run(main, required=(CHECKPOINT,))
