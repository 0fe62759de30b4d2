"""Tokenizers that we write and those that others do: transformers reads the same ids."""

import itertools
import json

import pytest

from dlm.data import BpeTokenizer, ByteTokenizer, train_bpe
from dlm.data.sources.stdlib import documents

transformers = pytest.importorskip("transformers", reason="it is of pip install 'dlm[test]'")


@pytest.fixture(scope="module")
def lines():
  """1,000 lines of the standard library's documentation."""
  texts = (text for _, text, _ in documents(("topics",)))
  found = (line for text in texts for line in text.splitlines() if line.strip())
  return list(itertools.islice(found, 1000))


@pytest.fixture(scope="module", params=["bpe", "byte"])
def own(request, lines):
  return train_bpe(lines, 600) if request.param == "bpe" else ByteTokenizer()


def read(folder, model_type, reader=transformers.AutoTokenizer):
  (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
  return reader.from_pretrained(folder)


def ids(tokenizer):
  return (
    tokenizer.pad_token_id,
    tokenizer.bos_token_id,
    tokenizer.eos_token_id,
    (tokenizer.mask_token_id),
  )


def same(theirs, ours, lines):
  got = [theirs(line)["input_ids"] for line in lines]
  return sum(a == b.tolist() for a, b in zip(got, ours.encode_batch(lines), strict=True))


@pytest.mark.parametrize("model_type", ["qwen3", "llama", "mistral", "sdar"])
def test_an_exported_tokenizer_of_our_own(own, lines, model_type, tmp_path):
  """By a model_type that transformers knows and by one that it does not: no id more or other."""
  own.publish(tmp_path)
  theirs = read(tmp_path, model_type)
  assert ids(theirs) == (own.pad_id, own.bos_id, own.eos_id, own.mask_id)
  assert len(theirs) == own.vocab_size and same(theirs, own, lines) == 1000
  assert theirs.convert_tokens_to_ids("<|mask|>") == own.mask_id


def test_what_qwen2_makes_of_it_is_said(own, lines, tmp_path):
  """It cuts text in its own way whatever is declared, as export says; the plain class does not."""
  assert not own.cuts_as_qwen2
  own.publish(tmp_path)
  assert type(read(tmp_path, "qwen2")).__name__ == "Qwen2Tokenizer"
  plain = read(tmp_path, "qwen2", transformers.PreTrainedTokenizerFast)
  assert len(plain) == own.vocab_size and same(plain, own, lines) == 1000


def test_qwen2s_own_files_without_tokenizer_json(lines, tmp_path):
  """Read, and written again as one file: the ids of transformers' own class."""
  theirs, ours = tmp_path / "theirs", tmp_path / "ours"
  theirs.mkdir()
  train_bpe(lines, 600).save(tmp_path)
  model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
  plain = [piece for piece in sorted(model["vocab"], key=model["vocab"].get) if "<|" not in piece]
  (theirs / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(plain)}))
  merges = "\n".join(" ".join(merge) for merge in model["merges"])
  (theirs / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
  added = {"<|endoftext|>": len(plain), "<|mask|>": len(plain) + 1}
  (theirs / "added_tokens.json").write_text(json.dumps(added))
  roles = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "mask_token": "<|mask|>"}
  config = {"tokenizer_class": "Qwen2Tokenizer", **roles}
  (theirs / "tokenizer_config.json").write_text(json.dumps(config))
  found = BpeTokenizer.from_file(theirs, extend=False)
  found.publish(ours)
  assert found.cuts_as_qwen2
  for folder in (theirs, ours):
    read_ = read(folder, "qwen2")
    assert ids(read_) == (found.pad_id, None, found.eos_id, found.mask_id)
    assert len(read_) == found.vocab_size and same(read_, found, lines) == 1000
