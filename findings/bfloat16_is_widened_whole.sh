#!/bin/sh
# jax 0.10 on CPU: a loop that looks up, writes or multiplies a few rows of a bfloat16 array holds all
# of that array in float32.
#
# Guess: to look two rows up in a table of bfloat16, to write two rows into a buffer of it, or to
#   multiply two rows with a kernel of it, XLA's CPU backend needs a few KB of scratch memory: it
#   widens what it computes with, as it goes. A lookup outside a loop does.
# Seen (jax 0.10.2, CPU): each of the three holds the whole array in float32 as scratch memory; the
#   buffer is widened and narrowed again. A product that is asked for a float32 result widens nothing,
#   and neither does a buffer that is held as whole numbers of 16 bits. With jax 0.12.0 (Python 3.12)
#   none of the three widens anything any more.
# It matters for language models on CPUs: an 8B model's embedding costs 2 GB more, its key cache is
#   widened at each write, and products of few rows take several times as long.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile jax==0.10.2

JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp

print("jax", jax.__version__)
ROWS, WIDTH, FEW, TURNS = 16384, 512, 2, 4
WIDENED = 4 * ROWS * WIDTH  # bytes of the whole array in float32
array = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.bfloat16)
held = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.uint16)
rows = jax.ShapeDtypeStruct((FEW, WIDTH), jnp.bfloat16)
wide = jax.ShapeDtypeStruct((FEW, ROWS), jnp.bfloat16)
where = jax.ShapeDtypeStruct((FEW,), jnp.int32)


def lookup(array, where):
  return jnp.take(array, where, axis=0, mode="clip")


def lookups(array, where):
  begun = jnp.zeros((FEW, WIDTH), jnp.bfloat16)
  return jax.lax.fori_loop(0, TURNS, lambda i, x: x + lookup(array, where + i), begun)


def writes(array, rows):
  def turn(i, array):
    new = rows * i.astype(rows.dtype)
    if array.dtype == jnp.uint16:
      new = jax.lax.bitcast_convert_type(new, jnp.uint16)
    return array.at[i + jnp.arange(FEW)].set(new)

  return jax.lax.fori_loop(0, TURNS, turn, array)


def product(array, wide):
  return wide @ array


def product_in_float32(array, wide):
  return jnp.matmul(wide, array, preferred_element_type=jnp.float32).astype(jnp.bfloat16)


def scratch(function, *inputs):
  """Bytes of scratch memory of the compiled program, whose first input may be written over."""
  compiled = jax.jit(function, donate_argnums=0).lower(*inputs).compile()
  return compiled.memory_analysis().temp_size_in_bytes


widened = {
  "lookups in a loop": scratch(lookups, array, where),
  "writes in a loop": scratch(writes, array, rows),
  "product": scratch(product, array, wide),
}
kept = {
  "one lookup": scratch(lookup, array, where),
  "writes of whole numbers": scratch(writes, held, rows),
  "product, float32 result": scratch(product_in_float32, array, wide),
}
for name, size in {**widened, **kept}.items():
  print(f"{name:24} scratch memory: expected well below {WIDENED:,} bytes, seen {size:,}")
assert min(widened.values()) >= WIDENED, "bfloat16 is no more widened whole"
assert max(kept.values()) < WIDENED // 8, "what kept bfloat16 narrow does so no more"
print("as found")
PYTHON
