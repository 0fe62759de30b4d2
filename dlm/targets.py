"""A teacher's targets, written before a run: its likeliest ids and their log-probabilities.

  rows of the run -> their noise -> the teacher's forward -> `Kept` -> files (`dlm.data.told_rows`)

The noise of a batch follows from the run's seed and the batch's number, as in the run itself, and
is stored beside the row: the run that reads them has no teacher, and no noise of its own. A file is
whole or not there, and the same command goes on at the next one.
"""

import functools
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dlm import files, parallel
from dlm.build import Training, asked_by
from dlm.data import Rows, told_rows
from dlm.data.array_records import INDEX, fill, shard_name
from dlm.objectives.divergence import Kept
from dlm.objectives.told import DRAWN
from dlm.train import Step
from dlm.types import Array, Batch, Noisy, Params

FILE_ROWS = 4096  # at most, in a file


def write_targets(
  directory: str | os.PathLike, training: Training, *, keep: int, batches: int, test_batches: int
) -> dict[str, int]:
  """Writes the teacher's targets of a run's first batches, of both splits.

  Args:
    keep: ids of each target; the vocabulary's number or more: all of them.

  Returns:
    Files that were written now, "written", and that were there, "there".

  Raises:
    ValueError: the objective has no teacher whose targets can be told beforehand, or the directory
      holds targets of another run or another number of them.
  """
  run, objective = training.run, training.objective
  if not objective.tellable:
    raise ValueError(
      f"objective.name={run.objective.name!r} has no teacher that could be asked beforehand: that "
      "goes with 'dscd', with 'd2f' where target='teacher', and with 'opdlm' where states='random' "
      "and fill='text'"
    )
  for name, value in (("keep", keep), ("batches", batches), ("test_batches", test_batches)):
    if value < 1:
      raise ValueError(f"{name}={value} must be at least 1")
  if jax.process_count() > 1:
    raise ValueError("targets are written by one process alone, not by several")
  writer = _Writer(training, min(keep, training.teacher.model.config.vocab))
  root, counts = pathlib.Path(directory), {"written": 0, "there": 0}
  root.mkdir(parents=True, exist_ok=True)
  with files.locked_folder(root):
    splits = {}
    for split, count in (("train", batches), ("test", test_batches)):
      per_file = max(1, FILE_ROWS // run.batch)
      cuts = [range(i, min(i + per_file, count)) for i in range(0, count, per_file)]
      splits[split] = []
      for i, cut in enumerate(cuts):
        name = shard_name(split, i, len(cuts))
        record = writer.record | {"batches": [cut.start, cut.stop]}
        done = _said(root / f"{name}.json", record)
        counts["there" if done else "written"] += 1
        if not done:
          records = writer.records(split, cut)
          done = fill(root / f"{name}.array_record", records) | {"rows": len(cut) * run.batch}
          files.write_json(root / f"{name}.json", record | done)
        splits[split].append({field: done[field] for field in ("rows", "bytes", "hash")})
    files.write_json(root / INDEX, writer.record | {"splits": splits})
  return counts


def _said(path: pathlib.Path, record: dict[str, Any]) -> dict[str, Any] | None:
  """What a file holds, if it is whole; ValueError where that is of another run."""
  if not path.exists():
    return None
  found = files.read_json(path)
  for field, value in record.items():
    if found.get(field) != value:
      raise ValueError(
        f"{path}: {field}={found.get(field)!r:.200}, not {value!r:.200}: write elsewhere"
      )
  return found


class _Writer:
  def __init__(self, training: Training, keep: int):
    self._training, self._keep = training, keep
    run, teacher = training.run, training.teacher
    first = self._batch(training.rows, 0)
    draws = jax.eval_shape(training.objective.draw, self._key("train", 0), first)
    shapes = {name: list(each.shape[1:]) for name, each in draws.items()}
    ids = max(training.tokenizer.vocab_size, teacher.model.config.vocab)
    self._type = told_rows.record_type(run.data.length, ids, keep, shapes)
    record = {
      "version": told_rows.VERSION,
      "tokenizer": training.tokenizer.fingerprint,
      "ids": ids,
      "length": run.data.length,
      "kept": keep,
      "draws": shapes,
      "objective": asked_by(run, training.objective),
      "teacher": str(teacher.directory),
      "data": {
        split: rows.fingerprint()
        for split, rows in (("train", training.rows), ("test", training.eval_rows))
      },
      "seed": run.seed,
      "batch": run.batch,
    }
    self.record = json.loads(json.dumps(record))  # as it is read

  def records(self, split: str, batches: range) -> Iterator[np.ndarray]:
    """Every row of some batches."""
    training = self._training
    rows = training.rows if split == "train" else training.eval_rows
    for index in batches:
      batch = self._batch(rows, index)
      key = self._key(split, index)
      draws, kept = jax.device_get(self._told(self._params, batch, key, jnp.int32(index)))
      record_B = np.zeros(training.run.batch, self._type)
      record_B["tokens"], record_B["segment"] = batch.tokens_BxL, batch.segment_BxL
      record_B["noisable"] = np.packbits(batch.noisable_BxL, axis=1)
      record_B["id"], record_B["logp"] = kept.id_BxLxK, kept.logp_BxLxK
      record_B["rest"] = kept.rest_BxL
      for name, draw in draws.items():
        record_B[DRAWN + name] = draw
      yield from record_B

  def _batch(self, rows: Rows, index: int) -> Batch:
    return Batch(*rows[index])

  def _key(self, split: str, index: int) -> Array:
    """Of the noise that a run of this config has in its batch of that number."""
    key = Step(self._training).key("train" if split == "train" else "eval")
    return jax.random.fold_in(key, index)

  @functools.cached_property
  def _params(self) -> Params:
    training = self._training
    shardings = parallel.shard_params(training.teacher_model.abstract(), training.mesh)
    return training.teacher.params(shardings, "float32")[0]

  @functools.cached_property
  def _told(self):
    training = self._training
    objective, asked = training.objective, training.teacher_model

    def of(params: Params, noisy: Noisy) -> Kept:
      head = objective.teacher_head(asked, params, noisy)
      return objective.divergence.keep(head, self._keep)

    run = parallel.over_batch(
      of, training.mesh, batched_in=(False, True), batched_out=True, driver=training.run.parallel
    )

    def told(
      params: Params, batch: Batch, key: Array, index: Array
    ) -> tuple[dict[str, Array], Kept]:
      draws = objective.draw(key, batch)
      noisy = objective.corrupt_with(draws, batch, index)
      return draws, run(params, noisy)

    return jax.jit(told)
