"""What is killed: processes that write, each run for its own sake, and one at a time for a kill.

Imports no pytest: the processes are forked from one that has all imports behind it.
"""

import json
import os
import pathlib
import random
import resource
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from dlm import build, train
from dlm.completions import Output, record
from dlm.generate import Completion, Request
from dlm.train import TrainState
from dlm.types import LossSum
from tests.experiments import mains

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "fcntl.flock"}
PARTS = 16  # of the time, and of the events


class Doomed:
  """Runs `work(folder, *arguments)` in processes of its own, all but the first of them killed.

  The first is let be: it tells how long the work takes and how many events it has. Moments are
  spread evenly over both, in a random order: each falls somewhere in a part of its own.
  """

  def __init__(self, seed: int, cache: pathlib.Path, work, *arguments):
    self.random, self.cache = random.Random(seed), cache
    self.work, self.arguments, self.kills, self.moments = work, arguments, 0, []

  def spared(self, folder: pathlib.Path) -> None:
    report = self.cache / "report.json"
    for _ in range(2):  # the second compiles nothing
      assert self._run(folder(), None, report) == 0
    self.seconds, self.events = json.loads(report.read_text())

  def run(self, folder: pathlib.Path) -> bool:
    """Did it come to its end?"""
    if not self.moments:
      parts = [(kind, part) for kind in ("time", "event") for part in range(PARTS)]
      self.moments = self.random.sample(parts, len(parts))
    kind, part = self.moments.pop()
    share = (part + self.random.random()) / PARTS
    moment = kind, share * self.seconds if kind == "time" else 1 + int(share * self.events)
    code = self._run(folder, moment, None)
    assert code in (0, -signal.SIGKILL, -signal.SIGALRM), f"exit code {code}"
    self.kills += code != 0
    return code == 0

  def _run(self, folder, moment, report) -> int:
    arguments = (self.work, folder, self.arguments, moment, report, self.cache)
    process = mains.PROCESSES.Process(target=_doomed, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def _doomed(work, folder, arguments, moment, report, cache) -> None:
  jax.config.update("jax_compilation_cache_dir", str(cache))  # a kill may spoil what it holds
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  sys.stdout = open(os.devnull, "w")  # noqa: SIM115
  kind, value = moment or (None, None)
  place, events = str(folder.parent), 0

  def hook(event, arguments):
    nonlocal events
    if event in EVENTS and (event == "fcntl.flock" or str(arguments[0]).startswith(place)):
      events += 1
      if kind == "event" and events == value:
        os.kill(os.getpid(), signal.SIGKILL)

  sys.addaudithook(hook)
  began = time.perf_counter()
  if kind == "time":
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, max(value, 1e-6))
  work(folder, *arguments)
  signal.setitimer(signal.ITIMER_REAL, 0)
  if report is not None:
    report.write_text(json.dumps([time.perf_counter() - began, events]))


def of_full_disk(most: int, work, *arguments) -> str:
  """What a process says whose files may have `most` bytes. The system's word is another then."""
  here, there = mains.PROCESSES.Pipe()
  process = mains.PROCESSES.Process(target=_limited, args=(there, most, work, arguments))
  process.start()
  there.close()
  assert here.poll(120), "it hangs"
  told = here.recv()
  process.join()
  return told


def _limited(there, most, work, arguments) -> None:
  sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
  resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
  try:
    work(*arguments)
    there.send("")
  except Exception as error:
    there.send(f"{type(error).__name__}: {error}")


# -------------------------------------------------------------------------------------------------
# sample --out

REQUESTS = [
  Request(i, f"prompt {i}", np.arange(4, dtype=np.int32), np.arange(4) > 1) for i in range(120)
]


def generate(params, requests, *, seed, on_batch):
  for first in range(0, len(requests), 4):
    time.sleep(5e-4)
    on_batch([completed(each, params, seed) for each in requests[first : first + 4]])


def completed(request: Request, params: int, seed: int) -> Completion:
  return Completion(
    id=request.id, sample=request.sample, prompt=request.prompt, text=str(params * request.id),
    spans=[], tokens=[seed], logprobs=[None], when=[], row=[], forwards={"full": 1}, queries=1,
    computed=1.0, remasked=0, tpf=1.0, reason="length", seconds=1.0,
  )  # fmt: skip


def records(done):
  return [record(each, trace=False) for each in done]


def sample(path):
  with Output(path, "job") as output:
    output.fill(generate, 3, REQUESTS, seed=7, records=records)


# -------------------------------------------------------------------------------------------------
# train

TRAINING = {
  "seed": 0,
  "steps": 8,
  "batch": 2,
  "log_every": 1,
  "model": {"width": 8, "layers": 1, "heads": 1, "kv_heads": 1, "head_dim": 8, "mlp": 8},
  "objective": {"name": "mdlm"},
  "data": {"sources": (("lists", 1.0, (("mode", "pad"),)),), "length": 32},
  "optimizer": {"lr": 1e-2},
  "checkpoint": {"every": 2, "keep_last": 2, "keep_best": 0},
}


class Sums(train.Step):
  """In place of a model: a parameter that adds up what the rows hold, in their order."""

  @property
  def update(self):
    def update(state, batch, teacher):
      w = state.params["w"] * 0.5 + batch.tokens_BxL.sum()
      loss = LossSum(w.sum(), jnp.float32(1), {})
      numbers = {"grad_norm": jnp.float32(1), "lr": jnp.float32(1)}
      return TrainState(state.step + 1, {"w": w}, (), None), loss, numbers

    return jax.jit(update)

  def init(self):
    return TrainState(jnp.int32(0), {"w": jnp.arange(512.0)}, (), None)

  def abstract(self):
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(self.init)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)

  def flops(self):
    return 1.0


def training(workdir):
  train.Step = Sums
  train.train(build.everything(TRAINING), workdir)


# -------------------------------------------------------------------------------------------------
# import and export


def importing(folder, source):
  build.write_checkpoint(folder, build.pretrained(source))


def exporting(folder, source):
  build.write_huggingface(folder, build.pretrained(source))
