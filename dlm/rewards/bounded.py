"""Runs a program that a model wrote in a process of its own, which bounds what it may do.

It has a time, a memory and one folder, gone afterwards, where it may write. It has no network and
starts no process. `bounded_child.py` says how each is held: this keeps honest programs from harm
and is no wall against hostile ones, for which a virtual machine is the place.
"""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile

SECONDS = 3.0
MEMORY = 2**32  # bytes of address space
START = 20.0  # seconds that the interpreter itself may take on a busy machine

CHILD = pathlib.Path(__file__).with_name("bounded_child.py")


def passes(program: str, seconds: float = SECONDS, memory: int = MEMORY) -> bool:
  """Does a program reach its end? See `seconds_of`."""
  return seconds_of(program, seconds, memory) is not None


def seconds_of(program: str, seconds: float = SECONDS, memory: int = MEMORY) -> float | None:
  """Processor seconds that a program took to its end, the interpreter's start left out.

  None where it raises, exits, takes too long or is refused something.

  Args:
    seconds: of processor time, and of sleep.
    memory: bytes of address space, the interpreter's included.
  """
  ours, theirs = os.pipe()
  with tempfile.TemporaryDirectory(prefix="dlm_") as folder, open(ours, "rb") as told:
    command = [sys.executable, "-IB", str(CHILD), str(theirs), str(seconds), str(memory)]
    child = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      cwd=os.path.realpath(folder),
      env={"HOME": folder, "TMPDIR": folder, "PATH": os.defpath},
      pass_fds=(theirs,),
      start_new_session=True,
    )
    os.close(theirs)
    try:
      child.communicate(program.encode("utf-8", "surrogatepass"), timeout=START + seconds)
    except subprocess.TimeoutExpired:
      pass
    finally:
      if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    word, _, took = told.read().partition(b" ")
  return float(took) if word == b"passed" else None
