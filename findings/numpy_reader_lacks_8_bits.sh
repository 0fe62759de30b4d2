#!/bin/sh
# safetensors: a checkpoint in FP8 can be opened with framework="numpy", but not read.
#
# Guess: what the format's own header allows (F8_E4M3, F8_E8M0), its own reader gives for every
#   framework; bfloat16, which numpy lacks as well, comes by ml_dtypes, so 8-bit floats do too.
# Seen (safetensors 0.8.0, numpy 2.3.5, ml_dtypes installed): names, shapes and dtypes are told, a
#   bfloat16 slice is read, an 8-bit one raises, whole or in parts. The bytes must be found by the
#   header and viewed.
# It matters to who reads DeepSeek-style checkpoints without torch: everything but the weights loads.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile safetensors==0.8.0 numpy==2.3.5 ml_dtypes

"$folder/venv/bin/python" -W ignore - "$folder/one.safetensors" <<'PYTHON'
import json
import sys
from importlib.metadata import version

import ml_dtypes  # noqa: F401
from safetensors import safe_open

print(*(f"{name} {version(name)}" for name in ("safetensors", "numpy", "ml_dtypes")))
KINDS = {"BF16": 2, "F8_E4M3": 1, "F8_E8M0": 1}
header, content = {}, b""
for kind, size in KINDS.items():
  begin = len(content)
  content += bytes(4 * size)
  header[kind] = {"dtype": kind, "shape": [4], "data_offsets": [begin, len(content)]}
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
with open(sys.argv[1], "wb") as file:
  file.write(len(text).to_bytes(8, "little") + text + content)

with safe_open(sys.argv[1], framework="numpy") as opened:
  for kind in KINDS:
    part = opened.get_slice(kind)
    print(f"{kind}: told as {part.get_dtype()} {part.get_shape()}", end="; ")
    for name, read in (("a slice", lambda: part[:2]), ("whole", lambda: opened.get_tensor(kind))):
      try:
        seen = str(read().dtype)
      except Exception as error:
        seen = f"{type(error).__name__}: {error}"
      print(f"{name}: expected an array, seen {seen}", end="; ")
      assert ("Error" in seen or "has no" in seen) == (kind != "BF16"), "the reader has changed"
    print()
print("as found")
PYTHON
