r"""Answers questions with tools that run while the model still writes: P-ReAct (arXiv 2602.07035).

python experiments/agent.py --checkpoint=DIR --config=configs/sample/p_react.py \
  --answer_config=configs/sample/p_react.py:answer --config.slots=2048 --turns=3 \
  --corpus=DOCUMENTS.jsonl --chat --prompt="Who wrote ...?"

DOCUMENTS.jsonl holds {"title": "...", "text": "..."} a line. Two tools search them: a call
{"name": "search", "arguments": {"query": "..."}} (BM25), or text that is no JSON, which is searched
for; and {"name": "open", "arguments": {"title": "..."}}. --prompts and --chat are those of
sample.py; conversations may tell the model of the tools. --out=FILE.jsonl keeps every turn: the
call, the response, after which forward the tool started, its seconds, and those that were waited.
--noahead is plain ReAct: the tool starts when the turn is written.
"""

import dataclasses

from absl import flags

from dlm import build, command
from dlm.agent import Agent, Episode
from dlm.checksums import checksums
from dlm.completions import Output, asked, check_out, digest
from dlm.generate import generator
from dlm.tools import OF_CORPUS, open_tools

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Of training, or a Hugging Face directory.")
STEP = flags.DEFINE_string("step", "best", "best, latest or a number.")
CONFIG = flags.DEFINE_string("config", None, "How to write a turn: FILE.py or FILE.py:ARGUMENT.")
ANSWER = flags.DEFINE_string("answer_config", None, "How to write the answer, in the same canvas.")
ANSWER_TOKENS = flags.DEFINE_integer("answer_tokens", 0, "Of it; 0: as its config says.")
CORPUS = flags.DEFINE_string("corpus", None, "A JSONL file of documents, or several.")
HITS = flags.DEFINE_integer("hits", 3, "Documents that a search finds.")
TURNS = flags.DEFINE_integer("turns", 1, "With a call, at most.")
AHEAD = flags.DEFINE_bool("ahead", True, "A tool starts as soon as its call is written.")
LIMIT = flags.DEFINE_float("tool_seconds", 20.0, "A call may take.")
BEFORE = flags.DEFINE_string(
  "before", "<|im_end|>\n<|im_start|>user\n<tool_response>\n", "What stands before a response."
)
AFTER = flags.DEFINE_string(
  "after", "\n</tool_response><|im_end|>\n<|im_start|>assistant\n", "What stands behind it."
)
LONGEST = flags.DEFINE_integer("response_tokens", 512, "Of a response; the rest is cut off.")
PROMPT = flags.DEFINE_multi_string("prompt", [], "A question; may be given several times.")
PROMPTS = flags.DEFINE_string("prompts", None, "A JSONL file of questions.")
CHAT = flags.DEFINE_bool("chat", False, "A question is a message, not a text to continue.")
CHAT_ARGS = flags.DEFINE_string("chat_args", "{}", "Variables of the chat template, as JSON.")
OUT = flags.DEFINE_string("out", None, "A JSONL file of answers; default: the screen.")


def record(episode: Episode) -> dict:
  """What a line of the output says."""
  turns = [dataclasses.asdict(turn) for turn in episode.turns]
  return {"prompt": episode.request.prompt, "answer": episode.answer, "turns": turns}


def describe(episode: Episode) -> str:
  """The episode for the screen, a paragraph a turn."""
  parts = [
    f"{turn.text}\n[call after {turn.called} of {turn.forwards} forwards; the tool took "
    f"{turn.tool:.3g} s, {turn.waited:.3g} s of them were waited]\n{turn.response}"
    for turn in episode.turns
  ]
  return "\n\n".join([*parts, episode.answer])


def main() -> None:
  config = build.SamplingConfig.read(CONFIG.value, command.FIELDS.value)
  answers = build.SamplingConfig.read(ANSWER.value)
  answers = dataclasses.replace(
    answers,
    slots=config.slots,
    batch=config.batch,
    max_new_tokens=ANSWER_TOKENS.value or answers.max_new_tokens,
  )
  check_out(OUT.value, PROMPTS.value, CORPUS.value)
  trained = build.pretrained(CHECKPOINT.value, STEP.value)
  (writer, own), (answerer, last) = (generator(each, trained) for each in (config, answers))
  tools = open_tools(OF_CORPUS, CORPUS.value, hits=HITS.value, seconds=LIMIT.value)
  agent = Agent(
    writer,
    answerer,
    tools,
    slots=own.room["slots"],
    turn_tokens=own.max_new_tokens,
    answer_tokens=last.max_new_tokens,
    turns=TURNS.value,
    frame=(BEFORE.value, AFTER.value),
    longest=LONGEST.value,
    ahead=AHEAD.value,
  )
  talk = {"talk": CHAT.value, "told": CHAT_ARGS.value}
  requests = asked(trained, own, PROMPT.value, PROMPTS.value, **talk)
  params, step = trained.on(writer.mesh, own.weights)
  if not OUT.value:
    agent(params, requests, seed=own.seed, on_batch=lambda done: print(*map(describe, done)))
    return
  told = [each.value for each in (HITS, TURNS, AHEAD, LIMIT, BEFORE, AFTER, LONGEST)]
  made = [build.plain(config), build.plain(answers), digest(requests), tools.digest, told]
  with Output(OUT.value, [trained.config, step, made, checksums(params)]) as output:
    output.fill(
      agent, params, requests, seed=own.seed, records=lambda done: [record(each) for each in done]
    )


if __name__ == "__main__":
  command.run(main, required=(CHECKPOINT, CONFIG, ANSWER, CORPUS))
