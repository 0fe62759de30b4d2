"""Mains in processes of their own, forked from one that has the heavy imports behind it."""

import contextlib
import dataclasses
import gc
import multiprocessing
import os
import pathlib
import runpy
import sys
import types

from absl import flags

ROOT = pathlib.Path(__file__).parents[2]

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
  ["dlm.build", "dlm.command", "dlm.completions", "dlm.live", "dlm.train", "tests.dlm.doomed"]
)


@dataclasses.dataclass(frozen=True)
class Done:
  returncode: int
  stdout: str
  stderr: str


def run(folder: pathlib.Path, main: str | pathlib.Path, *arguments: object) -> Done:
  """`python main arguments...` from the root of the tree; `folder` holds what it prints."""
  out, err = folder / "stdout", folder / "stderr"
  argv = [str(main), *map(str, arguments)]
  process = PROCESSES.Process(target=call, args=(argv, out, err))
  process.start()
  process.join(300)
  assert process.exitcode is not None, "the main hangs"
  done = Done(process.exitcode, out.read_text(), err.read_text())
  out.unlink()
  err.unlink()
  return done


def load(main: str) -> types.SimpleNamespace:
  """What a main defines, without running it; its flags are taken back, for mains share names."""
  before = {name: flags.FLAGS[name] for name in flags.FLAGS}
  fixed = [flag for flag in before.values() if not flag.allow_override]
  for flag in fixed:
    flag.allow_override = True
  found = runpy.run_path(str(ROOT / main), run_name="loaded")
  for name in set(flags.FLAGS) - before.keys():
    delattr(flags.FLAGS, name)
  for name, flag in before.items():
    flags.FLAGS[name] = flag
  for flag in fixed:
    flag.allow_override = False
  return types.SimpleNamespace(**found)


def call(argv: list[str], out: pathlib.Path, err: pathlib.Path, **environment: str) -> None:
  """As `python argv...`, what it prints in files. In a process of its own."""
  _prepare(out, err, environment)
  sys.argv = argv
  runpy.run_path(argv[0], run_name="__main__")


def series(jobs: list[list[str]], out: pathlib.Path, err: pathlib.Path, **environment: str) -> None:
  """Each as `call`, one after the other until one fails, in a process that joins others once."""
  _prepare(out, err, environment)
  from dlm import processes

  joined, join, leaving = [], processes.join, processes.leaving

  def join_once(able: bool) -> None:
    if not joined:
      joined.append(join(able))

  processes.join, processes.leaving = join_once, contextlib.nullcontext
  with leaving():
    for argv in jobs:
      sys.argv = argv
      try:
        runpy.run_path(argv[0], run_name="__main__")
      except SystemExit as ended:
        if ended.code:
          raise
      for flag in flags.FLAGS.get_flags_for_module(argv[0]):
        delattr(flags.FLAGS, flag.name)
      flags.FLAGS.unparse_flags()


def _prepare(out: pathlib.Path, err: pathlib.Path, environment: dict[str, str]) -> None:
  gc.disable()  # a seventh of the time that tracing takes, in processes that soon end
  os.environ.update(environment)
  for path, stream in ((out, sys.stdout), (err, sys.stderr)):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream.fileno())
  os.chdir(ROOT)
