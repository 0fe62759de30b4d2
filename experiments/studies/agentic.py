"""What is learned from trajectories in which tools really run: DLLM-Searcher (arXiv 2602.07035).

    python -m experiments.studies.agentic --seeds=3

Writes questions, trajectories and documents; trains a model of 0.4M parameters on bytes by Agentic
SFT, and stops while it still errs. From there, seed by seed, the stages of --stages: vrpo and grpo
learn from trajectories of their own (configs/train/agentic.py), further is so many more updates of
SFT. Then all are asked for words that none of them saw. Writes agentic.json. The same command goes
on where it was stopped.
"""

import dataclasses
import json
import pathlib
import random
import shlex
import statistics
import string
import sys
import time

from absl import flags

from dlm import build, checkpoint, command, episodes, files, train
from dlm.generate import Request
from experiments.benchmarks import results

WORKDIR = flags.DEFINE_string("workdir", "runs/agentic", "Where everything goes.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each; 0: files and SFT alone.", lower_bound=0)
STEPS = flags.DEFINE_integer("steps", 30, "Updates after SFT.", lower_bound=1)
QUESTIONS = flags.DEFINE_integer("questions", 192, "Of those held out.", lower_bound=1)
STAGES = flags.DEFINE_list("stages", ["vrpo", "further"], "Of: vrpo, grpo, further.")
LEARN = flags.DEFINE_integer("learn", 126, "Updates of SFT.", lower_bound=1)

CONFIG = "configs/train/agentic.py"
ASKED, HELD_OUT, LEARNED = 4000, 400, 20_000  # questions
WORD, CODE = 4, 3  # letters and digits
QUESTION = "code of {}? "
BLOCK = 16
LONGER = "is "  # of two documents that hold a name a search prefers the shorter: its own


@dataclasses.dataclass(frozen=True)
class Fact:
  """A word, its friend, and the friend's code."""

  word: str
  friend: str
  code: str

  @property
  def question(self) -> str:
    return QUESTION.format(self.word)

  @property
  def trajectory(self) -> dict[str, str]:
    """As the agent lays it out: the question and responses are filled up to blocks."""
    found = (f"{self.word}: {LONGER}{self.friend}", f"{self.friend}: {self.code}")
    turns = zip((self.word, self.friend), found, strict=True)
    filled = ((name, text.ljust(BLOCK - 2, "\n")) for name, text in turns)
    said = "".join(f"find {name} <{name}>[{text}]" for name, text in filled)
    return {"prompt": self.question.rjust(BLOCK, "\n"), "completion": said + self.code}


def facts(n: int, draw: random.Random) -> list[Fact]:
  """Each word once."""
  words: dict[str, None] = {}
  while len(words) < 2 * n:
    words["".join(draw.choices(string.ascii_lowercase, k=WORD))] = None
  names = iter(words)
  codes = ("".join(draw.choices(string.digits, k=CODE)) for _ in range(n))
  return [Fact(*each) for each in zip(names, names, codes, strict=True)]


def lines(path: pathlib.Path, records: list[dict[str, str]]) -> None:
  files.write(path, "".join(json.dumps(each) + "\n" for each in records).encode())


def write_files(folder: pathlib.Path) -> list[Fact]:
  """The held-out questions; the files are the same whenever they are written."""
  known = facts(ASKED + HELD_OUT + LEARNED, random.Random(0))
  stored, learned = known[: ASKED + HELD_OUT], known[ASKED + HELD_OUT :]
  documents = [{"title": each.word, "text": LONGER + each.friend} for each in stored]
  documents += [{"title": each.friend, "text": each.code} for each in stored]
  lines(folder / "corpus.jsonl", documents)
  lines(folder / "learned.jsonl", [each.trajectory for each in learned])
  asked = [{"prompt": each.question, "completion": each.code} for each in stored[HELD_OUT:]]
  lines(folder / "asked.jsonl", asked)
  return stored[:HELD_OUT]


def built(folder: pathlib.Path, stage: str, seed: int) -> build.Training:
  """A run of the study, in its folder."""
  steps = LEARN.value if stage == "sft" else STEPS.value
  fields = [f"seed={seed}", f"steps={steps}"]
  if stage in ("sft", "further"):
    silent = (("silent", ("[", "]")),)
    fields.append(f"data.sources={((f'jsonl:{folder}/learned.jsonl', 1.0, silent),)}")
  else:
    fields.append(f"data.sources={((f'jsonl:{folder}/asked.jsonl', 1.0),)}")
    fields.append(f"tools.corpus={folder}/corpus.jsonl")
  if stage != "sft":
    fields.append(f"init_from={folder}/sft")
  if stage == "further":
    fields += ["optimizer.lr=2e-4", "optimizer.schedule=constant", "optimizer.warmup=5"]
    fields += ["optimizer.weight_decay=0.0", "optimizer.ema=None"]
  config = "sft" if stage == "further" else stage
  return build.everything(build.RunConfig.read(f"{CONFIG}:{config}", fields))


def accuracy(asks: build.Training, folder: pathlib.Path, held_out: list[Fact]) -> dict[str, float]:
  """Percent of right answers at temperature 0 and, "sampled", as roll-outs are; and of trajectories
  whose calls, at temperature 0, named the right words.

  Args:
    asks: a run with tools.
  """
  params = checkpoint.restore_params(folder, "latest")[0]
  requests = [
    Request.from_text(i, each.question, asks.tokenizer, slots=96, max_new_tokens=BLOCK)
    for i, each in enumerate(held_out)
  ]
  still = dataclasses.replace(asks.run.rollout, temperature=0.0)
  greedy = dataclasses.replace(asks.run, rollout=still)
  found: dict[str, float] = {}
  for name, run in (("right", greedy), ("sampled", asks.run)):
    done = episodes.of(dataclasses.replace(asks, run=run)).agent(params, requests)
    pairs = list(zip(done, held_out, strict=True))
    found[name] = 100 * statistics.mean(each.answer == fact.code for each, fact in pairs)
    calls = [[turn.call for turn in each.turns] == [f.word, f.friend] for each, f in pairs]
    found.setdefault("calls", 100 * statistics.mean(calls))
  return found


def main() -> None:
  folder, began = pathlib.Path(WORKDIR.value), time.perf_counter()
  folder.mkdir(parents=True, exist_ok=True)
  held_out = write_files(folder)[: QUESTIONS.value]
  trained(built(folder, "sft", 0), folder / "sft")
  if not SEEDS.value:
    return
  asks = built(folder, "vrpo", 0)
  before = accuracy(asks, folder / "sft", held_out)
  print(f"after SFT: {before}", flush=True)
  runs, rows = [{"stage": "sft", **before}], []
  for stage in STAGES.value:
    found = []
    for seed in range(1, SEEDS.value + 1):
      of = folder / f"{stage}-{seed}"
      trained(built(folder, stage, seed), of)
      found.append(accuracy(asks, of, held_out))
      print(f"{of}: {found[-1]}", flush=True)
      runs.append({"stage": stage, "seed": seed, **found[-1]})
    row = {"stage": stage}
    for name in before:
      row[f"{name}, %"] = f"{before[name]:.1f} -> {spread([each[name] for each in found])}"
    rows.append(row)
  table = results.Table("held-out questions", f"{len(held_out)} of them", rows)
  print(table)
  said = shlex.join(["python", "-m", "experiments.studies.agentic", *sys.argv[1:]])
  record = {"command": said, **results.facts(), "rows": rows, "runs": runs}
  files.write_json(folder / "agentic.json", record, indent=1)
  print(f"\n{folder / 'agentic.json'}, after {time.perf_counter() - began:.0f} s")


def trained(training: build.Training, folder: pathlib.Path) -> None:
  if int(train.train(training, folder).step) < training.run.steps:
    sys.exit(0)  # it was told to stop


def spread(values: list[float]) -> str:
  """Mean and standard deviation over seeds."""
  deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
  return f"{statistics.mean(values):.1f}{deviation}"


if __name__ == "__main__":
  command.run(main)
