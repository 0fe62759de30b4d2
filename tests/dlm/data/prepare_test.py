"""Token files: written whole or not at all, and read back as the same rows."""

import numpy as np
import pytest

from dlm.data import ByteTokenizer, open_corpus, open_rows, open_tokens, train_bpe, write_tokens
from dlm.data.prepare import on_stderr

TOPICS = {"include": ("topics",)}


def test_rows_from_files_equal_rows_from_memory(tmp_path):
  out = str(tmp_path / "deep" / "tokens")
  meta = write_tokens(out, "stdlib", ByteTokenizer(), **TOPICS)
  memory = (("stdlib", 1.0, TOPICS),)
  options = {"length": 64, "batch": 4, "seed": 0}
  for split in ("train", "test"):
    stored = open_tokens(out, split, ByteTokenizer())
    assert isinstance(stored.tokens_T, np.memmap) and stored.tokens_T.dtype == np.uint16
    counts = {"documents": len(stored), "tokens": stored.tokens_T.size}
    assert meta["splits"][split] == counts
    a = open_rows(memory, ByteTokenizer(), split=split, **options)[7]
    b = open_rows(((f"tokens:{out}", 1.0),), ByteTokenizer(), split=split, **options)[7]
    for x, y in zip(a, b, strict=True):
      np.testing.assert_array_equal(x, y)
      assert x.dtype == y.dtype and not isinstance(y, np.memmap)


def test_prompts_are_kept(tmp_path):
  out = str(tmp_path / "tokens")
  write_tokens(out, "lists", ByteTokenizer(), size=20)
  rows = open_rows(((f"tokens:{out}", 1.0),), ByteTokenizer(), length=64, batch=4, seed=0)
  decoded = ByteTokenizer().decode(rows[0].tokens_BxL[rows[0].noisable_BxL])
  assert "=" not in decoded and decoded


def test_nothing_half_written_stays(tmp_path):
  def broken(documents, total, label):
    yield next(iter(documents))
    raise OSError("disk full")

  with pytest.raises(OSError, match="disk full"):
    write_tokens(str(tmp_path / "x"), "stdlib", ByteTokenizer(), progress=broken, **TOPICS)
  assert list(tmp_path.iterdir()) == []


def test_mistakes_are_named(tmp_path):
  out = str(tmp_path / "tokens")
  write_tokens(out, "lists", ByteTokenizer(), size=3)
  with pytest.raises(ValueError, match="exists"):
    write_tokens(out, "lists", ByteTokenizer(), size=3)
  with pytest.raises(ValueError, match="was written with tokenizer byte, not bpe-"):
    open_tokens(out, "train", train_bpe(["a"], 260))
  with pytest.raises(ValueError, match="is missing"):
    open_corpus(f"tokens:{tmp_path}", ByteTokenizer())
  with pytest.raises(ValueError, match="takes no options"):
    open_corpus(f"tokens:{out}", ByteTokenizer(), size=3)


def test_a_log_gets_ten_lines(capsys):
  assert list(on_stderr(range(95), 95, "train")) == list(range(95))
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 10 and lines[-1] == "train: 95 of 95 documents"


@pytest.mark.parametrize(
  ("name", "damage", "message"),
  [
    ("meta.json", b"[]", "meta.json: field source must be there, of type str"),
    ("meta.json", b'{"source": "a", "fingerprint": ["byte"]}', "meta.json: field fingerprint must"),
    ("meta.json", b"{", "meta.json: not JSON"),
    ("train/start.npy", b"", "train/start.npy cannot be read"),
    ("train/tokens.npy", b"\x93NUMPY", "train/tokens.npy cannot be read"),
    ("train/prompt.npy", None, "train: start.npy and prompt.npy do not cut up tokens.npy"),
  ],
)
def test_damaged_token_folder_is_named(tmp_path, name, damage, message):
  out = tmp_path / "tokens"
  write_tokens(str(out), "lists", ByteTokenizer(), size=20)
  if damage is None:
    np.save(out / name, np.load(out / name)[:-1])
  else:
    (out / name).write_bytes(damage)
  with pytest.raises(ValueError, match=message):
    open_tokens(str(out), "train", ByteTokenizer())


def test_token_files_that_change_change_the_fingerprint(tmp_path):
  out = tmp_path / "tokens"
  write_tokens(str(out), "lists", ByteTokenizer(), size=20)
  before = open_tokens(str(out), "train", ByteTokenizer()).fingerprint()
  tokens = np.load(out / "train" / "tokens.npy", mmap_mode="r+")
  tokens[7] += 1
  tokens.flush()
  after = open_tokens(str(out), "train", ByteTokenizer()).fingerprint()
  assert [path for path in before if before[path] != after[path]] == [
    str(out / "train" / "tokens.npy")
  ]
