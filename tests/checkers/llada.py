"""Decoding methods of full-sequence models, on the LLaDA model of tests/conformance/llada."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np

from dlm import masks
from dlm.sampling import chance
from dlm.sampling.caching import Dual, NoCache, Prefix
from dlm.sampling.policies import Cad, Factor, Fixed, Prophet, Saber, Threshold, Wino
from dlm.sampling.policy import Wrapper
from dlm.sampling.sampler import Sampler
from dlm.types import Mask
from tests.checkers import llada_dinfer, llada_dkv
from tests.checkers.decoding import (
  Case,
  Trace,
  at_queries,
  canvas_of,
  columns_of,
  model_of,
  play,
  text_of,
)


def facts_of(case: Case) -> dict:
  return json.loads((case.folder / "meta.json").read_text())


def sampler_of(case: Case, policy, block: int, plan=None, **fields) -> tuple[Sampler, dict]:
  """A sampler as the authors' code: end tokens end nothing, [MASK] may be predicted."""
  model, params = model_of(case.folder)
  mask_id = case.arg("mask_id", facts_of(case)["mask_id"])
  fields = dict(max_forwards=400, may_predict_mask=True, scope="canvas") | fields
  plan, sees = plan or NoCache(), masks.Full()
  if keeps_padding(case):
    assert not plan.cached, "the keys of padding would be cached"
    keep = case.line.get("attention_mask") or case.arg("attention_mask")
    sees = WithoutPadding(
      tuple((*map(bool, row), *[True] * case.arg("gen_length", 128)) for row in keep)
    )
  return Sampler(model, policy, plan, sees, block=block, mask_id=mask_id, **fields), params


@dataclasses.dataclass(frozen=True)
class WithoutPadding:
  """Every query sees every slot but padding, which has its place all the same."""

  keep: tuple[tuple[bool, ...], ...]  # by row and slot

  def __call__(self, slot_BxW, slots: int, answer_B=None, start_B=None) -> Mask:
    keep_BxS = jnp.array(self.keep)
    shape = (*slot_BxW.shape, slots)
    mask = masks.Full()(slot_BxW, slots)
    return mask.replace(dense_BxWxS=jnp.broadcast_to(keep_BxS[:, None], shape))


def keeps_padding(case: Case) -> bool:
  """Padding behind text: rotary positions count it, so that leaving it out would move the answer.

  In front of the text it moves all alike, and our rows begin with the text.
  """
  rows = zip(text_of(case), case.line["prompt_ids"], strict=True)
  return any(len(text) and len(row) - text[0] > len(text) for text, row in rows)


def order_of(case: Case) -> str:
  names = {"low_confidence": "confidence", "random": "random"}
  return names[case.arg("remasking", "low_confidence")]


@dataclasses.dataclass(frozen=True)
class ByCoin(Wrapper):
  """Random remasking: a coin for each slot stands where its confidence would."""

  def decide(self, view, state, key_B):
    coin_BxA = chance.uniform(key_B, view.masked_BxA.shape[1])
    stats = dataclasses.replace(view.stats, logit=jnp.log(coin_BxA), lse=jnp.zeros_like(coin_BxA))
    return self.inner.decide(view.replace(stats=stats), state, key_B)


def ordered(case: Case, policy):
  """The policy, by the confidence that the case's remasking takes."""
  return ByCoin(policy) if order_of(case) == "random" else policy


def draws_of(case: Case, sampler: Sampler, generated: int):
  """Recorded noise: Gumbel noise of the logits and coins of the positions, by canvas slot."""
  noise = case.line.get("noise")
  if not noise:
    return None
  arrays = np.load(case.folder / "noise.npz")
  used = [draw for draw in noise["draws"] if draw.get("used", True)]
  whole = len(case.line["prompt_ids"][0]) + generated

  def chances(i: int, state):
    found = {}
    for draw in used:
      if draw["forwards_done"] != i + 1:
        continue
      u = (arrays[draw["key"]].astype(np.float64) + 0.5) / 65536
      u = u.reshape(draw["shape"])
      key = {"gumbel": "gumbel_BxLxV", "score": "uniform_BxL"}[draw["kind"]]
      value = -np.log(-np.log(u)) if draw["kind"] == "gumbel" else u
      if value.shape[1] == whole:
        value = spread(value, slots_of(case, generated), state.canvas.tokens_BxL.shape[1])
      else:
        value = at_queries(value, sampler, state)
      found[key] = jnp.asarray(value, jnp.float32)
    return found

  return chances


def slots_of(case: Case, generated: int) -> list[np.ndarray]:
  """The recorded columns of our rows' slots, of which padding may be one."""
  columns = columns_of(case, generated)
  if keeps_padding(case):
    columns = [np.arange(len(case.line["prompt_ids"][0]) + generated)] * len(columns)
  return columns


def spread(value: np.ndarray, columns: list[np.ndarray], slots: int) -> np.ndarray:
  """Recorded columns at our slots."""
  out = np.zeros((len(columns), slots, *value.shape[2:]))
  for b, of_row in enumerate(columns):
    out[b, : len(of_row)] = value[b, of_row]
  return out


def check(case: Case, trace: Trace, columns: list[np.ndarray]) -> None:
  """Every canvas, the number of forwards and, of a row without padding, their queries."""
  want = case.expected
  assert len(trace.canvases) == len(want["steps"]) == want["nfe"]
  assert trace.forwards().max() == want["nfe"]
  for i, (canvas, step) in enumerate(zip(trace.canvases, want["steps"], strict=True)):
    for b, row in enumerate(step):
      whole = want["steps_region"] == "all"
      got = trace.row(canvas, b) if whole else trace.generated(canvas, b)
      row = np.array(row)[columns[b]] if whole else row
      np.testing.assert_array_equal(got, row, err_msg=f"{case.name}: forward {i}, row {b}")
  for b, row in enumerate(want["tokens"]):
    np.testing.assert_array_equal(trace.row(trace.canvases[-1], b), np.array(row)[columns[b]])
  for b, row in enumerate(want["tokens"]):
    if len(columns[b]) == len(row) and len(columns) == 1:
      assert trace.queries(b) == want["query_tokens"]


def llada_generate(case: Case) -> None:
  facts = facts_of(case)
  generated, block = case.arg("gen_length", 128), case.arg("block_length", 128)
  steps = case.arg("steps", 128) // (generated // block)
  temperature = case.arg("temperature", 0.0)
  doubtful = ()
  if case.arg("confidence_eos_eot_inf", False):  # their code spares EOS at temperature > 0
    doubtful = (facts["eot_id"],) if temperature else (facts["eos_id"], facts["eot_id"])
  sampler, params = sampler_of(
    case,
    Fixed(steps=steps, order=order_of(case), exact_steps=True),
    block,
    temperature=temperature,
    guidance=case.arg("cfg_scale", 0.0),
    forbidden=(facts["eos_id"],) if case.arg("logits_eos_inf", False) else (),
    doubtful=doubtful,
  )
  run(case, sampler, params, generated)


def fastdllm(case: Case) -> None:
  generated, block = case.arg("gen_length", 128), case.arg("block_length", 128)
  first_code = case.arg("revision") == "2025-06"
  steps = case.arg("steps", 128) // (generated // block)
  threshold, factor = case.arg("threshold"), case.arg("factor")
  if factor is not None:  # before the threshold, as in their code
    policy = ordered(case, Factor(factor, rule="code"))
  elif threshold is not None:
    policy = ordered(case, Threshold(threshold))
  else:
    policy = Fixed(steps=steps, order=order_of(case))
  plan = {
    "none": NoCache(),
    "prefix": Prefix(settles=first_code),
    "dual": Dual(settles=first_code),
  }[case.arg("variant")]
  eos_id = case.arg("eos_id", facts_of(case)["eos_id"])
  sampler, params = sampler_of(
    case,
    policy,
    block,
    plan,
    temperature=case.arg("temperature", 0.0),
    eos_ids=(eos_id,) if case.arg("early_stop", False) else (),
    on_eos="fill",
  )
  run(case, sampler, params, generated)


def run(case: Case, sampler: Sampler, params, generated: int, given: dict[int, int] | None = None):
  """Plays a case; `given`: tokens that stand at these offsets from the end of the prompt."""
  canvas, prompts = canvas_of(
    case, generated, sampler.mask_id, sampler.block, padded=keeps_padding(case)
  )
  for offset, token in (given or {}).items():
    for b, prompt in enumerate(prompts):
      slot = len(prompt) + offset
      canvas = canvas.replace(
        tokens_BxL=canvas.tokens_BxL.at[b, slot].set(token),
        open_BxL=canvas.open_BxL.at[b, slot].set(False),
      )
  trace = play(sampler, params, canvas, prompts, draws_of(case, sampler, generated))
  check(case, trace, slots_of(case, generated))
  return trace


def prophet(case: Case) -> None:
  """Their region counts from the end of the prompt, ours from the first slot that is open."""
  generated, block = case.arg("gen_length", 128), case.arg("block_length", 128)
  steps = case.arg("steps", 128)
  given = {int(offset): token for offset, token in case.arg("constraints", {}).items()}
  given = {offset: token for offset, token in given.items() if offset < generated}
  first = next(offset for offset in range(generated) if offset not in given)
  policy = Fixed(steps=steps // (generated // block), order=order_of(case), exact_steps=True)
  begin = case.arg("answer_start_offset")
  limits = {"early": 7.5, "mid": 5.0, "late": 2.5} | case.table(
    "early_exit_thresholds", "early", "mid", "late"
  )
  if case.arg("analyze_gap", False) and begin is not None:
    assert first == 0 or begin >= first, "the region holds given tokens in front of the open slots"
    policy = Prophet(policy, steps=steps, answer_start=begin - first, **limits)
  sampler, params = sampler_of(
    case,
    policy,
    block,
    guidance=case.arg("cfg_scale", 0.0),
    temperature=case.arg("temperature", 0.0),
  )
  trace = run(case, sampler, params, generated, given)
  if info := case.expected.get("exit_info"):
    assert trace.forwards()[0] == info["actual_steps"]


def saber(case: Case) -> None:
  generated, block = case.arg("gen_length", 256), case.arg("block_length", 256)
  temperature = case.arg("temperature", 0.0)
  sampler, params = sampler_of(case, Saber(case.arg("n", 2)), block, temperature=temperature)
  run(case, sampler, params, generated)


def by_order(order: str):
  """The companions of Saber's repository: LLaDA's schedule, another order."""

  def companion(case: Case) -> None:
    generated, block = case.arg("gen_length", 256), case.arg("block_length", 256)
    steps = case.arg("steps", 256) // (generated // block)
    assert order == "confidence" or order_of(case) == "confidence", "their code refuses it"
    case.arg("return_order")
    by = order_of(case) if order == "confidence" else order
    sampler, params = sampler_of(
      case,
      Fixed(steps=steps, order=by, exact_steps=True),
      block,
      temperature=case.arg("temperature", 0.0),
      guidance=case.arg("cfg_scale", 0.0),
    )
    run(case, sampler, params, generated)

  return companion


@dataclasses.dataclass(frozen=True)
class Split(Wrapper):
  """CDLM's schedule of two steps: 40 % of the block, then the rest."""

  def decide(self, view, state, key_B):
    first_B = jnp.maximum(2 * state // 5, 1)
    quota_B = jnp.where(view.step_B == 0, first_B, state - first_B)
    return self.inner.decide(view, 2 * quota_B, key_B)[0], state  # of which it writes a half


def cdlm_fixed(case: Case) -> None:
  generated, block = case.arg("gen_length", 128), case.arg("block_length", 128)
  steps = case.arg("steps", 128) // (generated // block)
  policy = Fixed(steps=steps, order=order_of(case), exact_steps=True)
  sampler, params = sampler_of(
    case,
    Split(policy) if steps == 2 else policy,
    block,
    temperature=case.arg("temperature", 0.0),
    guidance=case.arg("cfg_scale", 0.0),
  )
  run(case, sampler, params, generated)


class Capped(Cad):
  """Cad with caps of 0, as the authors mean them: none are written, or the block ends at once.

  Ours refuses such caps, or takes 0 for no bound: `max_steps` is one more here, and so is the step.
  """

  def __post_init__(self):
    pass

  def decide(self, view, state, key_B):
    return super().decide(view.replace(step_B=view.step_B + 1), state, key_B)


def cad(case: Case, block: int, max_steps: int | None) -> None:
  generated, selection = case.arg("gen_length", 128), case.arg("selection_method", "confidence")
  thresholds = {
    "confidence": case.arg("confidence_threshold", 0.8),
    "entropy": case.arg("entropy_threshold", -0.3),
  }
  fields = dict(
    threshold=thresholds["entropy" if selection == "entropy" else "confidence"],
    least=case.arg("min_tokens_per_step", 1),
    most=case.arg("max_tokens_per_step", 4),
    order="random" if order_of(case) == "random" else selection,
    end_after=case.arg("eos_threshold_ratio", 0.5),
    end_ids=tuple(facts_of(case)["cad_eos_list"]),
  )
  if 0 in (fields["least"], fields["most"], max_steps):
    policy = Capped(**fields, max_steps=0 if max_steps is None else max_steps + 1)
  else:
    policy = Cad(**fields, max_steps=max_steps or 0)
  sampler, params = sampler_of(
    case,
    policy,
    block,
    temperature=case.arg("temperature", 0.0),
    guidance=case.arg("cfg_scale", 0.0),
  )
  run(case, sampler, params, generated)


def cad_block(case: Case) -> None:
  block = case.arg("block_length", 32)
  cad(case, block, case.arg("max_steps_per_block", block))


def cad_global(case: Case) -> None:
  cad(case, case.arg("gen_length", 128), case.arg("max_steps"))


def wino(case: Case) -> None:
  generated, block = case.arg("gen_length", 128), case.arg("block_length", 128)
  policy = Wino(case.arg("threshold", 0.6), case.arg("threshold_back", 0.9))
  sampler, params = sampler_of(case, policy, block, temperature=case.arg("temperature", 0.0))
  run(case, sampler, params, generated)


METHODS = {
  "llada_generate": llada_generate,
  "fastdllm": fastdllm,
  "prophet": prophet,
  "saber": saber,
  "saber_default": by_order("confidence"),
  "saber_entropy": by_order("entropy"),
  "saber_margin": by_order("margin"),
  "cad_block": cad_block,
  "cad_global": cad_global,
  "cdlm_fixed": cdlm_fixed,
  "wino": wino,
  **llada_dkv.METHODS,
  **llada_dinfer.METHODS,
}
