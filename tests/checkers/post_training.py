"""Losses of reinforcement and preference learning of the authors' codes, from tests/conformance.

Recorded draws go through an estimator's `noisy`, recorded logits through a Denoiser whose head is
the identity, recorded log-probabilities of the policy that wrote and of the reference into `sums`:
the code under test is the code that trains.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dlm.objectives import Mdpo, PolicyGradient, Preference, Shifted
from dlm.objectives.estimators import (
  BlockElbo,
  BlockOneStep,
  CountedElbo,
  CoupledElbo,
  CoupledMasks,
  FullMask,
  Sandwich,
  Trace,
)
from dlm.rewards.advantages import Advantages, of_steps, telling_steps
from dlm.types import Batch
from kernels_pallas.block_attention import Keys, visible
from tests.checkers.objectives import Case, Recorded, close, same
from tests.experiments import mains


class Plain(Recorded):
  """Of small heads, whose cross-entropy need not be computed in tiles."""

  def __call__(self, *args, **options):
    output = super().__call__(*args, **options)
    return output.replace(head=output.head.replace(implementation="reference"))


def batch_of(prompt, completion, learned=None, **extra) -> Batch:
  """[prompt | completion]; all of the completion was written, and `learned` marks what counts."""
  rows, first = prompt.shape
  tokens = np.concatenate([prompt, completion], axis=1)
  behind = np.arange(tokens.shape[1])[None] >= first
  when = np.where(behind, 0, -1) + np.zeros(tokens.shape, int)
  counts = when >= 0
  if learned is not None:
    counts = np.concatenate([np.zeros(prompt.shape, bool), np.asarray(learned) > 0], axis=1)
  extra = {"when": when, "advantage_B": np.ones(rows, np.float32)} | extra
  return Batch(
    tokens_BxL=np.asarray(tokens, np.int32),
    noisable_BxL=counts,
    segment_BxL=np.ones(tokens.shape, np.int32),
    position_BxL=np.tile(np.arange(tokens.shape[1], dtype=np.int32), (rows, 1)),
    extra=extra,
  )


def in_row(values, length: int) -> np.ndarray:
  """[B, C] of completions as [B, L]."""
  values = np.asarray(values, np.float32)
  return np.pad(values, ((0, 0), (length - values.shape[1], 0)))


def copy_major(logits, forwards: int) -> np.ndarray:
  """Theirs [forwards, B, ...] as ours [B * forwards, ...]."""
  parts = logits.reshape(forwards, -1, *logits.shape[-2:])
  return np.ascontiguousarray(np.moveaxis(parts, 0, 1)).reshape(-1, *logits.shape[-2:])


def row_major(grad, forwards: int) -> np.ndarray:
  """The other way."""
  parts = np.asarray(grad).reshape(-1, forwards, *grad.shape[1:])
  return np.moveaxis(parts, 1, 0)


@functools.partial(jax.jit, static_argnums=0)
def replay(objective, draws, batch, logits, old=None, anchor=None):
  """Noisy, the estimate by token, the sums of the loss, and the gradient of its mean."""
  noisy = objective.corrupt_with(draws, batch, 0)
  bare = objective.objective if isinstance(objective, Shifted) else objective

  def mean(logits):
    new, _ = bare.estimate(Plain(), {"logits": logits}, noisy)
    before = jax.lax.stop_gradient(new) if old is None else old
    reference = before if anchor is None else anchor
    sums = (
      bare.sums(new, reference, noisy)
      if isinstance(bare, Preference)
      else bare.sums(new, before, reference, noisy)
    )
    return sums.total / sums.count, (new, sums)

  grad, (new, sums) = jax.grad(mean, has_aux=True)(logits)
  return noisy, new, sums, grad


@functools.partial(jax.jit, static_argnums=(0, 3))
def noised(estimator, draws, batch, mask_id):
  return estimator.noisy(draws, batch, mask_id)


def check_loss(case: Case, objective, draws, batch, old=None, anchor=None, logits=None):
  """Loss and gradient; gives the rest back."""
  logits = case.inputs["logits"] if logits is None else logits
  noisy, new, sums, grad = replay(objective, draws, batch, logits, old, anchor)
  close(sums.total / sums.count, case.expected["loss"], rtol=2e-5)
  return noisy, np.asarray(new), sums, grad


def d1_grpo_loss(case: Case):
  prompt, completion = case.inputs["prompt_ids"], case.inputs["completion_ids"]
  length, iterations = prompt.shape[1] + completion.shape[1], case.arg("num_iterations")
  at = case.arg("step") % iterations
  beta, epsilon = case.arg("beta"), case.arg("epsilon")
  assert case.arg("cfg_scale") == 0
  objective = PolicyGradient(
    case.arg("mask_id"), FullMask(case.arg("p_mask_prompt")), clip=(epsilon, epsilon),
    kl="k3" if beta else "none", kl_weight=beta,
  )  # fmt: skip
  batch = batch_of(
    prompt, completion, case.inputs["completion_mask"], advantage_B=case.inputs["advantages"]
  )
  old = None if iterations == 1 else in_row(case.inputs["old_logps"][at], length)
  anchor = in_row(case.inputs["ref_logps"][at], length) if beta else None
  draws = {"u_prompt": case.inputs["u_prompt"]}
  noisy, new, sums, grad = check_loss(case, objective, draws, batch, old, anchor)
  same(noisy.inputs_BxW, case.outputs["model_input"])
  counts = case.inputs["completion_mask"] > 0
  close(new[:, prompt.shape[1] :][counts], case.outputs["per_token_logps"][counts])
  # They count those that are outside and pass a gradient all the same.
  close(sums.metrics["outside"] - sums.metrics["clipped"], case.expected["clip_ratio"])
  if beta:
    close(sums.metrics["kl"], case.expected["kl"])
  close(grad, case.outputs["grad_logits"])


def wd1_loss(case: Case):
  prompt, completion = case.inputs["prompt_ids"], case.inputs["completion_ids"]
  assert case.arg("step") >= 0 and case.arg("num_iterations")
  kind = "softmax_good" if case.arg("variant") == "pos_only" else "softmax"
  one_group = np.zeros(len(prompt), int)
  advantage = Advantages(kind)(case.inputs["advantages"], one_group).astype(np.float32)
  estimator = FullMask(case.arg("p_mask_prompt"), case.arg("cfg_scale"))
  objective = PolicyGradient(case.arg("mask_id"), estimator, ratio="none", per="row")
  batch = batch_of(prompt, completion, case.inputs["completion_mask"], advantage_B=advantage)
  draws = {"u_prompt": case.inputs["u_prompt"]}
  logits = copy_major(case.inputs["logits"], estimator.forwards)
  noisy, new, _, grad = check_loss(case, objective, draws, batch, logits=logits)
  grad = row_major(grad, estimator.forwards).reshape(grad.shape)
  inputs = row_major(noisy.inputs_BxW, estimator.forwards)
  same(inputs.reshape(case.outputs["model_input"].shape), case.outputs["model_input"])
  counts = case.inputs["completion_mask"] > 0
  close(new[:, prompt.shape[1] :][counts], case.outputs["per_token_logps"][counts])
  close(grad, case.outputs["grad_logits"])


def _ratio(case: Case):
  ratio = case.arg("mask_ratio")
  return CoupledMasks((ratio, ratio)), {"u_ratio": np.float32(0)}


def coupled_forward_process(case: Case):
  """With `accumulate` they tile the draws over the parts of a batch."""
  ids, first = case.inputs["input_ids"], case.arg("prompt_length")
  parts = case.arg("gradient_accumulation_steps")
  u = np.tile(case.inputs["u"], (parts if case.arg("accumulate") else 1, 1))
  estimator, draws = _ratio(case)
  batch = batch_of(ids[:, :first], ids[:, first:])
  noisy = noised(estimator, draws | {"u_mask": u}, batch, case.arg("mask_id"))
  same(row_major(noisy.inputs_BxW, 3), case.outputs["noisy"])
  weights = np.asarray(noisy.weight_BxL).reshape(-1, 3, ids.shape[1]).max((0, 2))
  close(2 * weights, case.expected["weights"])


def coupled_grpo_loss(case: Case):
  prompt, completion = case.inputs["prompt_ids"], case.inputs["completion_ids"]
  length, iterations = prompt.shape[1] + completion.shape[1], case.arg("num_iterations")
  at, beta = case.arg("step") % iterations, case.arg("beta")
  estimator, draws = _ratio(case)
  objective = PolicyGradient(
    case.arg("mask_id"), estimator, clip=(case.arg("epsilon_low"), case.arg("epsilon_high")),
    kl="k3" if beta else "none", kl_weight=beta,
  )  # fmt: skip
  batch = batch_of(
    prompt, completion, case.inputs["completion_mask"], advantage_B=case.inputs["advantages"]
  )
  old = None if iterations == 1 else in_row(case.inputs["old_logps"][:, at], length)
  anchor = in_row(case.inputs["ref_logps"][:, at], length) if beta else None
  noisy, new, _, grad = check_loss(
    case, Shifted(objective), draws | {"u_mask": case.inputs["u"]}, batch, old, anchor,
    copy_major(case.inputs["logits"], 3),
  )  # fmt: skip
  same(row_major(noisy.inputs_BxW, 3), case.outputs["model_input"])
  counts = case.inputs["completion_mask"] > 0
  close(new[:, prompt.shape[1] :][counts], case.outputs["per_token_logps"][counts])
  close(row_major(grad, 3).reshape(grad.shape), case.outputs["grad_logits"])


def _espo(case: Case, coupled: bool):
  """Estimator, draws and batch; a permutation says which rank each slot has."""
  ids, first, draws = case.inputs["input_ids"], case.arg("prompt_length"), case.arg("num_mc")
  rows, slots = len(ids), ids.shape[1] - first
  ranks = np.array(case.arg("perms"), np.float32).reshape(draws, rows, slots)
  u_mask = np.zeros((rows, draws, ids.shape[1]), np.float32)
  u_mask[:, :, first:] = np.moveaxis(ranks, 0, 1)
  u_count = (np.array(case.arg("ks")) + 0.5) / (slots + 1)
  estimator = CoupledElbo(draws, coupled)
  return estimator, {"u_count": u_count, "u_mask": u_mask}, batch_of(ids[:, :first], ids[:, first:])


def espo_elbo(case: Case):
  """Their gradient is that of the weighted sum of rows."""
  estimator, draws, batch = _espo(case, case.arg("reduce_var"))
  batch.extra["advantage_B"] = -case.inputs["cotangent"] * len(case.inputs["cotangent"])
  objective = PolicyGradient(case.arg("mask_id"), estimator, ratio="none", per="row")
  objective = Shifted(objective) if case.arg("family") == "dream" else objective
  logits = copy_major(case.inputs["logits"], estimator.forwards)
  noisy, new, _, grad = replay(objective, draws, batch, logits)
  same(row_major(noisy.inputs_BxW, estimator.forwards), case.outputs["model_input"])
  close(new.sum(-1), case.outputs["elbo"])
  close(row_major(grad, estimator.forwards), case.outputs["grad_logits"])


def espo_loss(case: Case):
  """A row's sum is what counts: recorded sums stand at one token."""
  estimator, draws, batch = _espo(case, coupled=True)
  beta, iterations = case.arg("beta"), case.arg("num_iterations")
  at = (case.arg("step") - 1) % (iterations * case.arg("gradient_accumulation_steps"))
  at //= case.arg("gradient_accumulation_steps")
  batch.extra["advantage_B"] = case.inputs["advantages"]
  objective = PolicyGradient(
    case.arg("mask_id"), estimator, ratio="row", per="row",
    clip=(case.arg("epsilon_low"), case.arg("epsilon_high")),
    kl="k2" if beta else "none", kl_weight=beta, kl_per="slot",
  )  # fmt: skip
  objective = Shifted(objective) if case.arg("family") == "dream" else objective
  length = case.inputs["input_ids"].shape[1]
  old = None if iterations == 1 else in_row(case.inputs["old_elbo"][:, at, None], length)
  anchor = in_row(case.inputs["ref_elbo"][:, at, None], length) if beta else None
  logits = copy_major(case.inputs["logits"], estimator.forwards)
  _, new, sums, grad = check_loss(case, objective, draws, batch, old, anchor, logits)
  close(new.sum(-1), case.outputs["elbo"])
  if beta:
    close(sums.metrics["kl"], case.expected["kl"])
  close(row_major(grad, estimator.forwards), case.outputs["grad_logits"])


@functools.partial(jax.jit, static_argnums=0)
def diverged(objective, gap, cotangent):
  kl, pull = jax.vjp(objective.divergence, gap)
  return kl, pull(cotangent)[0]


def espo_kl(case: Case):
  kind = {"k1": "k1_score"}.get(case.arg("estimator"), case.arg("estimator"))
  objective = PolicyGradient(0, FullMask(), kl=kind, kl_weight=1.0)
  kl, grad = diverged(
    objective, case.inputs["logp"] - case.inputs["logp_ref"], case.inputs["cotangent"]
  )
  close(kl, case.outputs["kl"])
  close(grad, case.outputs["grad_logp"])


def _spg(case: Case, learned, first: int, bound="lower"):
  """Estimator and draws: integers and permutations are taken in the order in which they were."""
  kind, copies, size = case.arg("forward_type"), case.arg("num_t"), case.arg("block_length")
  share, prompt_mask = (case.arg("min_t"), case.arg("max_t")), case.arg("p_mask_prompt")
  estimator = Sandwich(
    kind, copies, size, share, prompt_mask if case.arg("use_mask_prompt") else 0.0, bound,
    case.arg("eubo_beta", 1.5), case.arg("mix_weight", 0.5),
  )  # fmt: skip
  rows, slots = learned.shape
  length = first + slots
  perms, counts = [*case.arg("perms")], [*case.arg("ints")]
  u = case.inputs.get("u", np.ones((rows, copies, length), np.float32))
  draws = {
    "u_block": np.zeros((rows, length), np.float32),
    "u_count": np.zeros((rows, copies), np.float32),
    "u_mask": np.zeros((rows, copies, length), np.float32),
    "u_prompt": u.reshape(rows, copies, length),
  }
  sizes = learned.sum(1)
  blocks, held = -(-slots // size), -(-sizes // size)
  order = np.zeros((rows, blocks), int)
  if kind.startswith("block"):
    for row in range(rows):
      order[row] = perms.pop(0)
      draws["u_block"][row, order[row]] = np.arange(blocks)
  for row in range(rows):
    spans = [(0, sizes[row])] * copies
    if kind.startswith("block"):
      begin = size * (order[row, np.arange(copies)] % held[row])
      spans = [(b, min(b + size, sizes[row]) - b) for b in begin]
    ranks = []
    for copy, (_, among) in enumerate(spans):
      if not kind.endswith("random"):
        continue
      low, high = max(int(among * share[0]), 1), min(int(among * share[1]), among)
      count = counts.pop(0)
      assert low <= count <= high
      draws["u_count"][row, copy] = (count - low + 0.5) / (high - low + 1)
      if kind == "block_random":
        ranks.append(perms.pop(0))
    if kind == "random":
      ranks = [perms.pop(0) for _ in spans]
    for copy, (rank, (begin, _)) in enumerate(zip(ranks, spans, strict=False)):
      draws["u_mask"][row, copy, first + begin : first + begin + len(rank)] = rank
  assert not perms and not counts
  return estimator, draws


def spg_forward_process(case: Case):
  ids, first = case.inputs["input_ids"], case.arg("prompt_length")
  learned = case.inputs["completion_mask"] > 0
  estimator, draws = _spg(case, learned, first)
  batch = batch_of(ids[:, :first], ids[:, first:], learned)
  noisy = noised(estimator, draws, batch, case.arg("mask_id"))
  theirs = case.outputs["noisy"]
  same(noisy.inputs_BxW.reshape(theirs.shape), theirs)


def spg_loss(case: Case):
  prompt, completion = case.inputs["prompt_ids"], case.inputs["completion_ids"]
  learned, first = case.inputs["completion_mask"] > 0, prompt.shape[1]
  bound = {"elbo": "lower", "eubo": "upper"}.get(
    case.arg("logp_estimation"), case.arg("logp_estimation")
  )
  estimator, draws = _spg(case, learned, first, bound)
  batch = batch_of(prompt, completion, learned, advantage_B=case.inputs["advantages"])
  objective = PolicyGradient(case.arg("mask_id"), estimator, ratio="none", per="length")
  noisy, new, _, grad = check_loss(case, objective, draws, batch)
  theirs = case.outputs["model_input"]
  same(noisy.inputs_BxW.reshape(theirs.shape), theirs)
  close(new.sum(-1), case.outputs["per_seq_logps"])
  close(grad, case.outputs["grad_logits"])


def tracerl_loss(case: Case):
  """A recorded row is one state; what it hides and does not learn was written later."""
  ids, first, block = (
    case.inputs["extended_input_ids"], case.arg("start_pos"), case.arg("block_size")
  )  # fmt: skip
  length = (ids.shape[1] + first) // 2
  mask_id, pad_id = case.arg("mask_id"), case.arg("pad_id")
  learned, hidden = case.inputs["p_mask"], ids[:, length:] == mask_id
  when = np.full(learned.shape, -1)
  when[:, first:] = np.where(learned[:, first:], 0, np.where(hidden, 1, -1))
  labels = case.inputs["labels"]
  batch = batch_of(
    labels[:, :first], labels[:, first:], learned[:, first:], advantage_B=case.inputs["advantages"]
  )
  slot = np.arange(length)[None]
  text = (slot >= first) | (np.cumsum(batch.tokens_BxL != pad_id, axis=1) > 0)
  batch = batch.replace(
    segment_BxL=text.astype(np.int32), extra=batch.extra | {"when": when}, noisable_BxL=learned
  )
  beta, eps, k3 = (case.arg(name) for name in ("beta", "eps", "use_kl_estimator_k3"))
  trace = Trace(block=block, align="answer", shrink=1)
  objective = PolicyGradient(
    mask_id, trace, clip=(eps, eps), limit=10.0, per="state", anchor="old", kl_weight=beta,
    kl_per="state",
    kl="none" if not beta else "k3" if k3 else "k1",
  )  # fmt: skip
  # L1 is the whole response's length: a trace that has every slot of it.
  states = len(ids) * (length - first)
  slots = (when >= 0).sum(1).max()
  logits = case.inputs["logits"]
  ours = np.zeros((len(ids), 2 * length, logits.shape[-1]), np.float32)
  ours[:, :first], ours[:, first:length] = logits[:, :first], logits[:, length:]
  logits_R = np.repeat(ours, trace.forwards, axis=0)
  noisy, _, sums, grad = replay(objective, {}, batch, logits_R, case.inputs["logp_old"])
  shown = noisy.inputs_BxW.reshape(len(ids), trace.forwards, -1)[:, 0]
  same(shown[:, first:length], ids[:, length:])
  scale = slots * len(ids) / states
  close(sums.total / sums.count * scale, case.expected["loss"], rtol=2e-5)
  grad = np.asarray(grad).reshape(len(ids), trace.forwards, 2 * length, -1).sum(1) * scale
  close(grad[:, first:length], case.outputs["grad_logits"][:, length:])


def mdpo_loss(case: Case):
  """Dream's logits stand where they predict; its first position counts as masked, not as asked."""
  inputs, slots, dream = (
    case.inputs,
    case.arg("max_completion_length"),
    case.arg("family") == "dream",
  )
  first, mask_id = inputs["input_ids"].shape[1] - slots, case.arg("mask_id")
  assert case.arg("epsilon") > 0  # of a ratio that is 1
  beta = case.arg("beta")
  objective = Mdpo(mask_id, case.arg("temperature"), beta)
  length = first + slots
  confidence = inputs.get("confidence", np.ones_like(inputs["advantages"]))
  anchor = in_row(inputs.get("ref_logps", np.zeros_like(confidence)), length)  # none without beta
  learned = np.arange(slots)[None] >= int(dream)
  batch = batch_of(
    inputs["input_ids"][:, :first],
    inputs["target_ids"][:, first:],
    np.broadcast_to(learned, confidence.shape),
    advantage_B=inputs["advantages"][:, 0],
    hidden_BxL=inputs["input_ids"] == mask_id,
    confidence_BxL=in_row(confidence, length),
  )
  logits = np.roll(inputs["logits"], -1, axis=1) if dream else inputs["logits"]
  loss, grad = stepped(Shifted(objective) if dream else objective, batch, logits, anchor)
  close(loss, case.expected["loss"])
  close(np.roll(grad, 1, axis=1) if dream else grad, case.outputs["grad_logits"])


@functools.partial(jax.jit, static_argnums=0)
def stepped(objective, batch, logits, anchor):
  noisy = objective.corrupt_with({}, batch, 0)
  bare = objective.objective if isinstance(objective, Shifted) else objective

  def mean(logits):
    denoise, params = Plain(), {"logits": logits}
    if bare.taught:
      denoise, params = (denoise, denoise), (params, params)
    own = bare.losses(denoise, params, noisy)[1]
    sums = bare.sums(-own, jnp.where(noisy.weight_BxL > 0, anchor, 0), noisy)
    return sums.total / sums.count

  return jax.value_and_grad(mean)(logits)


def mdpo_advantages(case: Case):
  rewards = case.inputs["step_rewards"]
  assert case.arg("num_generations") == len(rewards)
  group = np.zeros(len(rewards), int)
  got = of_steps(rewards, group)
  np.testing.assert_allclose(got, case.outputs["advantages"], rtol=1e-4, atol=1e-5)
  steps = telling_steps(got, group, case.arg("sample_train_steps"))
  same(steps, np.broadcast_to(case.outputs["steps"], steps.shape))


def lightning_rl_loss(case: Case):
  ids, block = case.inputs["input_ids"], case.arg("block_size")
  learned, labels = case.inputs["p_mask"], case.inputs["labels"]
  first = int((labels != -100).argmax(1).min())
  assert (case.arg("kl_estimator"), case.arg("kl_reduction"), case.arg("nll_reduction")) == (
    "k3", "token", "token",
  )  # fmt: skip
  advantage = np.where(learned, case.inputs["advantages"], -np.inf).max(1)
  batch = batch_of(
    ids[:, :first], ids[:, first:], learned[:, first:],
    when=np.where(labels != -100, 0, -1), advantage_B=advantage, right_B=case.inputs["correctness"],
  )  # fmt: skip
  objective = PolicyGradient(
    case.arg("mask_id"), BlockOneStep(block=block), clip=(case.arg("eps"), case.arg("eps_high")),
    limit=10.0, per=case.arg("policy_reduction"), kl="k3", kl_weight=case.arg("kl_beta"),
    nll=case.arg("nll_weight"),
  )  # fmt: skip
  noisy, _, sums, grad = check_loss(
    case, objective, {}, batch, case.inputs.get("logp_old"), case.inputs["logp_ref"]
  )
  same(noisy.inputs_BxW, case.outputs["model_input"])
  same(noisy.slot_BxW, case.outputs["position_ids"])
  keys = jnp.broadcast_to(jnp.arange(2 * ids.shape[1]), noisy.inputs_BxW.shape)
  same(visible(noisy.mask, Keys(keys))[0], case.outputs["attention_mask"])
  for name, theirs in (
    ("policy", "policy_loss"), ("kl", "kl_loss"), ("nll", "nll_loss"), ("ratio", "ratio_mean"),
    *([("outside", "clip_frac")] if case.arg("eps") == case.arg("eps_high") else ()),
  ):  # fmt: skip
    weight = {"kl": case.arg("kl_beta"), "nll": case.arg("nll_weight")}.get(name, 1)
    close(weight * sums.metrics[name], case.expected[theirs])
  close(grad, case.outputs["grad_logits"])


def vrpo_formula(case: Case):
  """Log-probabilities are given; a mask is a draw that is lowest where it hides."""
  draws, length = case.inputs["mask_w"].shape
  objective = Preference(2, CountedElbo(draws), beta=case.arg("beta"))
  sizes = [case.inputs[f"mask_{side}"].shape[1] for side in "wl"]
  learned = np.arange(length)[None] < np.array(sizes)[:, None]
  u_mask, logp = np.ones((2, draws, length), np.float32), {}
  for who in ("policy", "ref"):
    logp[who] = np.zeros((2, draws, length), np.float32)
  counts = []
  for row, side in enumerate("wl"):
    mask = case.inputs[f"mask_{side}"]
    counts.append(mask.sum(1))
    u_mask[row, :, : sizes[row]] = np.where(mask, 0, 1)
    for who in logp:
      logp[who][row, :, : sizes[row]] = case.inputs[f"lp_{who}_{side}"]
  batch = batch_of(
    np.zeros((2, 0), int), np.zeros((2, length), int), learned,
    advantage_B=np.array([1.0, -1.0], np.float32),
  )  # fmt: skip
  loss, score, elbo, grads = preferred(
    objective, u_mask, np.array(counts), batch, logp["policy"], logp["ref"]
  )
  close(loss, case.expected["loss"])
  close(score, case.expected["score"])
  for row, side in enumerate("wl"):
    close(elbo[row], case.outputs[f"elbo_policy_{side}"])
    close(grads[row, :, : sizes[row]], case.outputs[f"grad_lp_policy_{side}"])


@functools.partial(jax.jit, static_argnums=0)
def preferred(objective, u_mask, count, batch, policy, reference):
  """Loss, margin, estimates by draw and gradient, of masks of any size instead of the ladder's."""
  rows, draws, length = u_mask.shape
  learned = batch.noisable_BxL[:, None]
  noisy = objective.corrupt_with({"u_count": jnp.zeros(rows), "u_mask": u_mask}, batch, 0)
  weight = jnp.where((u_mask == 0) & learned, (learned.sum(-1) / count / draws)[:, :, None], 0)
  noisy = noisy.replace(weight_BxL=weight.reshape(-1, length))

  def tokens(logp):
    return objective.estimator.tokens(logp.reshape(-1, length), noisy)

  def mean(logp):
    sums = objective.sums(tokens(logp), tokens(reference), noisy)
    return sums.total / sums.count, sums

  grads, sums = jax.grad(mean, has_aux=True)(policy)
  elbo = draws * (weight * policy).sum(-1)
  return sums.total / sums.count, sums.metrics["margin"], elbo, grads


def agentic_vrpo_elbo(case: Case):
  """Theirs is [clean | noisy from the completion's first block on]; gradients of the estimate."""
  prompt, completion = case.inputs["prompt"], case.inputs["completion"]
  block, draws, first = case.arg("block_size"), case.arg("num_mc"), len(prompt)
  end_id = case.arg("eos_id")
  short = -(first + len(completion)) % block  # they fill up the last block
  completion = np.pad(completion, (0, short), constant_values=end_id)
  learned, length = np.pad(case.inputs["trainable"] > 0, (0, short)), first + len(completion)
  estimator = BlockElbo(block=block, draws=draws, end_id=end_id)
  u_count = np.zeros((1, draws, length), np.float32)
  u_mask = np.ones((1, draws, length), np.float32)
  ks, perms = [*case.arg("ks")], [*case.arg("perms")]
  slots = np.flatnonzero(np.pad(learned, (first, 0)))
  for draw in range(draws):
    for begin in range(first // block * block, length, block):
      inside = slots[(slots >= begin) & (slots < begin + block)]
      if len(inside):
        u_count[0, draw, begin] = (ks.pop(0) - 0.5) / len(inside)
        u_mask[0, draw, inside[np.array(perms.pop(0))]] = np.arange(len(inside))
  assert not ks and not perms
  batch = batch_of(prompt[None], completion[None], learned[None])
  objective = Preference(case.arg("mask_id"), estimator, by_length=True)
  start, logits = first // block * block, case.inputs["logits"]
  ours = np.zeros((draws, 2 * length, logits.shape[-1]), np.float32)
  kept = length - start
  ours[:, start:length] = logits[:, length : length + kept]
  noisy, new, by_draw, grad = estimated(
    objective, {"u_count": u_count, "u_mask": u_mask}, batch, ours
  )
  theirs = case.outputs["model_input"]
  same(noisy.inputs_BxW[:, start:length], theirs[:, length : length + kept])
  seen = np.asarray(
    visible(noisy.mask, Keys(jnp.broadcast_to(jnp.arange(2 * length), noisy.inputs_BxW.shape)))
  )[0]
  order = np.concatenate([length + np.arange(length), np.arange(start, length)])
  size = 2 * length - start
  same(seen[order][:, order][length:], case.outputs["attention_mask"][length:size, :size])
  close(new, case.expected["logp"])
  close(by_draw, case.outputs["elbo_draws"])
  close(grad[:, start:length], case.outputs["grad_logits"][:, length : length + kept])


@functools.partial(jax.jit, static_argnums=0)
def estimated(objective, draws, batch, logits):
  """Of one row: the estimate as a preference counts it, of each draw, and the gradient."""
  noisy = objective.estimator.noisy(draws, batch, objective.mask_id)
  size = batch.noisable_BxL.sum()

  def value(logits):
    return objective.estimate(Plain(), {"logits": logits}, noisy)[0].sum() / size

  logp = jax.nn.log_softmax(logits[:, : noisy.targets_BxL.shape[1]])
  logp = jnp.take_along_axis(logp, noisy.targets_BxL[:, :, None], axis=2)[:, :, 0]
  by_draw = len(logits) * (noisy.weight_BxL * logp).sum(-1)
  return noisy, value(logits), by_draw, jax.grad(value)(logits)


@functools.cache
def study():
  return mains.load("experiments/studies/estimators.py")


def estimator_law(case: Case):
  """Every mask and every completion, through the estimators' own code."""
  estimators = study()
  law = estimators.Law(case.inputs["table_logits"], case.arg("vocab"))
  assert law.length == case.arg("length")
  counted, full = estimators.counted(law), estimators.full_mask(law)
  plain, paired = estimators.espo(law, False), estimators.espo(law, True)
  coupled, ratio = estimators.coupled(law), case.arg("mask_ratio")
  at_ratio = estimators.coupled(law, (ratio, ratio))
  lower = estimators.sandwich(law, "lower")
  for ours, theirs in (
    (law.random_order, "logp_random_order"), (law.confidence, "logp_confidence"),
    (full.mean, "full_mask"), (law.elbo, "elbo"), (counted.variance, "counted_var"),
    (paired.variance, "espo_var"), (plain.variance, "plain_counted_espo_var"),
    (at_ratio.mean, "coupled_mean"), (at_ratio.variance, "coupled_var"),
    (coupled.mean, "coupled_mean_uniform"), (lower.variance, "per_token_var"),
  ):  # fmt: skip
    close(ours, case.outputs[theirs], rtol=2e-5, atol=1e-5)
  for mean in (counted.mean, plain.mean, paired.mean, law.length * lower.mean):
    close(mean, law.elbo, atol=1e-5)
  close(estimators.traces(law).mean, law.elbo, atol=1e-5)
  if law.length < 4:  # what more costs is 2^length - 1 forwards
    close(estimators.block_exact(law).mean, law.random_order, atol=1e-5)
  close(estimators.autoregressive(law).mean, law.left_to_right, atol=1e-5)
  for of in (law.random_order, law.confidence, law.left_to_right):
    close(np.exp(of).sum(), 1)
  for power, upper in zip(case.arg("eubo_betas"), case.outputs["eubo"], strict=True):
    close(law.length * estimators.upper_bound(law, power), upper, atol=1e-5)


METHODS = {
  "agentic_vrpo_elbo": agentic_vrpo_elbo,
  "coupled_forward_process": coupled_forward_process,
  "coupled_grpo_loss": coupled_grpo_loss,
  "d1_grpo_loss": d1_grpo_loss,
  "espo_elbo": espo_elbo,
  "estimator_law": estimator_law,
  "espo_kl": espo_kl,
  "espo_loss": espo_loss,
  "mdpo_advantages": mdpo_advantages,
  "mdpo_loss": mdpo_loss,
  "lightning_rl_loss": lightning_rl_loss,
  "spg_forward_process": spg_forward_process,
  "spg_loss": spg_loss,
  "tracerl_loss": tracerl_loss,
  "vrpo_formula": vrpo_formula,
  "wd1_loss": wd1_loss,
}
