"""What is saved by calling tools ahead: P-ReAct (arXiv 2602.07035) against plain ReAct.

    python -m experiments.studies.react --out=runs/react

Trains a model of 0.4M parameters on bytes (a few minutes on a CPU) to look a word up: asked for
its code, it writes thoughts and a call that searches for the word, reads the response and answers.
Then it is asked for words it never saw, by `dlm.agent` over a file of 2000 documents. The tool is
BM25 and a pause, as a network would make: a share of the time in which the model writes a turn.
Both ways write the same texts in as many forwards. Writes model, corpus.jsonl, react.json.
"""

import functools
import json
import pathlib
import random
import statistics
import string
import time

from absl import flags

from dlm import build, checkpoint, command, files, train
from dlm.agent import Agent, Episode
from dlm.generate import Generator, Request, generator
from dlm.tools import Corpus, Tools
from experiments.benchmarks import results

OUT = flags.DEFINE_string("out", "runs/react", "Where everything goes.")
STEPS = flags.DEFINE_integer("steps", 400, "Updates.", lower_bound=1)
QUESTIONS = flags.DEFINE_integer("questions", 40, "Asked each way.", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 3, "Times that all are asked.", lower_bound=1)

DOCUMENTS, ROWS = 2000, 20_000
PAUSES = (0.25, 0.5, 1.0, 2.0)  # of the time that a turn is written in
ASKED = "code of {}? "
THOUGHTS = "I must search for {} "
CALL = "<{}>"
WORD, CODE = 5, 4  # letters and digits
BEFORE, AFTER = "\n", "\n= "
OPENS = len(THOUGHTS.format("-" * WORD))
CLOSES = OPENS + 1 + WORD
TURN = CLOSES + 2  # the stop token is the last
SLOTS = 96
RESPONSE = WORD + CODE + len(": ")


def facts(n: int, draw: random.Random) -> list[tuple[str, str]]:
  """Words and their codes, each word once."""
  words: dict[str, str] = {}
  while len(words) < n:
    word = "".join(draw.choices(string.ascii_lowercase, k=WORD))
    words[word] = "".join(draw.choices(string.digits, k=CODE))
  return list(words.items())


def rows(known: list[tuple[str, str]]) -> list[dict[str, str]]:
  """What is learned: a call to each question, and an answer to each response."""
  found = []
  for word, code in known:
    prompt, turn = ASKED.format(word), (THOUGHTS + CALL).format(word, word)
    response = f"{BEFORE}{word}: {code}{AFTER}"
    found.append({"prompt": prompt, "completion": turn})
    found.append({"prompt": prompt + turn + response, "completion": code})
  return found


def training(folder: pathlib.Path) -> build.Training:
  return build.everything(
    {
      "steps": STEPS.value,
      "batch": 64,
      "log_every": 100,
      "model": dict(width=128, layers=2, heads=4, kv_heads=4, head_dim=32, mlp=384, qk_norm=True),
      "objective": {"name": "llada_sft"},
      "data": {
        "sources": ((f"jsonl:{folder / 'rows.jsonl'}", 1.0),),
        "tokenizer": "byte",
        "length": SLOTS,
        "mode": "pad",
      },
      "optimizer": dict(lr=4e-3, schedule="cosine", warmup=50, weight_decay=0.01, ema=0.99),
      "checkpoint": {"keep_last": 1, "keep_best": 0},
    }
  )


def generators(trained: build.Training) -> tuple[Generator, Generator]:
  """What writes a turn, and what writes the answer."""
  opens, closes = (int(trained.tokenizer.encode(text)[0]) for text in CALL.split("{}"))
  region = dict(
    name="region", first=OPENS, last=CLOSES, forced=((OPENS, opens), (CLOSES, closes)),
    inner={"name": "fixed", "k": 1},
  )  # fmt: skip
  turn = {"policy": region, "slots": SLOTS, "max_new_tokens": TURN, "batch": 1}
  answer = {**turn, "policy": {"name": "fixed", "k": 1}, "max_new_tokens": CODE + 1}
  return generator(turn, trained)[0], generator(answer, trained)[0]


def asks(made: tuple[Generator, Generator], corpus: Corpus, pause: float, ahead: bool) -> Agent:
  def search(query: str) -> str:
    time.sleep(pause)
    return corpus.search(query)

  return Agent(
    *made, Tools({"search": search}), slots=SLOTS, turn_tokens=TURN, answer_tokens=CODE + 1,
    frame=(BEFORE, AFTER), longest=RESPONSE, ahead=ahead,
  )  # fmt: skip


def main() -> None:
  folder = pathlib.Path(OUT.value)
  folder.mkdir(parents=True, exist_ok=True)
  known = facts(DOCUMENTS + ROWS, random.Random(0))
  stored, learned = known[:DOCUMENTS], known[DOCUMENTS:]
  documents = [{"title": word, "text": code} for word, code in stored]
  for name, of in (("corpus", documents), ("rows", rows(learned))):
    files.write(folder / f"{name}.jsonl", "".join(json.dumps(each) + "\n" for each in of).encode())
  trained = training(folder)
  train.train(trained, folder / "model")
  params = checkpoint.restore_params(folder / "model", "latest")[0]
  corpus, made = Corpus(folder / "corpus.jsonl", hits=1), generators(trained)
  questions = stored[: QUESTIONS.value]
  requests = [
    Request.from_text(i, ASKED.format(word), trained.tokenizer, slots=SLOTS, max_new_tokens=TURN)
    for i, (word, _) in enumerate(questions)
  ]

  def run(pause: float, ahead: bool) -> list[Episode]:
    return asks(made, corpus, pause, ahead)(params, requests)

  run(0.0, True)  # compiles
  turn = statistics.median(each.turns[0].seconds for each in run(0.0, True))
  table = []
  for share in PAUSES:
    ways = {way: functools.partial(run, share * turn, way == "ahead") for way in ("plain", "ahead")}
    seconds, found = results.interleaved(ways, REPEATS.value)
    texts = {way: [(e.answer, *(t.text for t in e.turns)) for e in found[way]] for way in ways}
    if texts["plain"] != texts["ahead"]:
      raise RuntimeError("the two ways wrote different texts")
    right = [e.answer == code for e, (_, code) in zip(found["ahead"], questions, strict=True)]
    turns = [each.turns[0] for each in found["ahead"] if each.turns]
    table.append(
      {
        "plain / ahead": results.ratio(seconds["plain"], seconds["ahead"]),
        "pause / turn": share,
        "called after, % of forwards": 100 * statistics.mean(t.called / t.forwards for t in turns),
        "answers right, %": 100 * statistics.mean(right),
      }
    )
  note = f"{len(requests)} questions, a turn of {TURN} tokens takes {turn:.3g} s"
  said = results.Table("seconds until the answer", note, table)
  print(said)
  results.write(folder / "react.json", results.facts(), [said])


if __name__ == "__main__":
  command.run(main)
