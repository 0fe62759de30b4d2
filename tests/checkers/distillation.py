"""Distillation losses of the authors' codes, from tests/conformance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dlm.objectives import Dscd
from dlm.types import Batch, Mask, Noisy
from tests.checkers.objectives import Case, close, same
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
    return Dscd(ABSENT, ABSENT, case.arg("temperature"), (case.arg("lambda"),) * 2)
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
  loss, (kl, ce), grad = distilled(objective, noisy, student, teacher)
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


METHODS = {
  "dscd_collate": dscd_collate,
  "dscd_lambda": dscd_lambda,
  "dscd_loss": dscd_loss,
}
