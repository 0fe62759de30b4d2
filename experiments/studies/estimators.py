"""Estimators of log p(completion) against the law of the sampler, exactly: bias and variance.

    python -m experiments.studies.estimators --out=runs/estimators

A model is a table: logits for every state of L tokens over V ids and the mask id. All completions,
all masks and all orders of writing are gone through with the estimators' own code, so what is
printed is exact. The law is that of a sampler that writes one position a step, chosen at random; of
the autoregressive one, which the last line is about, from left to right.
Errors at equal forwards: sqrt(bias^2 + variance * forwards / budget), averaged over completions as
the law draws them. Models: random logits whose part that depends on the context is scaled. Writes
estimators.json. A minute on a CPU.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from dlm import command, files
from dlm.objectives.cross_entropy import cross_entropy, predict
from dlm.objectives.estimators import (
  BlockExact,
  CountedElbo,
  CoupledElbo,
  CoupledMasks,
  Estimator,
  FullMask,
  LeftToRight,
  Sandwich,
  Trace,
)
from dlm.types import Batch, LogitHead, ModelOutput

OUT = flags.DEFINE_string("out", "runs/estimators", "Where estimators.json goes.")
VOCAB = flags.DEFINE_integer("vocab", 3, "Ids.", lower_bound=2)
LENGTH = flags.DEFINE_integer("length", 3, "Tokens; more than 4 take long.", lower_bound=2)
SEEDS = flags.DEFINE_integer("seeds", 3, "Models of each kind.", lower_bound=1)
BUDGET = flags.DEFINE_integer("budget", 12, "Forwards that an estimate may cost.", lower_bound=1)
LEFT_TO_RIGHT = "autoregressive, of its own law"
CONTEXTS = (0.0, 0.5, 1.5)  # nats by which the context moves logits


@dataclasses.dataclass(frozen=True)
class CausalTable:
  """`Table` read causally, behind one token: the input at i predicts token i of the answer, whose
  state is what stands before it, and masks."""

  vocab: int

  def __call__(self, params, tokens_BxW, *, ask_BxA, **_):
    length = params.shape[1]
    asked_BxAxL = jnp.broadcast_to(tokens_BxW[:, None, 1:], (*ask_BxA.shape, length))
    known_BxAxL = jnp.arange(length)[None, None] < ask_BxA[:, :, None]
    state_BxAxL = jnp.where(known_BxAxL, asked_BxAxL, self.vocab)
    base_L = (self.vocab + 1) ** np.arange(length)[::-1]
    index_BxA = (state_BxAxL * base_L[None, None]).sum(-1)
    logits = params[index_BxA, jnp.minimum(ask_BxA, length - 1)]
    return ModelOutput(LogitHead(logits, jnp.eye(self.vocab), implementation="reference"), None, {})


@dataclasses.dataclass(frozen=True)
class Table:
  """A model of so many tokens: the noisy stream is a state, whose logits are a parameter.

  States count in base `vocab` + 1, the first position first; the digit `vocab` is the mask.
  """

  vocab: int

  def __call__(self, params, tokens_BxW, *, ask_BxA=None, **_):
    length = params.shape[1]
    base = (self.vocab + 1) ** np.arange(length)[::-1]
    logits = params[(tokens_BxW[:, :length] * base[None]).sum(-1)]
    if ask_BxA is not None:
      logits = jnp.take_along_axis(logits, ask_BxA[:, :, None], axis=1)
    return ModelOutput(LogitHead(logits, jnp.eye(self.vocab), implementation="reference"), None, {})


def completions(vocab: int, length: int) -> np.ndarray:
  """All of them, [Y, L], in lexicographic order."""
  return np.array(list(itertools.product(range(vocab), repeat=length)), np.int32)


class Law:
  """What a sampler of one position a step gives each completion; l(S) of every set of masks S.

  Args:
    logits: of every state, [(V + 1)^L, L, V].
  """

  def __init__(self, logits: np.ndarray, vocab: int):
    self.length, self.vocab = logits.shape[1], vocab
    self.logits = np.asarray(logits, np.float64)
    self.text = completions(vocab, self.length)
    self.sets = [
      set(each)
      for size in range(self.length + 1)
      for each in itertools.combinations(range(self.length), size)
    ]
    lse = np.log(np.exp(self.logits).sum(-1, keepdims=True))
    self.logp = self.logits - lse
    base = (vocab + 1) ** np.arange(self.length)[::-1]
    self.state = {
      frozenset(s): np.where([i in s for i in range(self.length)], vocab, self.text) @ base
      for s in self.sets
    }

  def token(self, i: int, hidden: frozenset) -> np.ndarray:
    """log p(y_i | y outside `hidden`), of every completion."""
    return self.logp[self.state[hidden], i, self.text[:, i]]

  def sum_over(self, hidden: frozenset) -> np.ndarray:
    return sum((self.token(i, hidden) for i in hidden), np.zeros(len(self.text)))

  @functools.cached_property
  def random_order(self) -> np.ndarray:
    """log P of the sampler that takes a random position."""
    return self._orders(lambda parts: np.log(np.mean(np.exp(parts), axis=0)))

  @functools.cached_property
  def elbo(self) -> np.ndarray:
    return self._orders(lambda parts: np.mean(parts, axis=0))

  def _orders(self, join) -> np.ndarray:
    found = {frozenset(): np.zeros(len(self.text))}
    for each in self.sets[1:]:
      hidden = frozenset(each)
      parts = [self.token(i, hidden) + found[hidden - {i}] for i in hidden]
      found[hidden] = join(np.stack(parts))
    return found[frozenset(range(self.length))]

  @functools.cached_property
  def left_to_right(self) -> np.ndarray:
    """log P of the sampler that takes the first position each time."""
    whole = range(self.length)
    return sum(self.token(i, frozenset(whole[i:])) for i in whole)

  @functools.cached_property
  def confidence(self) -> np.ndarray:
    """log P of the sampler that takes the position whose likeliest id is likeliest."""
    best = self.logp.max(-1)
    total = np.zeros(len(self.text))
    for row, text in enumerate(self.text):
      hidden = frozenset(range(self.length))
      while hidden:
        at = self.state[hidden][row]
        i = min(hidden, key=lambda i: (-best[at, i], i))
        total[row] += self.logp[at, i, text[i]]
        hidden -= {i}
    return total


@dataclasses.dataclass(frozen=True)
class Spread:
  """Of an estimator, for every completion, over all that it may draw."""

  mean: np.ndarray
  variance: np.ndarray


def spread(estimator: Estimator, draws: dict[str, np.ndarray], weight: np.ndarray, law: Law):
  """`draws`: arrays that lead with all that may be drawn, as often as `weight` says."""
  value = _values(estimator, Table(law.vocab), law.logits.astype(np.float32), law.text, draws)
  value = np.asarray(value, np.float64)
  mean = weight @ value
  return Spread(mean, weight @ (value - mean) ** 2)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _values(estimator, denoise, logits, text_YxL, draws):
  """Estimates, [draw, completion]; a row's advantage is not positive."""
  length = text_YxL.shape[1]

  def of_row(text_L, draw, when_L):
    batch = Batch(
      tokens_BxL=text_L[None],
      noisable_BxL=jnp.ones((1, length), bool),
      segment_BxL=jnp.ones((1, length), jnp.int32),
      position_BxL=jnp.arange(length)[None],
      extra={"when": when_L[None], "advantage_B": -jnp.ones(1)},
    )
    noisy = estimator.noisy(draw, batch, denoise.vocab)
    noisy = noisy.replace(extra=noisy.extra | {"advantage_B": batch.extra["advantage_B"]})
    head, _ = predict(denoise, logits, noisy)
    return estimator.tokens(-cross_entropy(head, noisy, ()), noisy).sum()

  draws = dict(draws)
  count = len(jax.tree.leaves(draws)[0])
  when = draws.pop("when", jnp.zeros((count, length), jnp.int32))
  over_text = jax.vmap(of_row, in_axes=(0, None, None))
  return jax.vmap(over_text, in_axes=(None, 0, 0))(text_YxL, draws, when)


def masks(length: int) -> Iterator[tuple[int, np.ndarray]]:
  """Every set of masked positions, as how many they are and ranks that are lowest there."""
  for hidden in itertools.product((False, True), repeat=length):
    yield sum(hidden), np.where(hidden, 0.0, 1.0).astype(np.float32)


def every(length: int, lowest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Counts, ranks and weights where a count is drawn evenly from `lowest`..length, then a set."""
  found = [(n, rank) for n, rank in masks(length) if n >= lowest]
  sizes = length + 1 - lowest
  weight = [1 / (sizes * math.comb(length, n)) for n, _ in found]
  return np.array([n for n, _ in found]), np.stack([r for _, r in found]), np.array(weight)


def full_mask(law: Law) -> Spread:
  return spread(FullMask(0.0), {"u_prompt": np.ones((1, 1, law.length))}, np.ones(1), law)


def counted(law: Law) -> Spread:
  n, rank, weight = every(law.length, 1)
  draws = {"u_count": (n - 0.5)[:, None] / law.length, "u_mask": rank[:, None, None]}
  return spread(CountedElbo(1), draws, weight, law)


def espo(law: Law, complement: bool) -> Spread:
  n, rank, weight = every(law.length, 0)
  draws = {"u_count": (n + 0.5)[:, None] / (law.length + 1), "u_mask": rank[:, None, None]}
  return spread(CoupledElbo(1, complement), draws, weight, law)


def coupled(law: Law, ratio: tuple[float, float] = (0.2, 0.8), scale: float = 1.0) -> Spread:
  """Over the ratios by Gauss's rule: the mean is a polynomial of the ratio, so that is exact."""
  node, part = np.polynomial.legendre.leggauss(1 if ratio[0] == ratio[1] else 12)
  found, weight = [], []
  for u, share in zip((node + 1) / 2, part / 2, strict=True):
    t = ratio[0] + (ratio[1] - ratio[0]) * u
    for n, rank in masks(law.length):
      found.append((u, np.where(rank == 0, 0.0, 1.0)))
      weight.append(share * t**n * (1 - t) ** (law.length - n))
  draws = {
    "u_ratio": np.array([u for u, _ in found]),
    "u_mask": np.stack([rank for _, rank in found])[:, None],
  }
  return spread(CoupledMasks(ratio, scale), draws, np.array(weight), law)


def sandwich(law: Law, bound: str, power: float = 1.5) -> Spread:
  """A copy a draw; the estimate is a mean over tokens."""
  n, rank, weight = every(law.length, 1)
  return spread(
    Sandwich("random", 1, law.length, bound=bound, power=power, prompt_mask=0.0),
    _copies(n[:, None], rank[:, None], law.length), weight, law,
  )  # fmt: skip


def upper_bound(law: Law, power: float) -> np.ndarray:
  """The mean over tokens of SPG's upper bound, of all copies there are: of infinitely many."""
  n, rank, _ = every(law.length, 1)
  sets = np.array([math.comb(law.length, size) for size in n])
  times = math.lcm(*sets.tolist()) // sets  # every count as often as every other
  n, rank = np.repeat(n, times), np.repeat(rank, times, axis=0)
  estimator = Sandwich("random", len(n), law.length, bound="upper", power=power, prompt_mask=0.0)
  return spread(estimator, _copies(n[None], rank[None], law.length), np.ones(1), law).mean


def _copies(n_DxC: np.ndarray, rank_DxCxL: np.ndarray, length: int) -> dict[str, np.ndarray]:
  draws = len(n_DxC)
  return {
    "u_block": np.zeros((draws, 1, length)),
    "u_count": (n_DxC - 0.5)[:, None] / length,
    "u_mask": rank_DxCxL[:, None],
    "u_prompt": np.ones((draws, 1, *rank_DxCxL.shape[1:])),
  }


def traces(law: Law) -> Spread:
  """Of all orders of writing, one token a forward."""
  orders = np.array(list(itertools.permutations(range(law.length))), np.int32)
  weight = np.full(len(orders), 1 / len(orders))
  return spread(Trace(block=law.length), {"when": orders}, weight, law)


def block_exact(law: Law) -> Spread:
  """Of an answer that is one block."""
  nothing = {"when": np.zeros((1, law.length), np.int32)}
  return spread(BlockExact(block=law.length), nothing, np.ones(1), law)


def autoregressive(law: Law) -> Spread:
  """The same model read causally, behind a prompt of one token; its law is the one from left to
  right."""
  value = np.asarray(_causal(law.vocab, law.logits.astype(np.float32), law.text), np.float64)
  return Spread(value, np.zeros_like(value))


@functools.partial(jax.jit, static_argnums=0)
def _causal(vocab, logits, text_YxL):
  answers, length = text_YxL.shape
  denoise, estimator = CausalTable(vocab), LeftToRight()
  slot_1xL = jnp.arange(length + 1)[None]
  shape = answers, length + 1
  batch = Batch(
    tokens_BxL=jnp.pad(text_YxL, ((0, 0), (1, 0))),
    noisable_BxL=jnp.broadcast_to(slot_1xL > 0, shape),
    segment_BxL=jnp.ones(shape, jnp.int32),
    position_BxL=jnp.broadcast_to(slot_1xL, shape),
  )
  noisy = estimator.noisy({}, batch, vocab)
  head, _ = predict(denoise, logits, noisy)
  return estimator.tokens(-cross_entropy(head, noisy, ()), noisy).sum(-1)


def error(found: Spread, of: np.ndarray, forwards: int, budget: int) -> tuple[float, float, float]:
  """Mean bias, deviation of one estimate, and error at the budget: as the law draws completions.

  Args:
    of: log P of every completion by that law.
  """
  p = np.exp(of)
  bias = found.mean - of
  at_budget = bias**2 + found.variance * forwards / budget
  return float(p @ bias), float(np.sqrt(p @ found.variance)), float(np.sqrt(p @ at_budget))


def model(vocab: int, length: int, context: float, seed: int) -> np.ndarray:
  """Random logits of every state: a part for each position, and one for the state."""
  draw = np.random.default_rng(seed)
  alone = draw.normal(size=(1, length, vocab))
  return alone + context * draw.normal(size=((vocab + 1) ** length, length, vocab))


def rows(law: Law, budget: int) -> list[dict]:
  """Of each estimator: forwards, bias, deviation and error at the budget."""
  length = law.length

  def by_token(found: Spread) -> Spread:
    return Spread(length * found.mean, length**2 * found.variance)

  measured = {
    "full_mask": (1, full_mask(law)),
    "counted_elbo": (1, counted(law)),
    "coupled_elbo, without complement": (1, espo(law, False)),
    "coupled_elbo": (2, espo(law, True)),
    "coupled_masks": (3, coupled(law)),
    "coupled_masks, scale 2/3": (3, coupled(law, scale=2 / 3)),
    "sandwich, lower, times L": (1, by_token(sandwich(law, "lower"))),
    "sandwich, upper, times L": (1, by_token(sandwich(law, "upper"))),
    "trace, a token a forward": (length, traces(law)),
    "block_exact": (2**length - 1, block_exact(law)),
    LEFT_TO_RIGHT: (1, autoregressive(law)),
  }
  found = []
  for name, (forwards, spread_of) in measured.items():
    of = law.left_to_right if name == LEFT_TO_RIGHT else law.random_order
    bias, deviation, at_budget = error(spread_of, of, forwards, budget)
    found.append(
      dict(estimator=name, forwards=forwards, bias=bias, deviation=deviation, error=at_budget)
    )
  return found


def main() -> None:
  out = files.made_folder(OUT.value)
  told = []
  for context in CONTEXTS:
    tables = [
      rows(Law(model(VOCAB.value, LENGTH.value, context, seed), VOCAB.value), BUDGET.value)
      for seed in range(SEEDS.value)
    ]
    print(f"\ncontext {context}: {VOCAB.value} ids, {LENGTH.value} tokens, {SEEDS.value} models")
    print(f"{'estimator':34} {'forwards':>8} {'bias':>16} {'deviation':>16} {'error':>16}")
    for parts in zip(*tables, strict=True):
      means = {name: [part[name] for part in parts] for name in ("bias", "deviation", "error")}
      cells = "".join(f" {np.mean(x):8.3f} ±{np.std(x):6.3f}" for x in means.values())
      print(f"{parts[0]['estimator']:34} {parts[0]['forwards']:8}{cells}")
      told.append({"context": context, **parts[0], **means})
  files.write_json(out / "estimators.json", told)


if __name__ == "__main__":
  command.run(main)
