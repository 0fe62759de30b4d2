"""Training losses of peer projects: MD4, Duo, dllm, hackable_diffusion.

Their logits have no mask id, or one of their own; `with_mask` gives it a column of its own.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dlm.diffusion import schedules
from dlm.objectives import Dllm, Duo, GenMd4, Hackable, Md4, Shifted
from dlm.objectives.objective import informed, with_own
from dlm.sampling.policies import duo
from dlm.types import OBJECTIVE
from tests.checkers.block_objectives import IGNORED, at_starts, packed
from tests.checkers.objectives import Case, Recorded, batch_of, close, in_order, replay, same

LN2 = np.log(2)
MD4_NOISE = {
  "linear": schedules.Md4Linear(),
  "cosine": schedules.Md4Cosine(),
  "poly2": schedules.Md4Poly(power=2.0),
}


def with_mask(logits):
  """A column for the mask id behind all others, likely unless it is forbidden."""
  return np.concatenate([logits, np.full_like(logits[..., :1], 3.0)], axis=-1)


def without_mask(grad):
  """The gradient of the authors' columns; that of a forbidden id is 0."""
  assert not np.asarray(grad[..., -1]).any()
  return grad[..., :-1]


def md4_times(case: Case, rows: int) -> dict:
  u = case.inputs["u_t"]
  return in_order(np.broadcast_to(u, rows).astype(np.float32))


def md4_loss(case: Case):
  x, vocab = case.inputs["x"], case.arg("vocab")
  case.used.add("timesteps")
  objective = Md4(
    vocab,
    vocab=vocab + 1,
    schedule=MD4_NOISE[case.arg("schedule")],
    times="shared_offset" if case.arg("antithetic") else "iid",
    timesteps=0 if case.arg("cont_time") else case.args["timesteps"],
  )
  draws = md4_times(case, len(x)) | {"u_mask": 1 - case.inputs["u_mask"]}  # they draw who is kept
  logits = with_mask(case.inputs["logits"])
  noisy, loss, grad, _ = replay(objective, draws, batch_of(x), logits)
  same(noisy.inputs_BxW, case.outputs["zt"])
  t = jnp.asarray(case.outputs["t_given_to_model"])
  close(noisy.time_BxW[:, 0], objective.schedule.masked(t))  # ours are told p
  guess = noisy.extra["guess_BxL"].mean() / LN2
  # Their float32 1 - alpha(0) has lost digits of its 1e-4.
  close(guess, case.expected["loss_recon"], rtol=1e-3)
  rtol = 1e-5 if case.args["cont_time"] else 1e-4  # their difference of log-SNR loses digits
  close(loss / LN2 - guess, case.expected["loss_diff"], rtol=rtol)
  close(loss / LN2, case.expected["loss"], rtol=rtol)
  assert case.expected["loss_prior"] == 0
  close(without_mask(grad) / LN2, case.outputs["grad_logits"], rtol=rtol)


def md4_schedule(case: Case):
  schedule, t = MD4_NOISE[case.arg("schedule")], jnp.asarray(case.inputs["t"])
  p = np.asarray(schedule.masked(t), np.float64)
  close(schedule.alpha(t), case.outputs["alpha"])
  close(schedule.dalpha(t), case.outputs["dalpha"])
  # The authors subtract from 1: a step of float32 is 1e-7 / p of their p.
  slack = 1e-5 + 2e-7 / np.minimum(p, 1 - p)
  log_snr = np.log1p(-p) - np.log(p)
  assert (np.abs(log_snr - case.outputs["log_snr"]) < slack).all()
  off = np.abs(np.asarray(schedule.weight(t)) - case.outputs["weight"])
  assert (off < slack * np.abs(case.outputs["weight"]) + 1e-6).all()


@functools.partial(jax.jit, static_argnums=0)
def replay_genmd4(objective, draws, batch, logits, w):
  """Noisy, bound by token, what REINFORCE adds, metrics, gradients of the mean loss."""
  params = with_own({"logits": logits}, {"power_V": w})
  noisy = objective.corrupt_with(draws, informed(batch, params), 0)

  def mean(params):
    sums, _ = objective.loss(Recorded(), params, noisy)
    return sums.total / sums.count, sums

  (loss, sums), grad = jax.value_and_grad(mean, has_aux=True)(params)
  score = objective.score_term(Recorded(), params, noisy).sum() / sums.count
  told = {name: sums.metrics[f"power_{name}"] / sums.count for name in ("min", "mean", "max")}
  return noisy, loss, score, told, grad


def genmd4_loss(case: Case):
  x, vocab, w = case.inputs["x"], case.arg("vocab"), case.inputs["w"]
  objective = GenMd4(
    vocab,
    vocab=vocab + 1,
    times="shared_offset" if case.arg("antithetic") else "iid",
    min_time=case.arg("t1"),
  )
  # They draw who is kept, and have no power of a mask id: ours gets their mean, to keep it so.
  draws = md4_times(case, len(x)) | {
    "u_mask": 1 - case.inputs["u_mask1"],
    "u_mask_again": 1 - case.inputs["u_mask2"],
  }
  of_mask = np.log(np.expm1(np.logaddexp(0, w).mean()))
  views = np.concatenate([case.inputs["logits1"], case.inputs["logits2"]], axis=1)
  noisy, loss, score, told, grad = replay_genmd4(
    objective, draws, batch_of(x), with_mask(views), np.append(w, np.float32(of_mask))
  )
  same(noisy.inputs_BxW, np.concatenate([case.outputs["zt1"], case.outputs["zt2"]], axis=1))
  close(loss / LN2, case.expected["loss_nelbo"])
  close((loss + score) / LN2, case.expected["loss"])
  for ours, theirs in (("min", "power_min"), ("mean", "power_avg"), ("max", "power_max")):
    close(told[ours], case.expected[theirs])
  want = np.concatenate([case.outputs["grad_logits1"], case.outputs["grad_logits2"]], axis=1)
  close(without_mask(grad["logits"]) / LN2, want)
  close(without_mask(grad[OBJECTIVE]["power_V"]) / LN2, case.outputs["grad_w"])


DLLM_NOISE = {"linear": schedules.Linear(), "cosine": schedules.Md4Cosine(eps=0.0)}
DLLM_WEIGHT = {"scheduler": "schedule", "uniform": "none"}
DLLM_NORM = {"token": "token", "sequence": "sequence", "batch": "row"}


def dllm_loss(case: Case):
  ids, labels, block = case.inputs["input_ids"], case.inputs["labels"], case.arg("block_size")
  bos, shifts = case.arg("bos_id"), case.arg("right_shift")
  if shifts and not (labels[:, 0] == IGNORED).all():
    ids = np.pad(ids, ((0, 0), (1, 0)), constant_values=bos)
    labels = np.pad(labels, ((0, 0), (1, 0)), constant_values=IGNORED)
  objective = Dllm(
    case.arg("mask_id"),
    block,
    schedule=DLLM_NOISE[case.arg("schedule")],
    weight=DLLM_WEIGHT[case.arg("weight")],
    norm=DLLM_NORM[case.arg("norm")],
    min_time=case.arg("time_epsilon"),
  )
  objective = Shifted(objective) if shifts else objective
  first = np.arange(ids.shape[1]) == 0
  draws = {
    "u_time": at_starts(np.broadcast_to(first, ids.shape), case.inputs["u_t"]),
    "u_mask": case.inputs["u_mask"],
  }
  noisy, loss, grad, _ = replay(objective, draws, packed(ids, labels), case.inputs["logits"])
  same(noisy.inputs_BxW, case.outputs["model_input"])
  if "position_ids" in case.outputs:
    same(noisy.slot_BxW, case.outputs["position_ids"])
  close(loss, case.expected["loss"])
  close(grad, case.outputs["grad_logits"])


HACKABLE_NOISE = {"linear": schedules.Linear(), "cosine": schedules.MdlmCosine(eps=0.0)}
HACKABLE_KIND = {"masking": "mask", "uniform": "uniform"}


def hackable_of(case: Case, **options) -> Hackable:
  vocab = case.arg("vocab")
  return Hackable(
    vocab,
    vocab=vocab + 1,
    noise=HACKABLE_KIND[case.arg("kind")],
    schedule=HACKABLE_NOISE[case.arg("schedule")],
    safety=0.0,
    **options,
  )


def hackable_corrupt(case: Case):
  x0 = case.inputs["x0"][..., 0]
  text = x0 >= 0  # theirs noises unused tokens too, and unmakes it
  objective = hackable_of(case)
  draws = in_order(case.inputs["time"]) | {
    "u_mask": 1 - case.inputs["u_keep"][..., 0],  # they draw who is kept
    "random": case.inputs["noise"][..., 0],
  }
  noisy = jax.jit(objective.corrupt_with)(draws, batch_of(x0, text), 0)
  same(noisy.inputs_BxW, case.outputs["xt"][..., 0])
  same(noisy.weight_BxL == 0, case.outputs["kept"][..., 0], text)
  close(1 - noisy.time_BxW[:, 0], case.outputs["alpha"])


def hackable_loss(case: Case):
  """A row's loss is a mean over all of its tokens, those that are left out too."""
  x0, kept = case.inputs["x0"][..., 0], case.inputs["kept"][..., 0]
  objective = hackable_of(
    case, weighted=case.arg("loss") == "md4", noised_only=case.arg("use_mask")
  )
  draws = in_order(case.inputs["time"]) | {
    "u_mask": np.where(kept, np.float32(1), np.float32(0)),
    "random": np.zeros_like(x0),
  }
  logits = with_mask(case.inputs["logits"])
  _, _, grad, losses = replay(objective, draws, batch_of(x0), logits)
  close(losses.mean(-1), case.outputs["loss_per_example"])
  close(without_mask(grad) * len(x0), case.outputs["grad_logits_of_sum"])


DUO_NOISE = {"log-linear": schedules.LogLinear, "cosine": schedules.DuoCosine}


def duo_loss(case: Case):
  vocab = case.arg("vocab")
  objective = Duo(
    vocab,
    vocab=vocab + 1,
    schedule=DUO_NOISE[case.arg("noise")](eps=case.arg("noise_eps")),
    times="stratified" if case.arg("antithetic") else "iid",
    min_time=case.arg("sampling_eps"),
    keep_first=case.arg("ignore_bos"),
  )
  x0, text = case.inputs["x0"], case.inputs["valid_tokens"]
  draws = in_order(case.inputs["u_t"]) | {
    "u_mask": case.inputs["u_mask"],
    "random": case.inputs["random_tokens"],
  }
  batch, logits = batch_of(x0, text), with_mask(case.inputs["logits"])
  noisy, loss, grad, losses = replay(objective, draws, batch, logits)
  same(noisy.inputs_BxW, case.outputs["xt"], text > 0)
  sigma = -np.log1p(-np.asarray(noisy.time_BxW[:, :1], np.float64))  # ours are told 1 - alpha
  close(sigma, case.outputs["sigma"], rtol=1e-4)
  close(loss, case.expected["loss"], rtol=2e-5)
  close(losses, case.outputs["nll_per_token"] * text, rtol=1e-4, atol=1e-5)
  close(without_mask(grad), case.outputs["grad_logits"], rtol=1e-4, atol=1e-5)


def duo_posterior(case: Case):
  """What the sampler draws from, put together."""
  case.used.update(("noise", "noise_eps", "antithetic", "sampling_eps", "ignore_bos"))
  probs, xt, n = case.inputs["x0_probs"], case.inputs["xt"], case.arg("vocab")
  p = np.take_along_axis(probs, xt[..., None], -1)[..., 0]
  alphas = case.inputs["alpha_s"], case.inputs["alpha_t"]
  stays, drawn, any_id = (np.asarray(x)[..., None] for x in duo.posterior(p, *alphas, n))
  close(stays * np.eye(n)[xt] + drawn * probs + any_id / n, case.outputs["posterior"])


METHODS = {
  "dllm_loss": dllm_loss,
  "duo_loss": duo_loss,
  "duo_posterior": duo_posterior,
  "genmd4_loss": genmd4_loss,
  "hackable_corrupt": hackable_corrupt,
  "hackable_loss": hackable_loss,
  "md4_loss": md4_loss,
  "md4_schedule": md4_schedule,
}
