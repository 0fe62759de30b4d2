"""RND1's sampler on recorded logits: of each forward, whatever the canvas holds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dlm import masks
from dlm.sampling import loop
from dlm.sampling.caching import NoCache
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policies import Rnd1
from dlm.sampling.sampler import Sampler
from dlm.types import LogitHead, ModelOutput
from tests.checkers.decoding import Case, _step


@dataclasses.dataclass(frozen=True)
class Recorded:
  """Its parameters are the logits [L, V]; row i predicts token i + 1, as the sampler is told."""

  width: int  # the vocabulary

  def __call__(self, params, tokens_BxW, *, slot_BxW, mask, ask_BxA=None, **_) -> ModelOutput:
    hidden_BxAxV = params[slot_BxW]
    if ask_BxA is not None:
      hidden_BxAxV = jnp.take_along_axis(hidden_BxAxV, ask_BxA[..., None], axis=1)
    return ModelOutput(LogitHead(hidden_BxAxV, jnp.eye(self.width)), None, {})


def sample(case: Case) -> None:
  """The place that is kept for an end token is padding; a suffix stands before it."""
  logits_KxLxV = np.load(case.folder / "logits.npz")[case.arg("logits")]
  slots, mask_id = case.arg("seq_len"), case.arg("mask_token_id")
  prompt, suffix = case.line["prompt_ids"][0], case.arg("suffix_ids")
  assert case.arg("greedy") and case.arg("eos_token_id") not in [*prompt, *suffix]
  masked = slots - len(prompt) - len(suffix) - 1
  row = np.array([*prompt, *[mask_id] * masked, *suffix, case.arg("pad_token_id")])
  canvas = make_canvas(
    [row], [row == mask_id], [0], slots=slots, block=masked, align="prompt", mask_id=mask_id, seed=0
  )
  sampler = Sampler(
    Recorded(logits_KxLxV.shape[-1]),
    Rnd1(case.arg("num_steps"), case.arg("eb_gamma")),
    NoCache(),
    masks.Full(),
    block=masked,
    max_forwards=100,
    mask_id=mask_id,
    shift=1,
    temperature=case.arg("temperature", 0.0),
    top_k=case.arg("top_k", 0),
    may_predict_mask=True,
  )
  # Greedy at any temperature: candidates without noise.
  chances = {"gumbel_BxLxV": jnp.zeros((1, *logits_KxLxV.shape[1:]))}
  state, want, step = jax.jit(loop.start, static_argnums=0)(sampler, canvas), case.expected, row
  for k in range(want["forwards"]):
    assert not state.canvas.done_B.any()
    state = _step(sampler, jnp.asarray(logits_KxLxV[k]), state, chances)
    before, step = step, np.array([*want["steps"], want["tokens"][0]][k])
    if sampler.top_k:
      check_by_count(np.asarray(state.canvas.tokens_BxL[0]), before, step, logits_KxLxV[k], mask_id)
    else:
      np.testing.assert_array_equal(state.canvas.tokens_BxL[0], step, err_msg=f"forward {k}")
  assert state.canvas.done_B.all() and step.tolist() == want["tokens"][0]
  assert len(logits_KxLxV) == want["forwards"]


def check_by_count(ours, before, theirs, logits_LxV, mask_id: int) -> None:
  """With top-k their entropies are NaN (0 * -inf), and their sort takes any: only how many is told.

  What stands where they wrote is the best token of the slot before.
  """
  assert (ours == mask_id).sum() == (theirs == mask_id).sum()
  wrote = np.flatnonzero(before != theirs)
  np.testing.assert_array_equal(theirs[wrote], logits_LxV[wrote - 1].argmax(-1))


METHODS = {"rnd1_diffusion_sample": sample}
