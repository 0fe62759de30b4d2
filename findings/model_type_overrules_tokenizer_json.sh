#!/bin/sh
# transformers 5: AutoTokenizer replaces the pre-tokenizer of tokenizer.json by that of model_type.
#
# Guess: tokenizer.json is complete, and tokenizer_config.json says PreTrainedTokenizerFast, so a
#   folder's ids are those of the `tokenizers` package, whatever architecture config.json names.
# Seen (transformers 5.24.0): with model_type "qwen2" the class Qwen2Tokenizer is taken, declared
#   class or not, and it keeps vocabulary and merges but splits text by its own rules: digits one by
#   one. "123", a single token in the file, becomes three. With no class declared, "qwen3" does the
#   same, and an end token <|endoftext|> is added that the model has no embedding for. With "llama",
#   or "qwen3" and the class declared, the file is taken as it is. Nothing warns.
# It matters for a model with a tokenizer of its own that has the shape of a known architecture.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile transformers==5.24.0 tokenizers==0.23.3

HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - "$folder" <<'PYTHON'
import json
import pathlib
import sys

import tokenizers
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

TEXT = "x123 y"
print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)

letters = sorted(pre_tokenizers.ByteLevel.alphabet())
vocabulary = {token: id for id, token in enumerate([*letters, "12", "123"])}
own = Tokenizer(models.BPE(vocab=vocabulary, merges=[("1", "2"), ("12", "3")]))
own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
own.add_special_tokens(["<eos>", "<mask>"])
size = own.get_vocab_size()
print("expected everywhere:", own.encode(TEXT).tokens, "and", size, "ids")


def loaded(model_type, declared):
  folder = pathlib.Path(sys.argv[1], f"{model_type}-{declared}")
  folder.mkdir()
  own.save(str(folder / "tokenizer.json"))
  (folder / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": size}))
  if declared:
    about = {"tokenizer_class": declared, "eos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
  auto = transformers.AutoTokenizer.from_pretrained(folder)
  ids = auto(TEXT, add_special_tokens=False)["input_ids"]
  print(f"  {model_type:6} class {declared}: {type(auto).__name__}, {auto.convert_ids_to_tokens(ids)},"
        f" {len(auto)} ids, end {auto.eos_token!r}")
  return ids == own.encode(TEXT).ids, len(auto)


FAST = "PreTrainedTokenizerFast"
assert loaded("llama", FAST) == (True, size), "llama replaces it too now"
assert loaded("qwen3", FAST) == (True, size), "a declared class is not taken for qwen3 any more"
assert loaded("qwen3", None) == (False, size + 1), "qwen3 takes the file now: out of date"
assert loaded("qwen2", None) == (False, size + 1), "qwen2 takes the file now: out of date"
assert loaded("qwen2", FAST) == (False, size + 1), "qwen2 takes a declared class now: out of date"
print("as found")
PYTHON
