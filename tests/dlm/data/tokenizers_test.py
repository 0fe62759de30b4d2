"""Round trips, specials that text cannot spell, and what is refused."""

import json

import numpy as np
import pytest

from dlm.data.tokenizers import (
  MASK_SIGN,
  SPELLINGS,
  BpeTokenizer,
  ByteTokenizer,
  load_tokenizer,
  train_bpe,
)

TEXTS = ["the cat sat on the mat", "Grüße, 世界 \U0001f600\n\ttab", "", "<|mask|><|eos|> [MASK]"]


@pytest.fixture(scope="module")
def bpe():
  return train_bpe(["the cat sat on the mat"] * 4, 300)


@pytest.fixture(params=["byte", "bpe"])
def tokenizer(request, bpe):
  return {"byte": ByteTokenizer(), "bpe": bpe}[request.param]


def special_ids(tokenizer):
  return [tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id]


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_and_never_becomes_a_special(tokenizer, text):
  ids = tokenizer.encode(text)
  assert ids.dtype == np.int32 and ids.ndim == 1
  assert tokenizer.decode(ids) == text
  assert not np.isin(ids, special_ids(tokenizer)).any()


def test_a_batch_is_its_texts(tokenizer):
  for alone, together in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
    np.testing.assert_array_equal(tokenizer.encode(alone), together)


def test_specials_are_inside_the_vocabulary_and_distinct(tokenizer):
  assert len(set(special_ids(tokenizer))) == 4
  assert max(special_ids(tokenizer)) < tokenizer.vocab_size


def test_decode_drops_specials_and_shows_the_mask_on_request(tokenizer):
  the, cat = tokenizer.encode("the"), tokenizer.encode(" cat")
  mask, eos = [tokenizer.mask_id], [tokenizer.eos_id]
  ids = np.concatenate([the, mask, mask, cat, eos])
  assert tokenizer.decode(ids) == "the cat"
  assert tokenizer.decode(ids, show_mask=True) == f"the{MASK_SIGN}{MASK_SIGN} cat"


def test_half_a_character_decodes_to_the_replacement_character(tokenizer):
  ids = tokenizer.encode("a世")
  assert tokenizer.decode(ids[:-1]) == "a\ufffd"


def test_ids_outside_the_vocabulary_are_refused(tokenizer):
  for wrong in (-1, tokenizer.vocab_size):
    with pytest.raises(ValueError, match=f"id {wrong} is outside the vocabulary"):
      tokenizer.decode([wrong])


def test_saved_and_loaded_is_the_same(tokenizer, tmp_path):
  tokenizer.save(tmp_path)
  loaded = load_tokenizer(f"saved:{tmp_path}")
  assert type(loaded) is type(tokenizer)
  assert loaded.fingerprint == tokenizer.fingerprint
  assert special_ids(loaded) == special_ids(tokenizer)
  for text in TEXTS:
    np.testing.assert_array_equal(loaded.encode(text), tokenizer.encode(text))
  assert type(tokenizer).load(tmp_path).vocab_size == tokenizer.vocab_size


def test_training_is_deterministic_and_compresses(bpe):
  again = train_bpe(["the cat sat on the mat"] * 4, 300)
  assert again.fingerprint == bpe.fingerprint
  assert bpe.encode("the cat").size < len("the cat")
  with pytest.raises(ValueError, match="vocab_size=259 must be at least 260"):
    train_bpe(["a"], 259)


def without_specials(path):
  """A tokenizer.json as its authors ship it: <think> is an added token but not a special one."""
  import tokenizers

  made = tokenizers.Tokenizer(tokenizers.models.BPE())
  made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = tokenizers.decoders.ByteLevel()
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  trainer = tokenizers.trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False)
  made.train_from_iterator(["ab"], trainer)
  made.add_special_tokens(["<|endoftext|>"])
  made.add_tokens(["<think>"])
  made.save(str(path / "tokenizer.json"))
  return made.get_vocab_size()


def test_a_foreign_tokenizer_gets_the_roles_it_lacks(tmp_path):
  size = without_specials(tmp_path)
  found = load_tokenizer(f"bpe:{tmp_path}")
  assert found.vocab_size == size + 1  # the mask; <|endoftext|> is the end, and the rest
  assert found.pad_id == found.bos_id == found.eos_id
  assert found.decode([found.eos_id, found.mask_id]) == ""
  text = f"a{SPELLINGS['mask'][0]}b<|endoftext|>"
  assert found.decode(found.encode(text)) == text
  assert found.mask_id not in found.encode(text)


def test_roles_come_from_the_config_beside_the_file_or_from_the_caller(tmp_path):
  without_specials(tmp_path)
  config = {"mask_token": {"content": "<think>"}, "eos_token": None}
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
  found = BpeTokenizer.from_file(tmp_path / "tokenizer.json")
  plain = found.encode("<think>")
  assert found.mask_id not in plain and found.decode(plain) == "<think>"
  assert BpeTokenizer.from_file(tmp_path, mask=7).mask_id == 7
  with pytest.raises(ValueError, match="mask_id=99999 is outside the vocabulary"):
    BpeTokenizer.from_file(tmp_path, mask=99999)
  with pytest.raises(ValueError, match="unknown roles"):
    BpeTokenizer.from_file(tmp_path, sep="[SEP]")


def test_damaged_file_is_named(tmp_path):
  (tmp_path / "tokenizer.json").write_text('{"model": ')
  with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read"):
    BpeTokenizer.from_file(tmp_path)


@pytest.mark.parametrize("spec", ["bytes", "bpe", "bpe:", "hf:x"])
def test_an_unknown_spec_lists_the_known(spec):
  with pytest.raises(ValueError, match=r"known: byte, bpe:PATH, saved:DIR"):
    load_tokenizer(spec)


def test_missing_files_are_named(tmp_path):
  with pytest.raises(ValueError, match=r"need a tokenizer\.json, or vocab\.json and merges\.txt"):
    load_tokenizer(f"bpe:{tmp_path}")
  with pytest.raises(ValueError, match="no saved tokenizer"):
    load_tokenizer(f"saved:{tmp_path}")


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("{}", "kind=None is unknown; known: byte, bpe"),
    ('{"kind": ["bpe"]}', r"kind=\['bpe'\] is unknown"),
    ('{"kind": "bpe", "roles": {"pad": "a"}}', r"roles=\{'pad': 'a'\} must be ids"),
    ("[]", "holds no JSON object"),
    ("[" * 100_000, "cannot be read"),
  ],
)
def test_a_damaged_saved_tokenizer_is_named(tmp_path, text, message):
  (tmp_path / "dlm_tokenizer.json").write_text(text)
  with pytest.raises(ValueError, match=rf"dlm_tokenizer\.json.*{message}"):
    load_tokenizer(f"saved:{tmp_path}")
