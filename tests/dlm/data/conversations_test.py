"""Chat fine-tuning: rows of conversations, and special tokens that plain text spells."""

import json

import numpy as np
import pytest

from dlm.data import BpeTokenizer, ByteTokenizer, open_rows, open_tokens, write_tokens
from tests.dlm.build import directories

TALK = [
  {"role": "user", "content": "the cat"},
  {"role": "assistant", "content": "sat"},
  {"role": "user", "content": "and"},
  {"role": "assistant", "content": "on the mat"},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  folder = tmp_path_factory.mktemp("chat")
  directories.tokenizer_files(folder, "<|mask|>")
  return BpeTokenizer.from_file(folder)


def written(folder, *records) -> str:
  for split in ("train", "test"):
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
  return f"jsonl:{folder}/{{split}}.jsonl"


def rows(source, tokenizer, length=96, **options):
  return open_rows(
    ((source, 1.0, options),), tokenizer, length=length, batch=1, seed=0, shuffle=False, mode="pad"
  )


def learned(tokenizer, batch) -> str:
  return tokenizer.decode(batch.tokens_BxL[batch.noisable_BxL])


def test_only_the_assistants_turns_are_noisable(tokenizer, tmp_path):
  """Beside plain examples, and with the end of text that fills the row."""
  source = written(tmp_path, {"messages": TALK}, {"prompt": "the ", "completion": "mat"})
  found = rows(source, tokenizer)
  batch = found[0]
  assert learned(tokenizer, batch) == "saton the mat"
  ends = tokenizer.specials()["<|im_end|>"]
  assert (batch.tokens_BxL == ends).sum() > 4 and batch.tokens_BxL[0, 0] != ends
  assert batch.noisable_BxL[0, -20:].all() and tokenizer.eos_id == ends
  assert learned(tokenizer, found[1]) == "mat" and found.notes() == []
  short = rows(source, tokenizer, length=40, pad="none")[0]
  assert learned(tokenizer, short).startswith("sat")


def test_packed_and_prepared_rows_are_the_same(tokenizer, tmp_path):
  source = written(tmp_path, {"messages": TALK}, {"text": "the mat"})
  packed = rows(source, tokenizer, length=24, mode="pack")[0]
  out = tmp_path / "out"
  meta = write_tokens(str(out), source, tokenizer)
  assert meta["notes"] == ()
  again = rows(f"tokens:{out}", tokenizer, length=24, mode="pack")[0]
  for ours, theirs in zip(packed, again, strict=True):
    np.testing.assert_array_equal(ours, theirs)
  assert 0 < packed.noisable_BxL.sum() < 24
  flags = np.load(out / "train" / "learned.npy")
  np.save(out / "train" / "learned.npy", flags[:-1])
  with pytest.raises(ValueError, match=r"prompt\.npy and learned\.npy do not cut up tokens\.npy"):
    open_tokens(str(out), "train", tokenizer)
  np.save(out / "train" / "learned.npy", flags.astype(np.int32))
  with pytest.raises(ValueError, match=r"learned\.npy holds int32.*, not a row of true and false"):
    open_tokens(str(out), "train", tokenizer)


def test_plain_text_has_no_flags_by_token(tokenizer, tmp_path):
  write_tokens(str(tmp_path / "out"), written(tmp_path, {"text": "the mat"}), tokenizer)
  assert not (tmp_path / "out" / "train" / "learned.npy").exists()


def test_spelled_special_tokens_are_counted_or_read(tokenizer, tmp_path):
  """What is trained must be what is sampled: letters are said to be letters."""
  text = "<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\nsat<|im_end|>"
  source = written(tmp_path, {"text": text}, {"prompt": "<|im_end|>", "completion": "mat"})
  letters, tokens = rows(source, tokenizer), rows(source, tokenizer, parse_specials=True)
  (note,) = letters.notes()
  assert note.startswith("WARNING: jsonl: plain text spells special tokens 5 times (<|im_end|> 3, ")
  assert "parse_specials=True" in note and tokens.notes() == []
  start = tokenizer.specials()["<|im_start|>"]
  assert (letters[0].tokens_BxL == start).sum() == 0 and (tokens[0].tokens_BxL == start).sum() == 2
  assert tokenizer.decode(tokens[0].tokens_BxL[0]) == "user\nthe cat\nassistant\nsat"
  meta = write_tokens(str(tmp_path / "out"), source, tokenizer)
  assert "10 times" in meta["notes"][0]  # of both splits
  assert rows(f"tokens:{tmp_path / 'out'}", tokenizer).notes() == list(meta["notes"])


def test_what_stands_between_two_marks_is_read_and_not_learned(tokenizer, tmp_path):
  """In plain text and in what an assistant said: a tool's answer within its turn."""
  talk = [TALK[0], {"role": "assistant", "content": "sat [the mat] on"}]
  text = {"prompt": "the ", "completion": "cat [sat] on [mat"}
  source = written(tmp_path, text, {"messages": talk})
  found = rows(source, tokenizer, silent=("[", "]"), pad="none")
  assert [learned(tokenizer, found[i]) for i in (0, 1)] == ["cat  on ", "sat  on"]
  assert tokenizer.decode(found[0].tokens_BxL[0]).startswith("the cat [sat] on [mat")
  assert found.notes() == []
  (note,) = rows(source, tokenizer, silent=("{", "}")).notes()
  assert note == "WARNING: jsonl: the marks of the option silent stand in none of its texts"


@pytest.mark.parametrize(
  ("record", "options", "message"),
  [
    ({"messages": TALK[:1]}, {}, "line 1: needs an assistant's message"),
    ({"messages": "hi"}, {}, "line 1: needs "),
    ({"text": "<|mask|>"}, {"parse_specials": True}, "mask_id=.* occurs in a text"),
    ({"text": "a"}, {"parse_specials": 1}, "parse_specials=1 must be true or false"),
    ({"text": "a"}, {"silent": ("[",)}, r"silent=\('\[',\) must be \(LEFT, RIGHT\), two texts"),
  ],
)
def test_what_cannot_be_learned_is_refused(tokenizer, tmp_path, record, options, message):
  with pytest.raises(ValueError, match=message):
    rows(written(tmp_path, record), tokenizer, **options)


def test_conversations_need_a_tokenizer_with_a_template(tmp_path):
  source = written(tmp_path, {"messages": TALK})
  with pytest.raises(ValueError, match="the tokenizer has no chat template: none in"):
    rows(source, ByteTokenizer())
