"""Holes are held out, lie within words, and are measured beside the best constant guess."""

import jax
import jax.numpy as jnp
import pytest

from dlm.data.sources.example import Documents, Example
from dlm.evaluation import comparison
from dlm.evaluation.comparison import Hole, Setting
from dlm.generate import Completion


def documents(*texts: str) -> Documents:
  return Documents("texts", tuple(Example("", text) for text in texts))


HELD_OUT = documents(
  "the cat listens here\n", "the dog watches here, an ant\nlooks", "the cow ran off"
)


def test_a_hole_lies_within_a_word_on_one_line():
  found = comparison.holes(HELD_OUT, documents(), 2, start=5, size=2, end=10)
  assert [(h.before, h.truth, h.after) for h in found] == [
    ("cat l", "is", "ten"), ("dog w", "at", "che"),
  ]  # fmt: skip


def test_what_the_training_text_holds_is_no_test():
  seen = documents("nothing", "my cat listens to")
  (hole,) = comparison.holes(HELD_OUT, seen, 1, start=5, size=2, end=10)
  assert hole.before == "dog w"
  with pytest.raises(ValueError, match="texts offers 1 excerpts, fewer than 2"):
    comparison.holes(HELD_OUT, seen, 2, start=5, size=2, end=10)


def completion(span: str, forwards: int) -> Completion:
  return Completion(
    id=0, prompt="", text="", spans=[span], tokens=[0] * len(span), when=[], row=[],
    forwards={"full": forwards}, queries=0, remasked=0, tpf=len(span) / forwards, reason="length",
    computed=0.0, sample=0, logprobs=[], seconds=1.0,
  )  # fmt: skip


def test_fillings_stand_below_the_best_constant_guess():
  holes = [Hole("", "eat", ""), Hole("", "tee", ""), Hole("", "get", "")]
  done = {("some", "k=2"): [completion("eat", 2), completion("tea", 2), completion("dog", 1)]}
  baseline, filling = comparison.fillings(holes, done)
  assert (baseline.policy, baseline.tpf, baseline.n) == ('always "e"', None, 3)
  assert (baseline.characters, baseline.whole) == (pytest.approx(100 * 4 / 9), 0)
  assert filling.characters == pytest.approx(100 * (3 + 2 + 0) / 9)
  assert (filling.whole, filling.tpf) == (pytest.approx(100 / 3), 9 / 5)


def test_a_long_comparison_keeps_few_programs():
  """Each takes memory maps of the process, and Linux bounds those."""
  programs = [jax.jit(lambda x, add=add: x + add) for add in range(comparison.LIVE + 2)]

  def generator(program):
    def run(params, requests, seed):
      program(jnp.float32(0))
      return []

    return run

  settings = [Setting("p", str(i), generator(each)) for i, each in enumerate(programs)]
  comparison.compare(settings, {}, [], seed=0)
  assert [each._cache_size() for each in programs] == [0] * comparison.LIVE + [1, 1]
