"""Laws of short texts that are known exactly, and the model that tells their every conditional.

A sampler that is given this model makes no error but its policy's own: what it writes together it
draws as if the tokens were independent. How much that must cost at least: `dlm.evaluation.limits`.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dlm.types import Array, KVCache, LogitHead, Mask, ModelOutput

NEVER = 1e-30  # the probability that a token is given which the law rules out


@dataclasses.dataclass(frozen=True, eq=False)
class Law:
  """All texts of a law, of N tokens each, and their probabilities."""

  name: str
  about: str  # in a few words
  strings_SxN: np.ndarray  # int32, every text once
  p_S: np.ndarray  # float64, positive, sums to 1

  def __post_init__(self):
    if len(np.unique(self.strings_SxN, axis=0)) < len(self.strings_SxN):
      raise ValueError(f"Law: {self.name} lists a text twice")
    if self.p_S.shape != self.strings_SxN.shape[:1] or not (self.p_S > 0).all():
      raise ValueError(f"Law: {self.name} must give each text a positive probability")
    if not np.isclose(self.p_S.sum(), 1):
      raise ValueError(f"Law: probabilities of {self.name} sum to {self.p_S.sum()}, not 1")

  @classmethod
  def uniform(cls, name: str, about: str, strings: Iterable[Sequence[int]]) -> "Law":
    strings_SxN = np.array(sorted(strings), np.int32)
    return cls(name, about, strings_SxN, np.full(len(strings_SxN), 1 / len(strings_SxN)))

  @property
  def length(self) -> int:
    return self.strings_SxN.shape[1]

  @property
  def vocab(self) -> int:
    return int(self.strings_SxN.max()) + 1

  def counts(self, tokens_BxN: np.ndarray) -> np.ndarray:
    """How often each text of the law stands among these, [S]; what is none of them is left out."""
    base = max(self.vocab, int(tokens_BxN.max()) + 1)
    digits_N = base ** np.arange(self.length, dtype=np.int64)
    known_S, found_B = self.strings_SxN @ digits_N, tokens_BxN @ digits_N
    order_S = np.argsort(known_S)
    place_B = np.minimum(np.searchsorted(known_S[order_S], found_B), len(known_S) - 1)
    hit_B = order_S[place_B]
    return np.bincount(hit_B[known_S[hit_B] == found_B], minlength=len(known_S))

  def divergence(self, counts_S: np.ndarray, draws: int) -> "Divergence":
    """KL in bits from the law to what was drawn, by how often each text came (`counts`).

    A harmonic number stands for the logarithm of an expected count, without bias but where that is
    below about 2: a text that came seldom or never makes the divergence larger than said. It is at
    least what the share of draws that are of the law tells.
    """
    harmonic = np.concatenate([[0], np.cumsum(1 / np.arange(1, draws + 1))])
    nats = self.p_S @ (np.log(self.p_S) + harmonic[draws] - harmonic[counts_S])
    nats = max(nats, math.log(draws / max(counts_S.sum(), 1)))
    variance = (self.p_S**2 / (counts_S + 0.5)).sum() - 1 / draws
    error = math.sqrt(max(variance, 0)) / math.log(2)
    return Divergence(float(nats / math.log(2)), error, float(self.p_S[counts_S == 0].sum()))


class Divergence(NamedTuple):
  """KL in bits, its standard error, and the share of the law's texts that were never drawn."""

  bits: float
  error: float
  unseen: float


# ---------------------------------------------------------------------------------------------
# The model


@dataclasses.dataclass(frozen=True)
class Exact:
  """A denoiser whose every answer is exact: p(token at a slot | all other tokens that are written).

  So a written slot answers as if it were masked. `params` are those of a law, see `params_of`: laws
  share one program. Where no text of the law goes with the written tokens, all tokens are equally
  likely. It sees the whole canvas, whatever the mask, and keeps no keys.
  """

  width: int  # ids, the mask id last among them; an embedding is an id's unit vector

  def __call__(
    self,
    params: dict[str, Array],
    tokens_BxW: Array,
    *,
    slot_BxW: Array,
    mask: Mask,
    cache: KVCache | None = None,
    write_BxW: Array | None = None,
    ask_BxA: Array | None = None,
    time_BxW: Array | None = None,
  ) -> ModelOutput:
    text_SxLxV, p_S = params["text_SxLxV"], params["p_S"]
    slots = text_SxLxV.shape[1]
    seen_BxWxV = jax.nn.one_hot(tokens_BxW, self.width).at[:, :, self.width - 1].set(0)
    place_BxWxL = jax.nn.one_hot(slot_BxW, slots)
    einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    known_BxLxV = jnp.minimum(einsum("bwv,bwl->blv", seen_BxWxV, place_BxWxL), 1)
    wrong_BxS = einsum("blv,slv->bs", known_BxLxV, 1 - text_SxLxV)
    all_right_BxS = jnp.where(wrong_BxS == 0, p_S, 0)
    joint_BxLxV = einsum("bs,slv->blv", all_right_BxS, text_SxLxV)
    # Texts that go with all written tokens but one speak where that one stands.
    one_wrong_BxS = jnp.where(wrong_BxS == 1, p_S, 0)
    other_BxLxV = (1 - known_BxLxV) * known_BxLxV.max(-1, keepdims=True)
    joint_BxLxV += einsum("bs,slv->blv", one_wrong_BxS, text_SxLxV) * other_BxLxV
    total_BxLx1 = joint_BxLxV.sum(-1, keepdims=True)
    log_p_BxLxV = jnp.log(joint_BxLxV / jnp.where(total_BxLx1 > 0, total_BxLx1, 1) + NEVER)
    at_BxW = jnp.minimum(slot_BxW, slots - 1)
    if ask_BxA is not None:
      at_BxW = jnp.take_along_axis(at_BxW, ask_BxA, axis=1)
    logits_BxAxV = jnp.take_along_axis(log_p_BxLxV, at_BxW[:, :, None], axis=1)
    unit_VxV = jnp.eye(self.width)
    return ModelOutput(LogitHead(logits_BxAxV, unit_VxV, unit_VxV), None, {})

  def empty_cache(self, batch: int, slots: int) -> KVCache:
    raise ValueError(f"{self} keeps no keys: cache 'none'")

  def embedding(self, params: dict[str, Array]) -> Array:
    return jnp.eye(self.width)


def params_of(law: Law, *, texts: int, slots: int, width: int) -> dict[str, Any]:
  """A law as parameters of `Exact`; shorter texts end in token 0, which stands on the canvas."""
  strings_SxN = law.strings_SxN
  short = (texts - len(strings_SxN), slots - law.length)
  if min(short) < 0 or law.vocab >= width:
    raise ValueError(
      f"params_of: {law.name} has {len(strings_SxN)} texts of {law.length} tokens below "
      f"{law.vocab}, more than {texts=}, {slots=} and {width=} hold with a mask id"
    )
  strings_SxL = np.pad(strings_SxN, ((0, short[0]), (0, short[1])))
  p_S = np.pad(law.p_S, (0, short[0]))
  return {"text_SxLxV": np.eye(width, dtype=np.float32)[strings_SxL], "p_S": np.float32(p_S)}


# ---------------------------------------------------------------------------------------------
# Laws


def independent(n: int, p: float = 0.3) -> Law:
  strings = _bits(n)
  return Law("independent", f"each token is 1 with probability {p}", strings, _coin(strings, p))


def chain(n: int, flip: float = 0.1) -> Law:
  """A binary Markov chain with a uniform start."""
  strings = _bits(n)
  flips = strings[:, 1:] != strings[:, :-1]
  about = f"each token differs from the one before with probability {flip}"
  return Law("chain", about, strings, 0.5 * _coin(flips, flip))


def hidden_chain(n: int, flip: float = 0.1, noise: float = 0.1) -> Law:
  """A hidden Markov law: a chain that is read with errors; by the forward algorithm."""
  strings, hidden = _bits(n), np.array([0, 1])
  move = np.where(hidden[:, None] == hidden[None, :], 1 - flip, flip)
  read = np.where(strings[:, :, None] == hidden, 1 - noise, noise)
  state = 0.5 * read[:, 0]
  for i in range(1, n):
    state = state @ move * read[:, i]
  about = f"a chain of flip probability {flip}, each token read wrong with probability {noise}"
  return Law("hidden chain", about, strings, state.sum(1))


def parity(n: int) -> Law:
  even = (bits for bits in itertools.product((0, 1), repeat=n) if sum(bits) % 2 == 0)
  return Law.uniform("parity", "bits whose sum is even", even)


def shuffle(n: int) -> Law:
  return Law.uniform("shuffle", f"{n} items in any order", itertools.permutations(range(n)))


def replace(n: int) -> Law:
  """ParallelBench's replace_random: one item of a list, any, gives way to a new one."""
  marked = (tuple(int(i == at) for i in range(n)) for at in range(n))
  return Law.uniform("replace", f"one of {n} tokens is another, any of them", marked)


def copy(n: int, symbols: int = 3) -> Law:
  half = itertools.product(range(symbols), repeat=n // 2)
  about = f"{n // 2} tokens of {symbols} kinds, then the same again"
  return Law.uniform("copy", about, (first * 2 for first in half))


def brackets(n: int) -> Law:
  """Balanced brackets of two kinds: of bounded length, so a regular language."""

  def grown(text: tuple[int, ...], waiting: tuple[int, ...]) -> Iterable[tuple[int, ...]]:
    if len(text) == n:
      yield text
      return
    if len(waiting) < n - len(text):
      for kind in (0, 2):
        yield from grown((*text, kind), (*waiting, kind))
    if waiting:
      yield from grown((*text, waiting[-1] + 1), waiting[:-1])

  return Law.uniform("brackets", "balanced brackets of two kinds", grown((), ()))


def standard() -> list[Law]:
  """Those of the benchmark: at most 8 tokens, 5 ids and 256 texts each."""
  return [
    independent(8), chain(8), hidden_chain(8), parity(8), copy(8), shuffle(5), replace(8),
    brackets(8),
  ]  # fmt: skip


def _bits(n: int) -> np.ndarray:
  return np.array(list(itertools.product((0, 1), repeat=n)), np.int32)


def _coin(flags_SxN: np.ndarray, p: float) -> np.ndarray:
  return np.where(flags_SxN, p, 1 - p).prod(1)
