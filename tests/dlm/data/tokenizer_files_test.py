"""Tokenizers of published folders: without tokenizer.json, with tokens of several files."""

import json

import numpy as np
import pytest

from dlm.data import BpeTokenizer, train_bpe

# As Dream ships them: some tokens in one file, some in the other, roles by name.
CONFIG = {
  "tokenizer_class": "DreamTokenizer",
  "bos_token": "<|beginoftext|>",
  "eos_token": {"content": "<|endoftext|>", "lstrip": False},
  "mask_token": "<|mask|>",
  "pad_token": "<|endoftext|>",
}
MERGES = ("t h", "th e", "Ġ the", "1 2", "Ã ©", "' s", "Ċ Ċ", "! Ċ", "Ġ Ġ", "a Ã©")


def write(folder, config=CONFIG, added=None, decoder=None, file=False):
  """vocab.json of the bytes and MERGES, or a tokenizer.json; returns the number of ids."""
  bytes_ = sorted(json.loads(_plain(folder))["model"]["vocab"])
  vocab = {piece: i for i, piece in enumerate([x for x in bytes_ if len(x) == 1])}
  for merge in MERGES:
    vocab[merge.replace(" ", "")] = len(vocab)
  size = len(vocab)
  tokens = ["<|endoftext|>", "<|beginoftext|>", "<|mask|>", "<tool>"]
  (folder / "vocab.json").write_text(json.dumps(vocab))
  (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
  if added is None:
    added = {token: size + i for i, token in enumerate(tokens)}
  (folder / "added_tokens.json").write_text(json.dumps(added))
  if decoder is not None:
    config = config | {"added_tokens_decoder": decoder}
  (folder / "tokenizer_config.json").write_text(json.dumps(config))
  return size


def _plain(folder) -> str:
  train_bpe(["a"], 260).save(folder)
  text = (folder / "tokenizer.json").read_text()
  for name in ("tokenizer.json", "dlm_tokenizer.json"):
    (folder / name).unlink()
  return text


def pieces(tokenizer, text):
  return [tokenizer.decode([id]) for id in tokenizer.encode(text)]


def test_dreams_folder_has_no_tokenizer_json(tmp_path):
  """Every special token at its id; text is cut as Qwen2 cuts it, in normal form C."""
  size = write(tmp_path)
  found = BpeTokenizer.from_file(tmp_path, extend=False)
  roles = (found.eos_id, found.bos_id, found.mask_id, found.pad_id)
  assert roles == (size, size + 1, size + 2, size) and found.vocab_size == size + 4
  assert found.specials() == {"<|endoftext|>": size, "<|beginoftext|>": size + 1,
                              "<|mask|>": size + 2}  # fmt: skip
  assert pieces(found, "the the") == ["the", " the"]
  assert pieces(found, "12") == ["1", "2"]  # never two digits, though they are a token
  assert pieces(found, "ae\u0301") == ["a\u00e9"]
  assert pieces(found, "x's'S") == ["x", "'s", "'", "S"]
  assert pieces(found, "a!\nb  the") == ["a", "!\n", "b", " ", " the"]
  text = "a<|mask|>"
  assert found.mask_id not in found.encode(text) and found.decode(found.encode(text)) == text
  found.save(tmp_path / "saved")
  again = BpeTokenizer.load(tmp_path / "saved")
  assert again.fingerprint == found.fingerprint and again.mask_id == found.mask_id


def test_gpt2s_folder_is_cut_in_its_own_way(tmp_path):
  write(tmp_path, CONFIG | {"tokenizer_class": "GPT2TokenizerFast"})
  found = BpeTokenizer.from_file(tmp_path, extend=False)
  assert pieces(found, "12") == ["12"] and pieces(found, "!\n") == ["!", "\n"]
  assert "".join(pieces(found, "ae")) == "ae" and len(found.encode("e\u0301")) == 3


def test_flags_of_added_tokens_come_along(tmp_path):
  size = write(tmp_path)
  added = {"<|endoftext|>": size}
  decoder = {
    str(size + 1): {"content": "<|mask|>", "special": True},
    str(size + 2): {"content": "<tool>", "rstrip": True, "special": False},
    str(size + 3): {"content": "<think>", "special": True},
  }
  write(tmp_path, {**CONFIG, "bos_token": None}, added, decoder)
  found = BpeTokenizer.from_file(tmp_path, extend=False)
  assert found.specials() == {"<|endoftext|>": size, "<|mask|>": size + 1, "<think>": size + 3}
  assert found.bos_id == found.eos_id
  np.testing.assert_array_equal(found.encode("<tool>  a"), [size + 2, *found.encode("a")])


@pytest.mark.parametrize("where", ["tokenizer_config.json", "special_tokens_map.json"])
def test_a_token_beside_tokenizer_json_is_added_at_its_id(tmp_path, where):
  train_bpe(["the cat"], 270).save(tmp_path)
  size = BpeTokenizer.from_file(tmp_path).vocab_size
  (tmp_path / "added_tokens.json").write_text(json.dumps({"|<MASK>|": size}))
  (tmp_path / where).write_text(json.dumps({"mask_token": "|<MASK>|"}))
  found = BpeTokenizer.from_file(tmp_path, extend=False)
  assert found.mask_id == size == found.vocab_size - 1
  assert found.specials()["|<MASK>|"] == size


def test_an_id_that_would_move_is_refused(tmp_path):
  """The package numbers added tokens one after the other: 310 in the file is 302 in memory."""
  train_bpe(["the cat"], 270).save(tmp_path)
  path = tmp_path / "tokenizer.json"
  made = json.loads(path.read_text())
  size = len(made["model"]["vocab"])
  made["added_tokens"].append(made["added_tokens"][0] | {"id": size + 8, "content": "<|m|>"})
  path.write_text(json.dumps(made))
  message = rf"tokenizer.json: token '<\|m\|>' has id {size + 8}, but .* gives it {size}: ids"
  for load in (BpeTokenizer.from_file, BpeTokenizer.load):
    with pytest.raises(ValueError, match=message):
      load(tmp_path)


@pytest.mark.parametrize(
  ("config", "added", "decoder", "message"),
  [
    ({"tokenizer_class": "T5Tokenizer"}, None, None, "names tokenizer_class='T5Tokenizer': how it"),
    ({"tokenizer_class": None}, None, None, "names tokenizer_class=None: how it cuts text"),
    ({"tokenizer_class": ["a"]}, None, None, r"names tokenizer_class=\['a'\]"),
    ({}, {"<|mask|>": 999}, None, r"added_tokens\.json: token '<\|mask\|>' has id 999, but"),
    ({}, {"<|mask|>": "7"}, None, r"added_tokens\.json: '<\|mask\|>' has id '7'"),
    ({}, {"<|endoftext|>": 266}, None, r"the bos token '<\|beginoftext\|>' has no id in any file"),
    ({"eos_token": 5}, None, None, r"tokenizer_config\.json: eos_token=5 must be a token's text"),
    ({"additional_special_tokens": "a"}, None, None, "additional_special_tokens='a' must be a li"),
    ({}, {}, ["a"], r"added_tokens_decoder has '': \['a'\]"),
    ({}, {"<a>": 266}, {"267": {"content": "<a>"}}, r"'<a>' has id 267, and 266 in added_tokens"),
  ],
)
def test_files_that_cannot_be_are_named(tmp_path, config, added, decoder, message):
  write(tmp_path, CONFIG | config, added, decoder)
  with pytest.raises(ValueError, match=message):
    BpeTokenizer.from_file(tmp_path, extend=False)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "added_tokens.json"])
def test_damaged_files_are_named(tmp_path, name):
  write(tmp_path)
  (tmp_path / name).write_text('{"a": ')
  with pytest.raises(ValueError, match=f"{name}.* cannot be read"):
    BpeTokenizer.from_file(tmp_path)
