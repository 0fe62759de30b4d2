"""Introspective strided decoding: the recorded runs of tests/conformance/i_dlm."""

import numpy as np
import pytest

from dlm import masks
from dlm.sampling.caching import Rolling
from dlm.sampling.policies import Introspective
from dlm.sampling.sampler import Sampler
from tests.checkers.decoding import Case, canvas_of, model_of, play


def policy_of(case: Case) -> tuple[Introspective, dict]:
  """The policy and its settings. Above temperature 0 our rule is another, and exact."""
  if case.arg("temperature"):
    pytest.skip(
      f"i_dlm/{case.name}: the authors test p / q of argmax drafts, whose law is not the model's; "
      "ours couples the draws (policies/introspective_test.py holds the law)"
    )
  stride, drafts = case.arg("gen_block_size"), case.arg("gen_block_size") - 1
  checked = min(case.arg("verify_num_specs"), drafts)
  fields = dict(checked=0 if checked == drafts else checked, correct=case.arg("output_correction"))
  top_k, kept = case.arg("top_k"), case.arg("fast_verify_topk")
  threshold, ratio = case.arg("confidence_accept_threshold"), case.arg("use_spec_verify")
  case.arg("top_p"), case.arg("verify_alpha")  # of no effect at temperature 0
  assert top_k
  if case.arg("fast_verify"):
    return Introspective(stride, "kept", **fields), {"top_k": kept}
  if not ratio:
    return Introspective(stride, "sure", threshold, **fields), {}
  return Introspective(stride, **fields), {}


def isd(case: Case) -> None:
  """Inputs, settled tokens and cache lengths of every forward."""
  policy, fields = policy_of(case)
  model, params = model_of(case.folder)
  mask_id, want = case.arg("mask_id"), case.expected
  room = case.arg("max_new_tokens") + 3 * policy.draft_span
  canvas, prompts = canvas_of(case, room, mask_id, policy.draft_span)
  sampler = Sampler(
    model, policy, Rolling(), masks.Causal(), block=policy.draft_span, max_forwards=want["nfe"],
    mask_id=mask_id, shift=1, may_predict_mask=True, **fields,
  )  # fmt: skip
  trace = play(sampler, params, canvas, prompts)
  assert trace.forwards()[0] == want["nfe"]
  prompt = len(prompts[0])
  for i, step in enumerate(want["steps"]):
    before, after = trace.states[i], trace.states[i + 1]
    start = int(before.canvas.start_B[0])
    if step["case"] != "P":
      got = trace.row(before.canvas, 0)[start : start + policy.draft_span - 1]
      np.testing.assert_array_equal(got, step["input"], err_msg=f"{case.name}: forward {i}")
    assert int(after.cached_B[0]) == step["kept"] == int(after.cache.filled_BxS.sum())
  emitted = want["emitted"]
  np.testing.assert_array_equal(trace.generated(trace.canvases[-1], 0)[: len(emitted)], emitted)
  assert int(trace.canvases[-1].start_B[0]) + 1 == prompt + len(emitted)


METHODS = {"isd": isd}
