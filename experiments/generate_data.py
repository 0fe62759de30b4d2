r"""A checkpoint's own answers to prompts, as conversations to train on: self-distillation.

python experiments/generate_data.py --checkpoint=DIR --config=configs/sample/ar.py \
  --config.max_new_tokens=256 --source=everyday --source=stdlib --size=2000 --out=OUT.jsonl

Prompts are `everyday` questions, those on the standard library (`stdlib`), tasks of a package
(`reasoning_gym:chain_sum,word_sorting`, set by --option='chain_sum={"max_digits": 2}'), or those of
files (`jsonl:PATH`, `parquet:PATH`, `dataset:DIR` with "prompt" or "messages"). Each goes through
the checkpoint's chat template. No prompt of --split=test is one of --split=train, whatever seed.
OUT.jsonl holds {"messages": [the prompt, the answer], ...} a line, which training reads as the
source `jsonl:OUT.jsonl`; the same command takes up an interrupted one. --keep=whole, the default,
leaves out answers that did not end by themselves, and those whose text has other ids than were
sampled. --prompts_only writes prompts without answers, for --chat --prompts of sample.py.
"""

import json

from absl import flags

from dlm import build, command, files
from dlm.answers import Answers, flaw
from dlm.checksums import checksums
from dlm.completions import Output, check_out, conversed, digest, template_of
from dlm.data import prompts
from dlm.data.sources import SPLITS
from dlm.generate import generator
from dlm.serving.offline import Offline

CONFIG = flags.DEFINE_string("config", None, "How to sample: FILE.py or FILE.py:ARGUMENT.")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Of training, or a Hugging Face directory.")
ADAPTER = flags.DEFINE_string("adapter", None, "Of the checkpoint, in PEFT's layout.")
STEP = flags.DEFINE_string("step", "best", "best, latest or a number.")
SOURCE = flags.DEFINE_multi_string(
  "source", ["everyday", "stdlib"], f"May be given several times: {', '.join(prompts.NAMES)}."
)
SPLIT = flags.DEFINE_enum("split", "train", [*SPLITS, prompts.ALL], "Which prompts.")
SIZE = flags.DEFINE_integer("size", 1000, "Prompts of each source that is no file.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of the prompts; that of the answers is --config.seed.")
OPTIONS = flags.DEFINE_multi_string("option", [], "TASK=SETTINGS, a Python literal.")
SAMPLES = flags.DEFINE_integer("samples", 1, "Answers to each prompt.", lower_bound=1)
KEEP = flags.DEFINE_enum("keep", "whole", ["whole", "all"], "Which answers.")
SKIP_BAD = flags.DEFINE_bool("skip_bad", False, "Leave out prompts that do not fit, and say so.")
PROMPTS_ONLY = flags.DEFINE_bool("prompts_only", False, "Write the prompts, without a checkpoint.")
OUT = flags.DEFINE_string("out", None, "A JSONL file.")


def main() -> None:
  check_out(OUT.value, *map(prompts.paths, SOURCE.value))
  asked = prompts.collect(
    SOURCE.value,
    SPLIT.value,
    size=SIZE.value,
    seed=SEED.value,
    configs=command.options(OPTIONS.value),
  )
  if PROMPTS_ONLY.value:
    files.write(OUT.value, "".join(json.dumps(prompt.record()) + "\n" for prompt in asked))
    print(f"{OUT.value}: {len(asked)} prompts")
    return
  for flag in (CONFIG, CHECKPOINT):
    if flag.value is None:
      raise ValueError(f"--{flag.name} is missing")
  config = build.SamplingConfig.read(CONFIG.value, command.FIELDS.value)
  trained = build.pretrained(CHECKPOINT.value, STEP.value, ADAPTER.value)
  sample, own = generator(config, trained)
  talks = [prompt.talk for prompt in asked]
  requests = conversed(trained, own, talks, samples=SAMPLES.value, skip_bad=SKIP_BAD.value)
  params, step = trained.on(sample.mesh, own.weights)
  answers = Answers.to(requests, asked, template_of(trained), trained.tokenizer)
  sources = [prompt.source for prompt in asked]
  job = [trained.config, step, build.plain(config), digest(requests), sources, checksums(params)]
  with Output(OUT.value, job) as output:
    output.fill(
      Offline(sample),
      params,
      requests,
      seed=own.seed,
      records=answers.lines,
      leave_out=flaw if KEEP.value == "whole" else None,
    )


if __name__ == "__main__":
  command.run(main, required=(OUT,))
