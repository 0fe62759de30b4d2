"""The exact block cache changes what is computed, never what is written."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks
from dlm.models import ModelConfig, bind
from dlm.sampling import loop
from dlm.sampling.caching import PLANS, Ahead, ExactBlock, Rolling, SubBlock
from dlm.sampling.canvas import make_canvas
from dlm.sampling.clock import BlockMaskRatio
from dlm.sampling.policies import (
  Edit,
  Factor,
  Fixed,
  InDel,
  LeftToRight,
  Parts,
  Pipelined,
  Quota,
  Renoise,
  Threshold,
)
from dlm.sampling.policy import Policy, Wrapper
from dlm.sampling.sampler import Sampler
from dlm.types import MaskRule
from tests.dlm.models.small import jitter

MASK, SLOTS = 22, 16
MODEL = bind(ModelConfig(vocab=23, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=48))
TIMED = bind(dataclasses.replace(MODEL.config, time_conditioned=True))
M = MASK
ROWS = [
  [M] * 16,  # no prompt
  [1, 2, 3, 4, 5] + [M] * 6,  # a prompt that ends inside a block
  [7] * 8 + [M] * 8,  # one that ends with its block
  [6, M],  # done early
  [M, 1, 2, M] + [3, 4] * 4 + [M, M, 5],  # two blocks between the holes stay as they are
  [1, 2, M, 4, M, M, 7, 8, 9, 9, 9, 9, 9, M],  # holes in neighbours, then a jump
]

run = jax.jit(loop.run, static_argnums=0)


@functools.cache
def params_of(model):
  """Random and sure of itself: confidences spread over (0, 1)."""
  params = jitter(jax.jit(model.init)(jax.random.key(0)))
  return params | {"final_norm": {"scale": 3 * params["final_norm"]["scale"]}}


@dataclasses.dataclass(frozen=True)
class Case:
  """One sampler but for its cache, and the rows it works on."""

  policy: Policy
  sees: MaskRule
  temperature: float = 0.0
  align: str = "canvas"
  block: int = 4
  shift: int = 0
  eos_ids: tuple[int, ...] = ()
  timed: bool = False
  separate: bool = False  # is it also run with separate commits?

  def sampler(self, cache, commit="fused", plan=None, **changes):
    own = ("policy", "sees", "block", "temperature", "shift", "eos_ids")
    fields = {name: getattr(self, name) for name in own} | changes
    return Sampler(
      denoise=TIMED if self.timed else MODEL,
      plan=plan or PLANS[cache](),
      max_forwards=64,
      mask_id=MASK,
      commit=commit,
      clock=BlockMaskRatio(4) if self.timed else None,
      **fields,
    )

  @property
  def rows(self):
    """Slots that see masks alone are equally sure, and round-off chooses: give them a token."""
    by_confidence = isinstance(
      self.policy, Threshold | Factor | Quota | Edit | InDel | Parts
    ) or self.policy == Fixed(k=1)
    return [[3] + [M] * 15, *ROWS[1:]] if by_confidence else ROWS

  def canvas(self, row=None):
    """All rows, or one alone."""
    rows = [np.asarray(each) for each in (self.rows if row is None else [self.rows[row]])]
    row_ids = list(range(len(rows))) if row is None else [row]
    return make_canvas(
      rows, [each == MASK for each in rows], row_ids, slots=SLOTS, block=self.block,
      align=self.align, mask_id=MASK, seed=1,
    )  # fmt: skip

  def params(self):
    return params_of(TIMED if self.timed else MODEL)


FOUR, CAUSAL = masks.BlockCausal(4), masks.Causal()
CASES = {
  "fixed": Case(Fixed(k=1), FOUR),
  "random_stops": Case(
    Fixed(steps=2, order="random"), FOUR, temperature=1.0, eos_ids=(3, 11, 19), separate=True
  ),
  "two_blocks_stops": Case(Factor(1.0), FOUR, block=8, eos_ids=(1, 2, 13, 14)),
  "quota": Case(Quota(4, 3, 0.5), FOUR, separate=True),
  "edit": Case(Edit(0.6, 0.3), FOUR),
  "indel": Case(InDel(1, 2, 0.6, 0.3, most=4, limit=30), FOUR),
  "parts": Case(Parts(Threshold(0.5), 2), FOUR),
  "renoise": Case(Renoise(23, steps=6, still=0.5), FOUR, temperature=1.0, separate=True),
  "timed": Case(Threshold(0.4), FOUR, temperature=1.0, timed=True),
  "causal": Case(LeftToRight(2), CAUSAL, temperature=1.0, align="prompt", separate=True),
  "shifted": Case(Threshold(0.4), CAUSAL, temperature=1.0, align="prompt", shift=1),
}


def same_text(a, b):
  np.testing.assert_array_equal(a.tokens_BxL, b.tokens_BxL)
  np.testing.assert_array_equal(a.when_BxL, b.when_BxL)
  np.testing.assert_array_equal(a.done_B, b.done_B)


def same_row(alone, together, i):
  for name in ("tokens_BxL", "when_BxL", "forwards_Bx3", "queries_B"):
    np.testing.assert_array_equal(getattr(alone, name)[0], getattr(together, name)[i])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cached_rows_equal_uncached_ones(case):
  plain = run(case.sampler("none"), case.params(), case.canvas())
  decided = plain.forwards_Bx3[:, 0]
  assert plain.done_B.all() and len(set(decided.tolist())) > 2, "rows end at different times"
  np.testing.assert_array_equal(plain.queries_B, decided * plain.length_B)
  left = ((plain.tokens_BxL == MASK) & plain.open_BxL).any(-1)
  assert left.any() == bool(case.eos_ids), "a stop id ends some row early"

  fused = run(case.sampler("block"), case.params(), case.canvas())
  same_text(fused, plain)
  full, window, commits = fused.forwards_Bx3.T
  np.testing.assert_array_equal(full + window, decided)
  assert window.sum() > full.sum() and (commits == 0).all()
  if case.separate:
    separate = run(case.sampler("block", "separate"), case.params(), case.canvas())
    same_text(separate, plain)
    full, window, commits = separate.forwards_Bx3.T
    np.testing.assert_array_equal(window, decided)
    assert (full == 0).all() and commits.sum() > 0, "what fills the cache decides nothing"


@pytest.mark.parametrize(("name", "commit"), [("random_stops", "separate"), ("shifted", "fused")])
def test_a_prompt_is_cached_part_by_part(name, commit):
  """No forward is over the whole canvas; texts are those of no cache, whatever is left to ride."""
  case = CASES[name]
  plain = run(case.sampler("none"), case.params(), case.canvas())
  filled = run(case.sampler("block", commit, ExactBlock(fill=8)), case.params(), case.canvas())
  same_text(filled, plain)
  full, window, commits = filled.forwards_Bx3.T
  np.testing.assert_array_equal(full + window, plain.forwards_Bx3[:, 0])
  assert (full == 0).all()
  if commit == "fused":  # prompts of 5 and 8 slots, and what is clean already before a later hole
    assert commits.tolist() == [0, 1, 1, 0, 1, 1]


@pytest.mark.parametrize(
  ("plan", "changes", "message"),
  [
    (ExactBlock(fill=6), {}, "fill=6 to be a multiple of block=4, two at least"),
    (ExactBlock(fill=4), {}, "fill=4 to be a multiple of block=4, two at least"),
    (ExactBlock(fill=8), {"sees": masks.PromptBlocks(4)}, "fill=8 would cut the prompt"),
    (Ahead(fill=8), {"policy": Pipelined(4)}, "in one window, not fill=8"),
  ],
)
def test_parts_of_a_prompt_that_could_not_be_exact_are_refused(plan, changes, message):
  with pytest.raises(ValueError, match=message):
    CASES["fixed"].sampler("block", plan=plan, **changes)


def test_forwards_and_queries_are_counted_by_kind():
  """Fixed(k=1), blocks of 4: how many forwards a row takes follows from its masks alone."""
  case = CASES["fixed"]
  fused = run(case.sampler("block"), case.params(), case.canvas())
  separate = run(case.sampler("block", "separate"), case.params(), case.canvas())
  same_text(separate, fused)
  # By row: forwards over the whole canvas (where more than a block of clean text comes first, and
  # after a jump), windows, blocks whose keys the next one needs: a forward each, or queries in a
  # window; slots of a block that lie behind the end of the row and are not computed; and those of
  # the block that a separate forward over the whole canvas does not decide.
  for row, (full, windows, blocks, behind, again) in enumerate(
    [(0, 15, 3, 0, 0), (0, 6, 2, 3, 0), (1, 7, 1, 0, 4), (0, 1, 0, 2, 0), (1, 3, 0, 1, 3),
     (1, 3, 1, 0, 2)]
  ):  # fmt: skip
    queries = full * len(ROWS[row]) + 4 * windows + 4 * blocks - behind
    assert fused.forwards_Bx3[row].tolist() == [full, windows, 0]
    assert separate.forwards_Bx3[row].tolist() == [0, full + windows, full + blocks]
    assert int(fused.queries_B[row]) == queries
    assert int(separate.queries_B[row]) == queries + again


def test_free_commits_take_the_keys_of_a_last_forward_that_changed_nothing():
  """Edit ends blocks so, unless it runs out of forwards (most): then they are fused."""
  for most, free_of_cost in ((16, True), (0, False)):
    case = dataclasses.replace(CASES["fixed"], policy=Edit(0.6, 0.3, most=most))
    plain = run(case.sampler("none"), case.params(), case.canvas())
    fused = run(case.sampler("block"), case.params(), case.canvas())
    free = run(case.sampler("block", "free"), case.params(), case.canvas())
    same_text(free, plain)
    np.testing.assert_array_equal(free.forwards_Bx3.sum(-1), fused.forwards_Bx3.sum(-1))
    assert bool((free.queries_B < fused.queries_B).any()) == free_of_cost


def test_parts_of_a_block_are_computed_alone_once_they_have_begun():
  """Fast-dLLM v2's sub-blocks: fewer queries, and where a part is written at once the same text."""
  at_once = Parts(Fixed(k=2), 2)
  case = dataclasses.replace(CASES["fixed"], policy=at_once)
  plain = run(case.sampler("none"), case.params(), case.canvas())
  parts = SubBlock(2)
  out = run(case.sampler("block", plan=parts), case.params(), case.canvas())
  assert out.done_B.all()
  slow = dataclasses.replace(case, policy=Parts(Fixed(k=1), 2))
  whole = run(slow.sampler("block"), slow.params(), slow.canvas())
  cheap = run(slow.sampler("block", plan=parts), slow.params(), slow.canvas())
  np.testing.assert_array_equal(cheap.forwards_Bx3.sum(-1), whole.forwards_Bx3.sum(-1))
  assert (
    cheap.queries_B <= whole.queries_B
  ).all() and cheap.queries_B.sum() < whole.queries_B.sum()
  np.testing.assert_array_equal(out.tokens_BxL[0], plain.tokens_BxL[0])


def test_shifted_windows_hold_the_query_that_predicts_their_first_slot():
  """Row 2 has 8 tokens and two blocks to write: 16 slots, 3 windows, a pending one, 3 windows."""
  case = dataclasses.replace(CASES["shifted"], policy=Fixed(k=1), temperature=0.0)
  out = run(case.sampler("block"), case.params(), case.canvas(2))
  assert out.forwards_Bx3[0].tolist() == [1, 7, 0]
  assert int(out.queries_B[0]) == 16 + 3 * (1 + 4) + (4 + 4) + 3 * (1 + 4)


def test_row_alone_equals_the_row_in_a_batch_with_separate_commits():
  case = CASES["random_stops"]
  s = case.sampler("block", "separate")
  together = run(s, case.params(), case.canvas())
  for i in range(len(ROWS)):
    same_row(run(s, case.params(), case.canvas(i)), together, i)


@dataclasses.dataclass(frozen=True)
class Spy(Wrapper):
  """Decides as `inner` does, and keeps what it saw."""

  views: list = dataclasses.field(default_factory=list)

  def needs(self):
    return dataclasses.replace(self.inner.needs(), top2=True, entropy=True)

  def decide(self, view, state, key_B):
    self.views.append(view)
    return super().decide(view, state, key_B)


@functools.partial(jax.jit, static_argnums=0)
def step(sampler, params, state):
  """One step, and the view that its policy had."""
  spy = Spy(sampler.policy)
  state = loop.step(dataclasses.replace(sampler, policy=spy), params, state)
  return state, spy.views[-1]


@pytest.mark.parametrize("case", [CASES["timed"], CASES["shifted"]], ids=["timed", "shifted"])
def test_policy_sees_the_statistics_of_an_uncached_model(case):
  """A row alone never waits, so cached and uncached loops go in step; and it is as in a batch."""
  plain, cached, params = case.sampler("none"), case.sampler("block"), case.params()
  together = run(cached, params, case.canvas())
  for i in range(len(ROWS)):
    a, b = (loop.start(s, case.canvas(i)) for s in (plain, cached))
    while not a.canvas.done_B.all():
      (a, want), (b, got) = step(plain, params, a), step(cached, params, b)
      masked = np.asarray(got.masked_BxA)
      np.testing.assert_array_equal(masked, want.masked_BxA)
      for name in ("logit", "top1", "top2", "lse", "entropy"):
        x, y = (np.asarray(getattr(view.stats, name))[masked] for view in (got, want))
        np.testing.assert_allclose(x, y, atol=1e-5, err_msg=name)
      same_text(a.canvas, b.canvas)
    same_row(b.canvas, together, i)


def test_cached_loops_of_a_broken_model_end():
  case = CASES["fixed"]
  params = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), case.params())
  for commit in ("fused", "separate"):
    out = run(case.sampler("block", commit), params, case.canvas())
    assert out.done_B.all() and not ((out.tokens_BxL == MASK) & out.open_BxL).any()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"sees": masks.Full()}, "cache 'block' is exact only for block-causal or causal attention"),
    ({"block": 6}, "block=6 to be a multiple of the model's block 4"),
    ({"block": 2}, "block=2 to be a multiple of the model's block 4"),
    ({"plan": SubBlock(4), "commit": "free"}, "from its last forward, which only cache 'block'"),
    ({"plan": SubBlock(2)}, "must divide block=4 and be the size of policy 'parts'"),
    ({"plan": Rolling()}, "for causal models and policies that draft"),
  ],
)
def test_what_would_not_be_exact_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    CASES["fixed"].sampler("block", **changes)
