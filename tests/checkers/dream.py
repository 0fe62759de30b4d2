"""Dream's sampler and Fast-dLLM v1's versions of it, on the model of tests/conformance/dream."""

import numpy as np

from dlm import masks
from dlm.sampling.caching import Dual, NoCache, Prefix
from dlm.sampling.policies import Dream, DreamThreshold
from dlm.sampling.sampler import Sampler
from tests.checkers.decoding import Case, Trace, canvas_of, columns_of, model_of, play


def sample(case: Case, policy, block: int = 0, plan=None) -> Trace:
  """A run as the authors': end tokens end nothing, [MASK] may be predicted, logits are shifted.

  block=0: one block of all slots, so that masks within the prompt are part of it.
  """
  model, params = model_of(case.folder)
  mask_id, generated = case.arg("mask_token_id"), case.arg("max_new_tokens")
  whole = block or max(map(len, case.line["prompt_ids"])) + generated
  start = "prompt" if block else "canvas"
  canvas, prompts = canvas_of(case, generated, mask_id, whole, start)
  sampler = Sampler(
    model,
    policy,
    plan or NoCache(),
    masks.Full(),
    block=whole,
    max_forwards=400,
    mask_id=mask_id,
    shift=1,
    temperature=case.arg("temperature", 0.0),
    top_p=case.arg("top_p", 1.0),
    top_k=case.arg("top_k", 0),
    may_predict_mask=True,
  )
  draws = Draws(case, sampler, prompts) if "draws" in case.line else None
  return play(sampler, params, canvas, prompts, draws)


class Draws:
  """The recorded numbers of each forward, by canvas slot, in the order of the authors' draws.

  "origin": a coin for each masked slot, then at temperature > 0 noise [revealed, V]. Else at
  temperature > 0 noise [scored, V], and then, where slots are drawn and any is to be, noise
  [B, slots of the window]. Noise is Exp(1): Gumbel noise is minus its logarithm.
  """

  def __init__(self, case: Case, sampler: Sampler, prompts: list[np.ndarray]):
    arrays = np.load(case.folder / "noise.npz")
    self.waiting = [arrays[key] for _, key in case.line["draws"]]
    self.case, self.sampler, self.prompts = case, sampler, prompts
    self.generated = case.arg("max_new_tokens")
    self.slot_BxC = np.full((len(prompts), len(case.expected["tokens"][0])), -1)  # -1: padding
    for slots, columns in zip(self.slot_BxC, columns_of(case, self.generated), strict=True):
      slots[columns] = np.arange(len(columns))

  def __call__(self, i: int, state) -> dict:
    policy, canvas = self.sampler.policy, state.canvas
    vocab, shape = self.sampler.denoise.config.vocab, canvas.tokens_BxL.shape
    starts, kind = np.asarray(canvas.start_B), self.case.expected["steps"][i]["kind"]
    origin, slots = getattr(policy, "alg", "") == "origin", self._scored(kind, canvas)
    found = {}
    if origin:
      u = self.waiting.pop(0)
      found["uniform_BxL"] = scatter(u, slots, shape)
    if self.sampler.temperature:
      noise = -np.log(self.waiting.pop(0).reshape(-1, vocab))
      if origin:  # revealed: the slots of the smallest coins
        slots = [slots[k] for k in np.sort(np.argsort(u)[: len(noise)])]
      found["gumbel_BxLxV"] = scatter(noise, slots, (*shape, vocab))
    if getattr(policy, "alg_temp", 0.0):
      drawn = kind != "full" and self._changed(i)
      noise = -np.log(self.waiting.pop(0)) if drawn else np.zeros((shape[0], 0))
      cached = kind.startswith("cached")
      slots = [
        (b, start + k if cached else self.slot_BxC[b, k])
        for b, start in enumerate(starts)
        for k in range(noise.shape[1])
      ]
      found["gumbel_BxL"] = scatter(noise.ravel(), slots, shape)
    return found

  def _scored(self, kind: str, canvas) -> list[tuple[int, int]]:
    """The slots that the authors' code draws candidates for, row after row."""
    tokens, lengths = np.asarray(canvas.tokens_BxL), np.asarray(canvas.length_B)
    if kind == "full":  # a forward that fills a cache draws for every slot
      return [(b, k) for b, slots in enumerate(self.slot_BxC) for k in slots]
    slots = [(b, k) for b, k in np.argwhere(tokens == self.sampler.mask_id) if k < lengths[b]]
    if kind == "forward":
      return slots
    starts = np.asarray(canvas.start_B)
    whole = kind == "cached_suffix" and isinstance(self.sampler.policy, DreamThreshold)
    width = tokens.shape[1] if whole else self.sampler.block
    return [(b, k) for b, k in slots if starts[b] <= k < starts[b] + width]

  def _changed(self, i: int) -> bool:
    """Whether the recorded forward i wrote anything."""
    grids = [step["grid"] for step in self.case.expected["steps"][: i + 1]]
    masked = [int((np.array(grid) == self.sampler.mask_id).sum()) for grid in grids]
    prompts = int((np.array(self.case.line["prompt_ids"]) == self.sampler.mask_id).sum())
    masked.insert(0, prompts + len(self.prompts) * self.generated)
    return masked[i + 1] < masked[i]


def scatter(values: np.ndarray, slots: list[tuple[int, int]], shape: tuple[int, ...]) -> np.ndarray:
  """values[n] at slots[n], (row, slot); slot -1 is padding of the recording."""
  assert len(values) == len(slots), (len(values), len(slots))
  out = np.zeros(shape, np.float32)
  for value, (b, k) in zip(values, slots, strict=True):
    if k >= 0:
      out[b, k] = value
  return out


def check(case: Case, trace: Trace) -> None:
  want, mask_id = case.expected, case.arg("mask_token_id")
  assert len(trace.canvases) == len(want["steps"]) == want["nfe"]
  assert trace.forwards().max() == want["nfe"]
  columns = columns_of(case, case.arg("max_new_tokens"))
  for i, (canvas, step) in enumerate(zip(trace.canvases, want["steps"], strict=True)):
    for b, row in enumerate(step["grid"]):
      np.testing.assert_array_equal(
        trace.row(canvas, b),
        np.array(row)[columns[b]],
        err_msg=f"{case.name}: forward {i}, row {b}",
      )
  rows = [trace.row(trace.canvases[-1], b) for b in range(len(columns))]
  for row, tokens, of_row in zip(rows, want["tokens"], columns, strict=True):
    np.testing.assert_array_equal(row, np.array(tokens)[of_row])
  assert sum(int((row == mask_id).sum()) for row in rows) == want["masks_left"]
  for b, of_row in enumerate(columns):
    pad = len(want["tokens"][b]) - len(of_row)
    assert trace.queries(b) == [
      step["q_len"] - (0 if step["kind"].startswith("cached") else pad) for step in want["steps"]
    ]


def dream_diffusion_generate(case: Case) -> None:
  policy = Dream(
    steps=case.arg("steps", 512),
    alg=case.arg("alg", "origin"),
    alg_temp=case.arg("alg_temp", 0.0),
    eps=case.arg("eps", 1e-3),
    exact_steps=True,
  )
  check(case, sample(case, policy))


def fast_dllm_v1_dream_nocache(case: Case) -> None:
  if case.arg("alg") != "confidence_threshold":  # the rest of that code is Dream's own
    case.used.add("threshold")
    return dream_diffusion_generate(case)
  case.used |= {"eps", "alg_temp"}  # not read by it
  policy = DreamThreshold(case.arg("threshold", 0.9), steps=case.arg("steps", 512))
  return check(case, sample(case, policy))


def fast_dllm_v1_dream_block(case: Case) -> None:
  """Every algorithm but the threshold is entropy in their code, and its step 0 the full forward."""
  generated = case.arg("max_new_tokens")
  block, steps = case.arg("block_length", 32), case.arg("steps", 512)
  eps, alg_temp = case.arg("eps", 1e-3), case.arg("alg_temp", 0.0)
  threshold = case.arg("threshold", 0.9)
  if case.arg("alg") == "confidence_threshold":
    policy = DreamThreshold(threshold)
  else:
    policy = Dream(steps=steps // (generated // block), alg="entropy", alg_temp=alg_temp, eps=eps)
  plan = Dual if case.arg("dual_cache", False) else Prefix
  check(case, sample(case, policy, block, plan(anchor=False, settles=True)))


METHODS = {
  "dream_diffusion_generate": dream_diffusion_generate,
  "fast_dllm_v1_dream_block": fast_dllm_v1_dream_block,
  "fast_dllm_v1_dream_nocache": fast_dllm_v1_dream_nocache,
}
