"""Gumbel noise as a function of (row key, vocabulary id): no state, no order, no tile.

Whoever needs the noise of an id computes it, so tiles, shards and kernels draw the same tokens.
The generator is threefry2x32 with 20 rounds, the one behind `jax.random`:
the xor of the two words is `jax.random.bits(key)` at that flat index.

Both words make the uniform. From one 32-bit word (or the 23 bits of a float32 mantissa) the noise
would end at 22.2 (16.6): rare tokens are then never drawn, and sampling acts as if the temperature
were lower than asked (arXiv 2409.02908). Here large noise comes from uniforms near 0, where
float32 is dense, and reaches 45.
"""

import jax
import jax.numpy as jnp

Array = jax.Array

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_BELOW_ONE = 1 - 2.0**-24  # the largest float32 below 1


def threefry2x32(key0: Array, key1: Array, x0: Array, x1: Array) -> tuple[Array, Array]:
  """Threefry2x32-20. All uint32, of one shape or broadcastable at equal rank."""
  keys = (key0, key1, key0 ^ key1 ^ jnp.uint32(_PARITY))
  x0, x1 = x0 + keys[0], x1 + keys[1]
  for group in range(5):
    for rotation in _ROTATIONS[group % 2]:
      x0 = x0 + x1
      x1 = (x1 << jnp.uint32(rotation)) | (x1 >> jnp.uint32(32 - rotation))
      x1 = x0 ^ x1
    x0 = x0 + keys[(group + 1) % 3]
    x1 = x1 + keys[(group + 2) % 3] + jnp.uint32(group + 1)
  return x0, x1


def gumbel(key_data_Rx2: Array, ids_T: Array) -> Array:
  """Standard Gumbel noise, float32 [R, T]: that of each row's key (uint32 words) and each id."""
  return gumbel_of(key_data_Rx2[:, :1], key_data_Rx2[:, 1:], ids_T[None, :])


def gumbel_of(key0_Rx1: Array, key1_Rx1: Array, ids_1xT: Array) -> Array:
  """`gumbel` of columns and rows that broadcast to [R, T]."""
  low_1xT = ids_1xT.astype(jnp.uint32)
  return from_words(*threefry2x32(key0_Rx1, key1_Rx1, jnp.zeros_like(low_1xT), low_1xT))


def from_words(x0: Array, x1: Array) -> Array:
  """Gumbel noise of 64 uniform bits: -log(-log(1 - u)), finite for all of them."""
  uniform = x0.astype(jnp.float32) * 2.0**-32 + (x1.astype(jnp.float32) * 2.0**-64 + 2.0**-65)
  return -jnp.log(-jnp.log1p(-jnp.minimum(uniform, _BELOW_ONE)))
