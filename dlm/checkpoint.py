"""Checkpoints: a folder that explains itself, orbax steps inside it, and a checksum for every leaf.

    DIR/config.json, facts.json, tokenizer files    what the parameters are parameters of
    DIR/checkpoints/STEP/                           orbax: the training state and its meta record

Orbax writes a step beside its place and renames it, so that a killed save leaves no half step. It
restores a flipped bit without a word, hence the checksums.
"""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from dlm.checksums import checksums
from dlm.facts import ModelFacts
from dlm.types import Params

STEPS = "checkpoints"
READERS_END = 0.5  # seconds


class CheckpointError(ValueError):
  """A folder that is another run's, or that cannot be read: the user's to mend, in one line."""


# What a resumed run may change: none of it alters what one update computes, save that schedules
# other than "constant" stretch with `steps`.
RESUMABLE = (
  "steps", "log_every", "microbatches", "parallel", "mesh", "eval", "sample", "checkpoint",
)  # fmt: skip


# ---------------------------------------------------------------------------------------------
# The folder


def write_folder(
  directory: str | os.PathLike, config: dict, facts: ModelFacts, tokenizer: Any
) -> None:
  """Makes the folder, or checks that the one there belongs to `config`; process 0 writes.

  A new folder appears complete or not at all: it is filled beside its place, then renamed.

  Raises:
    CheckpointError: the folder is another config's (the message lists the differences), or is not
      empty and no checkpoint folder.
  """
  directory = pathlib.Path(directory).absolute()
  config = json.loads(json.dumps(config))  # tuples become lists, as in the file
  if directory.is_dir() and any(directory.iterdir()):
    found = differences(read_json(directory, "config.json"), config)
    refused = [key for key in found if key.split(".")[0] not in RESUMABLE]
    if refused:
      lines = "; ".join(f"{key}: {found[key][0]!r} -> {found[key][1]!r}" for key in refused)
      raise CheckpointError(f"workdir {directory} belongs to another config ({lines})")
  if jax.process_index() > 0:
    return
  if (directory / "config.json").exists():
    _replace_json(directory / "config.json", config)
    return
  directory.parent.mkdir(parents=True, exist_ok=True)
  beside = pathlib.Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
  beside.chmod(0o755)
  tokenizer.save(beside)
  _replace_json(beside / "facts.json", facts.to_json())
  _replace_json(beside / "config.json", config)
  beside.rename(directory)


def read_json(directory: str | os.PathLike, name: str) -> dict:
  """`config.json` or `facts.json` of a checkpoint folder; CheckpointError if it is none."""
  path = pathlib.Path(directory) / name
  try:
    return json.loads(path.read_text())
  except FileNotFoundError as error:
    raise CheckpointError(f"{directory} is no checkpoint folder: it holds no {name}") from error
  except ValueError as error:
    raise CheckpointError(f"{path} cannot be read: {error}") from error


def read_facts(directory: str | os.PathLike) -> ModelFacts:
  """facts.json of a checkpoint folder; CheckpointError where it is none or damaged."""
  values = read_json(directory, "facts.json")
  try:
    return ModelFacts.from_json(values)
  except ValueError as error:
    raise CheckpointError(f"{pathlib.Path(directory) / 'facts.json'}: {error}") from error


def differences(old: dict, new: dict) -> dict[str, tuple[Any, Any]]:
  """Dotted field -> (old, new) wherever two configs differ; a field only one has is "absent"."""
  old, new = _flat(old), _flat(new)
  return {
    key: (old.get(key, "absent"), new.get(key, "absent"))
    for key in sorted(old.keys() | new.keys())
    if old.get(key, "absent") != new.get(key, "absent")
  }


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
  flat = {}
  for key, value in tree.items():
    flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
  return flat


def _replace_json(path: pathlib.Path, value: dict) -> None:
  beside = path.with_name(f".{path.name}.tmp")
  beside.write_text(json.dumps(value, indent=2) + "\n")
  beside.replace(path)


# ---------------------------------------------------------------------------------------------
# The steps


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
    self._path = pathlib.Path(directory).absolute() / STEPS
    if jax.process_index() == 0 and self._path.is_dir():
      for step in self._path.iterdir():  # orbax would take an empty 900/ for step 900
        if step.name.isdigit() and not any(step.iterdir()):
          step.rmdir()
    self._manager = ocp.CheckpointManager(self._path, options=_options(retention))

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_) -> None:
    self._manager.close()

  def latest(self) -> int | None:
    return self._manager.latest_step()

  def save(self, step: int, state: Any, data: dict, loss: float | None = None) -> None:
    """Starts an asynchronous save; `state` may be donated right away.

    Args:
      data: the position in the data, as plain JSON values.
      loss: what "best" goes by; None: not evaluated, never the best.
    """
    meta = {"step": step, "data": data, "checksums": checksums(state)}
    saved = self._manager.save(
      step,
      args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)),
      metrics=None if loss is None else {"loss": loss},
    )
    if not saved:
      raise RuntimeError(f"orbax did not save step {step} in {self._path}")

  def restore(self, state: Any) -> tuple[Any, dict]:
    """The latest state, with the shapes, types and shardings of `state`, and its meta record.

    Raises:
      CheckpointError: the step cannot be read, or a leaf is not what was saved.
    """
    step = self.latest()
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    with _readable(self._path / str(step)):
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore()
        ),
      )
      _verify(restored.state, restored.meta["checksums"])
    return restored.state, restored.meta

  def preempted(self, step: int) -> bool:
    """Have all processes of a multi-process run agreed that the machine is about to go?"""
    return self._manager.reached_preemption(step)

  def wait(self) -> None:
    """Returns when every save is on disk; raises what went wrong."""
    self._manager.wait_until_finished()


def save_params(directory: str | os.PathLike, step: int, params: Params, data: dict) -> None:
  """The only step of a folder that no run writes; returns when it is on disk.

  Not compressed: trained weights hardly shrink, and compressing takes their memory once more.
  """
  path = pathlib.Path(directory).absolute() / STEPS
  state = {"params": params}
  meta = {"step": step, "data": data, "checksums": checksums(state)}
  handlers = {
    "state": ocp.PyTreeCheckpointHandler(use_compression=False),
    "meta": ocp.JsonCheckpointHandler(),
  }
  with ocp.CheckpointManager(
    path, item_handlers=handlers, options=_options(Retention())
  ) as manager:
    manager.save(
      step,
      args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(meta)),
    )


def restore_params(
  directory: str | os.PathLike,
  which: str | int = "best",
  *,
  shardings: Any = None,
  dtype: Any = None,
) -> tuple[Params, int]:
  """Parameters alone, for sampling and evaluation: the average where the run keeps one.

  Args:
    directory: a checkpoint folder.
    which: "best" (lowest evaluation loss; the latest where none was evaluated), "latest" or a step.
    shardings: tree of shardings like the parameters; None: all on the first device.
    dtype: of the result; None: as saved.

  Returns:
    The parameters, and the step they are from.

  Raises:
    CheckpointError: no such step, it cannot be read, or a leaf is not what was saved.
  """
  path = pathlib.Path(directory).absolute() / STEPS
  handlers = {"state": ocp.PyTreeCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
  steps = _steps(path)
  with ocp.CheckpointManager(
    path, item_handlers=handlers, options=_options(Retention(), read_only=True)
  ) as manager:
    best = manager.best_step()
    step = {"best": steps[-1] if best is None else best, "latest": steps[-1]}.get(which, which)
    if step not in steps:
      raise CheckpointError(
        f"{path} holds no step {which!r}; it holds {', '.join(map(str, steps))}"
      )
    with _readable(path / str(step)):
      trees = manager.item_metadata(step)["state"].tree
      item = "ema" if trees.get("ema") else "params"
      if shardings is None:
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: here, trees[item])
      target = {item: jax.tree.map(_target, trees[item], shardings)}
      restored = manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.PyTreeRestore(
            item=target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=True,
          ),
          meta=ocp.args.JsonRestore(),
        ),
      )
      _verify(restored.state, restored.meta["checksums"])
  params = restored.state[item]
  return params if dtype is None else jax.tree.map(lambda x: x.astype(dtype), params), step


def _options(retention: Retention, read_only: bool = False) -> ocp.CheckpointManagerOptions:
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
    cleanup_tmp_directories=not read_only,
    read_only=read_only,
    create=not read_only,
  )


def _steps(path: pathlib.Path) -> list[int]:
  """Steps that hold something, ascending."""
  found = path.iterdir() if path.is_dir() else ()
  steps = sorted(int(p.name) for p in found if p.name.isdigit() and any(p.iterdir()))
  if not steps:
    raise CheckpointError(f"{path} holds no checkpoint")
  return steps


def _target(leaf: Any, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _verify(tree: Any, saved: dict[str, int]) -> None:
  wrong = [path for path, value in checksums(tree).items() if saved[path] != value]
  if wrong:
    raise ValueError(f"checksum of {', '.join(wrong)} is not the one that was saved")


@contextlib.contextmanager
def _readable(path: pathlib.Path) -> Iterator[None]:
  """Turns whatever orbax says of a broken step into one sentence."""
  said = io.StringIO()
  try:
    with contextlib.redirect_stderr(said):
      try:
        yield
      except Exception:
        # Its other readers find their event loop closed and print tracebacks as they end.
        time.sleep(READERS_END)
        raise
  except Exception as error:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise CheckpointError(f"checkpoint {path} cannot be restored: {reason}") from error
  sys.stderr.write(said.getvalue())
