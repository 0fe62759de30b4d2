"""Nemotron-Labs-Diffusion: its rotations and query scale by number, and its joint loss."""

import jax.numpy as jnp
import numpy as np

from dlm.models import RopeScaling
from dlm.models.layers import query_scale
from dlm.models.rope import frequencies
from dlm.objectives import Nemotron
from dlm.types import Batch
from kernels_pallas.block_attention import Keys, visible
from tests.checkers.decoding import Case, model_of


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
    loss_BxL, ce_BxL, _ = objective.losses(model, params, noisy)
    np.testing.assert_allclose(
      np.asarray(ce_BxL[:, :length])[masked], arrays[f"loss/{paradigm}_token_ce_at_masked"],
      rtol=1e-4,
    )  # fmt: skip
    parts = np.asarray(loss_BxL.reshape(rows, 2, length).sum((0, 2)) / noisy.count_B.sum())
    np.testing.assert_allclose(parts[0], want["diffusion"], rtol=1e-4)
    np.testing.assert_allclose(parts.sum(), want["loss"], rtol=1e-4)
    np.testing.assert_allclose(parts[1], want["autoregressive"] or 0.0, rtol=1e-4)


METHODS = {
  "yarn_table": yarn_table,
  "query_scale_table": query_scale_table,
  "nemotron_joint_loss_retyped": joint_loss,
}
