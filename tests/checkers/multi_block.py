"""Samplers that work on several blocks at once: D2F and d3LLM."""

import numpy as np

from dlm import masks
from dlm.sampling.caching import Ahead, Matured, NoCache
from dlm.sampling.policies import Distilled, Pipelined
from dlm.sampling.sampler import Sampler
from tests.checkers.decoding import Case, Trace, canvas_of, model_of, play


def sample(case: Case, policy, plan, sees, **fields) -> Trace:
  model, params = model_of(case.folder)
  block, mask_id = case.arg("block_size"), case.arg("mask_id")
  generated = case.arg("max_new_tokens") // block * block
  canvas, prompts = canvas_of(case, generated, mask_id, block)
  sampler = Sampler(
    model, policy, plan, sees, block=block, max_forwards=400, mask_id=mask_id,
    shift=case.arg("shift"), may_predict_mask=True, **fields,
  )  # fmt: skip
  return play(sampler, params, canvas, prompts)


def check(case: Case, trace: Trace) -> None:
  """Every canvas (theirs grows with the blocks), and the number of forwards."""
  want = case.expected
  assert trace.forwards()[0] == want["nfe"] == len(want["steps"])
  for i, (canvas, step) in enumerate(zip(trace.canvases, want["steps"], strict=True)):
    grid = step["grid"] if isinstance(step["grid"][0], int) else step["grid"][0]
    got = trace.row(canvas, 0)[: len(grid)]
    np.testing.assert_array_equal(got, grid, err_msg=f"{case.name}: forward {i}")
  tokens = want["tokens"][0]
  np.testing.assert_array_equal(trace.row(trace.canvases[-1], 0)[: len(tokens)], tokens)


def d2f_generate_block_single(case: Case) -> None:
  case.arg("max_length")
  scores = {"default": "confidence", "margin_confidence": "margin", "neg_entropy": "entropy"}
  policy = Pipelined(
    block=case.arg("block_size"), threshold=case.arg("skip_threshold"),
    begin=case.arg("block_add_threshold"), eager=case.arg("decoded_token_threshold"),
    score=scores[case.arg("sampling_strategy")], end_ids=(case.arg("eos_id"),),
  )  # fmt: skip
  assert not case.arg("temperature", 0.0), "of its candidates no draws are recorded here"
  cuts = dict(top_p=case.arg("top_p", 1.0), top_k=case.arg("top_k", 0), confidence="shaped")
  assert cuts["top_p"] == 1 or cuts["top_k"] == 0, "theirs take the mass before they cut by rank"
  trace = sample(case, policy, Ahead(), masks.PromptBlocks(policy.block), **cuts)
  check(case, trace)
  assert trace.queries(0) == [step["q_len"] for step in case.expected["steps"]]


def distilled(case: Case, always: bool, plan=NoCache()) -> Trace:  # noqa: B008
  policy = Distilled(
    block=case.arg("block_size"), threshold=case.arg("threshold"),
    begin=case.arg("block_add_threshold"), eager=case.arg("decoded_token_threshold"),
    always=always,
  )  # fmt: skip
  eos_id = case.arg("eos_id")
  ends = {"eos_ids": (eos_id,), "on_eos": "fill"} if case.arg("early_stop") else {}
  trace = sample(case, policy, plan, masks.Full(), **ends)
  check(case, trace)
  return trace


def d3llm_llada_multi_block(case: Case) -> None:
  distilled(case, always=True)


def d3llm_llada_multi_block_kv(case: Case) -> None:
  plan = Matured(case.arg("cache_delay_iter"), case.arg("refresh_interval"))
  trace = distilled(case, always=True, plan=plan)
  assert trace.queries(0) == [step["q_len"] for step in case.expected["steps"]]


def d3llm_dream_multi_block(case: Case) -> None:
  distilled(case, always=False)


METHODS = {
  "d2f_generate_block_single": d2f_generate_block_single,
  "d3llm_llada_multi_block": d3llm_llada_multi_block,
  "d3llm_llada_multi_block_kv": d3llm_llada_multi_block_kv,
  "d3llm_dream_multi_block": d3llm_dream_multi_block,
}
