"""Decoding methods of full-sequence models, on the LLaDA model of tests/conformance/llada."""

import json

import jax.numpy as jnp
import numpy as np

from dlm import masks
from dlm.sampling.caching import NoCache
from dlm.sampling.policies import Fixed
from dlm.sampling.sampler import Sampler
from tests.checkers.decoding import Case, Trace, canvas_of, model_of, play


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


def draws_of(case: Case, prompts, slots: int, vocab: int):
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
      found[key] = jnp.asarray(spread(value, prompts, slots), jnp.float32)
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
  order = {"low_confidence": "confidence", "random": "random"}[
    case.arg("remasking", "low_confidence")
  ]
  temperature = case.arg("temperature", 0.0)
  doubtful = ()
  if case.arg("confidence_eos_eot_inf", False):  # their code spares EOS at temperature > 0
    doubtful = (facts["eot_id"],) if temperature else (facts["eos_id"], facts["eot_id"])
  sampler, params = sampler_of(
    case,
    Fixed(steps=steps, order=order, exact_steps=True),
    block,
    temperature=temperature,
    guidance=case.arg("cfg_scale", 0.0),
    forbidden=(facts["eos_id"],) if case.arg("logits_eos_inf", False) else (),
    doubtful=doubtful,
  )
  canvas, prompts = canvas_of(case, generated, sampler.mask_id, block)
  slots, vocab = canvas.tokens_BxL.shape[1], sampler.denoise.config.vocab
  check(case, play(sampler, params, canvas, prompts, draws_of(case, prompts, slots, vocab)))


METHODS = {"llada_generate": llada_generate}
