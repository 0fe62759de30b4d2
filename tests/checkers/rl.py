"""Post-training of the authors' codes, from tests/conformance/rl_2026: OPDLM, what of TraceRL's
rows and attention it shares, and Duo's distillation.

Their input is [prompt | clean answer | noisy answer], prompts padded on the left; ours is
[noisy; clean] of both. `in_theirs` says which of our inputs each of theirs is.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dlm import masks
from dlm.data import spans
from dlm.models.config import DrafterConfig
from dlm.objectives import DFlash, DuoDcd, Opdlm, streams
from dlm.objectives.critic import Critic
from dlm.objectives.divergence import Divergence
from dlm.objectives.estimators import BlockMasks, Trace
from dlm.types import Batch
from kernels_pallas.block_attention import Keys, visible
from tests.checkers.block_objectives import seen_by
from tests.checkers.objectives import Case, Recorded, close, same
from tests.checkers.objectives import batch_of as of_text

KEEP_ALL = 0.75  # a draw that takes the last of one or two states of a block


def in_theirs(prompt: int, length: int) -> np.ndarray:
  return np.concatenate([length + np.arange(length), np.arange(prompt, length)])


def batch_of(ids, prompt: int, pad_id: int, **extra) -> Batch:
  """Rows [prompt | answer]; padding before the prompt is nobody's, padding behind the answer is
  text that is not learned."""
  slot = np.arange(ids.shape[1])[None]
  text = (slot >= prompt) | (np.cumsum(ids != pad_id, axis=1) > 0)
  return Batch(
    tokens_BxL=jnp.asarray(ids, jnp.int32),
    noisable_BxL=jnp.asarray((slot >= prompt) & (ids != pad_id)),
    segment_BxL=jnp.asarray(text, jnp.int32),
    position_BxL=jnp.asarray(np.where(text, np.cumsum(text, axis=1) - 1, 0), jnp.int32),
    extra={name: jnp.asarray(value) for name, value in extra.items()},
  )


def when_of(masked, prompt: int, block: int) -> np.ndarray:
  """A trajectory whose last state but the text itself is this: masks were written last."""
  when = np.full(masked.shape, -1, np.int32)
  for first in range(prompt, masked.shape[1], block):
    part = masked[:, first : first + block]
    when[:, first : first + block] = np.where(part.any(1, keepdims=True), part, -1)
  return when


@functools.partial(jax.jit, static_argnums=(0, 4))
def replay(objective, batch, student, teacher, in_stream):
  """Noisy, what the teacher reads, the loss and its gradient."""
  draws = dict.fromkeys(("u_time", "u_mask"), jnp.full(batch.tokens_BxL.shape, KEEP_ALL))
  noisy = objective.corrupt_with(draws, batch, 0)
  noisy = streams.shifted_in_stream(noisy, batch) if in_stream else noisy
  asked = Recorded()

  def mean(logits):
    params = ({"logits": logits}, {"logits": teacher})
    sums, _ = objective.loss((asked, asked), params, noisy)
    return sums.total / sums.count

  head = asked({"logits": student[:, : batch.tokens_BxL.shape[1]]}, None).head
  return noisy, objective.teacher_inputs(noisy, head), *jax.value_and_grad(mean)(student)


def opdlm_loss(case: Case):
  ids, prompt, block = (
    case.inputs["extended_input_ids"], case.arg("start_pos"), case.arg("block_size")
  )  # fmt: skip
  pad_id, mask_id, end_id = (case.arg(name) for name in ("pad_id", "mask_id", "im_end_id"))
  length = (ids.shape[1] + prompt) // 2
  order = in_theirs(prompt, length)
  text, shown = ids[:, :length], np.concatenate([ids[:, :prompt], ids[:, length:]], axis=1)
  ends = (text == end_id) & (np.arange(length) >= prompt)[None]
  end = ends & (ends.cumsum(1) == 1)
  batch = batch_of(text, prompt, pad_id, when=when_of(shown == mask_id, prompt, block), end=end)
  batch = batch.replace(noisable_BxL=batch.noisable_BxL & (end | (ends.cumsum(1) == 0)))
  objective = Opdlm(
    mask_id,
    block,
    fill={"clean_fill": "text", "argmax_fill": "guess"}[case.arg("teacher_fill")],
    learn_end=not case.arg("exclude_im_end"),
    divergence=Divergence(
      kind=case.arg("loss_type"),
      reverse=case.arg("reverse_kl_weight"),
      teacher_weight=case.arg("jsd_alpha"),
      best=case.arg("top_k_logits"),
      temperature=case.arg("teacher_sampling_temperature"),
      top_k=case.arg("teacher_sampling_top_k"),
      top_p=case.arg("teacher_sampling_top_p"),
      min_p=case.arg("teacher_sampling_min_p"),
    ),
  )

  def ours(logits):
    both = np.zeros((*ids.shape[:1], 2 * length, logits.shape[-1]), np.float32)
    both[:, order] = logits
    both[:, :prompt] = logits[:, :prompt]  # they have the prompt once
    return jnp.asarray(both)

  student, teacher = (ours(case.inputs[f"{who}_logits"]) for who in ("student", "teacher"))
  noisy, read, loss, grad = replay(
    objective, batch, student, teacher, case.arg("student_arm_shift")
  )
  same(noisy.inputs_BxW[:, order], ids)
  live = np.asarray(noisy.mask.q_segment_BxW)[:, order] > 0
  same(noisy.slot_BxW[:, order], case.inputs["position_ids"], live)
  same(read.inputs_BxW[:, order], case.outputs["teacher_input"])
  seen = np.asarray(seen_by(read.mask))[:, order][:, :, order]
  same(seen[live], case.outputs["teacher_mask"][live])
  learned = batch.noisable_BxL if objective.learn_end else batch.noisable_BxL & ~end
  same(learned.sum(), case.expected["response_tokens"])
  close(loss, case.expected["loss"])
  grad = np.array(grad)
  grad[:, length : length + prompt] += grad[:, :prompt]
  close(grad[:, order], case.outputs["grad_student_logits"])


def opdlm_rows(case: Case):
  ids, prompt, block = case.inputs["input_ids"], case.arg("start_pos"), case.arg("block_size")
  starts = range(prompt, len(ids), block)
  draws = {name: np.ones((1, len(ids)), np.float32) for name in ("u_time", "u_mask")}
  trained = None
  if case.arg("random_mask"):
    u, forced = list(case.arg("u")), list(case.arg("ints"))
    for first in starts:
      level, drawn = u.pop(0), np.array(u.pop(0), np.float32)
      if not (drawn < level[0]).any():
        drawn[forced.pop(0)] = level[0]
      draws["u_time"][0, first] = level[0]
      draws["u_mask"][0, first : first + block] = drawn
    batch = batch_of(ids[None], prompt, -1)
  else:
    round_of = np.where(
      case.inputs["round_p_mask"].any(0), case.inputs["round_p_mask"].argmax(0), -1
    )
    rounds = np.full(len(ids), -1)
    for first, chosen in zip(starts, case.arg("rounds"), strict=True):
      part = slice(first, first + block)
      draws["u_time"][0, first] = (chosen + 0.5) / len(set(round_of[part]))
      rounds[part] = chosen
    trained = (round_of == rounds) & (round_of >= 0)
    batch = batch_of(ids[None], prompt, -1, when=round_of[None])
    shown = case.inputs["round_inputs"][0]
    same(shown[: len(ids)], ids)
  states = "random" if case.arg("random_mask") else "trace"
  objective = Opdlm(case.arg("mask_id"), block, states=states)
  noisy = jax.jit(objective.corrupt_with)(draws, batch, 0)
  same(noisy.inputs_BxW[0, in_theirs(prompt, len(ids))], case.outputs["extended_input_ids"])
  masked = np.asarray(noisy.weight_BxL[0] > 0)
  same(masked if trained is None else trained, case.outputs["p_mask"])


def tracerl_attention(case: Case):
  ids, prompt = case.inputs["extended_input_ids"], case.arg("start_pos")
  length = (ids.shape[1] + prompt) // 2
  text = ids[:, :length]
  batch = batch_of(text, prompt, case.arg("pad_id"), when=np.full(text.shape, -1))
  draws = dict.fromkeys(("u_time", "u_mask"), jnp.zeros(text.shape))
  noisy = jax.jit(Opdlm(1 << 20, case.arg("block_size")).corrupt_with)(draws, batch, 0)
  order = in_theirs(prompt, length)
  live = np.asarray(noisy.mask.q_segment_BxW)[:, order] > 0
  seen = np.asarray(seen_by(noisy.mask))[:, order][:, :, order]
  same(seen[live], case.outputs["attention_mask"][live])


def tracerl_rows(case: Case):
  """Theirs are the copies of rows that learn something, padding left out."""
  method = case.arg("training_method")
  ids, prompt, block = case.inputs["input_ids"], case.arg("start_pos"), case.arg("block_size")
  length, fields = ids.shape[1], {"align": "answer", "behind": case.arg("post_num")}
  when, draws = np.where(np.arange(length) >= prompt, 0, -1) + np.zeros(ids.shape, int), {}
  if method == "TraceRL":
    whole = case.outputs["step_map_full"]
    for given, full in zip(case.arg("step_maps"), whole, strict=True):
      same(full[: len(given)], given)
    when[:, prompt:] = whole
    estimator = Trace(block, shrink=case.arg("shrink"), **fields)
  else:
    assert case.arg("shrink") == 1
    share = case.arg("lower_p"), case.arg("upper_p")
    coupled = {"random_masking": False, "coupled": True}[method]
    estimator = BlockMasks(block, share=share, complement=coupled, **fields)
    for ours, theirs in (("u_share", "u_threshold"), ("u_mask", "u")):
      draws[ours] = np.pad(case.inputs[theirs], ((0, 0), (prompt, 0)))
  batch = batch_of(ids, prompt, case.arg("pad_id"), when=when)
  noisy = jax.jit(estimator.noisy)(draws, batch, case.arg("mask_id"))
  learned, copy = np.asarray(noisy.weight_BxL) > 0, np.arange(len(noisy.weight_BxL))
  if method == "coupled":
    copy = copy.reshape(-1, estimator.forwards).T.ravel()
  copy = copy[learned[copy].any(-1)]
  order = in_theirs(prompt, length)
  inputs, slots = (np.asarray(x)[copy][:, order] for x in (noisy.inputs_BxW, noisy.slot_BxW))
  same(inputs, case.outputs["extended_input_ids"])
  same(learned[copy], case.outputs["p_mask"])
  same(noisy.targets_BxL[copy], case.outputs["labels"])
  same(case.inputs["reward"][copy // estimator.forwards], case.outputs["reward"])
  live = np.asarray(noisy.mask.q_segment_BxW)[copy][:, order] > 0
  same(slots, case.outputs["position_ids"], live)


@functools.partial(jax.jit, static_argnums=0)
def distilled(objective, draws, batch, step, student, teacher, cotangent):
  noisy = objective.corrupt_with(draws, batch, step)

  def told(logits):
    params = ({"logits": logits}, {"logits": teacher})
    nats_BxL = objective.losses((Recorded(), Recorded()), params, noisy)[0]
    return (nats_BxL * cotangent).sum(), nats_BxL

  grad, nats_BxL = jax.grad(told, has_aux=True)(student)
  return noisy, objective.step_at(step), nats_BxL, grad


def duo_dcd_loss(case: Case):
  """Their teacher is renewed within a run, which is here the next one, with twice the step."""
  step, every, first = case.arg("global_step"), case.arg("update_teacher_every"), 1 / case.arg("T")
  gamma = case.arg("gamma_min"), case.arg("gamma_max")
  growth, updates = case.arg("linear_growth"), case.arg("max_steps")
  case.arg("loss_precision")
  assert case.arg("antithetic")
  x0, vocab = case.inputs["x0"], case.inputs["noise"].shape[-1]
  objective = DuoDcd(
    vocab, vocab=vocab, dt=first * 2 ** (step // every), gamma=gamma,
    growth=None if growth is None else (*growth, updates), min_time=case.arg("sampling_eps"),
    reverse={"kl-bwd": True, "kl-fwd": False}[case.arg("divergence")],
  )  # fmt: skip
  draws = {
    "u_time": case.inputs["u"], "stratum": np.arange(len(x0)), "normal": case.inputs["noise"]
  }  # fmt: skip
  noisy, dt, nats, grad = distilled(
    objective, draws, of_text(x0), step, case.inputs["student_logits"],
    case.inputs["teacher_logits"], case.inputs["cotangent"],
  )  # fmt: skip
  close(dt, case.expected["dt"])
  same(noisy.inputs_BxW, case.outputs["xt"])
  same(noisy.extra["nearer_BxL"], case.outputs["xs"])
  close(nats, case.outputs["loss"])
  close(grad, case.outputs["grad_student_logits"])
  # They look a level up in a table, at the entry next to it.
  table = case.inputs["table"].astype(np.float64)
  grid = np.linspace(case.arg("table_gamma_min"), case.arg("table_gamma_max"), len(table))
  t = np.clip((case.inputs["u"] / len(x0) + np.arange(len(x0)) / len(x0)) % 1, 0, 1)
  t = np.clip(t * (1 - objective.min_time) + objective.min_time + float(dt), 0, 1)
  for level, time, sigma in (
    (noisy.time_BxW, t, case.outputs["sigma_t"]),
    (noisy.extra["nearer_time_BxL"], t - float(dt), case.outputs["sigma_s"]),
  ):
    at = gamma[0] + time * (gamma[1] - gamma[0])
    alpha = (vocab * np.interp(at, grid, table) - 1) / (vocab - 1)
    np.testing.assert_allclose(level[:, 0], 1 - alpha, atol=1e-4)
    around = [
      (vocab * np.interp(at + shift, grid, table) - 1) / (vocab - 1)
      for shift in (grid[1] - grid[0], grid[0] - grid[1])
    ]
    assert (around[0] <= np.exp(-sigma) + 1e-6).all() and (np.exp(-sigma) <= around[1] + 1e-6).all()


class Drafted(Recorded):
  """A drafter whose logits are recorded; the target tells it nothing."""

  taps = ()

  def __call__(self, params, target, tokens_BxW, **_):
    return super().__call__(params, tokens_BxW)

  def context(self, params, features_BxCxF, slot_BxC):
    return None


@functools.partial(jax.jit, static_argnums=0)
def drafted(objective, draws, batch, logits, target):
  """Noisy, the sums of the loss, and the gradient of its mean."""
  noisy = objective.corrupt_with(draws, batch, 0)

  def mean(logits):
    left = noisy.targets_BxL.shape[1] - logits.shape[1]  # blocks that no row has a place for
    params = {"logits": jnp.pad(logits, ((0, 0), (0, left), (0, 0)))}
    sums, _ = objective.loss((Drafted(), Recorded()), (params, {"logits": target}), noisy)
    return sums.total / sums.count, sums

  grad, sums = jax.grad(mean, has_aux=True)(logits)
  return noisy, sums, grad


def dflash_loss(case: Case):
  kind, base = case.arg("loss_type"), case.arg("prefix_weight_base")
  jet = kind == "jetspec"
  assert (base is not None) == (kind == "variable_prefix")
  ids, block = case.inputs["input_ids"], case.arg("block_size")
  rows, length = ids.shape
  segment, position = np.ones((rows, length), int), np.tile(np.arange(length), (rows, 1))
  if "seq_lens" in case.inputs:
    position = case.inputs["position_ids"]
    for row, sizes in enumerate(case.inputs["seq_lens"]):
      ends = np.cumsum(sizes)
      segment[row] = np.searchsorted(ends, np.arange(length), side="right") + 1
      segment[row, ends[-1] :] = 0
  batch = Batch(
    jnp.asarray(ids, jnp.int32), jnp.asarray(case.inputs["loss_mask"] > 0),
    jnp.asarray(segment, jnp.int32), jnp.asarray(position, jnp.int32),
  )  # fmt: skip
  u = np.pad(case.inputs["u"], ((0, 0), (0, block - 1)), constant_values=1)
  gamma = case.arg("loss_decay_gamma")
  objective = DFlash(
    case.arg("mask_id"), block, case.arg("num_anchors"), gamma, base, jet,
    case.arg("kd_temperature"),
  )  # fmt: skip
  draws = {"u_anchor": u}
  if base is not None:
    chance = base ** np.arange(min(2, block - 1), block)
    close(chance, case.outputs["prefix_weights"])
    until = np.cumsum(chance) / chance.sum()
    draws["u_prefix"] = (until - chance / chance.sum() / 2)[case.inputs["prefix_draw"]]
  target = case.inputs.get("target_logits", np.zeros((rows, 1, 1), np.float32))
  draws, logits = jax.tree.map(jnp.asarray, (draws, case.inputs["logits"]))
  noisy, sums, grad = drafted(objective, draws, batch, logits, jnp.asarray(target))
  size = case.outputs["draft_ids"].shape[1]
  same(noisy.inputs_BxW[:, :size], case.outputs["draft_ids"])
  same(noisy.slot_BxW[:, :size], case.outputs["position_ids"][:, length:])
  keys = length + noisy.inputs_BxW.shape[1]
  mask, window = noisy.mask, case.arg("sliding_window")
  if window is not None:  # as the drafter itself cuts it
    mask = masks.nearby(mask, noisy.slot_BxW, window)
  seen = visible(mask, Keys(jnp.broadcast_to(jnp.arange(keys), (rows, keys))))
  same(seen[:, :size, : length + size], case.outputs["attention_mask"])
  kept = np.asarray(noisy.inputs_BxW)[:, :size:block] != case.arg("mask_id")
  same(kept, case.outputs["keep"])
  close(sums.total / sums.count, case.expected["loss"])
  close(sums.count, case.expected["loss_weight"])
  for name, theirs in (
    ("masked", "valid_tokens"), ("right", "correct_tokens"), ("accepted", "accept_len_sum"),
    ("blocks", "valid_blocks"),
  ):  # fmt: skip
    close(sums.metrics[name], case.expected[theirs])
  close(grad, case.outputs["grad_logits"])


def agentic_trainable_mask(case: Case):
  tokens, left, right = (np.array(case.arg(name)) for name in ("tokens", "left", "right"))
  same(spans.outside(tokens, left, right), case.outputs["trainable"])


def dflash_target_layers(case: Case):
  for (target_layers, layers), taps in zip(case.arg("pairs"), case.expected["layers"], strict=True):
    same(DrafterConfig.of(target_layers, layers).taps, taps)


@functools.partial(jax.jit, static_argnums=0)
def foretold(critic, reward_BxL, value_BxL, when_BxL, learned_BxL):
  if reward_BxL.ndim == 1:
    reward_BxL = critic.outcome(reward_BxL, when_BxL, learned_BxL)
  return critic.returns(reward_BxL, value_BxL, when_BxL, learned_BxL)


def tracerl_gae(case: Case):
  """Theirs are rows of one state each, which together learn every token of an answer once."""
  first, of = case.arg("start_pos"), case.inputs["sequence"]
  learned_RxL, value_RxL = case.inputs["p_mask"], case.inputs["old_values"]
  answers = len(case.inputs["step_map"])
  learned_BxL = np.stack([learned_RxL[of == i].any(0) for i in range(answers)])
  value_BxL = np.stack([(learned_RxL * value_RxL)[of == i].sum(0) for i in range(answers)])
  pad = case.inputs["response_ids"] == case.arg("pad_id")
  same(learned_BxL[:, first:], ~pad | (pad & (pad.cumsum(1) <= case.arg("post_num"))))
  reward = case.inputs["token_reward" if case.arg("vector_reward") else "reward"]
  if reward.ndim == 2:
    reward = np.pad(reward, ((0, 0), (first, 0)))
  when_BxL = np.pad(case.inputs["step_map"], ((0, 0), (first, 0)), constant_values=-1)
  critic = Critic(gamma=case.arg("gamma"), lam=case.arg("lam"))
  found = foretold(critic, reward, value_BxL.astype(np.float32), when_BxL, learned_BxL)
  for ours, name in zip(found, ("returns", "advantages"), strict=True):
    close(np.where(learned_RxL, np.asarray(ours)[of], 0), case.outputs[name])


METHODS = {
  "agentic_trainable_mask": agentic_trainable_mask,
  "duo_dcd_loss": duo_dcd_loss,
  "dflash_loss": dflash_loss,
  "dflash_target_layers": dflash_target_layers,
  "opdlm_loss": opdlm_loss,
  "opdlm_rows": opdlm_rows,
  "tracerl_gae": tracerl_gae,
  "tracerl_attention": tracerl_attention,
  "tracerl_rows": tracerl_rows,
}
# Methods, and cases of methods that are checked, of what is not here.
UNCHECKED = {
  "dparallel_loss/dream_batch2": "rows of a batch overwrite each other's masks",
  "dparallel_loss/llada_batch3": "rows of a batch overwrite each other's masks",
}


def unchecked(case: Case) -> str:
  """Why a case is passed over; "" if it is not."""
  return UNCHECKED.get(case.name, UNCHECKED.get(case.method, ""))
