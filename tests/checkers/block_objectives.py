"""Block training of the authors' codes: losses, draws and masks, and losses on their own models.

Levels that blocks or documents share are recorded once each; `at_starts` puts them where our draws
have them, at the first slot.
"""

import dataclasses
import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from dlm import masks
from dlm.diffusion.schedules import LladaLinear
from dlm.objectives import (
  Bd3lm,
  DreamSft,
  EfficientDlm,
  FastDllmV2,
  IDlm,
  Llada,
  Llada2Sft,
  Nemotron,
  Sdar,
  Uniform,
  cross_entropy,
  dream,
)
from dlm.types import Batch
from kernels_pallas.block_attention import Keys, visible
from tests.checkers import decoding
from tests.checkers.objectives import Case, batch_of, close, in_order, replay, same

IGNORED = -100  # label of what is neither masked nor scored


def packed(ids, labels, positions=None) -> Batch:
  """Rows of documents end to end, each of which begins where its positions do."""
  shape = ids.shape
  positions = np.broadcast_to(np.arange(shape[1]), shape) if positions is None else positions
  return Batch(
    tokens_BxL=jnp.asarray(ids, jnp.int32),
    noisable_BxL=jnp.asarray(labels != IGNORED),
    segment_BxL=jnp.asarray((positions == 0).cumsum(1), jnp.int32),
    position_BxL=jnp.asarray(positions, jnp.int32),
  )


def at_starts(starts_BxL, u_n) -> np.ndarray:
  """[B, L]: the n-th number at the n-th start, row by row."""
  u_BxL = np.zeros(starts_BxL.shape, np.float32)
  u_BxL[starts_BxL] = np.ravel(u_n)
  return u_BxL


def every(block: int, shape) -> np.ndarray:
  return np.broadcast_to(np.arange(shape[1]) % block == 0, shape)


def by_document(positions) -> np.ndarray:
  """[B, 2L]: where each input of [noisy, clean, noisy, clean, ...] by document stands in ours."""
  order = []
  for row in positions:
    length = len(row)
    edges = [*np.flatnonzero(row == 0), length]
    parts = [half + np.arange(a, b) for a, b in itertools.pairwise(edges) for half in (0, length)]
    order.append(np.concatenate(parts))
  return np.array(order)


@jax.jit
def seen_by(mask):
  rows, width = mask.lo_BxWxR.shape[:2]
  return visible(mask, Keys(jnp.broadcast_to(jnp.arange(width), (rows, width))))


def check_layout(noisy, order, model_input, positions, attention) -> None:
  """Inputs, positions and mask, in the authors' order of inputs."""
  rows = np.arange(len(order))
  same(np.take_along_axis(np.asarray(noisy.inputs_BxW), order, 1), model_input)
  same(np.take_along_axis(np.asarray(noisy.slot_BxW), order, 1), positions)
  seen = np.asarray(seen_by(noisy.mask))[rows[:, None, None], order[:, :, None], order[:, None]]
  same(seen, attention)


def sdar_loss(case: Case):
  ids, labels, positions = (case.inputs[k] for k in ("input_ids", "labels", "position_ids"))
  rows, length = ids.shape
  levels = np.concatenate([case.inputs[f"u_{b}a"] for b in range(rows)])
  draws = {
    "u_time": at_starts(positions == 0, levels),
    "u_mask": np.concatenate([case.inputs[f"u_{b}b"] for b in range(rows)]),
  }
  order = by_document(positions)
  logits = np.zeros_like(case.inputs["logits"])
  np.put_along_axis(logits, order[..., None], case.inputs["logits"], axis=1)
  objective = Sdar(case.arg("mask_id"), case.arg("block_size"))
  noisy, loss, grad, _ = replay(objective, draws, packed(ids, labels, positions), logits)
  check_layout(
    noisy,
    order,
    case.outputs["model_input"],
    case.outputs["position_ids"],
    case.outputs["attention_mask"],
  )
  scored = np.asarray(noisy.weight_BxL > 0)
  both = np.concatenate([scored, np.zeros_like(scored)], axis=1)
  same(np.take_along_axis(both, order, 1), case.outputs["scored"])
  close(np.asarray(noisy.time_BxW)[:, :length][scored], case.outputs["p_mask"])
  close(loss, case.expected["loss"])
  close(np.take_along_axis(np.asarray(grad), order[..., None], 1), case.outputs["grad_logits"])


def in_turn(stacked):
  """Rows [view 1; view 2] of the authors in our order, both views of a row side by side."""
  return np.concatenate(np.split(np.asarray(stacked), 2), axis=1).reshape(stacked.shape)


def check_views(noisy, labels) -> None:
  """What is asked is what the authors label, but for the first token, which nothing predicts."""
  scored = in_turn(labels) != IGNORED
  scored[:, 0] = False
  same(noisy.weight_BxL > 0, scored)
  same(noisy.targets_BxL, in_turn(labels), scored)


def fast_dllm_v2_loss(case: Case):
  ids, block = case.inputs["input_ids"], case.arg("block_size")
  draws = {
    "u_time": at_starts(every(block, ids.shape), case.inputs["u_t"]),
    "u_mask": case.inputs["u_mask"].reshape(ids.shape),
  }
  batch = packed(ids, case.inputs["labels"])
  objective = FastDllmV2(case.arg("mask_id"), block)
  noisy, loss, grad, _ = replay(objective, draws, batch, in_turn(case.inputs["logits"]))
  same(noisy.inputs_BxW, in_turn(case.outputs["model_input"]))
  check_views(noisy, case.outputs["labels"])
  close(loss, case.expected["loss"])
  close(grad, in_turn(case.outputs["grad_logits"]))


def efficient_dlm_corrupt(case: Case):
  ids, block = case.inputs["input_ids"], case.arg("block_size")
  length = ids.shape[1]
  draws = {
    "u_time": at_starts(every(block or length, ids.shape), case.inputs["u_m"]),
    "u_mask": case.inputs["u_gumbel"].reshape(len(ids), -1)[:, :length],
  }
  objective = EfficientDlm(
    case.arg("mask_id"),
    block,
    schedule=LladaLinear(case.arg("eps")),
    half_life=case.arg("half_life_ratio"),
  )
  batch = batch_of(ids, noisable=case.inputs["loss_mask"] > 0)
  noisy = jax.jit(objective.corrupt_with)(draws, batch, 0)
  same(noisy.inputs_BxW[:, :length], case.outputs["noisy"])
  same(noisy.weight_BxL > 0, case.outputs["masked"])
  close(noisy.time_BxW[:, :length], case.outputs["p_mask"])


def efficient_dlm_marginals(case: Case, draws: int = 40_000):
  """Frequencies of many draws, within 4.5 standard errors of the formula's probabilities."""
  block, level, count = case.arg("block_size"), case.inputs["m"], case.inputs["k"]
  objective = EfficientDlm(0, block, half_life=case.arg("half_life_ratio"))

  @jax.jit
  def frequency(key):
    u_BxL = jax.random.uniform(key, (draws * len(level), block))

    def each(values):
      return jnp.repeat(jnp.asarray(values), draws)[:, None] + jnp.zeros_like(u_BxL, values.dtype)

    start_BxL = jnp.zeros(u_BxL.shape, jnp.int32)
    masked_BxL = objective.chosen(
      u_BxL,
      start_BxL,
      start_BxL + block,
      each(level.astype(np.float32)),
      each(count.astype(np.int32)),
    )
    return masked_BxL.reshape(len(level), draws, block).mean(1)

  want = case.outputs["inclusion"]
  error = np.sqrt(want * (1 - want) / draws)
  assert (np.abs(np.asarray(frequency(jax.random.key(0))) - want) < 4.5 * error + 1e-6).all()


def llada2_sft_loss(case: Case):
  ids = case.inputs["input_ids"]
  noisable = np.arange(ids.shape[1])[None] >= case.inputs["prompt_lengths"][:, None]
  objective = Llada2Sft(
    case.arg("mask_id"),
    block=4,  # the recorded logits are those of the noisy half, whatever it sees
    window=tuple(case.arg("noise_range")),
    shift=0 if case.arg("same_token_labels") else 1,
    confidence=case.arg("confidence_beta"),
  )
  draws = {
    "u_time": np.broadcast_to(case.inputs["u_t"], ids.shape),
    "u_mask": case.inputs["u_mask"],
  }
  batch = batch_of(ids, noisable=noisable)
  noisy, loss, grad, _ = replay(objective, draws, batch, case.inputs["logits"])
  same(noisy.inputs_BxW[:, : ids.shape[1]], case.outputs["noisy"])
  scored = case.outputs["labels"] != IGNORED
  same(noisy.weight_BxL > 0, scored)
  same(noisy.targets_BxL, case.outputs["labels"], scored)
  close(loss, case.expected["loss"])
  close(grad, case.outputs["grad_logits"])
  plain = dataclasses.replace(objective, confidence=0.0)
  consistency = replay(plain, draws, batch, case.inputs["logits"])[1]
  close(consistency, case.expected["consistency_loss"])
  if objective.confidence:
    close((loss - consistency) / objective.confidence, case.expected["confidence_loss"], rtol=1e-4)


def uniform_random_corrupt(case: Case):
  ids, block = case.inputs["input_ids"], case.arg("block_size")
  length, vocab = ids.shape[1], case.arg("vocab")
  draws = {
    "u_time": at_starts(every(block or length, ids.shape), case.inputs["u_t"]),
    "u_mask": case.inputs["u_mask"],
    "random": case.inputs["random_tokens"],
  }
  objective = Uniform(vocab, block, vocab, schedule=LladaLinear(case.arg("eps")))
  corrupt = jax.jit(objective.corrupt_with)
  batch = batch_of(ids, noisable=case.inputs["loss_mask"] > 0)
  same(corrupt(draws, batch, 0).inputs_BxW[:, :length], case.outputs["noisy"])
  marked = corrupt(draws | {"random": np.full_like(ids, -1)}, batch, 0)
  same(marked.inputs_BxW[:, :length] == -1, case.outputs["corrupted"])


def automodel_loss(case: Case):
  AUTOMODEL[case.arg("kind")](case)


def automodel_flat(case: Case):
  """Of DiffusionGemma."""
  case.used.update(("alpha", "num_ar_tokens", "clean_loss_weight", "auto_balance"))  # of others
  ids, logits = case.inputs["target_ids"], case.inputs["logits"]
  draws = {
    "u_time": np.zeros(ids.shape, np.float32),
    "u_mask": np.where(case.inputs["noise_mask"], np.float32(0), np.float32(1)),
    "random": np.zeros_like(ids),
  }
  objective = Uniform(logits.shape[-1], None, logits.shape[-1])
  batch = batch_of(ids, noisable=case.inputs["loss_mask"] > 0)
  _, loss, grad, losses = replay(objective, draws, batch, logits)
  count = case.inputs["loss_mask"].sum()
  mean_of = case.arg("num_diffusion_tokens") or count  # null: of the tokens at hand
  close(losses.sum() / mean_of, case.expected["total_loss"])
  close(loss * count / mean_of, case.expected["dllm_loss"])
  close(grad * count / mean_of, case.outputs["grad_logits"])


def noise_of(case: Case) -> dict:
  """Draws that give the recorded level of each row and the recorded mask."""
  level_BxL = case.inputs["p_mask"]
  return {
    "u_time": (level_BxL - 0.001) / 0.999,
    "u_mask": np.where(case.inputs["noise_mask"], np.float32(0), np.float32(1)),
  }


def automodel_mdlm(case: Case):
  """LLaDA's loss; null: of the tokens at hand, a sum."""
  case.used.update(("alpha", "num_ar_tokens", "clean_loss_weight", "auto_balance"))
  ids, draws = case.inputs["target_ids"], noise_of(case)
  draws |= in_order(draws["u_time"][:, 0]) | {"u_cut": np.float32(1), "length": ids.shape[1]}
  objective = Llada(ids.max() + 1, random_length=0.0)
  batch = batch_of(ids, noisable=case.inputs["loss_mask"] > 0)
  noisy, loss, grad, _ = replay(objective, draws, batch, case.inputs["logits"])
  same(noisy.weight_BxL > 0, case.inputs["noise_mask"] & (case.inputs["loss_mask"] > 0))
  scale = case.inputs["loss_mask"].sum() / (case.arg("num_diffusion_tokens") or 1)
  close(loss * scale, case.expected["total_loss"])
  close(loss * scale, case.expected["dllm_loss"])
  close(grad * scale, case.outputs["grad_logits"])


def automodel_hybrid(case: Case):
  """Recorded with counts of its own for each part, and other tokens asked for the next ones."""
  case.used.update(("clean_loss_weight", "auto_balance"))
  ids, masked = case.inputs["target_ids"], case.inputs["noise_mask"]
  logits = np.concatenate([case.inputs["logits"], case.inputs["causal_logits"]], axis=1)
  for part, weights in ((0, {"next_weight": 0.0}), (1, {"diffusion_weight": 0.0})):
    weights = {"diffusion_weight": case.arg("alpha")} | weights
    objective = Nemotron(ids.max() + 1, block=4, **weights)
    scored = case.inputs[("loss_mask", "loss_mask_ar")[part]] > 0
    batch = batch_of(ids, noisable=scored)
    _, loss, grad, _ = replay(objective, noise_of(case), batch, logits)
    # Of the whole batch ours divides by what is masked and by what is next: by what they count.
    count = ((masked & scored).sum(), scored[:, 1:].sum())[part]
    scale = count / case.arg(("num_diffusion_tokens", "num_ar_tokens")[part])
    want = case.expected["dllm_loss"]
    close(loss * scale, (want, case.expected["total_loss"] - want)[part])
    grad_parts = np.split(np.asarray(grad) * scale, 2, axis=1)
    close(grad_parts[part], case.outputs[("grad_logits", "grad_causal_logits")[part]])
    assert not grad_parts[1 - part].any()


def automodel_idlm(case: Case):
  """I-DLM's loss: all of an answer is masked, whatever the recorded noise says."""
  case.used.update(("alpha", "num_ar_tokens"))
  fixed = case.arg("clean_loss_weight")
  weight = None if case.arg("auto_balance") else fixed
  ids, text = case.inputs["target_ids"], case.inputs["valid_mask"]
  objective = IDlm(ids.max() + 1, block=1, clean_weight=weight)
  batch = batch_of(ids, text, (case.inputs["loss_mask"] > 0) & text)
  noisy, loss, grad, losses = replay(objective, {}, batch, case.inputs["logits"])
  count = float(noisy.count_B.sum())
  scale = count / (case.arg("num_diffusion_tokens") or count)
  close(loss * scale, case.expected["total_loss"])
  close(losses[:, : ids.shape[1]].sum() / count * scale, case.expected["dllm_loss"])
  close(grad * scale, case.outputs["grad_logits"])


AUTOMODEL = {
  "block_diffusion_flat": automodel_flat,
  "mdlm": automodel_mdlm,
  "hybrid": automodel_hybrid,
  "idlm": automodel_idlm,
}


def sbd_attention_mask(case: Case):
  length, block = case.arg("length"), case.arg("block_size")
  start_1xL = jnp.arange(length)[None] // block * block
  same(
    seen_by(masks.noisy_clean_from(start_1xL, block, causal_clean=True))[0], case.outputs["mask"]
  )


def smdm_forward_process(case: Case):
  """Of LLaDA's own form; SMDM's loss is LLaDA's too."""
  objective = Llada(case.arg("mask_id"), random_length=0.0)
  ids = case.inputs["input_ids"]
  draws = in_order(case.inputs["u_t"]) | {
    "u_mask": case.inputs["u_mask"],
    "u_cut": np.float32(1),
    "length": ids.shape[1],
  }
  noisy = jax.jit(objective.corrupt_with)(draws, batch_of(ids), 0)
  same(noisy.inputs_BxW, case.outputs["noisy"])
  same(noisy.weight_BxL > 0, case.outputs["masked"])
  close(noisy.time_BxW[:, 0], case.outputs["p_mask"])


def dream_cart_weights(case: Case):
  masked, p = jnp.asarray(case.inputs["masked"]), case.arg("p")
  length = masked.shape[1]
  assert length == case.arg("length")
  weights = jax.jit(dream.cart_weights, static_argnums=2)
  first_L = jnp.arange(length) == 0
  close(weights(masked, jnp.broadcast_to(first_L, masked.shape), p), case.outputs["weights"])
  # One clean token at a time gives the matrix, but for its diagonal of zeros.
  alone = weights(~jnp.eye(length, dtype=bool), jnp.broadcast_to(first_L, (length, length)), p)
  close(alone, case.outputs["matrix"])


DREAM_WEIGHTS = {"cart": "cart", "original": "inverse", "linear": "linear", "none": "none"}


def dream_sft_loss(case: Case):
  ids, text = case.inputs["input_ids"], case.inputs["attention_mask"]
  assert text.all(), "padding is text that the authors learn"
  assert (ids[:, -1] == case.arg("pad_id")).all(), "ours ties whatever ends a document"
  objective = DreamSft(
    case.arg("mask_id"),
    weight=DREAM_WEIGHTS[case.arg("time_reweighting")],
    cart_p=case.arg("cart_p"),
    focal=case.arg("token_reweighting"),
    focal_alpha=case.arg("alpha"),
    focal_gamma=case.arg("gamma"),
    tie_ends=case.arg("treat_eos_as_one"),
  )
  draws = in_order(case.inputs["u_t"]) | {"u_mask": case.inputs["u_mask"]}
  batch = batch_of(ids, text, case.inputs["loss_mask"])
  noisy, loss, grad, _ = replay(objective, draws, batch, case.inputs["logits"])
  same(noisy.inputs_BxW, case.outputs["noisy"])
  close(loss, case.expected["loss"])
  close(grad, case.outputs["grad_logits"])


METHODS = {
  "automodel_loss": automodel_loss,
  "dream_cart_weights": dream_cart_weights,
  "dream_sft_loss": dream_sft_loss,
  "efficient_dlm_corrupt": efficient_dlm_corrupt,
  "efficient_dlm_marginals": efficient_dlm_marginals,
  "fast_dllm_v2_loss": fast_dllm_v2_loss,
  "llada2_sft_loss": llada2_sft_loss,
  "sbd_attention_mask": sbd_attention_mask,
  "sdar_loss": sdar_loss,
  "smdm_forward_process": smdm_forward_process,
  "uniform_random_corrupt": uniform_random_corrupt,
}


# ---------------------------------------------------------------------------------------------
# train_loss.npz: from ids and draws to the loss, through the authors' model


@functools.partial(jax.jit, static_argnums=(0, 1))
def forward(objective, model, params, draws, batch):
  """Noisy, loss by token, mean loss."""
  noisy = objective.corrupt_with(draws, batch, 0)
  sums, _ = objective.loss(model, params, noisy)
  return noisy, objective.token_losses(model, params, noisy), sums.total / sums.count


def sdar_train_loss(run: dict, model, params) -> None:
  ids, labels, positions = (run.pop(k) for k in ("input_ids", "labels", "position_ids"))
  recorded = [run.pop(f"draw{n}_uniform") for n in range(2 * len(ids))]
  draws = {
    "u_time": at_starts(positions == 0, np.concatenate(recorded[::2])),
    "u_mask": np.concatenate(recorded[1::2]),
  }
  noisy_ids, scored = run.pop("noisy_ids"), run.pop("masked")
  objective = Sdar(int(noisy_ids[scored][0]), int(run.pop("block_size")))
  batch = packed(ids, labels, positions)
  noisy, losses, loss = forward(objective, model, params, draws, batch)
  order = by_document(positions)
  same(noisy.weight_BxL > 0, scored)
  clean_too = np.concatenate([noisy_ids, ids], axis=1)
  check_layout(
    noisy,
    order,
    np.take_along_axis(clean_too, order, 1),
    np.take_along_axis(np.tile(positions, 2), order, 1),
    run.pop("attention_mask"),
  )
  p_mask = run.pop("p_mask_at_masked")
  close(np.asarray(noisy.weight_BxL)[scored], 1 / p_mask)
  close(np.asarray(losses)[scored] * p_mask, run.pop("token_ce_at_masked"), rtol=1e-4, atol=1e-4)
  close(loss, run.pop("loss"), rtol=1e-4)


def fast_dllm_v2_train_loss(run: dict, model, params) -> None:
  ids, block = run.pop("input_ids"), int(run.pop("block_size"))
  draws = {
    "u_time": at_starts(every(block, ids.shape), run.pop("t_per_block")),
    "u_mask": run.pop("uniform").reshape(ids.shape),
  }
  noisy_ids, labels = run.pop("noisy_ids"), run.pop("noisy_labels")
  objective = FastDllmV2(int(noisy_ids[labels != IGNORED][0]), block)
  batch = packed(ids, run.pop("labels"))
  noisy, _, loss = forward(objective, model, params, draws, batch)
  length = ids.shape[1]
  same(noisy.inputs_BxW[:, :length], in_turn(noisy_ids))
  check_views(noisy, labels)
  got = logits_of(model, params, noisy.replace(ask_BxL=None))
  close(got, in_turn(run.pop("logits")), rtol=0, atol=2e-3)
  close(loss, run.pop("loss"), rtol=1e-4)


def bd3lm_train_loss(run: dict, model, params) -> None:
  """Draws: of every block's time, of every token, and of tokens again for each round.

  Their padding is text that is noised and seen, and only not scored.
  """
  ids, text, block = run.pop("x0"), run.pop("attention_mask"), int(run.pop("block_size"))
  count = sum(name.startswith("uniform_draw") for name in run)
  recorded = [run.pop(f"uniform_draw{n}_k16") for n in range(count)]
  u_time, u_mask, *again = [np.float32((k + 0.5) / 2**16) for k in recorded]
  assert run.pop("resample") == bool(again)
  want, t = run.pop("xt"), run.pop("t")
  want[:, 0] = ids[:, 0]  # it was recorded before the first token was put back
  draws = in_order(np.ravel(u_time)) | {
    "u_mask": u_mask,
    "u_resample": np.reshape(again, (len(again), *ids.shape)),
  }
  objective = Bd3lm(
    model.config.vocab - 1,
    block,
    window=tuple(map(float, run.pop("eps"))),
    resample_rounds=len(again),
  )
  noisy, losses, _ = forward(objective, model, params, draws, batch_of(ids))
  length = ids.shape[1]
  same(noisy.inputs_BxW, np.concatenate([want, ids], axis=1))
  close(noisy.time_BxW[:, :length], t)
  close(losses * text, run.pop("nll_per_token"), rtol=1e-4, atol=1e-3)
  close((losses * text).sum() / text.sum(), run.pop("loss"), rtol=1e-4)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model, params, noisy):
  return cross_entropy.logits(cross_entropy.predict(model, params, noisy)[0])


TRAIN_LOSS = {
  "sdar": sdar_train_loss,
  "fast_dllm_v2": fast_dllm_v2_train_loss,
  "bd3lm": bd3lm_train_loss,
}


def check_train_loss(path: pathlib.Path) -> None:
  """Every run of a train_loss.npz, and every array of it."""
  model, params = decoding.model_of(path.parent)
  arrays = dict(np.load(path))
  runs = sorted({name.partition("_")[0] for name in arrays})
  assert runs
  for name in runs:
    run = {k.removeprefix(f"{name}_"): v for k, v in arrays.items() if k.startswith(f"{name}_")}
    TRAIN_LOSS[path.parent.name](run, model, params)
    assert not run, f"{path} holds arrays that no check reads: {set(run)}"
