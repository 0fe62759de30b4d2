"""Prompts in, completions out, as JSON lines; an interrupted run goes on where it stopped."""

import hashlib
import json
import pathlib
import time
from collections.abc import Sequence

from dlm.generate import Completion, Generator, Request
from dlm.types import Params


def read_prompts(path: str | pathlib.Path) -> list[str]:
  """One prompt a line: {"prompt": "..."} (other fields are ignored) or a JSON string.

  Raises:
    ValueError: names the line that is neither, or the file that holds none.
  """
  prompts = []
  # Lines of bytes: a str would also be cut at characters that JSON may hold, such as U+2028.
  for number, line in enumerate(pathlib.Path(path).read_bytes().splitlines(), start=1):
    if not line.strip():
      continue
    try:
      value = json.loads(line)
    except ValueError as error:
      raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
    prompt = value.get("prompt") if isinstance(value, dict) else value
    if not isinstance(prompt, str):
      raise ValueError(f'{path}, line {number}: needs a string or {{"prompt": "..."}}')
    prompts.append(prompt)
  if not prompts:
    raise ValueError(f"{path} holds no prompt")
  return prompts


def record(completion: Completion, trace: bool) -> dict:
  """What a line of the output says; `trace` adds the row's ids and the forward that wrote each."""
  forwards = sum(completion.forwards.values())
  kept = {
    "id": completion.id,
    "prompt": completion.prompt,
    "text": completion.text,
    "spans": completion.spans,
    "tokens": completion.tokens,
    "forwards": {**completion.forwards, "all": forwards},
    "query_positions": completion.queries,
    "remasked": completion.remasked,
    "tokens_per_forward": round(completion.tpf, 4),
    "tokens_per_second": round(len(completion.tokens) / completion.seconds, 2),
    "finished": completion.finished,
  }
  return kept | ({"row": completion.row, "when": completion.when} if trace else {})


def describe(completions: Sequence[Completion]) -> str:
  """Completions for the screen: the text, then what it cost."""
  return "\n".join(
    f"{c.text}\n[{len(c.tokens)} tokens, {sum(c.forwards.values())} forwards, "
    f"{c.tpf:.2f} tokens a forward, {len(c.tokens) / c.seconds:.4g} tokens/s]"
    for c in completions
  )


class Output:
  """FILE.jsonl, filled as FILE.jsonl.part beside it and renamed when the last line is there.

  The part's first line identifies the job (any JSON value); a part of the same job is taken up,
  one of another job is refused. Rows' noise depends on their ids alone, so a resumed file equals
  an unbroken one in all but its timings.
  """

  def __init__(self, path: str | pathlib.Path, job: object):
    self.path = pathlib.Path(path)
    self._part = self.path.with_name(self.path.name + ".part")
    if not self.path.parent.is_dir():
      raise ValueError(f"--out: {self.path.parent} is not a folder")
    if self.path.is_dir():
      raise ValueError(f"--out: {self.path} is a folder")
    text = json.dumps(job, sort_keys=True)
    self._job = json.dumps({"job": hashlib.sha256(text.encode()).hexdigest()})
    self.done = self._resume()

  def _resume(self) -> int:
    """How many records the part already holds; a line cut off by a crash is dropped."""
    if not self._part.exists():
      return 0
    whole = [line for line in self._part.read_text().splitlines(True) if line.endswith("\n")]
    if not whole:
      return 0
    if whole[0].strip() != self._job:
      raise ValueError(f"{self._part} belongs to another job: finish that one or delete it")
    self._part.write_text("".join(whole))
    return len(whole) - 1

  def fill(
    self,
    generator: Generator,
    params: Params,
    requests: Sequence[Request],
    *,
    seed: int,
    trace: bool,
  ) -> None:
    """Completes what is still missing, a line on the screen after each batch, and renames."""
    began, tokens, done = time.perf_counter(), 0, self.done
    if done:
      print(f"resumed after {done} of {len(requests)} prompts", flush=True)
    else:
      self._part.write_text(self._job + "\n")

    def add(completions: list[Completion]) -> None:
      nonlocal tokens, done
      with self._part.open("a") as file:
        file.writelines(json.dumps(record(c, trace)) + "\n" for c in completions)
      done += len(completions)
      tokens += sum(len(c.tokens) for c in completions)
      seconds = time.perf_counter() - began
      print(f"{done}/{len(requests)} prompts, {tokens / seconds:.4g} tokens/s", flush=True)

    generator(params, requests[self.done :], seed=seed, on_batch=add)
    lines = self._part.read_text().splitlines(True)[1:]
    self._part.write_text("".join(lines))
    self._part.replace(self.path)
