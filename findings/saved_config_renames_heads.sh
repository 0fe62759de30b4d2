#!/bin/sh
# transformers: a DiffusionGemma config that was loaded and saved has other keys than it came with.
#
# Guess: config.json says "global_head_dim" and "num_global_key_value_heads" for the layers that see
#   all; AutoConfig.from_pretrained(...).save_pretrained(...) writes what it read, so a reader that
#   knows these two keys reads a saved checkpoint as well as a published one.
# Seen (transformers 5.24.0): neither key is in the saved file. In their place stands
#   "per_layer_config", by the number of the layer as a string. Nothing is lost and nothing warns; a
#   reader that takes an absent key for its default gives full layers the heads of sliding ones, and
#   shapes do not match.
# It matters to whoever reads config.json without transformers: both spellings are one model.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile transformers==5.24.0

"$folder/venv/bin/python" - "$folder" 2>/dev/null <<'PYTHON'
import json
import pathlib
import sys

import transformers
from transformers import AutoConfig

came, went = (pathlib.Path(sys.argv[1]) / name for name in ("came", "went"))
came.mkdir()
text = {
  "model_type": "diffusion_gemma_text",
  "hidden_size": 64,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 16,
  "global_head_dim": 32,
  "num_global_key_value_heads": 1,
  "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
}
(came / "config.json").write_text(
  json.dumps({"model_type": "diffusion_gemma", "text_config": text})
)
AutoConfig.from_pretrained(came).save_pretrained(went)
saved = json.loads((went / "config.json").read_text())["text_config"]
kept = [key for key in ("global_head_dim", "num_global_key_value_heads") if key in saved]
print("transformers", transformers.__version__)
print("expected: both keys as they came")
print(f"seen:     of both {kept}; per_layer_config={saved.get('per_layer_config')}")
assert not kept, "the keys stay now: this finding is out of date"
assert saved["per_layer_config"] == {"2": {"head_dim": 32, "num_key_value_heads": 1}}
PYTHON
