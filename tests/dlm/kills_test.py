"""Processes that write are killed or meet a full disk: nothing is lost, doubled or half-written.

Every kill is a SIGKILL, or a timer's signal that nobody handles, of a process of its own: at a
time of its run, or at one of the moments at which it opens, renames or removes something, spread
over all of them. What is computed is small; what is written is written by the code that always
does.
"""

import json
import os
import shutil

import jax
import numpy as np
import pytest

from dlm import build, checkpoint, metrics, train
from tests.dlm import doomed as works
from tests.dlm.build import directories
from tests.dlm.doomed import Doomed

KILLS = 12


@pytest.fixture
def fresh(tmp_path):
  """New places to write at, each alone in a folder."""
  numbers = iter(range(10**6))

  def make():
    folder = tmp_path / "places" / str(next(numbers))
    folder.mkdir(parents=True)
    return folder / "it"

  return make


def beside(path) -> set[str]:
  return {entry.name for entry in path.parent.iterdir()}


def rows(path) -> list[dict]:
  """Whole records of a file or of its part."""
  if not path.exists():
    return []
  lines = [json.loads(x) for x in path.read_bytes().split(b"\n")[:-1]]
  return [line for line in lines if "job" not in line]


def test_sampling_to_a_file_loses_no_row(tmp_path, fresh):
  doomed = Doomed(0, tmp_path, works.sample)
  doomed.spared(fresh)
  out = fresh()
  works.sample(out)
  unbroken, out, done = rows(out), fresh(), 0
  while doomed.kills < KILLS:
    ended = doomed.run(out)
    part = out.with_name("it.part")
    if out.exists():
      assert rows(out) == unbroken
    else:
      assert rows(part) == unbroken[: len(rows(part))]
      assert len(rows(part)) >= done
      done = len(rows(part))
    if ended:
      assert beside(out) == {"it"}
      out, done = fresh(), 0


def test_training_goes_on_to_the_same_parameters(tmp_path, fresh, monkeypatch):
  monkeypatch.setattr(train, "Step", works.Sums)
  doomed = Doomed(1, tmp_path, works.training)
  doomed.spared(fresh)
  run = fresh()
  works.training(run)
  unbroken, run, saved, runs = checkpoint.restore_params(run, "latest")[0], fresh(), 0, 0
  while doomed.kills < KILLS:
    ended = doomed.run(run)
    steps = run / checkpoint.STEPS
    found = [int(p.name) for p in steps.iterdir() if p.name.isdigit()] if steps.is_dir() else []
    assert max(found, default=0) >= saved
    saved = max(found, default=0)
    assert not (run / checkpoint.DAMAGED).exists()
    if ended:
      np.testing.assert_array_equal(checkpoint.restore_params(run, "latest")[0]["w"], unbroken["w"])
      assert [line["step"] for line in metrics.records(run)] == list(range(1, 9))
      assert beside(run) == {"it"} and all(p.name.isdigit() for p in steps.iterdir())
      run, saved, runs = fresh(), 0, runs + 1
  assert runs


def contents(folder) -> dict[str, bytes]:
  """Files by name; what orbax names by chance or by date is left out."""
  files = [path for path in folder.rglob("*") if path.is_file()]
  names = {str(path.relative_to(folder)): path for path in files}
  return {name: p.read_bytes() for name, p in names.items() if not name.startswith("checkpoints")}


@pytest.mark.parametrize("work", [works.importing, works.exporting])
def test_weights_come_and_go_whole_or_not_at_all(tmp_path, fresh, work):
  source = directories.write(tmp_path / "hf")
  if work is works.exporting:
    works.importing(tmp_path / "ours", source)
    source = tmp_path / "ours"
  doomed = Doomed(2, tmp_path, work, source)
  doomed.spared(fresh)
  whole = fresh()
  work(whole, source)
  params, _ = build.pretrained(whole).params()
  target = fresh()
  while doomed.kills < KILLS:
    ended = doomed.run(target)
    assert beside(target) <= {"it", ".it.part"}
    if target.exists():
      assert contents(target) == contents(whole)
    if ended:
      assert beside(target) == {"it"}
      jax.tree.map(np.testing.assert_array_equal, build.pretrained(target).params()[0], params)
    if target.exists():
      target = fresh()


# -------------------------------------------------------------------------------------------------
# A full disk


@pytest.mark.parametrize("most", [100, 3000])
@pytest.mark.parametrize("work", [works.importing, works.exporting])
def test_full_disk_is_told_with_the_path_and_leaves_nothing(tmp_path, work, most):
  source = directories.write(tmp_path / "hf")
  if work is works.exporting:
    works.importing(tmp_path / "ours", source)
    source = tmp_path / "ours"
  (tmp_path / "new").mkdir()
  target = tmp_path / "new" / "it"
  assert works.of_full_disk(most, work, target, source) == (
    f"OSError: [Errno 27] File too large: '{target}'"
  )
  assert beside(target) == set()


@pytest.mark.parametrize("most", [100, 600])
def test_run_on_a_full_disk_goes_on_when_there_is_room(tmp_path, monkeypatch, most):
  run = tmp_path / "it"
  told = works.of_full_disk(most, works.training, run)
  assert told.startswith(f"OSError: [Errno 27] File too large: '{run}")
  steps = run / checkpoint.STEPS
  assert not steps.exists() or list(steps.iterdir()) == []
  monkeypatch.setattr(train, "Step", works.Sums)
  works.training(run)
  assert [line["step"] for line in metrics.records(run)] == list(range(1, 9))


def test_rows_of_a_full_disk_are_kept_and_the_rest_follows(tmp_path):
  out = tmp_path / "it"
  part = tmp_path / "it.part"
  assert works.of_full_disk(5000, works.sample, out) == (
    f"OSError: [Errno 27] File too large: '{part}'"
  )
  kept = rows(part)
  assert 0 < len(kept) < len(works.REQUESTS)
  works.sample(out)
  assert rows(out)[: len(kept)] == kept and len(rows(out)) == len(works.REQUESTS)


@pytest.mark.parametrize("name", ["it", "it/checkpoints", "it/metrics.jsonl"])
def test_something_in_the_way_is_told_with_its_path(tmp_path, monkeypatch, name):
  monkeypatch.setattr(train, "Step", works.Sums)
  works.training(tmp_path / "it")
  way = tmp_path / name
  (shutil.rmtree if way.is_dir() else os.unlink)(way)
  if name == "it/metrics.jsonl":
    way.mkdir()
  else:
    way.write_text("in the way")
  with pytest.raises((OSError, ValueError), match=str(way)):
    works.training(tmp_path / "it")
  assert way.is_dir() or way.read_text() == "in the way"
