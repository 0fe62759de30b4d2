"""Tokenises a source for training: to a folder that is memory-mapped, ArrayRecord files, or TFDS.

  python experiments/prepare_data.py --source=stdlib --tokenizer=byte --out=/tmp/stdlib_bytes
  python experiments/prepare_data.py --source=jsonl:notes.jsonl --train_bpe=4096 --out=/tmp/notes
  python experiments/prepare_data.py --source=stdlib --tfds_dir=/tmp/tfds --tfds_config=topics
  python experiments/prepare_data.py --source=jsonl:notes.jsonl --tokenizer=saved:DIR/tokenizer \
    --length=4096 --shards=64 --out=/shared/notes --worker=0 --workers=4

Train on the folder with the source `tokens:OUT` and the tokenizer `saved:OUT/tokenizer`. With
--length the source is `arrayrecord:OUT`: rows of that many tokens, laid out by --layout, which any
number of hosts read. Several processes share the shards out, by --worker and --workers or as
--distributed finds them; the same command goes on where one was interrupted.
"""

import jax
from absl import flags

from dlm import command, processes
from dlm.data import Tokenizer, load_tokenizer, open_source, train_bpe, write_tokens
from dlm.data.install import require
from dlm.data.prepare import on_stderr
from dlm.data.prepare_rows import RowPlan, write_rows

SOURCE = flags.DEFINE_string("source", None, "stdlib, jsonl:PATH, dataset:DIR, tfds:NAME, ...")
TOKENIZER = flags.DEFINE_string("tokenizer", "byte", "byte, bpe:PATH or saved:DIR")
TRAIN_BPE = flags.DEFINE_integer("train_bpe", 0, "train a BPE of this many ids on the train split")
OUT = flags.DEFINE_string("out", None, "folder to write; without --length it must not exist")
LENGTH = flags.DEFINE_integer("length", None, "tokens a row, in ArrayRecord files")
SHARDS = flags.DEFINE_integer("shards", 1, "files a split, with --length")
LAYOUT = flags.DEFINE_multi_string(
  "layout", [], "NAME=VALUE of the rows: mode, document_mask, pad, per_row, too_long"
)
WORKER = flags.DEFINE_integer("worker", 0, "which of --workers this is; takes shards in turn")
WORKERS = flags.DEFINE_integer("workers", 1, "processes that write shards of one folder")
TFDS_DIR = flags.DEFINE_string("tfds_dir", None, "write stdlib as a TFDS dataset below this folder")
TFDS_CONFIG = flags.DEFINE_string("tfds_config", "prose", "topics, prose or all")
SEED = flags.DEFINE_integer("seed", 0, "seed of generated sources")
OPTIONS = flags.DEFINE_multi_string("option", [], "NAME=VALUE for the source, a Python literal")


def main() -> None:
  if (OUT.value is None) == (TFDS_DIR.value is None):
    raise ValueError("give one of --out and --tfds_dir")
  if TFDS_DIR.value is not None:
    if SOURCE.value != "stdlib":
      raise ValueError(f"--tfds_dir writes stdlib only, not --source={SOURCE.value}")
    print(require("dlm.data.stdlib_text").prepare(TFDS_DIR.value, TFDS_CONFIG.value))
    return
  options = command.options(OPTIONS.value)
  worker, workers = _share()
  if LENGTH.value is None and (SHARDS.value, LAYOUT.value, worker, workers) != (1, [], 0, 1):
    raise ValueError("--shards, --layout and several workers go with --length")
  if TRAIN_BPE.value and workers > 1:
    raise ValueError(
      "--train_bpe is for one process: train it first, then give saved:DIR/tokenizer"
    )
  tokenizer = _tokenizer(options)
  if LENGTH.value is not None:
    _write_rows(tokenizer, options, worker, workers)
    return
  meta = write_tokens(
    OUT.value, SOURCE.value, tokenizer, seed=SEED.value, progress=on_stderr, **options
  )
  print("".join(f"{note}\n" for note in meta["notes"]), end="")
  for split, counts in meta["splits"].items():
    print(f"{OUT.value} {split}: {counts['documents']} documents, {counts['tokens']} tokens")


def _share() -> tuple[int, int]:
  """Which worker this is, and of how many."""
  if not processes.DISTRIBUTED.value:
    return WORKER.value, WORKERS.value
  if (WORKER.value, WORKERS.value) != (0, 1):
    raise ValueError("--worker and --workers do not go with --distributed, which finds them")
  return jax.process_index(), jax.process_count()


def _tokenizer(options: dict) -> Tokenizer:
  if TRAIN_BPE.value:
    source = open_source(SOURCE.value, seed=SEED.value, **options)
    texts = (source[i].prompt + source[i].completion for i in range(len(source)))
    return train_bpe(texts, TRAIN_BPE.value)
  return load_tokenizer(TOKENIZER.value)


def _write_rows(tokenizer: Tokenizer, options: dict, worker: int, workers: int) -> None:
  parse_specials = options.pop("parse_specials", False)
  layout = command.options(LAYOUT.value)
  plan = RowPlan(
    SOURCE.value, LENGTH.value, SHARDS.value, SEED.value, parse_specials, options, layout
  )
  done = write_rows(OUT.value, plan, tokenizer, worker=worker, workers=workers, progress=on_stderr)
  print("".join(f"{note}\n" for note in done["notes"]), end="")
  state = "complete" if done["complete"] else "others' are missing yet"
  print(f"{OUT.value}: {done['written']} shards written, {done['kept']} were there; {state}")


if __name__ == "__main__":
  command.run(main, required=(SOURCE,), distributed=True)
