"""Every policy of the table: with settings that make it work hard, or else with its own defaults.

A policy that is new in `POLICIES` is in these lists, and so in the tests that run over them.
"""

import dataclasses
from collections.abc import Iterable

from dlm.diffusion.schedules import LogLinear
from dlm.sampling.policies import (
  POLICIES,
  Ancestral,
  Cad,
  Credit,
  Deer,
  DFlash,
  Distilled,
  Dream,
  DreamOn,
  DreamThreshold,
  Duo,
  Edit,
  EntropyBounded,
  Ete,
  Factor,
  Fixed,
  Hierarchy,
  InDel,
  Introspective,
  LeftToRight,
  Parts,
  Pipelined,
  Planned,
  Prophet,
  Quota,
  Region,
  Renoise,
  Rnd1,
  Saber,
  SelfSpeculative,
  ServedInDel,
  Smooth,
  Threshold,
  WeDlm,
  Wino,
)
from dlm.sampling.policy import Policy

BLOCK, VOCAB = 4, 7

CHOSEN = [
  Fixed(k=1, order="random"), Fixed(k=2), Threshold(0.6), Factor(1.0), LeftToRight(2),
  Ancestral(LogLinear(eps=0.0), steps=5),
  Fixed(steps=3, exact_steps=True), Factor(1.0, rule="code"),
  Saber(2), Cad(0.6, most=3, end_after=0.5, end_ids=(2,)), Cad(0.9, max_steps=2, order="entropy"),
  Prophet(Fixed(steps=4), steps=8, answer_start=2, answer_length=3, early=3, mid=2, late=1),
  Dream(4), Dream(3, "topk_margin", alg_temp=0.4), Dream(3, "origin"),
  Dream(5, "maskgit_plus", exact_steps=True), DreamThreshold(0.6), DreamThreshold(0.6, 2),
  EntropyBounded(1.0), EntropyBounded(1.0, rule="total", order="confidence"), Ete(0.6, span=8),
  Region(Fixed(k=1), 1, 3, forced=((1, 0),)), Hierarchy(0.7, 0.3), Credit(Threshold(0.6), ids=2),
  Smooth(Threshold(0.6, band=1e-5, decay=0.1)), Smooth(Credit(Threshold(0.6))), Planned(steps=3),
  Rnd1(3), Rnd1(5, budget=0.5),
  Wino(0.5, 0.6), Quota(BLOCK, 3, 0.5), Quota(BLOCK, 2, order="left_to_right"), Edit(0.6, 0.3),
  Parts(Threshold(0.6), 2), Pipelined(BLOCK, 0.6, begin=0.3, eager=0.6),
  Distilled(BLOCK, 1.0, begin=0.3), Renoise(VOCAB, steps=5),
  Duo(VOCAB, LogLinear(eps=0.0), steps=4),
  InDel(1, 2, most=4, steps=3, limit=9), ServedInDel(1, 2, most=3, ids=5),
]  # fmt: skip
# They need a causal model.
DRAFTING = [Introspective(2), Deer(2), DFlash(2), SelfSpeculative(3)]
SLIDING = [WeDlm(0.8)]
GROWING = [DreamOn(5, most=6, end_ids=(4,))]  # rows do not keep their length

# What a policy that is not chosen above takes where it has no default.
VALUES = {
  "inner": Threshold(0.6), "schedule": LogLinear(eps=0.0), "block": BLOCK, "vocab": VOCAB,
  "steps": BLOCK,
}  # fmt: skip


def _default(make: type[Policy]) -> Policy:
  fields = [f.name for f in dataclasses.fields(make) if f.default is dataclasses.MISSING]
  return make(**{name: VALUES[name] for name in fields})


_KNOWN = {type(policy) for policy in [*CHOSEN, *DRAFTING, *SLIDING, *GROWING]}
EVERY = [*CHOSEN, *[_default(make) for make in POLICIES.values() if make not in _KNOWN]]


def each_power(policies: Iterable[Policy]) -> list[Policy]:
  """One of those that ask the same of the loop and its caches, the last of them."""
  names = [name for name in vars(Policy) if not name.startswith("_")]

  def asked(policy: Policy) -> tuple:
    powers = [getattr(policy, name) for name in names]
    return policy.needs(), *(power for power in powers if not callable(power))

  return [*{asked(policy): policy for policy in policies}.values()]


def warmth(policy: Policy) -> float:
  """Policies that choose among ids of their own draw none."""
  return 0.0 if policy.needs().chooses else 1.0
