"""The training state on disk: orbax steps in a run's folder, and a checksum for every leaf.

    DIR/checkpoints/STEP/    the state and its meta record; the folder itself is `dlm.workdir`'s
    DIR/damaged/STEP/        what could not be read, kept aside when a run went back past it

Orbax writes a step beside its place and renames it, so that a killed save leaves no half step. It
restores a flipped bit without a word, hence the checksums. Nothing that is not finite is saved, and
none is read.
"""

import contextlib
import dataclasses
import io
import math
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from dlm import files, workdir
from dlm.checksums import checksums, name_of, not_finite
from dlm.types import OBJECTIVE, Params
from dlm.workdir import CheckpointError

STEPS, DAMAGED = "checkpoints", "damaged"
STATE, META, LOSS = "state", "meta/metadata", "metrics/metrics"  # of a step, as orbax writes them
READERS_END = 0.5  # seconds
READ = 2**30  # bytes of parameters read at a time, or one leaf that has more


@dataclasses.dataclass(frozen=True)
class Retention:
  """Steps that are kept: the `keep_last` newest and the `keep_best` of lowest evaluation loss."""

  keep_last: int = 2
  keep_best: int = 1

  def __post_init__(self):
    if self.keep_last < 1:
      raise ValueError(f"checkpoint.keep_last={self.keep_last} must be at least 1, to resume from")
    if self.keep_best < 0:
      raise ValueError(f"checkpoint.keep_best={self.keep_best} must not be negative")


class Checkpoints:
  """The steps of one run, for the run that writes them. Close it, or use it in a `with`."""

  def __init__(self, directory: str | os.PathLike, retention: Retention):
    self._directory = pathlib.Path(directory).absolute()
    self._path = self._directory / STEPS
    if jax.process_index() == 0 and self._path.is_dir():
      self._clear_strays()
    with _written(self._path):
      self._manager = ocp.CheckpointManager(self._path, options=_options(retention))

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind: type | None, *_) -> None:
    try:
      with _written(self._path):
        self._manager.close()
    finally:
      if kind is not None and jax.process_index() == 0:
        for half in self._path.glob("*.orbax-checkpoint-tmp*"):  # of a save that failed
          shutil.rmtree(half)

  def latest(self) -> int | None:
    return self._manager.latest_step()

  def save(self, step: int, state: Any, data: dict, loss: float | None = None) -> None:
    """Starts an asynchronous save; `state` may be donated right away.

    Args:
      data: the position in the data, as plain JSON values.
      loss: what "best" goes by; None: not evaluated, never the best.

    Raises:
      FloatingPointError: a leaf is not finite; nothing is saved.
      CheckpointError: this save, or the one before, cannot be written.
    """
    if leaf := not_finite(state):
      raise FloatingPointError(f"{leaf} is not finite at step {step}; it was not saved")
    meta = {"step": step, "data": data, "checksums": checksums(state)}
    with _written(self._path):
      saved = self._manager.save(
        step,
        args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)),
        metrics=None if loss is None else {"loss": loss},
      )
    if not saved:
      raise RuntimeError(f"orbax did not save step {step} in {self._path}")

  def restore(self, state: Any) -> tuple[Any, dict]:
    """The newest state that can be read, with the shapes, types and shardings of `state`, and its
    meta record. Newer steps that cannot be read are named on stderr and kept aside.

    Raises:
      CheckpointError: no step can be read; of several processes: the newest cannot.
    """
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    failed: dict[int, CheckpointError] = {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        restored = self._restore(step, target)
      except CheckpointError as error:
        if jax.process_count() > 1:  # others may have read it
          raise CheckpointError(f"{error}; move it away to go back to the step before") from error
        failed[step] = error
        continue
      for newer, error in failed.items():
        self._set_aside(self._path / str(newer), f"{error}; the run goes back to step {step}")
      if failed:
        self._manager.reload()
      return restored.state, restored.meta
    raise failed[max(failed)]

  def _restore(self, step: int, target: Any) -> Any:
    with _readable(self._path / str(step)) as path:
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore()
        ),
      )
      _verify(path, restored.state)
    return restored

  def preempted(self, step: int) -> bool:
    """Have all processes of a multi-process run agreed that the machine is about to go?"""
    return self._manager.reached_preemption(step)

  def wait(self) -> None:
    """Returns when every save is on disk; raises what went wrong."""
    with _written(self._path):
      self._manager.wait_until_finished()

  def _clear_strays(self) -> None:
    """Moves away what orbax would stumble over."""
    for path in self._path.iterdir():
      if not path.name.isdigit():
        continue
      if not path.is_dir():
        self._set_aside(path, f"{path} is no checkpoint")
      elif not any(path.iterdir()):  # orbax would take an empty 900/ for step 900
        path.rmdir()
      else:
        try:
          _loss(path)
        except CheckpointError as error:
          self._set_aside((path / LOSS).parent, f"{error}; step {path.name} has no loss any more")

  def _set_aside(self, path: pathlib.Path, why: str) -> None:
    kept = files.set_aside(path, self._directory / DAMAGED)
    print(f"{why}; {path.name} is kept as {kept}", file=sys.stderr, flush=True)


def save_params(directory: str | os.PathLike, step: int, params: Params, data: dict) -> None:
  """The only step of a folder that no run writes; returns when it is on disk.

  Not compressed: trained weights hardly shrink, and compressing takes their memory once more.
  """
  path = pathlib.Path(directory).absolute() / STEPS
  if leaf := not_finite(params):
    raise CheckpointError(f"parameter {leaf} is not finite; nothing is saved")
  state = {"params": params}
  meta = {"step": step, "data": data, "checksums": checksums(state)}
  handlers = {
    "state": ocp.PyTreeCheckpointHandler(use_compression=False),
    "meta": ocp.JsonCheckpointHandler(),
  }
  options = _options(Retention())
  with _written(path), ocp.CheckpointManager(path, item_handlers=handlers, options=options) as made:
    made.save(
      step,
      args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(meta)),
    )


def restore_params(
  directory: str | os.PathLike,
  which: str | int = "best",
  *,
  model: Any = None,
  shardings: Any = None,
  dtype: Any = None,
  objective: bool = False,
) -> tuple[Params, int]:
  """Parameters alone, for sampling and evaluation: the average where the run keeps one.

  Args:
    directory: a checkpoint folder.
    which: "best" (lowest evaluation loss; the latest where none was evaluated), "latest" or a step.
    model: tree of shapes like the parameters, of the model that they are for; None: not compared.
    shardings: tree of shardings like the parameters; None: all on the first device.
    dtype: of the result; None: as saved.
    objective: with the objective's own, if it has any, on the first device: a model needs none.

  Returns:
    The parameters, and the step they are from.

  Raises:
    CheckpointError: no such step, it cannot be read, it holds another model's parameters, or a leaf
      is not what was saved.
  """
  steps = _steps(pathlib.Path(directory).absolute() / STEPS)
  step = _chosen(steps, which)
  with _readable(steps[step]) as path:
    trees = ocp.PyTreeCheckpointHandler().metadata(path / STATE).tree
    item = "ema" if trees.get("ema") else "params"
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    saved, own = dict(trees[item]), {}
    if OBJECTIVE in saved:
      own = {OBJECTIVE: saved.pop(OBJECTIVE)}
    if model is not None:
      _check_shapes(saved, model)
    if shardings is None:
      shardings = jax.tree.map(lambda _: here, saved)
    target = {item: jax.tree.map(_target, saved, shardings)}
    if objective:
      target[item] |= jax.tree.map(lambda leaf: _target(leaf, here), own)
    # orbax holds what it reads twice till it is on its device, by default all leaves at once.
    largest = max(x.dtype.itemsize * math.prod(x.shape) for x in jax.tree.leaves(target))
    handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=max(largest + 1, READ) / 1e9)
    restored = handler.restore(
      path / STATE,
      args=ocp.args.PyTreeRestore(
        item=target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=True,
      ),
    )
    _verify(path, restored)
  params = restored[item]
  return params if dtype is None else jax.tree.map(lambda x: x.astype(dtype), params), step


def _chosen(steps: dict[int, pathlib.Path], which: str | int) -> int:
  if which == "latest":
    return max(steps)
  if which == "best":
    losses = {step: _loss(path) for step, path in steps.items()}
    evaluated = [step for step, loss in losses.items() if loss is not None]
    return min(evaluated, key=lambda step: (losses[step], -step)) if evaluated else max(steps)
  if which not in steps:
    path = next(iter(steps.values())).parent
    raise CheckpointError(f"{path} holds no step {which!r}; it holds {', '.join(map(str, steps))}")
  return which


def _options(retention: Retention) -> ocp.CheckpointManagerOptions:
  # `max_to_keep` with `best_fn` would delete the newest step; metrics reach the disk only with
  # `best_fn`. Hence this pair (orbax-checkpoint 0.12).
  loss = lambda metrics: metrics["loss"]  # noqa: E731
  kept = [checkpoint_managers.LatestN(retention.keep_last)]
  if retention.keep_best:
    kept.append(
      checkpoint_managers.BestN(
        get_metric_fn=loss,
        reverse=True,
        n=retention.keep_best,
        keep_checkpoints_without_metrics=False,
      )
    )
  return ocp.CheckpointManagerOptions(
    best_fn=loss,
    best_mode="min",
    preservation_policy=checkpoint_managers.AnyPreservationPolicy(kept),
    cleanup_tmp_directories=True,
    create=True,
  )


def _steps(path: pathlib.Path) -> dict[int, pathlib.Path]:
  """Steps that hold something, ascending, and where they are."""
  found = [p for p in path.iterdir() if p.name.isdigit() and p.is_dir()] if path.is_dir() else []
  steps = {int(p.name): p for p in sorted(found, key=lambda p: int(p.name)) if any(p.iterdir())}
  if not steps:
    raise CheckpointError(f"{path} holds no checkpoint")
  return steps


def _loss(step: pathlib.Path) -> float | None:
  """The evaluation loss that was saved with a step; None: it was not evaluated."""
  if not (step / LOSS).exists():
    return None
  loss = workdir.read_json(step, LOSS).get("loss")
  if not isinstance(loss, float):
    raise CheckpointError(f"{step / LOSS}: loss={loss!r:.40} is no number")
  return loss


def _check_shapes(saved: Any, model: Any) -> None:
  """ValueError where the parameters are not of the model's shapes; `model` may box its leaves."""
  found = {name_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(saved)}
  wanted = [leaf.shape for leaf in jax.tree.leaves(model)]
  if len(found) != len(wanted):
    raise ValueError(f"it holds {len(found)} arrays, the model of config.json has {len(wanted)}")
  for (name, shape), other in zip(found.items(), wanted, strict=True):
    if tuple(shape) != tuple(other):
      raise ValueError(f"{name} has shape {tuple(shape)}, in the model of config.json {other}")


def _target(leaf: Any, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _verify(step: pathlib.Path, tree: Any) -> None:
  """ValueError where a leaf is not what was saved, or not finite."""
  meta = workdir.read_json(step, META)
  saved = meta.get("checksums")
  if not isinstance(saved, dict):
    raise ValueError(f"{META} has no checksums")
  if meta.get("step") != int(step.name):
    raise ValueError(f"it holds step {meta.get('step')}")
  wrong = [path for path, value in checksums(tree).items() if saved.get(path) != value]
  if wrong:
    raise ValueError(f"checksum of {', '.join(wrong)} is not the one that was saved")
  if leaf := not_finite(tree):
    raise ValueError(f"{leaf} is not finite")


@contextlib.contextmanager
def _readable(step: pathlib.Path) -> Iterator[pathlib.Path]:
  """Turns whatever orbax says of a broken step into one sentence."""
  printed = io.StringIO()
  try:
    with contextlib.redirect_stderr(printed):
      try:
        yield step
      except Exception:
        # Its other readers find their event loop closed and print tracebacks as they end.
        time.sleep(READERS_END)
        raise
  except Exception as error:
    raise CheckpointError(f"checkpoint {step} cannot be restored: {_said(error)}") from error
  sys.stderr.write(printed.getvalue())


@contextlib.contextmanager
def _written(path: pathlib.Path) -> Iterator[None]:
  """Turns what orbax says of a disk that takes no more into one sentence."""
  try:
    yield
  except Exception as error:
    told = CheckpointError(f"checkpoint in {path} cannot be written: {_said(error)}")
    raise files.of_system(error, path) or told from error


def _said(error: Exception) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0]
