"""How likely answers are given their prompts: many at once, under models of any attention.

A forward masks some tokens of an answer and reads off how surprised the model is at those. An
estimator says which sets of tokens are masked and how their losses are weighed (`Sets`), so all
share one program. Blocks are those that the model is sampled in: the whole answer where all
positions see each other, one token where they see the past alone, and then a forward is exact.

  exact_count  unbiased: k of a block's n tokens, k uniform on 1..n, weight n/k (LLaDA, 2502.09992,
               Eq. 6). All sets instead of a draw, hence exact, where draws >= 2^n - 1
  monte_carlo  each token masked by itself, at a share p in [0.001, 1] (SMDM, 2410.18514): what p
               leaves out makes a bias of about 0.001 of the answer's gap to independent tokens
  llada        LLaDA's own harness: counts spread evenly over 32 copies and rounded half to even.
               Biased wherever an even step falls on a half: of 3 tokens in 2 copies one masked
               token is drawn 1.5 times as often as it should be, three half as often
  chain        exact for one order of writing: from left to right within each block

The first three tend to the same bound, which is the answer's log-probability itself where the
model's conditionals are those of one joint law.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from dlm import masks
from dlm.objectives import block as blocks
from dlm.objectives import streams
from dlm.objectives.cross_entropy import cross_entropy, logits, predict
from dlm.sampling.score import score
from dlm.types import Array, Batch, Denoiser, MaskRule, Noisy, Params, StatSpec

FULL = masks.Full()
STRATA = 4  # draws that share out the counts or shares among them: one round of an estimate
COPIES = 32  # of LLaDA's rounds
LEAST_SHARE = 1e-3
SHORTEST = 32  # slots of the smallest bucket
CAUSAL = masks.Causal | masks.CausalContext  # their clean text is read token by token
IN_BLOCKS = masks.BlockCausal | masks.AnswerBlocks


@dataclasses.dataclass(frozen=True)
class Sets:
  """What D forwards mask of n tokens, and what each loss counts in the sum over all forwards.

  `rounds`: so many independent estimates of equal size, in order; 0: the sum is exact.
  """

  masked_Dxn: np.ndarray
  weight_Dxn: np.ndarray
  rounds: int = 0


def all_sets(block_n: np.ndarray) -> Sets:
  """Every set of each block's tokens, one weighing 1 / (l C(n, l)): the bound without a draw."""
  sizes = np.bincount(block_n)
  masked = np.zeros((2 ** sizes.max() - 1, len(block_n)), bool)
  weight = np.zeros(masked.shape)
  for block, size in enumerate(sizes):
    if not size:
      continue
    sets = (np.arange(1, 2**size)[:, None] >> np.arange(size) & 1).astype(bool)
    chance = 1 / np.array([n * math.comb(size, n) for n in range(1, size + 1)])
    rows, columns = np.arange(len(sets))[:, None], np.flatnonzero(block_n == block)[None]
    masked[rows, columns] = sets
    weight[rows, columns] = sets * chance[sets.sum(1) - 1][:, None]
  return Sets(masked, weight)


def exact_count(block_n: np.ndarray, draws: int, rng: np.random.Generator) -> Sets:
  """All sets where `draws` allows them, else counts in strata and ranks at random."""
  if 2 ** min(np.bincount(block_n).max(), 60) - 1 <= draws:
    return all_sets(block_n)

  def of_block(size: int, share_D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    count_Dx1 = np.floor(share_D * size).astype(int)[:, None] + 1
    return _ranks(size, rng, draws) < count_Dx1, size / count_Dx1

  return _in_strata(block_n, draws, rng, of_block)


def monte_carlo(block_n: np.ndarray, draws: int, rng: np.random.Generator) -> Sets:
  def of_block(size: int, share_D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    share_Dx1 = LEAST_SHARE + (1 - LEAST_SHARE) * share_D[:, None]
    return rng.random((draws, size)) < share_Dx1, 1 / share_Dx1

  return _in_strata(block_n, draws, rng, of_block)


def _in_strata(
  block_n: np.ndarray,
  draws: int,
  rng: np.random.Generator,
  of_block: Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> Sets:
  """`of_block`: masks and weights of its tokens, given each draw's share in [0, 1)."""
  masked, weight = np.zeros((draws, len(block_n)), bool), np.zeros((draws, len(block_n)))
  for block in np.unique(block_n):
    within = block_n == block
    strata = rng.permuted(np.tile(np.arange(STRATA), (draws // STRATA, 1)), axis=1).ravel()
    found, factor = of_block(int(within.sum()), (strata + rng.random(draws)) / STRATA)
    masked[:, within] = found
    weight[:, within] = found * factor / draws
  return Sets(masked, weight, draws // STRATA)


def llada(block_n: np.ndarray, draws: int, rng: np.random.Generator) -> Sets:
  n, rounds = len(block_n), draws // COPIES
  first = rng.integers(1, n + 1, rounds)
  return counted(first, _ranks(n, rng, draws).reshape(rounds, COPIES, n))


def counted(first: np.ndarray, rank: np.ndarray) -> Sets:
  """LLaDA's rule for given draws: token i of a copy is masked if its rank is below the count.

  Args:
    first: [rounds] the first copy's number of masked tokens in each round.
    rank: [rounds, copies, n] permutations.
  """
  rounds, copies, n = rank.shape
  count = [masked_counts(int(each), n, copies, authors=True) for each in first]
  count_Dx1 = np.concatenate(count)[:, None]
  masked = rank.reshape(-1, n) < count_Dx1
  return Sets(masked, masked * n / count_Dx1 / len(masked), rounds)


def chain(block_n: np.ndarray, draws: int, rng: np.random.Generator) -> Sets:
  """The tokens of each block one after the other; those still to come are masked with it."""
  del draws, rng
  place_n = np.arange(len(block_n)) - np.searchsorted(block_n, block_n)
  turn_Dx1 = np.arange(place_n.max() + 1)[:, None]
  return Sets(place_n >= turn_Dx1, (place_n == turn_Dx1).astype(float))


ESTIMATORS = {
  "exact_count": exact_count,
  "monte_carlo": monte_carlo,
  "llada": llada,
  "chain": chain,
}


def _ranks(n: int, rng: np.random.Generator, draws: int) -> np.ndarray:
  return rng.permuted(np.tile(np.arange(n), (draws, 1)), axis=1)


def masked_counts(first: int, length: int, copies: int, *, authors: bool = False) -> np.ndarray:
  """How many answer tokens each of `copies` has masked, in 1..length, from the first copy's.

  Counts go round the circle in even steps, so they are spread where independent draws cluster.
  Rounding down leaves each copy uniform on 1..length if `first` is.

  Args:
    authors: LLaDA's own rule, rounding half to even: biased where ties occur.
  """
  if authors:
    steps = np.round(first + np.arange(copies) * length / copies).astype(np.int64) - 1
  else:
    steps = first - 1 + np.arange(copies) * length // copies
  return steps % length + 1


# ---------------------------------------------------------------------------------------------

Answer = tuple[np.ndarray, np.ndarray]  # ids of a prompt, and of what follows it


@dataclasses.dataclass(frozen=True)
class AnswerScore:
  """Of one answer: nats, and their standard error, 0 where they are exact.

  `standard_error` is None where a single round tells of no spread. `greedy`: decoding one surest
  token a forward, in each block, writes this answer; None: not asked.
  """

  log_likelihood: float
  standard_error: float | None
  forwards: int
  greedy: bool | None = None


@struct.dataclass
class Rows:
  """Answers with some of their tokens masked, in one bucket."""

  tokens_RxL: Array
  masked_RxL: Array
  level_RxL: Array  # masked share of each slot's block
  slot_RxA: Array  # of the answer's tokens
  weight_RxA: Array  # 0 behind the answer
  start_R: Array  # the answer's first slot
  end_R: Array  # and the slot after its last


@dataclasses.dataclass(frozen=True)
class AnswerScorer:
  """Scores answers given prompts, which are never masked.

  Noise depends on the seed and the answer's own ids alone: neither batch nor order matter. Rows
  share a bucket of lengths, for which one program is compiled.

  Args:
    denoise: the model.
    mask_id: id of [MASK]; an answer must not hold it. It gets no probability, but in "llada".
    attention: what the model's tokens see, which says what its blocks are.
    shift: 1: logits at i predict token i + 1; a prompt must then not be empty.
    estimator: of ESTIMATORS.
    draws: forwards of an answer that are drawn, a multiple of 4 (of 32 for "llada").
    batch: rows of a forward, of any answers.
    greedy: also tell whether decoding would write the answer; a few forwards each.
    cfg: weight w of unsupervised guidance, un + (w + 1)(cond - un) where `un` has the prompt
      masked (LLaDA, 2.4); 0: off. It takes a second forward and forms [batch, A, V] logits.
  """

  denoise: Denoiser
  mask_id: int
  attention: MaskRule = FULL
  shift: int = 0
  estimator: str = "exact_count"
  draws: int = 128
  batch: int = 32
  greedy: bool = True
  cfg: float = 0.0

  def __post_init__(self):
    if self.estimator not in ESTIMATORS:
      raise ValueError(f"estimator={self.estimator!r} is unknown; known: {', '.join(ESTIMATORS)}")
    if min(self.draws, self.batch) < 1:
      raise ValueError(f"draws={self.draws} and batch={self.batch} must be at least 1")
    multiple = {"llada": COPIES, "chain": 1}.get(self.estimator, STRATA)
    if self.draws % multiple:
      raise ValueError(f"draws={self.draws} must be a multiple of {multiple}")
    if self.cfg < 0:
      raise ValueError(f"cfg={self.cfg} must not be negative (0: off)")
    full = isinstance(self.attention, masks.Full)
    if not full and not isinstance(self.attention, CAUSAL | IN_BLOCKS):
      raise ValueError(
        f"likelihood of answers: attention {type(self.attention).__name__} is not covered; Full, "
        "BlockCausal, AnswerBlocks, Causal and CausalContext are"
      )
    if not full and (self.estimator == "llada" or self.cfg):
      raise ValueError(
        f"estimator={self.estimator!r}, cfg={self.cfg}: 'llada' and guidance are for models whose "
        f"positions all see each other, not for attention {type(self.attention).__name__}"
      )

  def __call__(
    self, params: Params, answers: Sequence[Answer], *, seed: int = 0
  ) -> list[AnswerScore]:
    """One score an answer, in their order."""
    plans = [self.sets(*each, seed=seed) for each in answers]
    found = self.sums(params, answers, plans)
    greedy = self.is_greedy(params, answers) if self.greedy else [None] * len(answers)
    return [
      AnswerScore(-float(nats_D.sum()), _error(nats_D, plan.rounds), len(nats_D), wins)
      for nats_D, plan, wins in zip(found, plans, greedy, strict=True)
    ]

  def sets(self, prompt: np.ndarray, answer: np.ndarray, *, seed: int = 0) -> Sets:
    """What is masked of an answer."""
    if not len(answer):
      return Sets(np.zeros((0, 0), bool), np.zeros((0, 0)))
    block_n = self.blocks(len(prompt), len(answer))
    if isinstance(self.attention, CAUSAL):
      return all_sets(block_n)
    digest = hashlib.sha256(np.asarray([len(prompt), *prompt, *answer], np.int64).tobytes())
    rng = np.random.default_rng([seed, *np.frombuffer(digest.digest()[:16], np.uint32)])
    return ESTIMATORS[self.estimator](block_n, self.draws, rng)

  def blocks(self, start: int, length: int) -> np.ndarray:
    """The block of each of an answer's tokens, counted from its first."""
    if isinstance(self.attention, CAUSAL):
      return np.arange(length)
    if not isinstance(self.attention, IN_BLOCKS):
      return np.zeros(length, int)
    offset = start if isinstance(self.attention, masks.BlockCausal) else 0
    slot_n = offset + np.arange(length)
    return slot_n // self.attention.block - offset // self.attention.block

  def sums(
    self, params: Params, answers: Sequence[Answer], plans: Sequence[Sets]
  ) -> list[np.ndarray]:
    """Of each answer: the weighed nats of each of its forwards, [D] float64."""
    found = [np.zeros(0)] * len(answers)
    asked = [i for i, plan in enumerate(plans) if len(plan.masked_Dxn)]
    told = self._run(_row_nats, params, [self.rows(*answers[i], plans[i]) for i in asked])
    for i, (nats_D,) in zip(asked, told, strict=True):
      found[i] = nats_D.astype(np.float64)
    return found

  def is_greedy(self, params: Params, answers: Sequence[Answer]) -> list[bool]:
    """Is each answer what decoding writes, one surest token a forward in each block?

    Blocks are asked side by side, behind the answer's own earlier ones: those that decoding would
    have written, if it writes the answer. It ends at the first token that is another.
    """
    wins = [True] * len(answers)
    left = {i: np.ones(len(answer), bool) for i, (_, answer) in enumerate(answers) if len(answer)}
    while left:
      best = self.surest(params, [answers[i] for i in left], [*left.values()])
      for i, (place, token) in zip([*left], best, strict=True):
        wins[i] = bool((token == answers[i][1][place]).all())
        left[i][place] = False
        if not wins[i] or not left[i].any():
          del left[i]
    return wins

  def greedy_states(self, params: Params, prompt: np.ndarray, length: int) -> np.ndarray:
    """An answer of one block before each of its forwards and after the last, [n + 1, n]."""
    states = [np.full(length, self.mask_id)]
    for _ in range(length):
      state = states[-1]
      ((place, token),) = self.surest(params, [(prompt, state)], [state == self.mask_id])
      states.append(state.copy())
      states[-1][place] = token
    return np.stack(states)

  def surest(
    self, params: Params, answers: Sequence[Answer], masked: Sequence[np.ndarray]
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each answer and block: the masked place whose best token is surest, and that token."""
    plans = [Sets(each[None], each[None].astype(float)) for each in masked]
    rows = [self.rows(*each, plan) for each, plan in zip(answers, plans, strict=True)]
    found = []
    for (prompt, answer), open_n, (token_1xA, logp_1xA) in zip(
      answers, masked, self._run(_surest, params, rows), strict=True
    ):
      n, block_n = len(answer), self.blocks(len(prompt), len(answer))
      logp_n = np.where(open_n, logp_1xA[0, :n], -np.inf)
      places = [np.flatnonzero((block_n == block) & open_n) for block in np.unique(block_n[open_n])]
      place = np.array([each[logp_n[each].argmax()] for each in places])
      found.append((place, token_1xA[0, place]))
    return found

  def rows(self, prompt: np.ndarray, answer: np.ndarray, plan: Sets) -> Rows:
    """One answer's rows, one a forward."""
    start, n, draws = len(prompt), len(answer), len(plan.masked_Dxn)
    slots, asked = bucket(start + n), 8
    while asked < n:
      asked *= 4
    asked = min(asked, slots)
    block_n = self.blocks(start, n)
    size = np.bincount(block_n)
    count_DxG = np.zeros((draws, len(size)))
    np.add.at(count_DxG.T, block_n, plan.masked_Dxn.T)
    level = np.zeros((draws, slots), np.float32)
    level[:, start : start + n] = (count_DxG / np.maximum(size, 1))[:, block_n]
    if isinstance(self.attention, masks.Full) and n:
      level[:] = level[:, start : start + 1]  # the row's
    masked = np.zeros((draws, slots), bool)
    masked[:, start : start + n] = plan.masked_Dxn
    weight = np.zeros((draws, asked), np.float32)
    weight[:, :n] = plan.weight_Dxn
    text = np.concatenate([prompt, answer])
    return Rows(
      tokens_RxL=_tiled(np.pad(text, (0, slots - len(text))), draws),
      masked_RxL=masked,
      level_RxL=level,
      slot_RxA=_tiled(np.minimum(start + np.arange(asked), slots - 1), draws),
      weight_RxA=weight,
      start_R=_tiled(start, draws),
      end_R=_tiled(start + n, draws),
    )

  def _run(
    self, program: Callable, params: Params, answers: Sequence[Rows]
  ) -> list[tuple[np.ndarray, ...]]:
    """What the program tells of each answer's rows, which run with others of their bucket."""
    buckets: dict[tuple[int, int], list[int]] = {}
    for i, rows in enumerate(answers):
      buckets.setdefault((rows.tokens_RxL.shape[1], rows.slot_RxA.shape[1]), []).append(i)
    found: list[tuple[np.ndarray, ...]] = [()] * len(answers)
    for _, members in sorted(buckets.items()):
      batches = _batches([answers[i] for i in members], self.batch)
      told = [program(self, params, rows) for rows in batches]
      columns = [np.concatenate(column) for column in zip(*jax.device_get(told), strict=True)]
      at = 0
      for i in members:
        end = at + len(answers[i].start_R)
        found[i] = tuple(column[at:end] for column in columns)
        at = end
    return found

  def noisy(self, rows: Rows) -> Noisy:
    """What the model reads, and is asked."""
    shape = rows.tokens_RxL.shape
    slot_RxL = jnp.broadcast_to(jnp.arange(shape[1]), shape)
    is_text_RxL = slot_RxL < rows.end_R[:, None]
    batch = Batch(
      tokens_BxL=rows.tokens_RxL,
      noisable_BxL=is_text_RxL & (slot_RxL >= rows.start_R[:, None]),
      segment_BxL=is_text_RxL.astype(jnp.int32),
      position_BxL=slot_RxL,
    )
    causal = isinstance(self.attention, CAUSAL)
    noisy = streams.one_stream(
      batch,
      masked_BxL=jnp.zeros_like(rows.masked_RxL) if causal else rows.masked_RxL,
      weight_BxL=rows.masked_RxL,
      level_BxL=rows.level_RxL,
      count_B=rows.end_R - rows.start_R,
      mask_id=self.mask_id,
    )
    if causal:
      past = masks.Causal()(slot_RxL, shape[1])
      noisy = noisy.replace(mask=masks.in_segments(past, batch.segment_BxL))
    elif isinstance(self.attention, IN_BLOCKS):
      block = self.attention.block
      first_RxL = slot_RxL // block * block
      if isinstance(self.attention, masks.AnswerBlocks):
        first_RxL = blocks.answer_block_start(batch, block)
      noisy = streams.noisy_and_clean(noisy, masks.noisy_clean_from(first_RxL, block))
    ask_RxL = streams.shifted(noisy).ask_BxL if self.shift else slot_RxL
    return noisy.replace(
      targets_BxL=jnp.take_along_axis(rows.tokens_RxL, rows.slot_RxA, axis=1),
      weight_BxL=rows.weight_RxA,
      ask_BxL=jnp.take_along_axis(ask_RxL, rows.slot_RxA, axis=1),
    )

  @property
  def forbidden(self) -> tuple[int, ...]:
    return () if self.estimator == "llada" else (self.mask_id,)

  def guided(self, params: Params, rows: Rows) -> Array:
    """Float32 logits [R, A, V] of cond and un mixed, without those forbidden."""
    noisy = self.noisy(rows)
    is_prompt_RxL = jnp.arange(rows.tokens_RxL.shape[1])[None] < rows.start_R[:, None]
    without = noisy.replace(inputs_BxW=jnp.where(is_prompt_RxL, self.mask_id, noisy.inputs_BxW))
    cond, un = (logits(predict(self.denoise, params, each)[0]) for each in (noisy, without))
    mixed = un + (self.cfg + 1) * (cond - un)
    return mixed.at[..., list(self.forbidden)].set(-jnp.inf) if self.forbidden else mixed


@functools.partial(jax.jit, static_argnums=0)
def _row_nats(scorer: AnswerScorer, params: Params, rows: Rows) -> tuple[Array]:
  """Weighed cross-entropy of each row, [R]."""
  if not scorer.cfg:
    noisy = scorer.noisy(rows)
    head, _ = predict(scorer.denoise, params, noisy)
    return ((noisy.weight_BxL * cross_entropy(head, noisy, scorer.forbidden)).sum(-1),)
  logp = jax.nn.log_softmax(scorer.guided(params, rows))
  target_RxA = jnp.take_along_axis(rows.tokens_RxL, rows.slot_RxA, axis=1)
  logp_RxA = jnp.take_along_axis(logp, target_RxA[..., None], axis=-1)[..., 0]
  return (-jnp.where(rows.weight_RxA > 0, rows.weight_RxA * logp_RxA, 0).sum(-1),)


@functools.partial(jax.jit, static_argnums=0)
def _surest(scorer: AnswerScorer, params: Params, rows: Rows) -> tuple[Array, Array]:
  """The best token at each of the answer's slots, and its log-probability."""
  if scorer.cfg:
    logp = jax.nn.log_softmax(scorer.guided(params, rows))
    return logp.argmax(-1), logp.max(-1)
  head, _ = predict(scorer.denoise, params, scorer.noisy(rows))
  spec = StatSpec(forbidden=scorer.forbidden)
  keys_R = jnp.zeros((len(rows.start_R), 2), jnp.uint32)
  stats = score(head, spec, current_BxA=rows.slot_RxA, key_B=keys_R, slot_BxA=rows.slot_RxA)
  return stats.token, stats.logit - stats.lse


def bucket(length: int, least: int = SHORTEST) -> int:
  """The smallest of `least` times 1, 1.5, 2, 3, 4, 6, 8, ... that holds `length`."""
  size, half = least, True
  while size < length:
    size, half = (size * 3 // 2 if half else size * 4 // 3), not half
  return size


def _tiled(value: np.ndarray | int, rows: int) -> np.ndarray:
  return np.repeat(np.asarray(value, np.int32)[None], rows, axis=0)


def _batches(answers: Sequence[Rows], size: int) -> Iterator[Rows]:
  """Their rows in order, `size` at a time; the last ones are filled up with one of them."""
  held: list[Rows] = []
  count = 0

  def joined() -> Rows:
    return jax.tree.map(lambda *parts: np.concatenate(parts), *held)

  for rows in answers:
    held.append(rows)
    count += len(rows.start_R)
    while count >= size:
      whole = joined()
      yield jax.tree.map(lambda x: x[:size], whole)
      held, count = [jax.tree.map(lambda x: x[size:], whole)], count - size
  if count:
    whole = joined()
    place = np.minimum(np.arange(size), count - 1)
    yield jax.tree.map(lambda x: x[place], whole)


def _error(nats_D: np.ndarray, rounds: int) -> float | None:
  """Standard error of a sum of rounds' parts, from their spread."""
  if not rounds:
    return 0.0
  if rounds == 1:
    return None
  each = rounds * nats_D.reshape(rounds, -1).sum(1, dtype=np.float64)
  return float(each.std(ddof=1) / math.sqrt(rounds))
