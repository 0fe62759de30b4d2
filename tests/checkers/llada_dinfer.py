"""dInfer's runs (arXiv 2510.08666) on the LLaDA model: decoders, smoothing, caches, host loop."""

import dataclasses
import types
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct

from dlm.sampling.caching import Dual, NoCache, Prefix, Vicinity
from dlm.sampling.caching.plan import CachePlan
from dlm.sampling.policies import Credit, Fixed, Hierarchy, Smooth, Threshold
from dlm.sampling.policy import Policy, Wrapper
from dlm.sampling.sampler import Sampler
from tests.checkers import llada
from tests.checkers.decoding import Case, canvas_of, play


@struct.dataclass
class Calls:
  left_B: Any  # calls until the host looks again whether the block is finished
  windows_B: Any
  renewed_B: Any
  inner: Any


@dataclasses.dataclass(frozen=True)
class HostLoop(Wrapper):
  """The authors' host loop around `inner`: when a block is left, no matter for what is written.

  It looks at the block only every few calls ("loop unrolling"; a call is a forward over the window,
  after a refresh where one is due), and all rows of a batch wait for the last. Forwards over a
  finished block write nothing, but they are counted, and schedules count them too.
  """

  plan: CachePlan
  expected_tpf: int
  maximum_unroll: int

  def inner_state(self, state):
    return state.inner

  def enter(self, masked_BxA, state):
    zero_B = jnp.zeros(masked_BxA.shape[0], jnp.int32)
    if state is None:
      return Calls(zero_B, zero_B, zero_B > 0, self.inner.enter(masked_BxA, None))
    return state.replace(left_B=zero_B, inner=self.inner.enter(masked_BxA, state.inner))

  def decide(self, view, state, key_B):
    calls = jnp.clip(view.masked_BxA.sum() // self.expected_tpf, 1, self.maximum_unroll)
    left_B = jnp.where(state.left_B == 0, jnp.maximum(calls, 1), state.left_B)
    refresh_B = jnp.zeros_like(state.renewed_B)
    if self.plan.cached:
      at = types.SimpleNamespace(
        step_B=view.step_B,
        turn_B=view.turn_B,
        windows_B=state.windows_B,
        renewed_B=state.renewed_B,
      )
      refresh_B = self.plan.refresh_B(at)
    left_B = left_B - ~refresh_B
    decision, inner = self.inner.decide(view, state.inner, key_B)
    masked_BxA = view.masked_BxA & (~decision.write_BxA | (decision.token_BxA == view.mask_id))
    state = Calls(left_B, state.windows_B + ~refresh_B, refresh_B, inner)
    return decision.replace(stay_B=(left_B > 0) | masked_BxA.any()), state


# Their arguments and our fields.
CREDIT = {"credit_alpha": "alpha", "decay_beta": "decay", "boost_gamma": "gamma"}
SMOOTH = {"cont_weight_init": "start", "cont_weight_growth": "growth", "cont_weight": "limit"}
LOOK = {"prefix_look": "before", "after_look": "after", "warmup_steps": "warmup"}


def decoder_of(case: Case) -> dict:
  """`remasking` and `use_float64` are of no effect here: no decoder of theirs reads the former."""
  known = ("type", "temperature", "threshold", "low_threshold", "remasking", "use_float64")
  return case.table("decoder", *known, *CREDIT)


def policy_of(case: Case) -> Policy:
  decoder, smooth = decoder_of(case), case.table("smooth", "threshold_decay", *SMOOTH)
  smoothed = case.arg("runner").startswith("itersmooth")
  threshold, decay = decoder.get("threshold"), 0.0
  if smoothed:
    decay = smooth.get("threshold_decay", 0.02)
    threshold = threshold if decay else 1.0
  if decoder["type"] == "hierarchy":
    low = decoder.get("low_threshold", 0.4)
    policy = Hierarchy(1.0 if threshold is None else threshold, low or 0.0, decay)
  else:
    policy = Threshold(threshold, band=1e-5, decay=decay)
  if decoder["type"] == "credit":
    policy = Credit(policy, **{CREDIT[key]: decoder[key] for key in CREDIT if key in decoder})
  if smoothed:
    policy = Smooth(policy, **{SMOOTH[key]: smooth[key] for key in SMOOTH if key in smooth})
  return policy


def plan_of(case: Case) -> CachePlan:
  cache, look = case.table("cache", "type", "update_freq"), case.table("vicinity", *LOOK)
  if not cache:
    return NoCache()
  every = cache.get("update_freq") or 0
  if case.arg("runner").endswith("vicinity"):
    return Vicinity(every=every, **{LOOK[key]: look.get(key, 0) for key in LOOK})
  count = "forwards" if case.arg("runner") == "itersmooth" else "windows"
  return {"prefix": Prefix, "dual": Dual}[cache["type"]](settles=True, every=every, count=count)


def dinfer(case: Case) -> None:
  generated, block = case.arg("gen_length", 128), case.arg("block_length", 128)
  early, plan = case.arg("early_stop", True), plan_of(case)
  assert early or len(case.line["prompt_ids"]) == 1, "without it rows end together: not done here"
  sampler, params = llada.sampler_of(
    case,
    HostLoop(policy_of(case), plan, case.arg("expected_tpf", 8), case.arg("maximum_unroll", 4)),
    block,
    plan,
    scope=None,
    temperature=decoder_of(case).get("temperature") or 0.0,
    eos_ids=(llada.facts_of(case)["eos_id"],),
    on_eos="fill_block" if early else "stop_block",
  )
  start = "canvas" if case.arg("start_block_align", False) else "prompt"
  canvas, prompts = canvas_of(case, generated, sampler.mask_id, block, start)
  trace = play(sampler, params, canvas, prompts, block_draws_of(case, sampler))
  llada.check(case, trace, llada.slots_of(case, generated))
  whole = np.asarray(trace.states[-1].canvas.forwards_Bx3[:, 0])
  assert whole.max() == case.expected["cache_updates"] or not plan.cached


def block_draws_of(case: Case, sampler: Sampler):
  """As llada.draws_of: their decoders see the active block alone, whatever was computed."""
  noise = case.line.get("noise")
  if not noise:
    return None
  arrays = np.load(case.folder / "noise.npz")

  def chances(i: int, state):
    batch, slots = state.canvas.tokens_BxL.shape
    out = np.zeros((batch, slots + sampler.block, sampler.denoise.config.vocab))
    for draw in noise["draws"]:
      if draw["forwards_done"] == i + 1 and draw.get("used", True):
        u = ((arrays[draw["key"]].astype(np.float64) + 0.5) / 65536).reshape(draw["shape"])
        for b, start in enumerate(np.asarray(state.canvas.start_B)):
          out[b, start : start + u.shape[1]] = -np.log(-np.log(u[b]))
    return {"gumbel_BxLxV": jnp.asarray(out[:, :slots], jnp.float32)}

  return chances


def dinfer_hierarchy_v2(case: Case) -> None:
  """An older form of the rule: the same as long as no two confidences are equal."""
  generated, block = case.arg("gen_length", 128), case.arg("block_length", 128)
  steps = case.arg("steps", 128) // (generated // block)
  policy = Fixed(steps=steps, exact_steps=True)
  if threshold := case.arg("threshold", 0):
    policy = Hierarchy(threshold, case.arg("low_threshold"))
  assert llada.order_of(case) == "confidence", "their code refuses any other"
  temperature = case.arg("temperature", 0.0)
  llada.run(case, *llada.sampler_of(case, policy, block, temperature=temperature), generated)


METHODS = {"dinfer": dinfer, "dinfer_hierarchy_v2": dinfer_hierarchy_v2}
