"""Decoding methods of full-sequence models, on the LLaDA model of tests/conformance/llada."""

import json

import jax.numpy as jnp
import numpy as np

from dlm import masks
from dlm.sampling.caching import Dual, NoCache, Prefix
from dlm.sampling.policies import Cad, Factor, Fixed, Prophet, Saber, Threshold, Wino
from dlm.sampling.sampler import Sampler
from tests.checkers import llada_dinfer, llada_dkv
from tests.checkers.decoding import Case, Trace, at_queries, canvas_of, model_of, play


def facts_of(case: Case) -> dict:
  return json.loads((case.folder / "meta.json").read_text())


def sampler_of(case: Case, policy, block: int, plan=None, **fields) -> tuple[Sampler, dict]:
  """A sampler as the authors' code: end tokens end nothing, [MASK] may be predicted."""
  model, params = model_of(case.folder)
  mask_id = case.arg("mask_id", facts_of(case)["mask_id"])
  fields = dict(max_forwards=400, may_predict_mask=True, scope="canvas") | fields
  sampler = Sampler(
    model, policy, plan or NoCache(), masks.Full(), block=block, mask_id=mask_id, **fields
  )
  return sampler, params


def order_of(case: Case) -> str:
  names = {"low_confidence": "confidence", "random": "random"}
  return names[case.arg("remasking", "low_confidence")]


def draws_of(case: Case, sampler: Sampler, prompts, slots: int):
  """Recorded noise: Gumbel noise of the logits and coins of the positions, by canvas slot."""
  noise = case.line.get("noise")
  if not noise:
    return None
  arrays = np.load(case.folder / "noise.npz")
  used = [draw for draw in noise["draws"] if draw.get("used", True)]

  def chances(i: int, state):
    found = {}
    for draw in used:
      if draw["forwards_done"] != i + 1:
        continue
      u = (arrays[draw["key"]].astype(np.float64) + 0.5) / 65536
      u = u.reshape(draw["shape"])
      key = {"gumbel": "gumbel_BxLxV", "score": "uniform_BxL"}[draw["kind"]]
      value = -np.log(-np.log(u)) if draw["kind"] == "gumbel" else u
      whole = value.shape[1] == slots
      value = spread(value, prompts, slots) if whole else at_queries(value, sampler, state)
      found[key] = jnp.asarray(value, jnp.float32)
    return found

  return chances


def spread(value: np.ndarray, prompts, slots: int) -> np.ndarray:
  """Rows padded on the left in the recording start at slot 0 here."""
  out = np.zeros((len(prompts), slots, *value.shape[2:]))
  width = max(map(len, prompts))
  for b, prompt in enumerate(prompts):
    row = value[b, width - len(prompt) :]
    out[b, : len(row)] = row
  return out


def check(case: Case, trace: Trace, queries: bool = True) -> None:
  want = case.expected
  assert len(trace.canvases) == len(want["steps"]) == want["nfe"]
  assert trace.forwards().max() == want["nfe"]
  padded = max(map(len, trace.prompts))
  for i, (canvas, step) in enumerate(zip(trace.canvases, want["steps"], strict=True)):
    for b, row in enumerate(step):
      got = trace.row(canvas, b) if want["steps_region"] == "all" else trace.generated(canvas, b)
      row = row[padded - len(trace.prompts[b]) :] if want["steps_region"] == "all" else row
      np.testing.assert_array_equal(got, row, err_msg=f"{case.name}: forward {i}, row {b}")
  for b, row in enumerate(want["tokens"]):
    np.testing.assert_array_equal(
      trace.row(trace.canvases[-1], b), row[padded - len(trace.prompts[b]) :]
    )
  if queries and len(trace.prompts) == 1:
    assert trace.queries(0) == want["query_tokens"]


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
  if threshold := case.arg("threshold", 0):
    policy = Threshold(threshold)
  elif factor := case.arg("factor", 0):
    policy = Factor(factor, rule="code")
  else:
    policy = Fixed(steps=steps, order=order_of(case))
  plan = {
    "none": NoCache(),
    "prefix": Prefix(settles=first_code),
    "dual": Dual(settles=first_code),
  }[case.arg("variant")]
  early = case.arg("early_stop", False)
  sampler, params = sampler_of(
    case, policy, block, plan, eos_ids=(facts_of(case)["eos_id"],) if early else (), on_eos="fill"
  )
  run(case, sampler, params, generated)


def run(case: Case, sampler: Sampler, params, generated: int, given: dict[int, int] | None = None):
  """Plays a case; `given`: tokens that stand at these offsets from the end of the prompt."""
  canvas, prompts = canvas_of(case, generated, sampler.mask_id, sampler.block)
  for offset, token in (given or {}).items():  # of the answer: open, but not masked
    for b, prompt in enumerate(prompts):
      slot = len(prompt) + int(offset)
      canvas = canvas.replace(tokens_BxL=canvas.tokens_BxL.at[b, slot].set(token))
  slots = canvas.tokens_BxL.shape[1]
  trace = play(sampler, params, canvas, prompts, draws_of(case, sampler, prompts, slots))
  check(case, trace)
  return trace


def prophet(case: Case) -> None:
  generated, block = case.arg("gen_length", 128), case.arg("block_length", 128)
  steps = case.arg("steps", 128)
  inner = Fixed(steps=steps // (generated // block), order=order_of(case), exact_steps=True)
  policy = inner
  if case.arg("analyze_gap", False):
    limits = case.arg("early_exit_thresholds", {"early": 7.5, "mid": 5.0, "late": 2.5})
    policy = Prophet(inner, steps=steps, answer_start=case.arg("answer_start_offset"), **limits)
  sampler, params = sampler_of(case, policy, block, guidance=case.arg("cfg_scale", 0.0))
  trace = run(case, sampler, params, generated, case.arg("constraints"))
  info = case.expected["exit_info"]
  assert trace.forwards()[0] == info["actual_steps"]


def saber(case: Case) -> None:
  generated, block = case.arg("gen_length", 256), case.arg("block_length", 256)
  sampler, params = sampler_of(case, Saber(case.arg("n", 2)), block)
  run(case, sampler, params, generated)


def by_order(order: str):
  """The companions of Saber's repository: LLaDA's schedule, another order."""

  def companion(case: Case) -> None:
    generated, block = case.arg("gen_length", 256), case.arg("block_length", 256)
    steps = case.arg("steps", 256) // (generated // block)
    policy = Fixed(steps=steps, order=order, exact_steps=True)
    sampler, params = sampler_of(case, policy, block)
    run(case, sampler, params, generated)

  return companion


def cad(case: Case, block: int, max_steps: int) -> None:
  generated = case.arg("gen_length", 128)
  order = case.arg("selection_method", "confidence")
  thresholds = {
    "confidence": case.arg("confidence_threshold", 0.8),
    "entropy": case.arg("entropy_threshold", -0.3),
  }
  policy = Cad(
    threshold=thresholds[order],
    least=case.arg("min_tokens_per_step", 1),
    most=case.arg("max_tokens_per_step", 4),
    order=order,
    end_after=case.arg("eos_threshold_ratio", 0.5),
    max_steps=max_steps,
    end_ids=tuple(facts_of(case)["cad_eos_list"]),
  )
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
  cad(case, case.arg("gen_length", 128), case.arg("max_steps", 0))


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
  "wino": wino,
  **llada_dkv.METHODS,
  **llada_dinfer.METHODS,
}
