"""Samplers of block-causal models: SDAR, LLaDA2.x, Fast-dLLM v2.

Commits are separate, as theirs: the forwards are then the same, in the same order, but for the last
commit, whose keys nobody reads and which the loop leaves out. `nfe` is checked with it added.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from dlm import masks
from dlm.sampling import loop
from dlm.sampling.caching import ExactBlock, NoCache, SubBlock
from dlm.sampling.policies import Edit, EntropyBounded, Parts, Quota, Threshold
from dlm.sampling.policy import Wrapper
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
  """Exponential noise [slots, V], one for each deciding forward of a row; a commit draws none.

  Recorded in the order of the authors' engine, in which rows may be in different phases. Without
  recorded draws the noise is zero: the argmax of a tempered distribution.
  """

  def __init__(self, case: Case, sampler: Sampler):
    self.sampler = sampler
    self.waiting = [[] for _ in case.line["prompt_ids"]] if "draws" in case.line else None
    if self.waiting is not None:
      arrays = np.load(case.folder / "noise.npz")
      recorded = [arrays[key] for _, key in case.line["draws"]]
      for draw, rows in zip(recorded, drawn_rows(case, len(recorded), sampler), strict=True):
        for b, mine in zip(rows, draw.reshape(len(rows), -1, draw.shape[-1]), strict=True):
          if b is not None:
            self.waiting[b].append(mine)

  def __call__(self, i: int, state) -> dict:
    canvas, block = state.canvas, self.sampler.block
    (batch, slots), vocab = canvas.tokens_BxL.shape, self.sampler.denoise.config.vocab
    noise = np.zeros((batch, slots + block, vocab))
    rows = deciding_rows(self.sampler, state) if self.waiting is not None else []
    for b in rows:
      draw, start = self.waiting[b].pop(0), int(canvas.start_B[b])
      at = start
      if len(draw) < block:  # of the part with the first mask
        masked = np.asarray(canvas.tokens_BxL[b]) == self.sampler.mask_id
        masked[:start] = False
        at += (int(masked.argmax()) - start) // len(draw) * len(draw)
      noise[b, at : at + len(draw)] = -np.log(draw)
    return {"gumbel_BxLxV": jnp.asarray(noise[:, :slots], jnp.float32)}


def deciding_rows(sampler: Sampler, state) -> list[int]:
  """Rows that take part in the next forward, and for which it is no commit."""
  live_B = ~np.asarray(state.canvas.done_B)
  refresh_B = np.asarray(sampler.plan.refresh_B(loop.progress(sampler, state))) & live_B
  act_B = refresh_B if refresh_B.any() else live_B
  waits_B = np.asarray(state.cached_B < state.canvas.start_B) & sampler.plan.commits
  return np.flatnonzero(act_B & ~waits_B).tolist()


def drawn_rows(case: Case, draws: int, sampler: Sampler) -> list[list[int | None]]:
  """The rows that each recorded draw is for; None: of a row that had nothing left to decide."""
  if len(case.line["prompt_ids"]) == 1:
    return [[0]] * draws
  found = []
  for step in case.expected["steps"]:
    if "run" in step:  # an engine whose rows are each in their own phase: a draw a row
      found += [[row["row"]] for row in step["rows"] if row["status"] == "denoise"]
    elif step["kind"] not in ("prefill", "commit"):  # rows side by side: a draw for all
      part = slice(None)
      if sampler.policy.part:
        first = len(step["grid_before"][0]) - sampler.block
        first += step["sub_block"] * sampler.policy.part
        part = slice(first, first + sampler.policy.part)
      grids = zip(step["rows"], step["grid_before"], strict=True)
      found.append([b if sampler.mask_id in grid[part] else None for b, grid in grids])
  return found


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


def sdar_sampling(case: Case) -> dict:
  """How a candidate is drawn. Without recorded noise it is the argmax of the same distribution."""
  assert case.arg("sampling") in ("argmax_patch", "top_k_1", "recorded_noise")
  temperature = case.arg("temperature", 1.0)
  return dict(temperature=temperature, top_p=case.arg("top_p", 1.0), top_k=case.arg("top_k", 0))


def sdar(case: Case, policy, confidence: str) -> None:
  block = case.arg("block_length", 4)
  prompt = len(case.line["prompt_ids"][0])
  slots = -(-(prompt + case.arg("gen_length", 128)) // block) * block
  trace = sample(
    case,
    policy,
    ExactBlock(),
    block,
    slots,
    case.arg("mask_token_id"),
    eos_ids=tuple(case.arg("stop_ids", [])),
    on_eos="stop_block",
    confidence=confidence,
    **sdar_sampling(case),
  )
  check_blocks(case, trace)


def sdar_policy(case: Case, threshold: float, **more):
  block = case.arg("block_length", 4)
  steps = min(case.arg("denoising_steps", 4), block)
  known = {
    "sequential": Quota(block, steps, order="left_to_right"),
    "low_confidence_static": Quota(block, steps),
    "low_confidence_dynamic": Quota(block, steps, threshold),
  }
  return (known | more)[case.arg("remasking_strategy")]


def sdar_generate(case: Case) -> None:
  policy = sdar_policy(case, case.arg("confidence_threshold", 0.85))
  sdar(case, policy, "shaped")


def sdar_opencompass(case: Case) -> None:
  """Their evaluation: the confidence of a candidate is the tempered one, whatever is cut."""
  block = case.arg("block_length", 4)
  steps = min(case.arg("denoising_steps", 4), block)
  sdar(case, Quota(block, steps, case.arg("threshold")), "tempered")


@dataclasses.dataclass(frozen=True)
class Leaves(Wrapper):
  """JetEngine leaves a block after so many forwards, whatever is still masked."""

  steps: int

  def decide(self, view, state, key_B):
    decision, state = self.inner.decide(view, state, key_B)
    return decision.replace(leave_B=view.step_B + 1 >= self.steps), state


def sdar_jetengine(case: Case) -> None:
  """Rows side by side, each in its own phase."""
  block, steps = case.arg("block_length", 4), case.arg("denoising_steps", 4)
  case.arg("eos_token_id")
  bounded = EntropyBounded(case.arg("eb_threshold"), rule="total")
  policy = sdar_policy(case, case.arg("dynamic_threshold"), entropy_bounded=Leaves(bounded, steps))
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
    eos_ids=tuple(case.arg("stop_ids", [])),
    on_eos="stop_block",
    confidence="shaped",
    **sdar_sampling(case),
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


def llada2(case: Case, policy, plan, ends: bool = True, **fields) -> Trace:
  """Top-k and top-p are of no effect in their code at temperature 0."""
  block = case.arg("block_length")
  prompt = len(case.line["prompt_ids"][0])
  slots = -(-(prompt + case.arg("gen_length")) // block) * block
  cuts = dict(top_p=case.arg("top_p", 1.0), top_k=case.arg("top_k", 0))
  if temperature := case.arg("temperature", 0.0):
    fields |= dict(temperature=temperature, confidence="shaped") | cuts
  eos_ids = (case.arg("eos_id"),) * ends
  return sample(case, policy, plan, block, slots, case.arg("mask_id"), eos_ids=eos_ids, **fields)


def check_llada2(case: Case, trace: Trace) -> None:
  want = case.expected
  same(decided(trace, 0), [step["grid"][0] for step in want["steps"]], case.name)
  assert trace.forwards()[0] == want["nfe"]
  np.testing.assert_array_equal(trace.row(trace.canvases[-1], 0), want["canvas"][0])


def llada20_generate(case: Case) -> None:
  block = case.arg("block_length")
  steps = min(case.arg("steps"), case.arg("gen_length") // case.arg("minimal_topk", 1), block)
  on_eos = "stop" if case.arg("eos_early_stop") else "stop_block"
  policy = Quota(block, steps, case.arg("threshold"))
  check_llada2(case, llada2(case, policy, NoCache(), on_eos=on_eos))


def llada21_generate(case: Case) -> None:
  """Without eos_early_stop they decode to the end, whatever is written."""
  for unused in ("steps", "minimal_topk"):  # of no effect in their code
    case.arg(unused)
  policy = Edit(
    case.arg("threshold"), case.arg("editing_threshold"), case.arg("max_post_steps"),
    case.arg("num_to_transfer"),
  )  # fmt: skip
  ends = case.arg("eos_early_stop", False)
  check_llada2(case, llada2(case, policy, NoCache(), ends=ends, on_eos="stop_block"))


def dinfer(case: Case, plan) -> None:
  """They test for masks only now and then: forwards over clean blocks are theirs alone."""
  for unused in ("maximum_unroll", "expected_tpf"):
    case.arg(unused)
  # Their runner that recomputes ends with a stop id in any case.
  ends = case.arg("early_stop") or isinstance(plan, NoCache)
  policy = Threshold(case.arg("threshold"), band=1e-5)
  assert case.arg("temperature", 0.0) == 0, "of their decoders no draws are recorded here"
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
