"""Nemotron-Labs-Diffusion: rotations and query scale by number, its joint loss, its three modes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dlm import masks
from dlm.models import RopeScaling
from dlm.models.layers import query_scale
from dlm.models.rope import frequencies
from dlm.objectives import Nemotron
from dlm.sampling import drafts, loop
from dlm.sampling.caching import ExactBlock, Rolling
from dlm.sampling.policies import Fixed, Introspective, SelfSpeculative, Threshold
from dlm.sampling.sampler import Sampler
from dlm.types import Batch
from kernels_pallas.block_attention import Keys, visible
from tests.checkers.decoding import Case, Trace, canvas_of, model_of, play


def yarn_table(case: Case) -> None:
  """With the keys that make the factor of cosines and sines 1, and without them."""
  fields = dict(
    rope_type="yarn", factor=case.arg("factor"), original_max_position_embeddings=case.arg("orig"),
    beta_fast=case.arg("beta_fast"), beta_slow=case.arg("beta_slow"),
  )  # fmt: skip
  scaling = RopeScaling(
    **fields, mscale=case.arg("mscale"), mscale_all_dim=case.arg("mscale_all_dim")
  )
  dim, base, want = case.arg("hd"), case.arg("theta"), case.expected
  plain, got = frequencies(dim, base), frequencies(dim, base, scaling)
  arrays = np.load(case.folder / "logits.npz")
  np.testing.assert_allclose(got, arrays[f"{case.name.replace('_', '/', 1)}/inv_freq"], rtol=1e-6)
  first, last = want["ramp_from_to"]
  np.testing.assert_array_equal(got[: first + 1], plain[: first + 1])
  assert got[first + 1] < plain[first + 1]
  np.testing.assert_allclose(got[last:], plain[last:] / scaling.factor, rtol=1e-6)
  assert got[last - 1] > 1.01 * plain[last - 1] / scaling.factor
  np.testing.assert_allclose(scaling.amplitude, want["attention_factor"])
  without = RopeScaling(**fields).amplitude
  np.testing.assert_allclose(without, want["attention_factor_without_mscale_keys"])


def query_scale_table(case: Case) -> None:
  original = case.arg("original_max_position_embeddings")
  scaling = RopeScaling("yarn", 16.0, original, llama_4_scaling_beta=case.arg("beta"))
  got = query_scale(jnp.array([case.arg("positions")]), scaling)
  np.testing.assert_allclose(got[0], case.expected["scale"], rtol=1e-6)


def joint_loss(case: Case) -> None:
  """The masks, what is masked, every masked token's cross-entropy, and both losses."""
  model, params = model_of(case.folder)
  arrays, eps = dict(np.load(case.folder / "logits.npz")), case.arg("eps")
  ids = np.array(case.line["prompt_ids"])
  np.testing.assert_array_equal(ids, arrays["loss/input_ids"])
  rows, length = ids.shape
  batch = Batch(
    jnp.asarray(ids), *(jnp.ones(ids.shape, kind) for kind in (bool, int)),
    jnp.broadcast_to(jnp.arange(length), ids.shape),
  )  # fmt: skip
  draws = {
    "u_time": jnp.broadcast_to(arrays["loss/draw_t"][:, None], ids.shape),
    "u_mask": jnp.asarray(arrays["loss/draw_tokens"]),
  }
  block, masked = case.arg("block_size"), arrays["loss/masked"]
  mask_id = 100
  for paradigm, want in case.expected.items():
    causal = paradigm == "sbd_block_diff"
    objective = Nemotron(
      mask_id, block, diffusion_weight=case.arg("dlm_loss_weight", 1.0), causal_clean=causal,
      next_weight=case.arg("ar_loss_weight") if causal else 0.0,
    )  # fmt: skip
    np.testing.assert_allclose(
      objective.schedule.masked(draws["u_time"][:, 0]), arrays["loss/p_mask"], rtol=1e-6
    )
    np.testing.assert_allclose(objective.schedule.masked(jnp.zeros(())), eps, rtol=1e-5)
    noisy = objective.corrupt_with(draws, batch, 0)
    np.testing.assert_array_equal(noisy.inputs_BxW[:, :length] == mask_id, masked)
    index_BxW = jnp.broadcast_to(jnp.arange(2 * length), (rows, 2 * length))
    seen = visible(noisy.mask, Keys(index_BxW))
    np.testing.assert_array_equal(seen[0], arrays[f"loss/mask_{paradigm}"])
    loss_BxL, ce_BxL, _ = jax.jit(functools.partial(objective.losses, model))(params, noisy)
    np.testing.assert_allclose(
      np.asarray(ce_BxL[:, :length])[masked], arrays[f"loss/{paradigm}_token_ce_at_masked"],
      rtol=1e-4,
    )  # fmt: skip
    parts = np.asarray(loss_BxL.reshape(rows, 2, length).sum((0, 2)) / noisy.count_B.sum())
    np.testing.assert_allclose(parts[0], want["diffusion"], rtol=1e-4)
    np.testing.assert_allclose(parts.sum(), want["loss"], rtol=1e-4)
    np.testing.assert_allclose(parts[1], want["autoregressive"] or 0.0, rtol=1e-4)


def played(case: Case, policy, sees, room: int, block: int, **fields) -> tuple[Sampler, Trace]:
  model, params = model_of(case.folder)
  fields = dict(max_forwards=400, may_predict_mask=True) | fields
  mask_id, eos_ids = case.arg("mask_token_id"), (case.arg("eos_token_id"),)
  sampler = Sampler(
    model, policy, fields.pop("plan"), sees, block=block, mask_id=mask_id, eos_ids=eos_ids, **fields
  )
  assert len(case.line["prompt_ids"]) == 1
  return sampler, play(sampler, params, *canvas_of(case, room, mask_id, block))


def autoregressive(case: Case) -> None:
  new = case.arg("max_new_tokens")
  _, trace = played(case, Introspective(1), masks.Causal(), new, 2, plan=Rolling(), shift=1)
  want = case.expected["tokens"][0]
  np.testing.assert_array_equal(trace.row(trace.canvases[-1], 0)[: len(want)], want)
  assert trace.forwards()[0] == len(want) - len(trace.prompts[0])


def self_speculation(case: Case) -> None:
  """Every draft, what the check settles of it, and forwards of both kinds, the prefill included."""
  new, want = case.arg("max_new_tokens"), case.expected
  policy = SelfSpeculative(case.arg("block_length"), case.arg("threshold"))
  span, loops = policy.draft_span, len(want["steps"])
  sampler, trace = played(
    case, policy, masks.Causal(), new + 2 * span, span, plan=Rolling(), shift=1,
    max_forwards=1 + loops,
  )  # fmt: skip
  params = model_of(case.folder)[1]
  propose = jax.jit(functools.partial(drafts.propose_itself, sampler))
  for before, after, step in zip(trace.states[1:-1], trace.states[2:], want["steps"], strict=True):
    key_B, _ = loop._row_keys(before.canvas, coupled=True)
    drafted = propose(params, before, jnp.ones(1, bool), key_B)
    start = int(before.canvas.start_B[0])
    np.testing.assert_array_equal(drafted.tokens_BxL[0, start : start + span - 1], step["draft"])
    accepted = step["accepted"]
    assert int(after.canvas.start_B[0]) - start == accepted
    settled = trace.row(after.canvas, 0)[start + 1 : start + 1 + accepted]
    np.testing.assert_array_equal(settled, step["verified"][:accepted])
  tokens = want["tokens"][0]
  np.testing.assert_array_equal(trace.row(trace.canvases[-1], 0)[: len(tokens)], tokens)
  assert trace.forwards()[0] + int(trace.canvases[-1].drafts_B[0]) == want["nfe"]


def diffusion(case: Case) -> None:
  """The block after every forward that denoises. They count the last commit, and no prefill.

  They look for an end token after such a forward alone: once more where the text before gave it.
  """
  new, block, want = case.arg("max_new_tokens"), case.arg("block_length"), case.expected
  steps, threshold = case.arg("steps") // (new // block), case.arg("threshold")
  policy = Fixed(steps=steps) if threshold is None else Threshold(threshold, steps=steps)
  sees = (masks.CausalContext if case.arg("causal_context") else masks.PromptBlocks)(block)
  _, trace = played(case, policy, sees, new, block, plan=ExactBlock(), commit="separate")
  got = []
  for before, after in zip(trace.states, trace.canvases, strict=False):
    start = int(before.canvas.start_B[0])
    if int(before.cached_B[0]) == start:  # else it is a commit, which may give a first token
      index = (start - len(trace.prompts[0])) // block
      got.append({"block": index, "grid": trace.row(after, 0)[start : start + block].tolist()})
  last = trace.canvases[-1]
  first = int(last.tokens_BxL[0, int(last.start_B[0])])
  once_more = int(case.arg("causal_context") and first == case.arg("eos_token_id"))
  assert got == want["steps"][: len(want["steps"]) - once_more]
  tokens = want["tokens"][0]
  np.testing.assert_array_equal(trace.row(last, 0)[: len(tokens)], tokens)
  prefill, last_commit = 1, 1
  assert trace.forwards()[0] - prefill + last_commit + once_more == want["nfe"]


METHODS = {
  "nemotron_ar": autoregressive,
  "nemotron_linear_spec_retyped": self_speculation,
  "nemotron_diffusion_retyped": diffusion,
  "yarn_table": yarn_table,
  "query_scale_table": query_scale_table,
  "nemotron_joint_loss_retyped": joint_loss,
}
