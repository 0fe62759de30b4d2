#!/bin/sh
# bm25s: importing the search library starts JAX, so several processes cannot be joined after it.
#
# Guess: a BM25 library on numpy is only imported; what it may use of JAX is touched when a search
#   asks for that backend.
# Seen (bm25s 0.3.16, jax 0.10.2): where jax is installed, `import bm25s` runs a top-k on it. The
#   backend then exists: it has taken its devices (on a GPU most of the memory), later settings such
#   as jax_num_cpu_devices are refused, and jax.distributed.initialize raises, whoever calls it.
# It matters to a program that trains or serves on several hosts and searches: import the library
#   where it is used, behind initialize.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile bm25s==0.3.16 jax==0.10.2

JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
from importlib.metadata import version

import jax

print("bm25s", version("bm25s"), "jax", version("jax"))
jax.config.update("jax_num_cpu_devices", 2)
import bm25s

for name, call in (
  ("settings", lambda: jax.config.update("jax_num_cpu_devices", 4)),
  (
    "processes",
    lambda: jax.distributed.initialize("localhost:47123", num_processes=1, process_id=0),
  ),
):
  try:
    call()
    raise SystemExit(f"{name}: bm25s {bm25s.__version__} does not start JAX any more")
  except RuntimeError as error:
    print(f"{name}: expected to be taken, seen: {' '.join(str(error).split())[:110]}")
print("as found")
PYTHON
