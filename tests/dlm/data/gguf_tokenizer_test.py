"""Tokenizers out of the keys of GGUF files; the golden ones are in tests/conformance/llama."""

import itertools
import json

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from dlm.data import BpeTokenizer, chat, gguf_tokenizer
from dlm.data.gguf_tokenizer import KEY

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGED = ["ab", "abc", "12", "123", "aB", "\u0120a"]
MERGES = ["a b", "ab c", "1 2", "12 3", "a B", "\u0120 a"]


def byte_level(**changes):
  tokens = ["<s>", "</s>", *BYTES, *MERGED, "<tool>"]
  keys = {
    "model": "gpt2", "pre": "gpt-2", "tokens": tokens, "merges": MERGES,
    "token_type": np.array([3, 3, *[1] * (len(tokens) - 3), 4], np.int32),
    "bos_token_id": 0, "eos_token_id": 1, "add_bos_token": False,
  }  # fmt: skip
  return {KEY + name: value for name, value in (keys | changes).items() if value is not None}


def made(keys) -> BpeTokenizer:
  return gguf_tokenizer.of_keys(keys, "x.gguf", extend=True)


def pieces(tokenizer, text):
  return [tokenizer.decode([id]) for id in tokenizer.encode(text)]


@pytest.mark.parametrize(
  ("pre", "text", "want"),
  [
    ("gpt-2", "abc 123a", ["abc", " ", "123", "a"]),
    ("smollm", "abc 123a", ["abc", " ", "1", "2", "3", "a"]),
    ("qwen2", "abc 123a", ["abc", " ", "1", "2", "3", "a"]),
    ("llama-bpe", "abc 1234a", ["abc", " ", "123", "4", "a"]),
    ("tekken", "aabcaB a", ["a", "abc", "a", "B", " a"]),
    ("gpt-2", "aabcaB a", ["a", "abc", "aB", " a"]),
    ("qwen2", "a\u0301", ["\N{REPLACEMENT CHARACTER}"] * 2),  # one letter, NFC
  ],
)
def test_text_is_cut_as_its_pre_says(pre, text, want):
  assert pieces(made(byte_level(pre=pre)), text) == want


def test_a_whole_word_that_is_a_token_is_not_merged_where_llama_3_cuts():
  keys = byte_level(merges=[each for each in MERGES if each != "ab c"])
  assert pieces(made(keys), "abc") == ["ab", "c"]
  assert pieces(made(keys | {KEY + "pre": "llama-bpe"}), "abc") == ["abc"]


def test_roles_added_tokens_and_what_lies_beside(tmp_path):
  template = "{{ bos_token }}{% for m in messages %}{{ m.content }}</s>{% endfor %}"
  keys = byte_level(add_bos_token=True) | {"tokenizer.chat_template": template}
  tokenizer = made(keys)
  last = len(keys[KEY + "tokens"])
  assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 1)
  assert (tokenizer.mask_id, tokenizer.vocab_size) == (last, last + 1)
  assert tokenizer.specials() == {"<s>": 0, "</s>": 1, "<|mask|>": last}
  assert tokenizer.encode("<tool>").tolist() == [last - 1]  # user defined: in any text
  assert tokenizer.encode("<s>").size == 3  # a control token is not
  talk = chat.Conversation(chat.from_user("a</s>"))
  (ids,) = chat.template_of(tokenizer).encode([talk], tokenizer)
  assert ids.tolist() == [0, *tokenizer.encode("a</s>"), 1]
  tokenizer.publish(tmp_path)
  again = BpeTokenizer.load(tmp_path)
  assert again.fingerprint == tokenizer.fingerprint and again.beside == tokenizer.beside
  config = json.loads((tmp_path / "tokenizer_config.json").read_text())
  assert (config["bos_token"], config["mask_token"]) == ("<s>", "<|mask|>")
  assert config["add_bos_token"] is True
  whole = json.loads((tmp_path / "tokenizer.json").read_text())
  assert whole["post_processor"]["single"][0]["SpecialToken"]["id"] == "<s>"
  assert made(byte_level(mask_token_id=last - 1)).mask_id == last - 1


def test_rows_that_a_converter_filled_up_are_no_tokens():
  """The mask is then the first of them, and no row is added to the embedding."""
  keys = byte_level()
  tokens, types = keys[KEY + "tokens"], keys[KEY + "token_type"]
  spare = {KEY + "tokens": [*tokens, "[PAD1]", "[PAD2]"],
           KEY + "token_type": np.append(types, [5, 5])}  # fmt: skip
  assert made(keys | spare).fingerprint == made(keys).fingerprint


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model": "bert"}, "model='bert' is not supported; known: gpt2, llama"),
    ({"model": None}, "model=None is not supported"),
    ({"pre": "dbrx"}, "pre='dbrx': how it cuts text is not known; known: gpt-2, phi-2"),
    ({"pre": None}, "pre=None: how it cuts"),
    ({"tokens": None}, "tokens is missing"),
    ({"tokens": ["a", "a"], "token_type": None}, "tokens: 'a' is there twice"),
    ({"tokens": np.arange(3)}, r"tokens=[0, 1, 2] must be a list of str"),
    ({"token_type": np.array([1, 1])}, "token_type has 2 values, and 265 are needed"),
    ({"merges": ["a b c"]}, "merges: 'a b c' must be two tokens that make a third"),
    ({"merges": ["a z"]}, "merges: 'a z' must be two tokens that make a third"),
    ({"eos_token_id": 999}, "eos_token_id=999 is outside the vocabulary of 265 ids"),
    ({"model": "llama"}, "scores is missing"),
  ],
)
def test_what_does_not_fit_is_one_line(changes, message):
  with pytest.raises(ValueError) as error:
    made(byte_level(**changes))
  assert str(error.value).startswith(f"x.gguf: {KEY}") and message in str(error.value)


# ---------------------------------------------------------------------------------------------
# SentencePiece's

LETTERS = "\u2581abcd"


def sentence_piece(seed, **changes):
  """A random vocabulary: which pieces there are does not follow from how they were merged."""
  random = np.random.default_rng(seed)
  pieces = {"".join(random.choice([*LETTERS], random.integers(2, 5))) for _ in range(60)}
  tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
  types = [2, 3, 3, *[6] * 256, *[1] * (len(LETTERS) + len(pieces))]
  tokens += [*LETTERS, *sorted(pieces)]
  keys = {
    "model": "llama", "tokens": tokens, "token_type": np.array(types, np.int32),
    "scores": -random.permutation(len(tokens)).astype(np.float32),
    "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0,
  }  # fmt: skip
  return {KEY + name: value for name, value in (keys | changes).items()}


def slow(keys, text):
  """Of all neighbours that make a token the best are joined, until none do; then bytes."""
  tokens, scores = keys[KEY + "tokens"], keys[KEY + "scores"]
  first = 3 + 256  # from here on tokens are text
  score = {token: scores[id] for id, token in enumerate(tokens) if id >= first}
  parts = [*text.replace(" ", "\u2581")]
  while True:
    pairs = enumerate(itertools.pairwise(parts))
    joint = [(score.get(a + b, -np.inf), -i) for i, (a, b) in pairs]
    best, at = max(joint, default=(-np.inf, 0))
    if best == -np.inf:
      break
    parts[-at : 2 - at] = [parts[-at] + parts[1 - at]]
  ids = []
  for part in parts:
    ids += [tokens.index(part)] if part in score else [3 + byte for byte in part.encode()]
  return ids


@pytest.mark.parametrize("seed", range(4))
def test_the_best_neighbours_are_joined_first(seed):
  keys = sentence_piece(seed)
  tokenizer, random = made(keys), np.random.default_rng(seed)
  for _ in range(40):
    text = "".join(random.choice([*" abcdx\u00e9\n"], random.integers(0, 30)))
    assert tokenizer.encode(text).tolist() == (slow(keys, " " + text) if text else [])
    assert tokenizer.decode(tokenizer.encode(text)) == text
  plain = made(keys | {KEY + "add_space_prefix": False})
  assert plain.encode("abca d").tolist() == slow(keys, "abca d")
  assert plain.decode(plain.encode(" a")) == " a"


def test_a_table_that_normalises_text_is_refused():
  with pytest.raises(ValueError, match="precompiled_charsmap normalises text, which is not supp"):
    made(sentence_piece(0, precompiled_charsmap=np.zeros(3, np.uint8)))
