"""Tokenises a source into a folder that training memory-maps, or writes it as a TFDS dataset.

  python experiments/prepare_data.py --source=stdlib --tokenizer=byte --out=/tmp/stdlib_bytes
  python experiments/prepare_data.py --source=jsonl:notes.jsonl --train_bpe=4096 --out=/tmp/notes
  python experiments/prepare_data.py --source=stdlib --tfds_dir=/tmp/tfds --tfds_config=topics

Train on the folder with the source `tokens:OUT` and the tokenizer `saved:OUT/tokenizer`.
"""

from absl import flags

from dlm import command
from dlm.data import load_tokenizer, open_source, train_bpe, write_tokens
from dlm.data.install import require
from dlm.data.prepare import on_stderr

SOURCE = flags.DEFINE_string("source", None, "stdlib, jsonl:PATH, dataset:DIR, tfds:NAME, ...")
TOKENIZER = flags.DEFINE_string("tokenizer", "byte", "byte, bpe:PATH or saved:DIR")
TRAIN_BPE = flags.DEFINE_integer("train_bpe", 0, "train a BPE of this many ids on the train split")
OUT = flags.DEFINE_string("out", None, "folder to write; must not exist")
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
  if TRAIN_BPE.value:
    source = open_source(SOURCE.value, seed=SEED.value, **options)
    texts = (source[i].prompt + source[i].completion for i in range(len(source)))
    tokenizer = train_bpe(texts, TRAIN_BPE.value)
  else:
    tokenizer = load_tokenizer(TOKENIZER.value)
  meta = write_tokens(
    OUT.value, SOURCE.value, tokenizer, seed=SEED.value, progress=on_stderr, **options
  )
  print("".join(f"{note}\n" for note in meta["notes"]), end="")
  for split, counts in meta["splits"].items():
    print(f"{OUT.value} {split}: {counts['documents']} documents, {counts['tokens']} tokens")


if __name__ == "__main__":
  command.run(main, required=(SOURCE,))
