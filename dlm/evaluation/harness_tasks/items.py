"""Items of our own tasks for lm-evaluation-harness, from the files beside this one."""

import json
import pathlib

import datasets


def read(file: str, **_: object) -> dict[str, datasets.Dataset]:
  """What `custom_dataset` of a YAML task wants; `file` is of its `dataset_kwargs`."""
  lines = pathlib.Path(__file__).with_name(file).read_text(encoding="utf-8").splitlines()
  return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}
