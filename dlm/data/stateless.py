"""Randomness without state: every draw is a hash of what it is for.

Python's own `hash()` of text differs between processes; nothing here does, so hosts agree, and a
resumed run needs only its step.
"""

import hashlib

import numpy as np

FEISTEL_ROUNDS = 4


def hash_words(*words: int | np.ndarray) -> np.ndarray:
  """uint64 hash of non-negative integers; arrays broadcast. Finaliser of splitmix64."""
  state = np.asarray(0x9E3779B97F4A7C15, np.uint64)
  with np.errstate(over="ignore"):
    for word in words:
      state = (state ^ np.asarray(word).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
      state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
      state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
      state = state ^ (state >> np.uint64(31))
  return state


def hash_text(text: str) -> int:
  """63-bit hash of text, equal in every process and Python version."""
  digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
  return int.from_bytes(digest, "little") >> 1


def permuted(index: np.ndarray, size: int, *key: int | np.ndarray) -> np.ndarray:
  """Where a random permutation of range(size), named by `key`, sends each index. O(1) per index.

  A Feistel network over the next power of four, walked until the image falls below `size`: at most
  four steps on average, and no array of length `size` exists. `key` parts broadcast with `index`.
  """
  half = max(1, (size - 1).bit_length() + 1 >> 1)
  low = np.uint64((1 << half) - 1)
  key_N = np.broadcast_to(hash_words(*key), index.shape)

  def encrypt(x: np.ndarray, keys: np.ndarray) -> np.ndarray:
    left, right = x >> np.uint64(half), x & low
    for turn in range(FEISTEL_ROUNDS):
      left, right = right, left ^ (hash_words(keys, turn, right) & low)
    return left << np.uint64(half) | right

  out = encrypt(index.astype(np.uint64), key_N)
  while (outside := out >= size).any():
    out[outside] = encrypt(out[outside], key_N[outside])
  return out.astype(np.int64)
