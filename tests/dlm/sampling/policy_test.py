"""What policies declare, and that wrappers hand it on: one that does nothing changes nothing."""

import inspect
import re

import jax.numpy as jnp
import numpy as np
import pytest

from dlm.difftester.sampling import Proposing
from dlm.sampling import caching, policies
from dlm.sampling.policies import (
  Cad,
  Credit,
  Dream,
  Edit,
  Fixed,
  InDel,
  Introspective,
  Parts,
  Planned,
  Prophet,
  Region,
  Renoise,
  ServedInDel,
  Smooth,
  Wino,
)
from dlm.sampling.policy import Policy, Wrapper
from dlm.types import StatSpec
from tests.dlm.sampling.every import BLOCK, DRAFTING, EVERY, GROWING, SLIDING, each_power, warmth
from tests.dlm.sampling.loop_test import ROWS, SLOTS, VOCAB, canvas_of, run, sampler
from tests.dlm.sampling.policies.views import keys
from tests.dlm.sampling.table import random_table

NEVER = 1e9  # a gap of logits that no answer has
NEUTRAL = {  # each wrapper with settings by which it does nothing; the last ones need all slots
  Credit: lambda inner: Credit(inner, alpha=0.0),
  Parts: lambda inner: Parts(inner, BLOCK),
  Region: lambda inner: Region(inner, 0, 0, bias=0.0),
  Smooth: lambda inner: Smooth(inner, 0.0, 0.0, 0.0),
  Prophet: lambda inner: Prophet(inner, 9, 0, early=NEVER, mid=NEVER, late=NEVER),
  Proposing: Proposing,
}


def in_a_block(policy):
  return policy.scope == "block" and not policy.draft_span


def with_all_slots(policy):
  return not (policy.draft_span or policy.renoises)


KEEPS = {  # which inner policies each wrapper takes
  Credit: lambda policy: in_a_block(policy) and policy.needs() == StatSpec(),
  Parts: lambda policy: in_a_block(policy) and not policy.timed,
  Region: lambda policy: not policy.draft_span,
  Smooth: lambda policy: with_all_slots(policy) and not (policy.judges or policy.needs().soft),
  Prophet: with_all_slots,
  Proposing: with_all_slots,
}


def wrappers(base=Wrapper):
  return {base, *(kind for each in base.__subclasses__() for kind in wrappers(each))} - {Wrapper}


def test_every_wrapper_is_tested_here():
  ours = {kind for kind in wrappers() if kind.__module__.startswith("dlm.")}
  assert ours == set(NEUTRAL) == set(KEEPS)


def test_a_wrapper_hands_on_every_power():
  declared = {name for name in vars(Policy) if not name.startswith("_")}
  assert declared - set(vars(Wrapper)) == set()


@pytest.mark.parametrize("policy", [*EVERY, *DRAFTING, *SLIDING, *GROWING], ids=str)
def test_a_policy_has_the_powers_that_it_declares(policy):
  width, zero_B = SLOTS if policy.scope == "canvas" else BLOCK, jnp.zeros(2, jnp.int32)
  state = policy.enter(jnp.ones((2, width), bool), None)
  for declared, power in (
    (policy.foresees, policy.upcoming(state, zero_B)),
    (policy.works_ahead, policy.reach(state)),
    (policy.renoises, policy.noise(keys(2), width, 0)),
    (policy.levels, policy.level(zero_B)),
    (policy.needs().gather, policy.gather_ids(state)),
    (bool(policy.bars), policy.barred(state)),
    (policy.needs().soft, policy.soft_weight(zero_B)),
  ):
    assert declared == (power is not None)
  assert bool(policy.draft_span) >= bool(policy.proposals)


# The last of a kind is taken. Orders by chance, as all slots must not toss other coins.
BY_CHANCE = [
  Fixed(k=1, order="random"), Cad(0.6, most=3, order="random"),
  Dream(3, "topk_margin", alg_temp=0.4),
]  # fmt: skip
KINDS = {type(policy): policy for policy in [*EVERY, *BY_CHANCE, *DRAFTING, *SLIDING, *GROWING]}


def takes(wrapper, inner):
  return KEEPS[wrapper](inner) and not (inner.shifts or inner.slides)


@pytest.mark.parametrize("inner", KINDS.values(), ids=str)
def test_a_wrapper_refuses_what_it_would_break(inner):
  for kind, wrap in NEUTRAL.items():
    if takes(kind, inner):
      assert wrap(inner).inner == inner
    else:
      named = f"^{kind.__name__.lower()}: inner={type(inner).__name__}"
      with pytest.raises(ValueError, match=named):
        wrap(inner)


@pytest.mark.parametrize(
  "inner", [p for p in each_power(KINDS.values()) if any(takes(kind, p) for kind in KEEPS)], ids=str
)
def test_a_wrapper_that_does_nothing_is_its_inner_policy(inner):
  """All that take the policy around one another, so that each must hand on everything."""
  whole = inner
  for kind, wrap in NEUTRAL.items():
    if takes(kind, inner):
      whole = wrap(whole)
  params, canvas = random_table(2, 2 * SLOTS, VOCAB), canvas_of(ROWS, slots=2 * SLOTS, seed=3)
  plain, wrapped = (
    run(sampler(p, temperature=warmth(whole)), params, canvas) for p in (inner, whole)
  )
  for name in ("tokens_BxL", "when_BxL", "start_B", "forwards_Bx3", "queries_B", "remasked_B"):
    np.testing.assert_array_equal(getattr(wrapped, name), getattr(plain, name), err_msg=name)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: Region(Introspective(2), 0, 0, bias=0.0), "region: inner=Introspective.* drafts"),
    (lambda: Region(Renoise(VOCAB), 0, 0, 0.0, ((0, 1),)), "would replace the forced tokens"),
    (lambda: Region(Credit(Fixed(k=1)), 0, 0), "reads logits, and a bias is a probability"),
    (lambda: Parts(Dream(4)), "parts: inner=Dream.* counts its forwards"),
    (lambda: Parts(Planned(k=1)), "parts: inner=Planned.* sees all slots"),
    (lambda: Prophet(Renoise(VOCAB), 9, 0), "renoises, which needs scope 'block', not 'canvas'"),
    (lambda: Smooth(Wino()), "judges by a shadow block"),
    (lambda: Credit(Introspective(2)), "its slots move on, and credit would stand still"),
    (lambda: sampler(Introspective(2), scope="canvas"), "drafts, which needs .* scope 'block'"),
  ],
)
def test_what_cannot_be_kept_is_refused_with_the_reason(make, message):
  with pytest.raises(ValueError, match=message):
    make()


@pytest.mark.parametrize(
  ("policy", "most"),
  [
    (Fixed(k=1), 4), (Fixed(steps=9), 9), (Fixed(steps=2), 4), (Planned(steps=9), 9),
    (Dream(9), 9), (Edit(most=5), 4 + 5), (Renoise(VOCAB, steps=9), 9),
    (Prophet(Fixed(k=1), steps=99, answer_start=0), 4), (Smooth(Edit(most=5)), 4 + 5),
    (InDel(1, 2, limit=7), 7), (ServedInDel(1, 2, most=5), 4 + 5 + 1),
  ],
  ids=str,
)  # fmt: skip
def test_how_many_forwards_a_block_of_four_may_take(policy, most):
  assert policy.most_forwards(4) == most


@pytest.mark.parametrize(
  ("package", "table"), [(policies, policies.POLICIES), (caching, caching.PLANS)]
)
def test_a_class_begins_with_the_paper_that_its_table_names(package, table):
  papers = re.findall(r'"(\w+)": \w+,  # (.+), (.+)', inspect.getsource(package))
  assert {name for name, *_ in papers} == set(table) - {"none"}
  for name, paper, number in papers:
    assert table[name].__doc__.startswith(f"{paper} ({number}): ")
