"""The command: folders that load, one-line errors, exit code 2."""

import pathlib
import subprocess
import sys

from dlm.data import load_tokenizer, open_rows, open_source

MAIN = pathlib.Path(__file__).parents[2] / "experiments" / "prepare_data.py"


def run(*arguments):
  return subprocess.run(
    [sys.executable, str(MAIN), *arguments],
    env={"PYTHONPATH": ":".join([str(MAIN.parents[1]), *sys.path]), "PATH": "/usr/bin"},
    capture_output=True,
    text=True,
    check=False,
  )


def test_a_folder_with_its_own_tokenizer(tmp_path):
  out = tmp_path / "tokens"
  topics = '--option=include=("topics",)'
  done = run("--source=stdlib", topics, "--train_bpe=512", f"--out={out}")
  assert done.returncode == 0, done.stderr
  assert f"{out} train:" in done.stdout and "train: 7" in done.stderr
  tokenizer = load_tokenizer(f"saved:{out}/tokenizer")
  assert tokenizer.vocab_size == 512
  batch = open_rows(((f"tokens:{out}", 1),), tokenizer, length=32, batch=2, seed=0)[0]
  assert tokenizer.decode(batch.tokens_BxL[0]).strip()


def test_a_tfds_folder(tmp_path):
  done = run("--source=stdlib", "--tfds_config=topics", f"--tfds_dir={tmp_path}")
  assert done.returncode == 0, done.stderr
  assert len(open_source("tfds:stdlib_text:topics", data_dir=str(tmp_path))) > 50


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path):
  lines = tmp_path / "train.jsonl"
  lines.write_text('{"text": "a"}\noops\n')
  out = tmp_path / "out"
  for arguments, message in (
    ([f"--source=jsonl:{tmp_path}/{{split}}.jsonl", f"--out={out}"], "train.jsonl, line 2: not"),
    (["--source=stdlib", "--tokenizer=words", f"--out={out}"], "known: byte, bpe:PATH"),
    (["--source=stdlib"], "give one of --out and --tfds_dir"),
    (["--source=lists", f"--tfds_dir={out}"], "writes stdlib only"),
  ):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
  assert not out.exists()
