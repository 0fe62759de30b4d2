"""Hashes are the same everywhere; permutations hit everything once."""

import subprocess
import sys

import numpy as np
import pytest

from dlm.data.stateless import hash_text, hash_words, permuted


@pytest.mark.parametrize("size", [1, 2, 3, 16, 17, 1000])
def test_a_permutation_hits_everything_once(size):
  image = permuted(np.arange(size), size, 5)
  np.testing.assert_array_equal(np.sort(image), np.arange(size))


def test_permutations_differ_by_key_and_need_no_neighbours():
  index = np.arange(1000)
  first = permuted(index, 1000, 5, 0)
  assert (first != permuted(index, 1000, 5, 1)).mean() > 0.9
  assert (first != permuted(index, 1000, 6, 0)).mean() > 0.9
  np.testing.assert_array_equal(permuted(index[7:9], 1000, 5, 0), first[7:9])


def test_keys_broadcast_over_indices():
  index, epoch = np.array([3, 3]), np.array([0, 1])
  mixed = permuted(index, 100, 5, epoch)
  assert mixed[1] == permuted(index[:1], 100, 5, 1)[0]


def test_hash_words_is_even():
  uniform = hash_words(1, np.arange(4000)) / 2.0**64
  counts, _ = np.histogram(uniform, bins=10, range=(0, 1))
  assert counts.min() > 320 and counts.max() < 480


def test_hashes_do_not_depend_on_the_process():
  code = "from dlm.data.stateless import *; print(hash_text('a'), hash_words(1, 2))"
  seen = {
    subprocess.run(
      [sys.executable, "-c", code],
      env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
      capture_output=True,
      text=True,
      check=True,
    ).stdout.strip()
    for seed in ("1", "2")
  }
  assert seen == {f"{hash_text('a')} {hash_words(1, 2)}"}
