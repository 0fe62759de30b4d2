"""Losses, draws and masks of the authors' training code, from tests/conformance/objectives.

Recorded random numbers go through `corrupt_with`, recorded logits through a Denoiser whose head is
the identity: the code under test is the code that trains.
"""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from dlm import masks
from dlm.diffusion import schedules
from dlm.evaluation.answer_likelihood import AnswerScorer, counted
from dlm.objectives import (
  Annealed,
  Bd3lm,
  D3pm,
  DiffuLlama,
  EcDlm,
  Llada,
  LladaSft,
  Mdlm,
  Sedd,
  bd3lm,
)
from dlm.objectives.cross_entropy import cross_entropy, predict
from dlm.types import Batch, LogitHead, ModelOutput
from kernels_pallas.block_attention import Keys, visible


@dataclasses.dataclass(frozen=True)
class Case:
  """One line of cases.jsonl. Reading an argument ticks it off: none may be ignored."""

  name: str
  method: str
  args: dict
  expected: dict
  inputs: dict = dataclasses.field(default_factory=dict)
  outputs: dict = dataclasses.field(default_factory=dict)
  used: set = dataclasses.field(default_factory=set)

  def arg(self, name: str, default=None):
    self.used.add(name)
    return self.args.get(name, default)

  def check_all_used(self) -> None:
    ignored = set(self.args) - self.used
    assert not ignored, f"{self.name} has arguments that its checker does not read: {ignored}"


def read(folder: pathlib.Path) -> list[Case]:
  if not (folder / "cases.jsonl").exists():
    return []
  arrays = np.load(folder / "data.npz")
  cases = []
  for line in (folder / "cases.jsonl").read_text().splitlines():
    row = json.loads(line)
    parts = {
      side: {key: arrays[f"{row['name']}/{side}/{key}"] for key in row.get(fields, {})}
      for side, fields in (("in", "inputs"), ("out", "expected_arrays"))
    }
    cases.append(
      Case(row["name"], row["method"], row["args"], row["expected"], parts["in"], parts["out"])
    )
  return cases


@dataclasses.dataclass(frozen=True)
class Recorded:
  """The network of a case: logits as parameters, one row for each input; "t0" those at time 0."""

  def __call__(self, params, tokens_BxW, *, time_BxW=None, ask_BxA=None, **_):
    logits = params["logits"]
    if "t0" in params:
      logits = jnp.where((time_BxW == 0).all(-1)[:, None, None], params["t0"], logits)
    if ask_BxA is not None:
      logits = jnp.take_along_axis(logits, ask_BxA[:, :, None], axis=1)
    return ModelOutput(LogitHead(logits, jnp.eye(logits.shape[-1])), None, {})


def batch_of(tokens, text=None, noisable=None) -> Batch:
  """`text`: 1 where the authors' attention mask is 1; the rest is padding."""
  tokens = jnp.asarray(tokens, jnp.int32)
  text = jnp.ones(tokens.shape, jnp.int32) if text is None else jnp.asarray(text, jnp.int32)
  return Batch(
    tokens_BxL=tokens,
    noisable_BxL=text > 0 if noisable is None else jnp.asarray(noisable),
    segment_BxL=text,
    position_BxL=jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape),
  )


@functools.partial(jax.jit, static_argnums=0)
def replay(objective, draws, batch, logits, t0=None, step=0):
  """Noisy, mean loss, its gradient with respect to the logits, and the loss by token."""
  noisy = objective.corrupt_with(draws, batch, step)
  fixed = {} if t0 is None else {"t0": t0}

  def mean(logits):
    sums, _ = objective.loss(Recorded(), {"logits": logits, **fixed}, noisy)
    return sums.total / sums.count

  losses = objective.token_losses(Recorded(), {"logits": logits, **fixed}, noisy)
  return noisy, *jax.value_and_grad(mean)(logits), losses


def largest(want) -> float:
  """Of an array's finite numbers, at least 1: what float32 loses goes by it."""
  want = np.abs(np.asarray(want, np.float64))
  return max(1.0, want[np.isfinite(want)].max(initial=0.0))


def close(got, want, rtol=1e-5, atol=2e-6):
  atol *= largest(want)
  np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=rtol, atol=atol)


def same(got, want, where=None):
  got, want = np.asarray(got), np.asarray(want)
  np.testing.assert_array_equal(*((got, want) if where is None else (got[where], want[where])))


def in_order(u):
  """The authors' strata: the i-th item of the batch draws from the i-th."""
  return {"u_time": u.ravel(), "stratum": np.arange(u.size)}


MDLM_NOISE = {
  "loglinear": schedules.LogLinear(),
  "cosine": schedules.MdlmCosine(),
  "cosinesqr": schedules.MdlmCosineSquared(),
  "linear": schedules.LinearSigma(),
  "geometric": schedules.GeometricSigma(),
}
BD3_NOISE = {
  "loglinear": schedules.Linear(),
  "square": schedules.Bd3Power(),
  "square_root": schedules.Bd3SquareRoot(),
  "log": schedules.Bd3Log(),
  "cosine": schedules.Bd3Cosine(),
}


def mdlm_of(case: Case) -> Mdlm:
  schedule = MDLM_NOISE[case.arg("noise")]
  bounds = {name: case.arg(name) for name in ("sigma_min", "sigma_max") if name in case.args}
  kind = {"subs": Mdlm, "d3pm": D3pm, "sedd": Sedd}[case.arg("parameterization", "subs")]
  options = {"forbid_mask": bool(case.arg("subs_masking", False))} if kind is D3pm else {}
  return kind(
    case.arg("mask_id"),
    schedule=dataclasses.replace(schedule, **bounds),
    times="stratified" if case.arg("antithetic", True) else "iid",
    min_time=case.arg("sampling_eps", 1e-3),
    timesteps=case.arg("T", 0),
    **options,
  )


def mdlm_loss(case: Case):
  objective = mdlm_of(case)
  assert case.arg("vocab_model") == case.inputs["logits"].shape[-1]
  text = case.inputs.get("attention_mask")
  batch = batch_of(case.inputs["x0"], text)
  draws = in_order(case.inputs["u_t"]) | {"u_mask": case.inputs["u_mask"]}
  t0 = case.inputs.get("logits_t0")
  noisy, loss, grad, losses = replay(objective, draws, batch, case.inputs["logits"], t0)
  same(noisy.inputs_BxW, case.outputs["xt"], np.asarray(batch.segment_BxL) > 0)
  close(loss, case.expected["loss"])
  close(losses, case.outputs["nlls"])
  close(grad, case.outputs["grad_logits"])
  # Our models are told p, not sigma = -log(1 - p), and ignore it unless they are conditioned.
  if case.arg("time_conditioning", False):
    sigma = -np.log1p(-np.asarray(noisy.time_BxW[:, 0], np.float64))
    close(sigma, case.outputs["sigma_given_to_model"], rtol=1e-4)


def mdlm_sample_t(case: Case):
  objective, u = mdlm_of(case), case.inputs["u"]
  case.used.add("vocab_model")
  t = objective.times_of(jax.tree.map(jnp.asarray, in_order(u)))
  p = np.asarray(objective.schedule.masked(t), np.float64)
  close(t, case.outputs["t"])
  close(p, case.outputs["move_chance"])
  close(-np.log1p(-p), case.outputs["sigma"], rtol=1e-4)
  rate = -objective.schedule.dalpha(t) / objective.schedule.alpha(t)
  close(rate, case.outputs["dsigma"], rtol=1e-4)
  # The authors' sigma loses digits where p is small: one float32 step of sigma is 1e-7 / p of it.
  slack = 1e-5 + 2e-7 / p
  ratio = np.asarray(objective.schedule.weight(t)) / case.outputs["weight"]
  assert (np.abs(ratio - 1) < slack).all()


def subs_logprobs(case: Case):
  """At masked inputs minus the cross-entropy of every id; elsewhere the observed id is certain."""
  mask_id, logits, xt = case.arg("mask_id"), case.inputs["logits"], case.inputs["xt"]
  want = case.outputs["logprobs"]
  assert case.arg("vocab_model") == logits.shape[-1]
  masked, draws = xt == mask_id, in_order(np.full(len(xt), 0.5))
  draws["u_mask"] = np.where(masked, 0.0, 1.0)

  @jax.jit
  def cost(v):
    noisy = Mdlm(mask_id).corrupt_with(draws, batch_of(jnp.where(masked, v, xt)), 0)
    head, _ = predict(Recorded(), {"logits": logits}, noisy)
    return cross_entropy(head, noisy, (mask_id,))

  for v in range(logits.shape[-1]):
    ce = np.asarray(cost(v))
    if v == mask_id:
      assert (ce[masked] > 1e5).all() and (want[masked, v] < -1e5).all()
    else:
      close(-ce[masked], want[masked, v])
    certain = np.take_along_axis(want, xt[..., None], -1)[..., 0]
    same(ce[~masked], -certain[~masked])


def bd3_window(case: Case) -> tuple[float, float]:
  """The authors' code forgets explicit windows unless it searches for them (`var_min`)."""
  window = case.arg("eps_min", 1e-3), case.arg("eps_max", 1.0)
  return tuple(map(float, window)) if case.arg("var_min", True) else (1e-3, 1.0)


def bd3_loss(case: Case):
  schedule = BD3_NOISE[case.arg("noise")]
  if case.arg("mdlm_loss_scale", False):
    assert schedule == schedules.Linear(), "the authors' other noises have no sigma of their own"
    schedule = schedules.LogLinear()
  x0 = case.inputs["x0"]
  again = case.inputs.get("u_resample", np.zeros((0, *x0.shape), np.float32))
  objective = Bd3lm(
    case.arg("mask_id"),
    block=case.arg("block_size"),
    schedule=schedule,
    window=bd3_window(case),
    resample_rounds=len(again) if case.arg("resample", False) else 0,
    ignore_bos=case.arg("ignore_bos", True),
    times="stratified" if case.arg("antithetic", True) else "iid",
  )
  assert case.arg("vocab_model") == case.inputs["logits"].shape[-1]
  text = np.array(case.inputs.get("attention_mask", np.ones_like(x0)))
  scored = text > 0
  training = case.arg("training", True)
  if objective.ignore_bos and not training:
    scored[:, 0] = False
  batch = batch_of(x0, text, scored)
  draws = in_order(case.inputs["u_t"]) | {"u_mask": case.inputs["u_mask"], "u_resample": again}
  noisy, loss, grad, losses = replay(objective, draws, batch, case.inputs["logits"])
  length, want = x0.shape[1], case.outputs["model_input"]
  same(noisy.inputs_BxW[:, :length], want[:, :length], text > 0)
  if case.arg("cross_attn", True) and objective.block < length:  # D = L needs no clean copy
    same(noisy.inputs_BxW[:, length:], want[:, length:])
  same(scored, case.outputs["token_mask"])
  close(loss, case.expected["loss"])
  close(losses, case.outputs["nlls"])
  close(grad, case.outputs["grad_logits"])


def bd3_sample_t(case: Case):
  u, length = case.inputs["u"], case.arg("length")
  times = "stratified" if case.arg("antithetic", True) else "iid"
  schedule, window = BD3_NOISE[case.arg("noise", "loglinear")], bd3_window(case)
  objective = Bd3lm(0, case.arg("block_size"), schedule=schedule, window=window, times=times)
  t = objective.times_of(jax.tree.map(jnp.asarray, in_order(u)), len(u), window)
  assert t.shape == (len(u), length)
  close(t, np.broadcast_to(case.outputs["t"], t.shape))
  close(schedule.masked(t), np.broadcast_to(case.outputs["move_chance"], t.shape))
  close(schedule.weight(t), np.broadcast_to(case.outputs["weight"], t.shape), rtol=1e-4)


def bd3_attention_mask(case: Case):
  length = case.arg("length")
  block = case.arg("block_size")

  @jax.jit
  def dense():
    return visible(masks.noisy_clean(1, length, block), Keys(jnp.arange(2 * length)[None]))[0]

  same(dense(), case.outputs["mask"])


def bd3_clip_candidates(case: Case):
  got = bd3lm.window_candidates(
    case.arg("block_size"), delta=case.arg("delta"), widths=tuple(case.arg("widths"))
  )
  close(got, case.outputs["windows"])


def bd3_clip_search(case: Case):
  spread = jax.jit(lambda block_losses: bd3lm.spread(block_losses, block=1))
  variance = np.mean([list(map(spread, each)) for each in case.inputs["block_losses"]], axis=1)
  close(case.arg("windows")[int(variance.argmin())], case.expected["chosen"])
  close(variance, case.expected["mean_variance"])


def llada_pretrain(case: Case):
  ids = case.inputs["input_ids"]
  length = ids.shape[1]
  cut = int(case.inputs.get("random_length", [length])[0])
  used = case.inputs["logits"].shape[1]  # the authors shorten the batch; we turn its end to padding

  def whole(x, fill):
    pad = ((0, 0), (0, length - used)) + ((0, 0),) * (x.ndim - 2)
    return np.pad(x, pad, constant_values=fill)

  draws = in_order(case.inputs["u_t"]) | {
    "u_mask": whole(case.inputs["u_mask"], 0),
    "u_cut": case.inputs["u_len"][0],
    "length": cut,
  }
  objective = Llada(case.arg("mask_id"))
  logits = whole(case.inputs["logits"], 0)
  noisy, loss, grad, losses = replay(objective, draws, batch_of(ids), logits)
  masked = np.asarray(noisy.weight_BxL[:, :used] > 0)
  same(noisy.inputs_BxW[:, :used], case.outputs["noisy"])
  same(masked, case.outputs["masked"])
  close(noisy.time_BxW[:, 0], case.outputs["p_mask"])
  close(loss, case.expected["loss"])
  close(np.asarray(losses[:, :used])[masked], case.outputs["token_loss"])
  close(grad[:, :used], case.outputs["grad_logits"])
  assert not np.asarray(grad[:, used:]).any()


def llada_sft(case: Case):
  ids, prompts = case.inputs["input_ids"], case.inputs["prompt_lengths"]
  noisable = np.arange(ids.shape[1])[None] >= prompts[:, None]
  draws = in_order(case.inputs["u_t"]) | {"u_mask": case.inputs["u_mask"]}
  noisy, loss, grad, _ = replay(
    LladaSft(case.arg("mask_id")), draws, batch_of(ids, noisable=noisable), case.inputs["logits"]
  )
  same(noisy.inputs_BxW, case.outputs["noisy"])
  same(noisy.weight_BxL > 0, case.outputs["masked"])
  close(noisy.time_BxW[:, 0], case.outputs["p_mask"])
  same(noisable.sum(-1), case.outputs["answer_lengths"])
  close(loss, case.expected["loss"])
  close(grad, case.outputs["grad_logits"])


def diffullama_loss(case: Case):
  prompt = case.inputs.get("src_mask")
  batch = batch_of(case.inputs["input_ids"], noisable=None if prompt is None else ~prompt)
  objective = DiffuLlama(case.arg("mask_id"), shift=int(case.arg("shift")))
  draws = in_order(case.inputs["u_t"]) | {
    "u_mask": case.inputs["u_mask"],
    "u_attention": case.inputs["u_attn"],
  }
  noisy, loss, grad, _ = replay(
    Annealed(objective, steps=case.arg("anneal_steps")),
    draws,
    batch,
    case.inputs["logits"],
    step=case.arg("global_step"),
  )
  same(noisy.inputs_BxW, case.outputs["noisy"])
  for visible_LxL in noisy.mask.dense_BxWxS:
    same(visible_LxL, case.outputs["attention_visible"])
  close(loss, case.expected["loss"])
  close(grad, case.outputs["grad_logits"])


def ecdlm_pretrain(case: Case):
  """The authors' loss mask leaves out text that is noised all the same: ours scores all of it."""
  u_mask, t = np.array(case.inputs["u_mask"]), case.inputs["u_t"]
  empty = ~(u_mask < t[:, None]).any(1)
  u_mask[empty, case.inputs["rand_pos"]] = t[empty]  # the lowest of its row
  scored = case.inputs["loss_mask"]
  objective = EcDlm(case.arg("mask_id"), stable=case.arg("stable"))
  noisy, _, grad, losses = replay(
    objective,
    in_order(t) | {"u_mask": u_mask},
    batch_of(case.inputs["tokens"][:, 1:]),
    case.inputs["logits"],
  )
  same(noisy.inputs_BxW, case.outputs["noisy"])
  same(noisy.weight_BxL > 0, case.outputs["masked"])
  close(noisy.time_BxW[:, 0], case.outputs["mask_ratio"])
  close((losses * scored).sum(), case.expected["loss_sum"])
  close((losses * scored).sum() / scored.sum(), case.expected["loss"])
  close(grad * scored[:, :, None] * scored.size / scored.sum(), case.outputs["grad_logits"])


@dataclasses.dataclass(frozen=True)
class Neighbours:
  """The toy of the likelihood cases: logits[i] = A[x_i] + Bm[x_{i-1}] + C[x_{i+1}] + P[i]."""

  def __call__(self, params, tokens_BxW, *, mask, ask_BxA, **_):
    text_BxW = (mask.q_segment_BxW > 0)[..., None]
    places = jnp.pad(params["P"], ((0, tokens_BxW.shape[1] - len(params["P"])), (0, 0)))
    logits = params["A"][tokens_BxW] + places[None]
    logits = logits.at[:, 1:].add(params["Bm"][tokens_BxW[:, :-1]])
    logits = logits.at[:, :-1].add(jnp.where(text_BxW, params["C"][tokens_BxW], 0)[:, 1:])
    logits = jnp.take_along_axis(logits, ask_BxA[..., None], axis=1)
    return ModelOutput(LogitHead(logits, jnp.eye(logits.shape[-1])), None, {})


def scorer_of(case: Case) -> tuple[AnswerScorer, dict]:
  params = {name: jnp.asarray(case.inputs[name]) for name in ("A", "Bm", "C", "P")}
  mask_id, cfg = case.arg("mask_id"), case.arg("cfg", 0.0)
  return AnswerScorer(Neighbours(), mask_id, cfg=cfg, estimator="llada"), params


def llada_loglikelihood(case: Case):
  case.arg("harness")  # two files of the authors with one rule
  scorer, params = scorer_of(case)
  prompt, answer, first, order = (case.inputs[k] for k in ("prompt", "answer", "k", "perms"))
  assert order.shape[:2] == (case.arg("mc_num") // case.arg("batch_size"), case.arg("batch_size"))
  plan = counted(first, order)
  want = case.outputs["perturbed"].reshape(len(plan.masked_Dxn), -1)
  same(scorer.noisy(scorer.rows(prompt, answer, plan)).inputs_BxW[:, : want.shape[1]], want)
  (nats_D,) = scorer.sums(params, [(prompt, answer)], [plan])
  close(-nats_D.sum(), case.expected["loglikelihood"])


def llada_suffix_greedy(case: Case):
  scorer, params = scorer_of(case)
  prompt, answer = case.inputs["prompt"], case.inputs["answer"]
  states = scorer.greedy_states(params, prompt, len(answer))
  same(states[:-1], case.outputs["states"][:, len(prompt) :])
  assert scorer.is_greedy(params, [(prompt, answer)]) == [case.expected["is_greedy"]]


METHODS = {
  "mdlm_loss": mdlm_loss,
  "mdlm_sample_t": mdlm_sample_t,
  "subs_logprobs": subs_logprobs,
  "bd3_loss": bd3_loss,
  "bd3_sample_t": bd3_sample_t,
  "bd3_attention_mask": bd3_attention_mask,
  "bd3_clip_candidates": bd3_clip_candidates,
  "bd3_clip_search": bd3_clip_search,
  "llada_pretrain": llada_pretrain,
  "llada_sft": llada_sft,
  "llada_loglikelihood": llada_loglikelihood,
  "llada_suffix_greedy": llada_suffix_greedy,
  "diffullama_loss": diffullama_loss,
  "ecdlm_pretrain": ecdlm_pretrain,
}
