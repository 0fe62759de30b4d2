"""Prompts in, completions out, as JSON lines; an interrupted run goes on where it stopped."""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence

import jax

from dlm import files, parallel
from dlm.build import Pretrained, SamplingConfig
from dlm.data import chat, lines
from dlm.generate import Completion, Request, wasted
from dlm.types import Params

JOB = b'{"job": "'  # begins the line that says which job a part is of


@dataclasses.dataclass(frozen=True)
class Prompt:
  """What is asked for. `infill`: `[[8]]` in the text stands for eight tokens to be found."""

  text: str
  infill: bool = False


def read_prompts(paths: str | pathlib.Path, infill: bool = False) -> list[Prompt]:
  """One prompt a line: {"prompt": "...", "infill": true} or a JSON string.

  Other fields are ignored. `infill` holds for lines that do not say. `paths` may be several files
  or a pattern, gzipped or not, see `dlm.data.lines`.

  Raises:
    ValueError: names the line that is neither, or the file that holds none.
  """
  prompts = []
  for line in lines.read(paths):
    fields = line.value if isinstance(line.value, dict) else {"prompt": line.value}
    prompt = Prompt(fields.get("prompt"), fields.get("infill", infill))
    if not isinstance(prompt.text, str):
      raise ValueError(f'{line.where}: needs a string or {{"prompt": "..."}}')
    if not isinstance(prompt.infill, bool):
      raise ValueError(f"{line.where}: infill={prompt.infill!r} must be true or false")
    prompts.append(prompt)
  if not prompts:
    raise ValueError(f"{paths} holds no prompt")
  return prompts


def asked(
  trained: Pretrained,
  settings: SamplingConfig,
  texts: Sequence[str],
  paths: str | None,
  *,
  infill: bool = False,
  talk: bool = False,
  told: str = "{}",
  samples: int = 1,
  skip_bad: bool = False,
) -> list[Request]:
  """Rows to sample: texts, then those of files; nothing of either is one empty text.

  Args:
    paths: of `read_prompts`, or of conversations.
    infill: `[[8]]` in a text stands for eight tokens to be found.
    talk: a text is what a user says, put through the checkpoint's chat template.
    told: variables of the template, as JSON; those of a line come before them.
    samples: of each.
    skip_bad: what does not fit is left out, and said on the screen.
  """
  tokenizer, room = trained.tokenizer, settings.room
  if not talk:
    if told != "{}":
      raise ValueError(f"--chat_args={told} goes with --chat")
    prompts = [Prompt(text, infill) for text in texts]
    prompts += read_prompts(paths, infill) if paths else []
    begun = functools.partial(Request.from_text, tokenizer=tokenizer, bos=settings.bos, **room)
    made = [
      functools.partial(begun, i, prompt.text, infill=prompt.infill)
      for i, prompt in enumerate(prompts or [Prompt("")])
    ]
    return _repeated(made, samples, skip_bad)
  if infill:
    raise ValueError("--chat answers and --infill fills in: give one of them")
  talks = [chat.Conversation(chat.from_user(text)) for text in texts]
  talks += chat.read_conversations(paths) if paths else []
  if not talks:
    raise ValueError("--chat needs something said: --prompt or --prompts")
  arguments = files.parse_json(told, "--chat_args")
  chat.check_arguments(arguments, "--chat_args")
  talks = [dataclasses.replace(each, arguments={**arguments, **each.arguments}) for each in talks]
  return conversed(trained, settings, talks, samples=samples, skip_bad=skip_bad)


def check_out(path: str | None, *read: str | None) -> None:
  """Of mains, before they read a checkpoint: can --out be written, and is it none of what is read?

  `read`: files or patterns, as `read_prompts` takes them. Errors: as `files.check_place`.
  """
  if path is not None:
    files.check_place(path, *(each for paths in read if paths for each in lines.found(paths)))


def template_of(trained: Pretrained) -> chat.ChatTemplate:
  """What the checkpoint was told conversations with; a file has it within its tokenizer."""
  folder = trained.directory
  return chat.open_template(folder) if folder.is_dir() else chat.template_of(trained.tokenizer)


def conversed(
  trained: Pretrained,
  settings: SamplingConfig,
  talks: Sequence[chat.Conversation],
  *,
  samples: int = 1,
  skip_bad: bool = False,
) -> list[Request]:
  """Conversations to answer, in their order; `samples` and `skip_bad` as in `asked`."""
  mask_id, room = trained.tokenizer.mask_id, settings.room
  ids = template_of(trained).encode(talks, trained.tokenizer)
  made = [
    functools.partial(
      Request.from_ids, i, str(each.messages[-1]["content"]), ids[i], mask_id, **room
    )
    for i, each in enumerate(talks)
  ]
  return _repeated(made, samples, skip_bad)


def _repeated(
  requests: Iterable[Callable[[], Request]], samples: int, skip_bad: bool
) -> list[Request]:
  found, skipped = [], []
  for request in requests:
    try:
      found += request().samples(samples)
    except ValueError as error:
      if not skip_bad:
        raise
      skipped.append(f"skipped: {error}")
  if not found:
    raise ValueError(f"--skip_bad leaves no prompt; {skipped[0]}")
  print(*skipped, sep="\n", end="\n" if skipped else "", file=sys.stderr)
  return found


def record(completion: Completion, trace: bool) -> dict:
  """What a line of the output says.

  `trace` adds the row's ids, the forward that wrote each, and of each of `tokens` the
  log-probability at that forward.
  """
  forwards = sum(completion.forwards.values())
  kept = {
    "id": completion.id,
    "sample": completion.sample,
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
    "reason": completion.reason,
  }
  traced = {name: getattr(completion, name) for name in ("row", "when", "logprobs")}
  return kept | (traced if trace else {})


def describe(completions: Sequence[Completion]) -> str:
  """Completions for the screen: the text, then what it cost."""
  return "\n".join(
    f"{c.text}\n[{len(c.tokens)} tokens, {sum(c.forwards.values())} forwards, "
    f"{c.tpf:.2f} tokens a forward, {len(c.tokens) / c.seconds:.4g} tokens/s]"
    for c in completions
  )


def digest(requests: Sequence[Request]) -> str:
  """Equal for requests of equal texts, ids and open slots."""
  found = hashlib.sha256()
  for each in requests:
    name = f"{each.id} {each.sample} {each.prompt}".encode()
    for part in (name, each.tokens.tobytes(), each.open.tobytes()):
      found.update(len(part).to_bytes(8, "little") + part)
  return found.hexdigest()


def share_of(path: str) -> str:
  """Where this process writes its share of the file; of a single process: the file itself."""
  count = jax.process_count()
  return path if count == 1 else f"{path}.{jax.process_index()}-of-{count}"


def join(path: str) -> None:
  """Process 0 makes the file of the shares, in the order of the prompts, once all are there."""
  if jax.process_count() == 1:
    return
  shares = parallel.joined([share_of(path)])
  if jax.process_index() == 0:
    with contextlib.ExitStack() as opened, files.replacing(path) as final:
      parts = [opened.enter_context(open(each, "rb")) for each in shares]
      for lines_of_each in itertools.zip_longest(*parts, fillvalue=b""):
        final.write(b"".join(lines_of_each))
    for each in shares:
      pathlib.Path(each).unlink()


class Output:
  """FILE.jsonl, filled as FILE.jsonl.part beside it and renamed when the last line is there.

  The part's first line identifies the job (any JSON value); a part of the same job is taken up,
  one of another job is refused. Rows' noise depends on their ids alone, so a resumed file equals
  an unbroken one in all but its timings. Use it in a `with`: inside, the part is this process's.

  Raises:
    ValueError: the place cannot be written, another process writes it, or another job began it.
  """

  def __init__(self, path: str | pathlib.Path, job: object):
    self.path = pathlib.Path(path)
    self._part = self.path.with_name(self.path.name + ".part")
    files.check_place(self.path)
    text = json.dumps(job, sort_keys=True)
    line = json.dumps({"job": hashlib.sha256(text.encode()).hexdigest()})
    self._job = line.encode() + b"\n"
    self._file = files.locked_file(self._part)
    try:
      self.done = self._resume()
    except BaseException:
      self._file.close()
      raise

  def __enter__(self) -> "Output":
    return self

  def __exit__(self, *_) -> None:
    with files.naming(self._part):
      self._file.close()

  def _resume(self) -> int:
    """How many records the part already holds; a line that a kill cut short is cut off."""
    content = self._file.read()
    whole = content[: content.rfind(b"\n") + 1]
    head, _, records = whole.partition(b"\n")
    if not whole and JOB.startswith(content[: len(JOB)]):  # the line of the job itself is cut short
      self._file.truncate(0)
      self._append(self._job)
      return 0
    if whole.startswith(self._job):
      self._file.truncate(len(whole))
      return records.count(b"\n")
    if head.startswith(JOB):
      raise ValueError(
        f"{self._part} belongs to another job: finish that one, or give another --out"
      )
    kept = files.set_aside(self._part, self._part.parent)
    print(f"{self._part} does not say which job it is of; it is kept as {kept}", flush=True)
    self._file.close()
    self._file = files.locked_file(self._part)
    return self._resume()

  def _append(self, content: bytes) -> None:
    with files.naming(self._part):
      self._file.seek(0, os.SEEK_END)
      self._file.write(content)
      self._file.flush()
      os.fsync(self._file.fileno())

  def fill(
    self,
    generator: Callable[..., list[Completion]],
    params: Params,
    requests: Sequence[Request],
    *,
    seed: int,
    records: Callable[[list[Completion]], list[dict]],
    leave_out: Callable[[dict], str] | None = None,
  ) -> None:
    """Completes what is still missing, a line on the screen after each batch, and renames.

    Args:
      generator: a `Generator`, or what is called as one is.
      records: what the lines say of completions.
      leave_out: why a line shall not be in the file; "" if it shall. None: all shall.
    """
    began, tokens, done, queries, computed = time.perf_counter(), 0, self.done, 0, 0.0
    if done:
      print(f"resumed after {done} of {len(requests)} prompts", flush=True)
    elif self.path.exists():
      print(f"{self.path} exists: the new file takes its place when it is complete", flush=True)

    def add(completions: list[Completion]) -> None:
      nonlocal tokens, done, queries, computed
      self._append("".join(json.dumps(each) + "\n" for each in records(completions)).encode())
      done += len(completions)
      tokens += sum(len(c.tokens) for c in completions)
      queries += sum(c.queries for c in completions)
      computed += sum(c.computed for c in completions)
      seconds = time.perf_counter() - began
      print(f"{done}/{len(requests)} prompts, {tokens / seconds:.4g} tokens/s", flush=True)

    generator(params, requests[self.done :], seed=seed, on_batch=add)
    if computed:
      print(wasted(queries, computed), flush=True)
    self._file.seek(len(self._job))
    left_out: collections.Counter[str] = collections.Counter()
    with files.replacing(self.path) as final:
      if leave_out is None:
        shutil.copyfileobj(self._file, final)
      else:
        for line in self._file:
          if reason := leave_out(json.loads(line)):
            left_out[reason] += 1
          else:
            final.write(line)
    self._part.unlink()
    for reason, n in left_out.most_common():
      print(f"left out {n} of {len(requests)}: {reason}")
