"""Prepared TensorFlow Datasets, read by random access and without TensorFlow."""

import dataclasses
from typing import Any

from dlm.data.install import require
from dlm.data.sources.example import Example, check_split, digest, split_of


@dataclasses.dataclass(frozen=True)
class TfdsSource:
  """Records of one split. Where a dataset has no test split, every tenth record is held out."""

  name: str
  records: Any  # a tfds data source
  index: tuple[int, ...] | range
  field: str
  prompt_field: str | None
  version: str  # the dataset's, with its name
  generated = False

  def __len__(self) -> int:
    return len(self.index)

  def __getitem__(self, index: int) -> Example:
    record = self.records[self.index[index]]
    prompt = record[self.prompt_field].decode("utf-8") if self.prompt_field else ""
    return Example(prompt, record[self.field].decode("utf-8"))

  def fingerprint(self) -> dict[str, str]:
    return {self.version: digest(self)}


def read_tfds(
  name: str,
  split: str,
  *,
  data_dir: str | None = None,
  field: str = "text",
  prompt_field: str | None = None,
) -> TfdsSource:
  """`NAME[:CONFIG]`, prepared below `data_dir` (default: TFDS's own folder) as array_record."""
  check_split(split)
  library = require("tensorflow_datasets")
  if name.split(":")[0] == "stdlib_text":
    require("dlm.data.stdlib_text")  # importing the class makes its name known
  tfds_name = name.replace(":", "/", 1)
  builder = _prepared(library, tfds_name, data_dir)
  for key in (field, *([prompt_field] if prompt_field else [])):
    if key not in builder.info.features:
      raise ValueError(
        f"tfds: {tfds_name} has no field {key!r}; has {sorted(builder.info.features)}"
      )
  held_out = next((x for x in ("test", "validation") if x in builder.info.splits), None)
  if "train" not in builder.info.splits:
    raise ValueError(f"tfds: {tfds_name} has no train split; has {sorted(builder.info.splits)}")
  records = builder.as_data_source(held_out if held_out and split == "test" else "train")
  index = range(len(records))
  if held_out is None:
    index = tuple(i for i in index if split_of(f"record {i}") == split)
  return TfdsSource(f"tfds:{name}", records, index, field, prompt_field, builder.info.full_name)


def _prepared(library, name: str, data_dir: str | None):
  try:
    builder = library.builder(name, data_dir=data_dir)
  except Exception as error:  # TFDS raises its own, network and value errors alike
    raise ValueError(f"tfds: no dataset {name!r} ({data_dir=}): {error}") from error
  how = (
    f"tfds.builder({name!r}, data_dir={data_dir!r}, file_format='array_record')"
    ".download_and_prepare()"
  )
  if not builder.is_prepared():
    raise ValueError(
      f"tfds: {name} is not prepared in {builder.data_dir}; on a connected machine: {how}"
    )
  stored = builder.info.file_format.value
  if stored != "array_record":
    raise ValueError(f"tfds: {name} is stored as {stored}, which needs TensorFlow; use {how}")
  return builder
