"""Distillation losses of the authors' codes, from tests/conformance."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from dlm.objectives import D3llm, DParallel, Dscd, Llada, Sdtt, Shifted
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


def d3llm_curriculum(case: Case):
  """Their epoch is the share of the updates that are done."""
  epochs, updates = case.arg("epochs"), case.arg("max_steps")
  close(case.inputs["step"] * epochs / updates, case.inputs["epoch"], atol=0.002)
  objective = D3llm(
    ABSENT, tuple(case.arg("block_sizes")), updates, (case.arg("min_ratio"), case.arg("max_ratio"))
  )
  assert len(objective.sizes) == epochs
  same(jax.vmap(objective.size_at)(case.inputs["step"]), case.outputs["block_size"])
  close(jax.vmap(objective.least_noise_at)(case.inputs["step"]), case.outputs["ratio_lower_bound"])


def d3llm_forward_process(case: Case):
  """A row without a usable trajectory is hidden at random in their code, by another order in ours:
  each row is compared with what its own order gives."""
  ids, (first,) = case.inputs["input_ids"], set(case.inputs["prompt_lengths"].tolist())
  assert (case.inputs["full_lengths"] > first).all()  # their answers go on to the end of the row
  (rows, length), mask_id, size = ids.shape, case.arg("mask_id"), case.arg("block_size")
  blocks = (length - first) // size + 1
  when, u_mask, traced = np.full(ids.shape, -1), np.zeros(ids.shape, np.float32), []
  for row in range(rows):
    states = case.inputs.get(f"traj_{row}", np.zeros((0, 0)))
    traced.append(states.shape[1] == length)
    if traced[-1]:
      when[row, first:] = (states[:, first:] != mask_id).argmax(0)
    else:
      begin = first + case.inputs["block_index"][row] * size
      u_mask[row, begin : begin + size] = case.inputs[f"u_{row}"]
  batch = of_text(ids, noisable=np.arange(length)[None] + np.zeros((rows, 1)) >= first)
  batch = batch.replace(extra={"when": jnp.asarray(when)})
  draws = {
    "u_block": (case.inputs["block_index"] + np.float32(0.5)) / blocks, "u_mask": u_mask,
    "u_time": np.zeros(rows, np.float32),
  }  # fmt: skip
  for order, of_order in (("trace", True), ("random", False)):
    objective = D3llm(mask_id, (size,), noise=(case.arg("mask_ratio"),) * 2, order=order)
    noisy = jax.jit(objective.corrupt_with)(draws, batch, 0)
    at = np.array(traced) == of_order
    for view, name in enumerate(("", "_complement")):
      same(noisy.inputs_BxW[view::2][at], case.outputs[f"noisy{name}"][at])
      same((noisy.weight_BxL > 0)[view::2][at], case.outputs[f"masked{name}"][at])


@functools.partial(jax.jit, static_argnums=0)
def of_noisy(objective, noisy, logits):
  def mean(logits):
    sums, _ = objective.loss(Plain(), {"logits": logits}, noisy)
    return sums.total / sums.count

  return jax.value_and_grad(mean)(logits)


def d3llm_loss(case: Case):
  """Of given masks, which need be no block's; Dream's first token of a row is not asked."""
  ids, dream = case.inputs["input_ids"], case.arg("family") == "dream"
  rows, length = ids.shape
  assert case.arg("complementary")
  objective = D3llm(
    ABSENT, entropy=case.arg("entropy_weight"), both=dream, temperature=case.arg("temperature")
  )
  names = ("", "_complement")
  learned = np.stack([case.inputs[f"masked{name}"] for name in names], axis=1)
  learned[:, :, : int(dream)] = False
  weight = learned * rows / (4 * learned.sum((0, 2), keepdims=True))
  whole = np.zeros((2 * rows, length, 1), np.int32)
  zeros = np.zeros((2 * rows, length), np.int32)
  ask = np.maximum(np.arange(length, dtype=np.int32) - dream, 0) + zeros
  noisy = Noisy(
    inputs_BxW=zeros, targets_BxL=np.repeat(ids, 2, axis=0).astype(np.int32),
    weight_BxL=weight.reshape(zeros.shape).astype(np.float32),
    count_B=np.full(2 * rows, 0.5, np.float32), slot_BxW=zeros, time_BxW=zeros.astype(np.float32),
    mask=Mask(whole, whole + length), ask_BxL=ask,
  )  # fmt: skip
  logits = np.stack([case.inputs[f"logits{name}"] for name in names], axis=1)
  loss, grad = of_noisy(objective, noisy, logits.reshape(2 * rows, length, -1))
  close(loss, case.expected["loss"])
  for view, name in enumerate(names):
    close(grad[view::2], case.outputs[f"grad_logits{name}"])


@dataclasses.dataclass(frozen=True)
class Turns(Plain):
  """Says something else each time that it is asked, and keeps what it was asked."""

  asked: list = dataclasses.field(default_factory=list)

  def __call__(self, params, tokens_BxW, **options):
    self.asked.append(tokens_BxW)
    turn = {"logits": params["logits"][len(self.asked) - 1]}
    return super().__call__(turn, tokens_BxW, **options)


@functools.partial(jax.jit, static_argnums=0)
def self_distilled(objective, draws, batch, student, teacher):
  noisy, frozen = objective.corrupt_with(draws, batch, 0), {"logits": teacher}
  taught = objective.taught_by(Turns(), frozen, noisy)[0]
  turns = Turns()

  def mean(logits):
    sums, _ = objective.loss((Plain(), turns), ({"logits": logits}, frozen), noisy)
    return sums.total / sums.count, tuple(turns.asked)

  (loss, states), grad = jax.value_and_grad(mean, has_aux=True)(student)
  return loss, states, taught, grad


SDTT_KINDS = {"kl-bwd": "kl_reverse", "kl-fwd": "kl", "mse": "mse", "tvd": "tvd"}


def sdtt_loss(case: Case):
  """Recorded at one precision or two; ours is float32, without their offset of the mask's logit."""
  xt, t, mask_id = case.inputs["xt"], case.inputs["t"], case.arg("mask_id")
  assert case.arg("noise_eps") == 1e-3
  assert case.arg("loss_precision") in (None, "64")
  assert case.arg("logits_dtype") in ("float32", "float64")
  objective = Sdtt(
    mask_id, "iid", vocab=case.inputs["student_logits"].shape[-1], dt=case.arg("dt"),
    steps=case.arg("num_distill_steps"), kind=SDTT_KINDS[case.arg("divergence")],
    released_times=True, min_time=case.arg("sampling_eps"),
  )  # fmt: skip
  draws = {
    "u_time": (t - objective.min_time) / (1 - objective.min_time), "stratum": np.arange(len(t)),
    "u_mask": np.where(xt == mask_id, 0, 1).astype(np.float32),
    "u_step": case.inputs["u"].swapaxes(0, 1),
  }  # fmt: skip
  loss, states, taught, grad = self_distilled(
    objective, draws, of_text(np.where(xt == mask_id, 0, xt)), case.inputs["student_logits"],
    case.inputs["teacher_logits"],
  )  # fmt: skip
  same(np.stack(states), case.outputs["states"])
  hidden = xt == mask_id
  close(np.delete(taught, mask_id, axis=-1)[hidden], case.outputs["targets"][hidden])
  close(loss, case.expected["loss"])
  close(grad, case.outputs["grad_student_logits"])


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
  "d3llm_curriculum": d3llm_curriculum,
  "d3llm_forward_process": d3llm_forward_process,
  "d3llm_loss": d3llm_loss,
  "dparallel_loss": dparallel_loss,
  "dscd_collate": dscd_collate,
  "dscd_lambda": dscd_lambda,
  "dscd_loss": dscd_loss,
  "sdtt_loss": sdtt_loss,
}
