"""Distillation losses of the authors' codes, from tests/conformance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dlm.objectives import DParallel, Dscd, Llada, Shifted
from dlm.types import Batch, Mask, Noisy
from tests.checkers.objectives import Case, close, same
from tests.checkers.objectives import batch_of as of_text
from tests.checkers.post_training import Plain

ABSENT = 1 << 20  # an id that no text holds


@functools.partial(jax.jit, static_argnums=0)
def distilled(objective, noisy, student, teacher):
  """Loss, divergence and cross-entropy as means, and the gradient."""

  def mean(logits):
    params = {"logits": logits}, {"logits": teacher}
    sums, _ = objective.loss((Plain(), Plain()), params, noisy)
    kl, ce, _ = objective.parts((Plain(), Plain()), params, noisy)
    tokens = jnp.maximum(sums.count, 1)
    return sums.total / tokens, (kl.sum() / tokens, ce.sum() / tokens)

  (loss, parts), grad = jax.value_and_grad(mean, has_aux=True)(student)
  return loss, parts, grad


def _dscd(case: Case) -> Dscd:
  warmup, updates = case.arg("warmup_ratio"), case.arg("total_steps")
  weights = case.arg("initial_lambda"), case.arg("final_lambda")
  if not case.arg("dynamic_lambda", True):
    weights, updates = (case.arg("lambda"),) * 2, 0
  return Dscd(ABSENT, ABSENT, case.arg("temperature", 2.0), weights, updates, warmup)


def dscd_loss(case: Case):
  objective, labels = _dscd(case), case.inputs["labels"]
  weight = objective.weight_at(case.arg("global_step"))
  close(weight, case.expected["lambda"])
  asked = (labels != -100).astype(np.float32)
  rows, length = labels.shape
  whole = np.zeros((rows, length, 1), np.int32)
  noisy = Noisy(
    inputs_BxW=np.zeros_like(labels), targets_BxL=np.maximum(labels, 0), weight_BxL=asked,
    count_B=asked.sum(1), slot_BxW=np.zeros_like(labels), time_BxW=np.zeros_like(asked),
    mask=Mask(whole, whole + length),
    extra={
      "nearer_BxL": np.zeros_like(labels), "nearer_level_B": np.zeros(rows, np.float32),
      "weight_B": np.full(rows, weight, np.float32),
    },
  )  # fmt: skip
  student, teacher = (case.inputs[f"{who}_logits"] for who in ("student", "teacher"))
  # The weight is in `noisy`: what is compiled need not know how it came to be.
  bare = Dscd(ABSENT, ABSENT, objective.temperature)
  loss, (kl, ce), grad = distilled(bare, noisy, student, teacher)
  assert case.expected["skipped"] == (not np.isfinite(student).all())
  close(loss, case.expected["loss"])
  close(min(kl, objective.most), case.expected["loss_consistency"])
  close(min(ce, objective.most), case.expected["loss_reconstruction"])
  close(grad, case.outputs["grad_student_logits"])


def dscd_lambda(case: Case):
  close(jax.jit(_dscd(case).weight_at)(case.inputs["steps"]), case.outputs["lambda"])


def dscd_collate(case: Case):
  """Rows of a question and an answer; a permutation says which tokens are hidden first."""
  mask_id, pad_id = case.arg("mask_id"), case.arg("pad_id")
  text, theirs = case.outputs["attention_mask"] > 0, case.outputs
  tokens = np.full(text.shape, pad_id, np.int32)
  learned, u_mask = np.zeros(text.shape, bool), np.ones(text.shape, np.float32)
  for row, (question, answer, order) in enumerate(
    zip(case.arg("questions"), case.arg("answers"), case.arg("perms"), strict=True)
  ):
    first = len(question)
    tokens[row, : first + len(answer)] = question + answer
    learned[row, first : first + len(answer)] = True
    u_mask[row, first + np.array(order)] = np.arange(len(order))
  same(learned.argmax(1), theirs["answer_start_indices"])
  batch = Batch(tokens, learned, text.astype(np.int32), np.zeros_like(tokens))
  draws = {"u_share": case.inputs["u"], "u_mask": u_mask}
  noisy = jax.jit(Dscd(mask_id, pad_id).corrupt_with)(draws, batch, 0)
  same(noisy.inputs_BxW, theirs["input_ids"])
  same(noisy.extra["nearer_BxL"], theirs["teacher_consistency_input_ids"])
  same(np.where(noisy.weight_BxL > 0, tokens, -100), theirs["labels"])


@functools.partial(jax.jit, static_argnums=0)
def replayed(objective, draws, batch, logits):
  noisy = objective.corrupt_with(draws, batch, 0)

  def mean(logits):
    sums, _ = objective.loss(Plain(), {"logits": logits}, noisy)
    return sums.total / sums.count

  return noisy, *jax.value_and_grad(mean)(logits)


def dparallel_loss(case: Case):
  """One row: their code for more lets rows overwrite each other's masks."""
  ids, (first,) = case.inputs["input_ids"], case.inputs["prompt_lengths"]
  length, mask_id = ids.shape[1], case.arg("mask_id")
  dream, size = case.arg("family") == "dream", case.arg("block_size")
  objective = DParallel(
    mask_id, None if dream else size, entropy=case.arg("entropy_weight"),
    temperature=case.arg("temperature"),
  )  # fmt: skip
  blocks = 1 if dream else (length - first) // size + 1
  (block,) = case.arg("block_index") or (0,)
  u_mask = np.zeros((1, length), np.float32)
  begin = first + block * size
  u_mask[0, begin : begin + case.inputs["u_0"].shape[1]] = case.inputs["u_0"][0]
  whole = np.ones((1, length), np.int32)
  slot = np.arange(length, dtype=np.int32)[None]
  batch = Batch(np.asarray(ids, np.int32), slot >= first, whole, slot)
  draws = {"u_block": np.array([(block + 0.5) / blocks], np.float32), "u_mask": u_mask}
  logits = np.concatenate([case.inputs["logits"], case.inputs["logits_complement"]])
  objective = Shifted(objective) if dream else objective
  noisy, loss, grad = replayed(objective, draws, batch, logits)
  for view, name in enumerate(("", "_complement")):
    same(noisy.inputs_BxW[view], case.outputs[f"noisy{name}"][0])
    same(noisy.weight_BxL[view] > 0, case.outputs[f"masked{name}"][0])
    close(grad[view], case.outputs[f"grad_logits{name}"][0])
  close(loss, case.expected["loss"])


def d1_sft_loss(case: Case):
  """LLaDA's pre-training loss of the tokens that are no prompt, weighed alike in all rows."""
  ids, mask_id = case.inputs["input_ids"], case.arg("mask_id")
  learned = np.arange(ids.shape[1])[None] >= case.inputs["prompt_lengths"][:, None]
  draws = {
    "u_time": case.inputs["t_fixed" if "t_fixed" in case.inputs else "u_t"],
    "stratum": np.arange(len(ids)), "u_mask": case.inputs["u_mask"],
    "u_cut": np.float32(1), "length": np.int32(0),
  }  # fmt: skip
  batch = of_text(ids, noisable=learned)
  objective = Llada(mask_id, random_length=0.0)
  noisy, loss, grad = replayed(objective, draws, batch, case.inputs["logits"])
  same(noisy.inputs_BxW, case.outputs["noisy"])
  close(loss, case.expected["loss"])
  close(grad, case.outputs["grad_logits"])


METHODS = {
  "d1_sft_loss": d1_sft_loss,
  "dparallel_loss": dparallel_loss,
  "dscd_collate": dscd_collate,
  "dscd_lambda": dscd_lambda,
  "dscd_loss": dscd_loss,
}
