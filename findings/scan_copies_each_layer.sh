#!/bin/sh
# jax on CPU: a scan over stacked weights copies every layer's weights before it multiplies.
#
# Guess: lax.scan (flax's nn.scan) over weights stacked on axis 0 reads each layer where it lies: a
#   slice of leading rows is contiguous, so nothing is copied, as in a Python loop over arrays.
# Seen (jax 0.10.2 and 0.12.0.1, CPU): the loop's body writes a copy of the layer's matrix, and the
#   product reads the copy. The compiled program holds one layer of scratch memory: 4 MB for matrices
#   of 1024 x 1024, where the loop over arrays holds a few KB. A branch by the layer's number over
#   arrays of their own (lax.switch in the scan) copies nothing and stays one loop.
# It matters for decoding on CPUs: with few rows a forward does little but read the weights, so the
#   copy costs about as much as the product.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile jax==0.10.2

JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp

print("jax", jax.__version__)
LAYERS, WIDTH = 8, 1024
ONE = 4 * WIDTH * WIDTH  # bytes of a layer
stacked = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32)
apart = tuple(jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32) for _ in range(LAYERS))
x = jax.ShapeDtypeStruct((2, WIDTH), jnp.float32)


def scan(x, layers):
  return jax.lax.scan(lambda x, layer: (jnp.tanh(x @ layer), None), x, layers)[0]


def loop(x, layers):
  for layer in layers:
    x = jnp.tanh(x @ layer)
  return x


def switch(x, layers):
  branches = [lambda x, layer=layer: x @ layer for layer in layers]
  turn = lambda x, number: (jnp.tanh(jax.lax.switch(number, branches, x)), None)  # noqa: E731
  return jax.lax.scan(turn, x, jnp.arange(LAYERS))[0]


def scratch(function, weights):
  """Bytes of scratch memory of the compiled program."""
  return jax.jit(function).lower(x, weights).compile().memory_analysis().temp_size_in_bytes


seen = {
  "scan over the stack": scratch(scan, stacked),
  "loop over arrays": scratch(loop, apart),
  "switch in a scan": scratch(switch, apart),
}
for name, size in seen.items():
  print(f"{name:20} scratch memory: expected well below {ONE:,} bytes, seen {size:,}")
assert seen["scan over the stack"] >= ONE, "a scan reads its layers where they lie now"
assert max(seen["loop over arrays"], seen["switch in a scan"]) < ONE // 8, "arrays are copied now"
print("as found")
PYTHON
