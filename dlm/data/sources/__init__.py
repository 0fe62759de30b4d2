"""Where text comes from. A source is a sequence of `Example`; its splits never share a document."""

from dlm.data.sources.example import SPLITS, Documents, Example, Source
from dlm.data.sources.gym import read_gym
from dlm.data.sources.lists import Lists
from dlm.data.sources.parallel_bench import read_parallel_bench
from dlm.data.sources.records import read_dataset, read_jsonl, read_parquet
from dlm.data.sources.stdlib import read_stdlib
from dlm.data.sources.tfds import TfdsSource, read_tfds
from dlm.seeds import check_seed

__all__ = [
  "SOURCES",
  "SPLITS",
  "Documents",
  "Example",
  "Lists",
  "Source",
  "TfdsSource",
  "open_source",
]

# Name -> (argument after the colon, split, seed, options) -> source.
SOURCES = {
  "stdlib": lambda _, split, seed, options: read_stdlib(split, **options),
  "lists": lambda _, split, seed, options: Lists(split, seed, **options),
  "jsonl": lambda paths, split, seed, options: read_jsonl(paths, split, **options),
  "parquet": lambda paths, split, seed, options: read_parquet(paths, split, **options),
  "dataset": lambda paths, split, seed, options: read_dataset(paths, split, **options),
  "reasoning_gym": lambda names, split, seed, options: read_gym(names, split, seed, **options),
  "parallel_bench": lambda names, split, seed, options: read_parallel_bench(
    names, split, seed, **options
  ),
  "tfds": lambda name, split, seed, options: read_tfds(name, split, **options),
}
_WITH_ARGUMENT = ("jsonl", "parquet", "dataset", "reasoning_gym", "parallel_bench", "tfds")


def open_source(spec: str, split: str = "train", *, seed: int = 0, **options) -> Source:
  """The source that `spec` names; `options` are those of its function in this folder.

  PATH may be several files with commas between them, or a pattern: jsonl:data/*.jsonl.gz.
  """
  check_seed(seed)
  name, _, argument = spec.partition(":")
  if name not in SOURCES or bool(argument) != (name in _WITH_ARGUMENT):
    raise ValueError(
      f"unknown source {spec!r}; known: stdlib, lists, jsonl:PATH, parquet:PATH, dataset:DIR,"
      " reasoning_gym:TASKS, parallel_bench:TASKS, tfds:NAME[:CONFIG] (and traces:PATH,"
      " tokens:DIR, arrayrecord:DIR, targets:DIR, pairs:FILE where rows are made)"
    )
  try:
    source = SOURCES[name](argument, split, seed, options)
    size = len(source)
  except (TypeError, AttributeError, OverflowError) as error:  # an option of a wrong type
    raise ValueError(f"source {spec!r}: {error}") from error
  if not size:
    raise ValueError(f"source {spec!r} is empty: no document falls into {split=}")
  return source
