"""The command: folders that load, one-line errors, exit code 2."""

from dlm.data import load_tokenizer, open_rows, open_source
from tests.experiments import mains

MAIN = "experiments/prepare_data.py"


def test_a_folder_with_its_own_tokenizer(tmp_path):
  out = tmp_path / "tokens"
  topics = '--option=include=("topics",)'
  done = mains.run(tmp_path, MAIN, "--source=stdlib", topics, "--train_bpe=512", f"--out={out}")
  assert done.returncode == 0, done.stderr
  assert f"{out} train:" in done.stdout and "train: 7" in done.stderr
  tokenizer = load_tokenizer(f"saved:{out}/tokenizer")
  assert tokenizer.vocab_size == 512
  batch = open_rows(((f"tokens:{out}", 1),), tokenizer, length=32, batch=2, seed=0)[0]
  assert tokenizer.decode(batch.tokens_BxL[0]).strip()


def test_array_records_by_two_workers(tmp_path):
  out = tmp_path / "rows"
  asked = [
    "--source=lists", "--option=size=60", f"--out={out}", "--length=48", "--shards=3",
    "--workers=2", "--layout=mode=pad", "--layout=per_row=2",
  ]  # fmt: skip
  first = mains.run(tmp_path, MAIN, *asked)
  assert first.returncode == 0, first.stderr
  assert first.stdout == f"{out}: 3 shards written, 0 were there; others' are missing yet\n"
  assert "train: 40 of 40 documents" in first.stderr
  second = mains.run(tmp_path, MAIN, *asked, "--worker=1")
  assert second.stdout == f"{out}: 3 shards written, 0 were there; complete\n"
  again = mains.run(tmp_path, MAIN, *asked)
  assert again.stdout == f"{out}: 0 shards written, 3 were there; complete\n"
  tokenizer = load_tokenizer(f"saved:{out}/tokenizer")
  options = {"length": 48, "batch": 4, "seed": 0, "mode": "pad", "per_row": 2}
  rows = open_rows(((f"arrayrecord:{out}", 1.0),), tokenizer, **options)
  assert rows.epoch_rows == (30,) and tokenizer.decode(rows[0].tokens_BxL[0]).strip()


def test_a_tfds_folder(tmp_path):
  asked = ["--source=stdlib", "--tfds_config=topics", f"--tfds_dir={tmp_path / 'tfds'}"]
  done = mains.run(tmp_path, MAIN, *asked)
  assert done.returncode == 0, done.stderr
  assert len(open_source("tfds:stdlib_text:topics", data_dir=str(tmp_path / "tfds"))) > 50


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path):
  lines = tmp_path / "train.jsonl"
  lines.write_text('{"text": "a"}\noops\n')
  out = tmp_path / "out"
  for arguments, message in (
    ([f"--source=jsonl:{tmp_path}/{{split}}.jsonl", f"--out={out}"], "train.jsonl, line 2: not"),
    (["--source=stdlib", "--tokenizer=words", f"--out={out}"], "known: byte, bpe:PATH"),
    (["--source=stdlib"], "give one of --out and --tfds_dir"),
    (["--source=lists", f"--tfds_dir={out}"], "writes stdlib only"),
    (["--source=lists", f"--out={out}", "--shards=4"], "--shards, --layout and several workers go"),
    (["--source=lists", f"--out={out}", "--length=8", "--layout=mode=fold"], "known: pack, pad"),
    (
      ["--source=lists", f"--out={out}", "--length=8", "--worker=1"],
      "worker=1 must be within 0..0",
    ),
  ):
    done = mains.run(tmp_path, MAIN, *arguments)
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
  assert not out.exists()
