#!/bin/sh
# tokenizers: an added token does not get the id that tokenizer.json gives it, if ids before it lack.
#
# Guess: "added_tokens": [{"id": 310, "content": "<mask>", ...}] makes 310 the id of <mask>, as the
#   model's config.json and its embedding rows have it. A gap (ids that a vendor left unused) is only
#   a gap.
# Seen (tokenizers 0.23.3): ids of added tokens are given anew, one after the other from the end of
#   the vocabulary. With 300 tokens and a file that says 310 and 311, <mask> is 300 in memory, and a
#   file that is saved again says 300 too. No error and no warning says so; the id in config.json then
#   means nothing. With the gap filled by tokens of any name the ids are those of the file.
# It matters for mask and end tokens, which samplers and trainers know by id alone.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile tokenizers==0.23.3

"$folder/venv/bin/python" - <<'PYTHON'
import json

import tokenizers
from tokenizers import Tokenizer, models

print("tokenizers", tokenizers.__version__)


def read(added):
  """A tokenizer of 300 words whose file lists these added tokens by id."""
  words = {f"word{id}": id for id in range(300)}
  file = json.loads(Tokenizer(models.WordLevel(words, unk_token="word0")).to_str())
  flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
  file["added_tokens"] = [
    {"id": id, "content": content, "special": True, **flags} for id, content in added.items()
  ]
  return Tokenizer.from_str(json.dumps(file))


gap = read({310: "<mask>", 311: "<end>"})
ids = gap.token_to_id("<mask>"), gap.token_to_id("<end>")
saved = [token["id"] for token in json.loads(gap.to_str())["added_tokens"]]
filled = read({**{id: f"<unused{id}>" for id in range(300, 310)}, 310: "<mask>", 311: "<end>"})
print("file says <mask> 310 and <end> 311")
print(f"  with a gap before them: expected (310, 311), seen {ids}; saved again as {saved}")
print(f"  with the gap filled:    expected 310, seen {filled.token_to_id('<mask>')}")
assert ids == (300, 301), "ids are those of the file now, or others: this finding is out of date"
assert saved == [300, 301], "the saved file has other ids now"
assert filled.token_to_id("<mask>") == 310, "not even a file without a gap keeps its ids"
print("as found")
PYTHON
