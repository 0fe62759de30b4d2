"""Samplers of block-causal models: SDAR, LLaDA2.x, Fast-dLLM v2.

Commits are separate, as theirs: the forwards are then the same, in the same order, but for the last
commit, whose keys nobody reads and which the loop leaves out. `nfe` is checked with it added.
"""

import jax.numpy as jnp
import numpy as np

from dlm import masks
from dlm.sampling.caching import ExactBlock, NoCache, SubBlock
from dlm.sampling.policies import Edit, EntropyBounded, Parts, Quota, Threshold
from dlm.sampling.sampler import Sampler
from tests.checkers.decoding import Case, Trace, canvas_of, model_of, play


def sample(case: Case, policy, plan, block: int, slots: int, mask_id: int, **fields) -> Trace:
  """A run on a canvas of `slots` (by row, beyond its prompt's first block)."""
  model, params = model_of(case.folder)
  prompt = len(case.line["prompt_ids"][0])
  canvas, prompts = canvas_of(case, slots - prompt, mask_id, block, "canvas")
  fields = dict(max_forwards=400, may_predict_mask=True, commit="separate") | fields
  sampler = Sampler(
    model, policy, plan, masks.BlockCausal(block), block=block, mask_id=mask_id, **fields
  )
  draws = Draws(case, sampler) if sampler.temperature else None
  return play(sampler, params, canvas, prompts, draws)


class Draws:
  """Exponential noise [block, V], one for each deciding forward of a row; a commit draws none.

  Without recorded draws the noise is zero: the argmax of a tempered distribution.
  """

  def __init__(self, case: Case, sampler: Sampler):
    self.sampler, self.waiting = sampler, None
    if "draws" in case.line:
      arrays = np.load(case.folder / "noise.npz")
      self.waiting = [arrays[key] for _, key in case.line["draws"]]

  def __call__(self, i: int, state) -> dict:
    canvas = state.canvas
    assert len(canvas.tokens_BxL) == 1, "rows would share the draws"
    vocab, block = self.sampler.denoise.config.vocab, self.sampler.block
    start, slots = int(canvas.start_B[0]), canvas.tokens_BxL.shape[1]
    noise = np.zeros((1, slots + block, vocab))
    commits = self.sampler.plan.commits and int(state.cached_B[0]) < start
    if self.waiting is not None and not commits:
      draw = self.waiting.pop(0)  # of the block, or of the part with the first mask
      masked = np.asarray(canvas.tokens_BxL[0]) == self.sampler.mask_id
      at = start + (int(masked.argmax()) - start) // len(draw) * len(draw)
      noise[0, at : at + len(draw)] = -np.log(draw)
    return {"gumbel_BxLxV": jnp.asarray(noise[:, :slots], jnp.float32)}


def decided(trace: Trace, b: int) -> list[np.ndarray]:
  """Canvases of row b after each of its forwards that decide."""
  spent = [np.asarray(state.canvas.forwards_Bx3[b]) for state in trace.states]
  return [
    trace.row(canvas, b)
    for canvas, before, after in zip(trace.canvases, spent[:-1], spent[1:], strict=True)
    if after[:2].sum() > before[:2].sum()
  ]


def same(got: list[np.ndarray], want: list, what: str) -> None:
  assert len(got) == len(want), f"{what}: {len(got)} forwards decide, not {len(want)}"
  for i, (ours, theirs) in enumerate(zip(got, want, strict=True)):
    np.testing.assert_array_equal(ours[: len(theirs)], theirs, err_msg=f"{what}: decision {i}")


def check_blocks(case: Case, trace: Trace) -> None:
  """Every step of a single row, its forwards by kind, and the canvas that is left."""
  want = case.expected
  steps = [step["grid"][0] for step in want["steps"] if step["kind"] == "denoise"]
  same(decided(trace, 0), steps, case.name)
  parts = want["nfe_parts"]
  full, window, commits = np.asarray(trace.states[-1].canvas.forwards_Bx3[0])
  assert full + window == parts["denoise"]
  assert commits == parts["prefill"] + parts["commit"] - 1
  assert trace.forwards()[0] + 1 == want["nfe"]
  np.testing.assert_array_equal(trace.row(trace.canvases[-1], 0), want["tokens"][0])


def sdar(case: Case, policy, **fields) -> Trace:
  block = case.arg("block_length", 4)
  prompt = len(case.line["prompt_ids"][0])
  slots = -(-(prompt + case.arg("gen_length", 128)) // block) * block
  how = case.arg("sampling")
  top_k = case.arg("top_k", 0)
  if how == "recorded_noise":
    fields |= dict(temperature=case.arg("temperature"), top_p=case.arg("top_p"), top_k=top_k)
  else:
    assert case.arg("top_p") == 1
  return sample(
    case,
    policy,
    ExactBlock(),
    block,
    slots,
    case.arg("mask_token_id"),
    eos_ids=tuple(case.arg("stop_ids")),
    on_eos="stop_block",
    **fields,
  )


def sdar_generate(case: Case) -> None:
  block, steps = case.arg("block_length", 4), case.arg("denoising_steps", 4)
  rule, threshold = case.arg("remasking_strategy"), case.arg("confidence_threshold", 0.85)
  policy = {
    "sequential": Quota(block, steps, order="left_to_right"),
    "low_confidence_static": Quota(block, steps),
    "low_confidence_dynamic": Quota(block, steps, threshold),
  }[rule]
  fields = {"confidence": "shaped"}
  if case.arg("sampling") == "top_k_1":
    fields["top_k"] = case.arg("top_k")
  else:
    assert case.arg("sampling") == "recorded_noise" or case.arg("temperature") == 1
  case.arg("temperature")
  check_blocks(case, sdar(case, policy, **fields))


def sdar_opencompass(case: Case) -> None:
  """Their evaluation: the confidence of a candidate is the tempered one, whatever is cut."""
  block, steps = case.arg("block_length", 4), case.arg("denoising_steps", 4)
  policy = Quota(block, steps, case.arg("threshold"))
  fields = {"confidence": "tempered"}
  if case.arg("sampling") == "top_k_1":  # the argmax: with noise of zero
    assert case.arg("top_k") == 1
    fields["temperature"] = case.arg("temperature")
  check_blocks(case, sdar(case, policy, **fields))


def sdar_jetengine(case: Case) -> None:
  """Rows side by side, each in its own phase."""
  block, steps = case.arg("block_length", 4), case.arg("denoising_steps", 4)
  threshold, budget = case.arg("dynamic_threshold"), case.arg("eb_threshold")
  case.arg("eos_token_id")
  policy = {
    "sequential": Quota(block, steps, order="left_to_right"),
    "low_confidence_static": Quota(block, steps),
    "low_confidence_dynamic": Quota(block, steps, threshold),
    "entropy_bounded": EntropyBounded(budget, rule="total"),
  }[case.arg("remasking_strategy")]
  assert steps == block or not isinstance(policy, EntropyBounded), "they leave a block after steps"
  noise = case.arg("sampling") == "recorded_noise"
  assert case.arg("temperature") == case.arg("top_p") == 1 and case.arg("top_k") == 0
  prompts = [len(row) for row in case.line["prompt_ids"]]
  most = case.arg("max_tokens")
  generated = max(-(-(prompt + most) // block) * block - prompt for prompt in prompts)
  trace = sample(
    case,
    policy,
    ExactBlock(),
    block,
    prompts[0] + generated,
    case.arg("mask_token_id"),
    eos_ids=tuple(case.arg("stop_ids")),
    on_eos="stop_block",
    temperature=1.0 if noise else 0.0,
  )
  want = case.expected
  for b, tokens in enumerate(want["tokens"]):
    steps = [
      row for step in want["steps"] for row in step["rows"]
      if row["row"] == b and row["status"] == "denoise"
    ]  # fmt: skip
    got = decided(trace, b)
    assert len(got) >= len(steps)
    for ours, theirs in zip(got, steps, strict=False):
      start = theirs["start"]
      np.testing.assert_array_equal(ours[start : start + block], theirs["block"])
    np.testing.assert_array_equal(got[len(steps) - 1][: len(tokens)], tokens)
    full, window, commits = np.asarray(trace.states[-1].canvas.forwards_Bx3[b])
    parts = want["nfe_per_row"][b]
    if len(got) == len(steps):  # else it is they who end first, at max_tokens
      assert commits == parts["prefill"] + parts["commit"] - 1 and window + full == parts["denoise"]


def llada2(case: Case, policy, plan, **fields) -> Trace:
  block = case.arg("block_length")
  prompt = len(case.line["prompt_ids"][0])
  slots = -(-(prompt + case.arg("gen_length")) // block) * block
  if temperature := case.arg("temperature"):
    fields |= dict(temperature=temperature, confidence="shaped")
  return sample(
    case, policy, plan, block, slots, case.arg("mask_id"), eos_ids=(case.arg("eos_id"),), **fields
  )


def check_llada2(case: Case, trace: Trace) -> None:
  want = case.expected
  same(decided(trace, 0), [step["grid"][0] for step in want["steps"]], case.name)
  assert trace.forwards()[0] == want["nfe"]
  np.testing.assert_array_equal(trace.row(trace.canvases[-1], 0), want["canvas"][0])


def llada20_generate(case: Case) -> None:
  steps = min(case.arg("steps"), case.arg("gen_length") // case.arg("minimal_topk", 1))
  assert case.arg("top_p", 1.0) == 1 and case.arg("top_k", 0) == 0
  on_eos = "stop" if case.arg("eos_early_stop") else "stop_block"
  policy = Quota(case.arg("block_length"), steps, case.arg("threshold"))
  check_llada2(case, llada2(case, policy, NoCache(), on_eos=on_eos))


def llada21_generate(case: Case) -> None:
  """Without eos_early_stop they decode to the end, whatever is written."""
  for unused in ("steps", "minimal_topk"):  # of no effect in their code
    case.arg(unused)
  assert case.arg("top_p", 1.0) == 1 and case.arg("top_k", 0) == 0
  policy = Edit(
    case.arg("threshold"), case.arg("editing_threshold"), case.arg("max_post_steps"),
    case.arg("num_to_transfer"),
  )  # fmt: skip
  eos_id = case.arg("eos_id")
  block = case.arg("block_length")
  slots = -(-(len(case.line["prompt_ids"][0]) + case.arg("gen_length")) // block) * block
  assert case.arg("temperature") == 0
  trace = sample(
    case, policy, NoCache(), block, slots, case.arg("mask_id"),
    eos_ids=(eos_id,) if case.arg("eos_early_stop") else (), on_eos="stop_block",
  )  # fmt: skip
  check_llada2(case, trace)


def dinfer(case: Case, plan) -> None:
  """They test for masks only now and then: forwards over clean blocks are theirs alone."""
  for unused in ("maximum_unroll", "expected_tpf"):
    case.arg(unused)
  # Their runner that recomputes ends with a stop id in any case.
  ends = case.arg("early_stop") or isinstance(plan, NoCache)
  policy = Threshold(case.arg("threshold"), band=1e-5)
  trace = llada2(case, policy, plan, on_eos="fill_block" if ends else "stop_block")
  want, rows = case.expected, range(len(case.line["prompt_ids"]))
  for b in rows:
    np.testing.assert_array_equal(trace.row(trace.canvases[-1], b), want["canvas"][b])
    steps = [step["grid"][b] for step in want["steps"] if step["kind"] == "denoise"]
    moved = [
      grid for before, grid in zip([None, *steps], steps, strict=False)
      if before is None or grid != before
    ]  # fmt: skip
    got, stopped = decided(trace, b), np.asarray(trace.row(trace.canvases[-1], b))
    same(got[:-1], moved[: len(got) - 1], case.name)  # what fills the row comes a forward later
    assert len(got) == len(moved) and (stopped != case.arg("mask_id")).all()
  if len(rows) == 1:
    assert len(decided(trace, 0)) == want["nfe_parts"]["denoise"]


def dinfer_recompute(case: Case) -> None:
  dinfer(case, NoCache())


def dinfer_cached(case: Case) -> None:
  dinfer(case, ExactBlock())


def fast_dllm_v2(case: Case) -> Trace:
  block, size = case.arg("block_size"), case.arg("small_block_size")
  case.arg("pad_token_id")
  prompts = [len(row) for row in case.line["prompt_ids"]]
  end = (max(prompts) // block + case.arg("max_new_tokens") // block) * block + 1
  fields = {}
  if case.arg("temperature"):
    fields = dict(temperature=case.arg("temperature"), top_p=case.arg("top_p"), confidence="shaped")
  else:
    case.arg("top_p")  # of no effect at temperature 0
  policy = Parts(Quota(block, block, case.arg("threshold")), size)
  return sample(
    case,
    policy,
    SubBlock(size) if case.arg("use_block_cache") else ExactBlock(),
    block,
    end,
    case.arg("mask_id"),
    shift=1,
    eos_ids=(case.arg("stop_token"),),
    **fields,
  )


def fast_dllm_v2_generate(case: Case) -> None:
  """`grid_before` grows with every commit; what a forward decides shows in the next one's."""
  trace = fast_dllm_v2(case)
  want = case.expected
  assert trace.forwards()[0] == want["nfe"]
  for i, (state, step) in enumerate(zip(trace.states, want["steps"], strict=False)):
    grid = step["grid_before"][0]
    got = trace.row(state.canvas, 0)[: len(grid)]
    np.testing.assert_array_equal(got, grid[: len(got)], err_msg=f"{case.name}: forward {i}")
  np.testing.assert_array_equal(
    trace.row(trace.canvases[-1], 0)[: len(want["tokens"][0])], want["tokens"][0]
  )
  queries = [step["q_len"] for step in want["steps"]]
  ours = trace.queries(0)
  prefill = want["nfe_parts"]["prefill"]  # theirs is over whole blocks of the prompt alone
  assert ours[prefill:] == queries[prefill:]


def fast_dllm_v2_batch_sample(case: Case) -> None:
  """Rows wait for each other in their code, not here: the texts are compared."""
  trace = fast_dllm_v2(case)
  for b, tokens in enumerate(case.expected["tokens"]):
    got = trace.row(trace.canvases[-1], b)
    np.testing.assert_array_equal(got[: len(tokens)], tokens[: len(got)])


SDAR = {
  "sdar_generate": sdar_generate,
  "sdar_opencompass": sdar_opencompass,
  "sdar_jetengine": sdar_jetengine,
}
LLADA2 = {
  "llada20_generate": llada20_generate,
  "llada21_generate": llada21_generate,
  "dinfer_recompute": dinfer_recompute,
  "dinfer_cached": dinfer_cached,
}
FAST_DLLM_V2 = {
  "fast_dllm_v2_generate": fast_dllm_v2_generate,
  "fast_dllm_v2_batch_sample": fast_dllm_v2_batch_sample,
}
METHODS = {**SDAR, **LLADA2, **FAST_DLLM_V2}
