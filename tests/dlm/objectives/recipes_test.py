"""Each paper's recipe: weights, denominators, what is noised, what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm.diffusion import schedules
from dlm.objectives import (
  OBJECTIVES,
  Autoregressive,
  Bd3lm,
  D3pm,
  Dllm,
  EcDlm,
  ExactCount,
  GenMd4,
  Hackable,
  Llada,
  LladaSft,
  Md4,
  Mdlm,
  Nemotron,
  Sdar,
  Sedd,
  Uniform,
  bd3lm,
)
from dlm.objectives.objective import with_own
from dlm.types import LogitHead, ModelOutput
from tests.dlm.objectives import oracle
from tests.dlm.objectives.oracle import MASK, Constant, Oracle

MADE = {name: oracle.made(name) for name in OBJECTIVES}
TOKENS = oracle.sample(6, 8, seed=1)


@dataclasses.dataclass(frozen=True)
class Fixed:
  """Logits are the one parameter, whatever is asked; as a drafter, too, which is told nothing."""

  taps = ()

  def context(self, params, features_BxCxF, slot_BxC):
    return None

  def __call__(self, params, *tokens_BxW, **_):
    logits = params["logits"]
    return ModelOutput(LogitHead(logits, jnp.eye(logits.shape[-1])), None, {})


@pytest.mark.parametrize(
  "objective",
  [
    Mdlm(2),
    Mdlm(2, schedule=schedules.MdlmCosine()),
    Mdlm(2, schedule=schedules.Md4Linear(), times="shared_offset", min_time=0.0),
    ExactCount(2),
    ExactCount(2, block=2),
    Llada(2, random_length=0.0),
    LladaSft(2),
    Bd3lm(2, block=2, ignore_bos=False),
    Sdar(2, block=2),
    Uniform(2, block=2, vocab=3),
  ],
  ids=lambda objective: type(objective).__name__,
)
def test_where_every_token_costs_one_nat_the_loss_is_one(objective):
  """Weights and denominator belong together."""
  batch = oracle.rows(np.zeros((3000, 6), np.int32))
  noisable = jnp.arange(6)[None] >= jnp.arange(3000)[:, None] % 3
  batch = batch.replace(noisable_BxL=noisable)

  @jax.jit
  def draw(key):
    noisy = objective.corrupt(key, batch, 0)
    return objective.token_losses(Constant(), {}, noisy).sum(-1), noisy.count_B

  row, count = map(np.asarray, draw(jax.random.key(0)))
  mean = row.sum() / count.sum()
  error = (row - count).std() / np.sqrt(len(row)) / count.mean()
  assert abs(mean - 1) < max(4 * error, 1e-5)
  assert count.sum() == (3000 if isinstance(objective, LladaSft) else np.asarray(noisable).sum())


@pytest.mark.parametrize("name", [name for name, each in MADE.items() if each.summable])
def test_microbatches_add_up(name):
  """Sums over parts are the sum over the whole, and so are gradients and metrics."""
  objective = MADE[name]
  draws = oracle.draw(objective, 0, oracle.rows(TOKENS))
  noisy = oracle.replay(objective, draws, oracle.rows(TOKENS))
  logits = jax.random.normal(jax.random.key(1), (*noisy.targets_BxL.shape, 5))

  @functools.partial(jax.jit, static_argnums=1)
  def sums(index, parts):
    """Of one of equal parts; pairs and copies of rows stay together."""

    def cut(x):
      return jax.lax.dynamic_slice_in_dim(x, index * (len(x) // parts), len(x) // parts)

    part, part_logits = jax.tree.map(cut, (noisy, logits))

    def loss(params):
      teacher = Fixed(), {"logits": jnp.zeros_like(params["logits"])}
      sums, _ = objective.loss(*oracle.asked(objective, Fixed(), params, *teacher), part)
      return sums.total, sums

    params = with_own({"logits": part_logits}, objective.init(5))
    grad, sums = jax.grad(loss, has_aux=True)(params)
    return grad.pop("logits"), (grad, sums)

  grad, whole = sums(0, 1)  # `whole`: the gradient of its own parameters, too
  grads, parts = zip(*(sums(index, 3) for index in range(3)), strict=True)
  jax.tree.map(
    lambda whole, *parts: np.testing.assert_allclose(sum(parts), whole, rtol=2e-5, atol=1e-5),
    whole, *parts,
  )  # fmt: skip
  np.testing.assert_allclose(np.concatenate(grads), grad, rtol=1e-6, atol=1e-7)
  assert np.isfinite(grad).all() and np.asarray(grad).any()


def test_mdlm_with_log_uniform_noise_weighs_masked_tokens_as_the_authors_do():
  objective = Mdlm(MASK, schedule=schedules.MdlmLogUniform())
  batch, p0, p1 = oracle.rows(TOKENS), 1 - np.exp(-1e-3), 1 - 1e-3
  draws = oracle.draw(objective, 0, batch)
  noisy = oracle.replay(objective, draws, batch)
  t = np.asarray((np.asarray(draws["u_time"], float) + draws["stratum"]) / 6 % 1 * 0.999 + 1e-3)
  level = np.broadcast_to((p0 ** (1 - t) * p1**t)[:, None], TOKENS.shape)
  np.testing.assert_allclose(noisy.time_BxW, level, rtol=1e-5)
  masked = np.asarray(draws["u_mask"]) < level
  assert masked.any()
  np.testing.assert_allclose(noisy.weight_BxL, np.where(masked, 6.9082552, 0), rtol=1e-6)


def test_metrics_split_the_cross_entropy_by_noise_level():
  logits = jax.random.normal(jax.random.key(1), (6, 8, 5))
  noisy = oracle.corrupt(MADE["mdlm"], 0, oracle.rows(TOKENS))
  sums, _ = jax.jit(MADE["mdlm"].loss, static_argnums=0)(Fixed(), {"logits": logits}, noisy)
  losses = oracle.token_losses(MADE["mdlm"], Fixed(), {"logits": logits}, noisy)
  ce = np.asarray(losses / noisy.weight_BxL)
  masked, level = np.asarray(noisy.weight_BxL > 0), np.asarray(noisy.time_BxW)
  assert float(sums.metrics["masked"]) == masked.sum()
  assert float(sums.metrics["ce"]) == pytest.approx(ce[masked].sum(), rel=1e-5)
  for i in range(20):
    here = masked & (np.floor(level * 20) == i)
    assert float(sums.metrics[f"masked_at_noise/{i}"]) == here.sum()
    assert float(sums.metrics[f"ce_at_noise/{i}"]) == pytest.approx(ce[here].sum(), rel=1e-5)


def test_a_block_as_long_as_the_row_is_mdlm():
  """One stream, and the same numbers from the same draws."""
  block, row = Bd3lm(MASK, block=8, ignore_bos=False), Mdlm(MASK, schedule=schedules.Linear())
  batch = oracle.rows(TOKENS)
  draws = oracle.draw(block, 0, batch)
  a, b = oracle.replay(block, draws, batch), oracle.replay(row, draws, batch)
  jax.tree.map(np.testing.assert_array_equal, a, b)
  assert a.inputs_BxW.shape == (6, 8)


def test_noisy_and_clean_halves_share_positions_and_only_noise_has_a_level():
  noisy = oracle.corrupt(MADE["bd3lm"], 0, oracle.rows(TOKENS))
  np.testing.assert_array_equal(noisy.slot_BxW[:, :8], noisy.slot_BxW[:, 8:])
  np.testing.assert_array_equal(noisy.inputs_BxW[:, 8:], TOKENS)
  assert (np.asarray(noisy.time_BxW[:, :8]) > 0).all()
  assert not np.asarray(noisy.time_BxW[:, 8:]).any()
  assert not np.asarray(noisy.weight_BxL[:, 0]).any()  # ignore_bos ...
  np.testing.assert_array_equal(noisy.count_B, 8)  # ... which still counts


def test_windows_bound_times_and_narrow_high_ones_drop_the_weight():
  batch = oracle.rows(np.tile(TOKENS, (20, 1)))
  for window, weight in (((0.3, 0.8), None), ((0.55, 0.95), 1.0)):
    objective = Bd3lm(MASK, block=4, window=window)
    noisy = oracle.corrupt(objective, 0, batch)
    level, got = np.asarray(noisy.time_BxW[:, :8]), np.asarray(noisy.weight_BxL)
    assert level.min() >= window[0] and level.max() <= window[1]
    want = 1 / level if weight is None else np.full_like(level, weight)
    np.testing.assert_allclose(got[got > 0], want[got > 0], rtol=1e-6)


def test_resampling_brings_the_masked_share_into_the_window():
  batch = oracle.rows(np.tile(TOKENS, (20, 1)))
  objective = Bd3lm(MASK, block=4, window=(0.4, 0.65), resample_rounds=32, ignore_bos=False)
  noisy = oracle.corrupt(objective, 0, batch)
  share = np.asarray(noisy.weight_BxL > 0).reshape(120, 2, 4).mean(-1)
  assert set(np.unique(share)) == {0.5}
  free = oracle.corrupt(dataclasses.replace(objective, resample_rounds=0), 0, batch)
  assert len(np.unique(np.asarray(free.weight_BxL > 0).reshape(120, 2, 4).mean(-1))) > 2


def test_sedd_with_the_true_scores_is_mdlm():
  """Its logits are log p + log(V - 1) then, and the loss of a token the weighted cross-entropy."""

  batch = oracle.rows(TOKENS)
  draws = oracle.draw(Mdlm(MASK), 0, batch)
  noisy = oracle.replay(Mdlm(MASK), draws, batch)
  head = jax.jit(Oracle())({}, noisy.inputs_BxW, slot_BxW=noisy.slot_BxW, mask=noisy.mask).head
  logp = jax.nn.log_softmax(head.hidden_BxAxD.at[..., MASK].set(-jnp.inf))
  scores = jnp.where(jnp.isfinite(logp), logp + np.log(4), 7.0)  # the mask's own logit is unused
  got = oracle.token_losses(Sedd(MASK), Fixed(), {"logits": scores}, noisy)
  want = oracle.token_losses(Mdlm(MASK), Oracle(), {}, noisy)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_sedd_is_the_score_entropy_of_the_authors():
  """arXiv 2310.16834 by the definition, with sigma, in float64."""
  logits = np.random.default_rng(0).normal(size=(6, 8, 5))
  noisy = oracle.corrupt(Sedd(MASK), 0, oracle.rows(TOKENS))
  p = np.asarray(noisy.time_BxW[:, :1], np.float64)
  sigma, t = -np.log1p(-p), p / 0.999
  dsigma, odds = 0.999 / (1 - 0.999 * t), 1 / np.expm1(sigma)
  log_score = logits - np.log(np.expm1(sigma))[..., None] - np.log(4)
  true = np.take_along_axis(log_score, TOKENS[..., None], -1)[..., 0]
  entropy = np.exp(log_score[..., :MASK]).sum(-1) - odds * true + odds * (np.log(odds) - 1)
  want = np.where(np.asarray(noisy.weight_BxL) > 0, dsigma * entropy, 0)
  got = oracle.token_losses(
    Sedd(MASK), Fixed(), {"logits": jnp.asarray(logits, jnp.float32)}, noisy
  )
  np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def test_d3pm_without_the_mask_id_is_discrete_mdlm_plus_reconstruction():
  logits = jax.random.normal(jax.random.key(1), (6, 8, 5))
  objective, plain = D3pm(MASK, timesteps=16, forbid_mask=True), Mdlm(MASK, timesteps=16)
  noisy = oracle.corrupt(objective, 0, oracle.rows(TOKENS))
  logp = jax.nn.log_softmax(logits.at[..., MASK].set(-jnp.inf))
  rebuilt = -jnp.take_along_axis(logp, jnp.asarray(TOKENS)[..., None], -1)[..., 0]
  want = oracle.token_losses(plain, Fixed(), {"logits": logits}, noisy) + rebuilt
  np.testing.assert_allclose(
    oracle.token_losses(objective, Fixed(), {"logits": logits}, noisy), want, rtol=1e-4, atol=1e-5
  )


def test_d3pm_is_the_bound_of_the_authors():
  """arXiv 2107.03006 as MDLM's code computes it, in float64: the model also predicts the mask."""
  logits = np.random.default_rng(0).normal(size=(6, 8, 5))
  objective = D3pm(MASK, timesteps=16)
  noisy = oracle.corrupt(objective, 0, oracle.rows(TOKENS))
  logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  true = np.take_along_axis(logp, TOKENS[..., None], -1)[..., 0]
  t = np.asarray(noisy.extra["t_B"], np.float64)[:, None]
  t, s = np.minimum(t, 1 - 1e-4), np.maximum(t - 1 / 16, 1e-9)
  x = np.exp(logp[..., MASK])
  now, before = np.log((1 - t) * x / t + 1), np.log((1 - s) * x / s + 1)
  bound = 16 * ((now - true) / 16 / t + (1 - 1 / 16 / t) * (now - before))
  want = np.where(np.asarray(noisy.weight_BxL) > 0, bound, 0) - true
  got = oracle.token_losses(objective, Fixed(), {"logits": jnp.asarray(logits, jnp.float32)}, noisy)
  np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def test_d3pm_first_step_is_finite():
  """At t = 1/T the authors' second term is 0 * log(x / 0)."""
  objective, batch = D3pm(MASK, timesteps=4), oracle.rows(TOKENS)
  draws = oracle.draw(objective, 0, batch) | {"u_time": jnp.zeros(6)}
  draws |= {"stratum": jnp.zeros(6), "u_mask": jnp.zeros((6, 8))}
  noisy = oracle.replay(objective, draws, batch)
  np.testing.assert_allclose(noisy.extra["t_B"], 0.25)
  logits = jax.random.normal(jax.random.key(1), (6, 8, 5))
  grad = jax.jit(jax.grad(lambda x: objective.loss(Fixed(), {"logits": x}, noisy)[0].total))(logits)
  assert np.isfinite(grad).all() and np.asarray(grad).any()


def test_autoregression_stays_within_documents():
  batch = oracle.rows(TOKENS[:1], np.array([[1, 1, 1, 2, 2, 2, 0, 0]]))
  noisy = oracle.corrupt(Autoregressive(MASK), 0, batch)
  np.testing.assert_array_equal(noisy.weight_BxL, [[1, 1, 0, 1, 1, 0, 0, 0]])
  assert float(noisy.count_B[0]) == 4


def test_llada_cuts_the_batch_with_static_shapes():
  batch = oracle.rows(TOKENS)
  draws = oracle.draw(Llada(MASK), 0, batch) | {"u_mask": jnp.zeros((6, 8)), "length": 5}
  whole = oracle.replay(Llada(MASK), draws | {"u_cut": 0.01}, batch)
  cut = oracle.replay(Llada(MASK), draws | {"u_cut": 0.0099}, batch)
  assert (np.asarray(whole.count_B) == 8).all() and (np.asarray(cut.count_B) == 5).all()
  np.testing.assert_array_equal(cut.weight_BxL[:, :5] > 0, True)
  np.testing.assert_array_equal(cut.weight_BxL[:, 5:], 0)
  np.testing.assert_array_equal(cut.mask.k_segment_BxS[:, 5:], 0)
  keys = jax.random.split(jax.random.key(0), 60)
  lengths = jax.jit(jax.vmap(lambda key: Llada(MASK).draw(key, batch)["length"]))(keys)
  assert set(np.asarray(lengths)) == set(range(1, 9))


def test_llada_sft_keeps_the_prompt_and_divides_by_the_answer():
  """EOS padding that the data calls noisable is part of the answer."""
  noisable = jnp.arange(8)[None] >= jnp.array([2, 5, 8])[:, None]
  batch = oracle.rows(TOKENS[:3]).replace(noisable_BxL=noisable)
  draws = oracle.draw(LladaSft(MASK), 0, batch) | {"u_mask": jnp.zeros((3, 8))}
  noisy = oracle.replay(LladaSft(MASK), draws, batch)
  np.testing.assert_array_equal(np.asarray(noisy.inputs_BxW == MASK), noisable)
  p = np.asarray(noisy.time_BxW)
  np.testing.assert_allclose(noisy.weight_BxL[0, 2:], 1 / p[0, 2:] / 6, rtol=1e-6)
  np.testing.assert_allclose(noisy.weight_BxL[1, 5:], 1 / p[1, 5:] / 3, rtol=1e-6)
  np.testing.assert_array_equal(noisy.count_B, [1, 1, 0])  # a row without an answer counts nothing


def test_ec_dlm_masks_at_least_one_and_weighs_by_what_it_masked():
  """Padding and prompts are never masked; a level counts what may be."""
  batch = oracle.rows(np.zeros((600, 6), np.int32))
  noisable = np.arange(6)[None] >= np.arange(600)[:, None] % 4
  batch = batch.replace(noisable_BxL=jnp.asarray(noisable))
  for stable in (False, True):
    noisy = oracle.corrupt(EcDlm(MASK, times="shared_offset", stable=stable), 0, batch)
    masked = np.asarray(noisy.weight_BxL > 0)
    assert (masked <= noisable).all() and masked.any(1).all()
    ratio = masked.sum(1) / noisable.sum(1)
    np.testing.assert_allclose(noisy.time_BxW[:, 0], ratio, rtol=1e-6)
    weight = np.asarray(noisy.weight_BxL).max(1)
    np.testing.assert_allclose(weight, 1 if stable else 1 / ratio, rtol=1e-6)
    np.testing.assert_array_equal(noisy.count_B, noisable.sum(1))
  whole = masked[::4].sum(1)  # rows of 6: k uniform on 0..6, and none becomes one
  np.testing.assert_allclose(
    np.bincount(whole, minlength=7) / 150, [0, 2 / 7] + [1 / 7] * 5, atol=0.09
  )
  assert EcDlm(MASK).not_a_likelihood() and EcDlm(MASK, stable=True).not_a_likelihood()


@pytest.mark.parametrize("name", MADE)
def test_corruption_is_a_draw_and_its_replay(name):
  objective, batch = MADE[name], oracle.rows(TOKENS)
  once, draws = oracle.corrupt(objective, 5, batch), oracle.draw(objective, 5, batch)
  again = oracle.replay(objective, draws, batch)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), once, again)
  assert hash(objective) == hash(dataclasses.replace(objective))
  if draws:
    other = oracle.corrupt(objective, 6, batch)
    assert (np.asarray(once.inputs_BxW) != np.asarray(other.inputs_BxW)).any()


@pytest.mark.parametrize(
  ("make", "words"),
  [
    (lambda: Mdlm(-1), "Mdlm: mask_id=-1 must not be negative"),
    (lambda: Mdlm(MASK, times="sobol"), "times='sobol' is not one of"),
    (lambda: EcDlm(MASK, times="even"), "EcDlm: times='even' is not one of"),
    (lambda: Mdlm(MASK, min_time=1.0), r"min_time=1.0 must lie in \[0, 1\)"),
    (lambda: Mdlm(MASK, timesteps=8, schedule=schedules.Bd3Log()), "needs the log_linear schedule"),
    (lambda: Sedd(MASK, timesteps=8), "Sedd: timesteps=8 must be 0"),
    (lambda: D3pm(MASK, timesteps=0), "timesteps=0 must be positive"),
    (lambda: Llada(MASK, random_length=2.0), "random_length=2.0 must be a probability"),
    (lambda: Md4(MASK, vocab=5, timesteps=-1), "Md4: timesteps=-1 must not be negative"),
    (lambda: GenMd4(MASK, vocab=5, power=0.0), "GenMd4: power=0.0 must be positive"),
    (lambda: GenMd4(MASK, vocab=5, min_time=1.0), r"GenMd4: min_time=1.0 must lie in \(0, 1\)"),
    (lambda: Hackable(MASK, vocab=5, noise="x"), "Hackable: noise='x' is not one of mask, uniform"),
    (lambda: Hackable(MASK, vocab=5, safety=0.5), r"Hackable: safety=0.5 must lie in \[0, 0.5\)"),
    (lambda: Dllm(MASK, norm="batch"), "Dllm: norm='batch' is not one of token, sequence, row"),
    (lambda: Dllm(MASK, min_time=0.0), r"Dllm: min_time=0.0 must lie in \(0, 1\)"),
    (
      lambda: Nemotron(MASK, 4, next_weight=-1.0),
      "Nemotron: next_weight=-1.0 must not be negative",
    ),
    (lambda: Nemotron(MASK, 4, causal_clean=False), "next_weight=1.0 must be 0 where causal_clean"),
    (lambda: Bd3lm(MASK, block=0), "block=0 must be at least 1"),
    (lambda: Bd3lm(MASK, block=4, window=(0.8, 0.3)), r"window=\(0.8, 0.3\) must hold"),
    (lambda: ExactCount(MASK, block=0), "block=0 must be at least 1"),
    (
      lambda: Bd3lm(MASK, block=3).corrupt(jax.random.key(0), oracle.rows(TOKENS), 0),
      "block=3 must divide the length of a row, 8",
    ),
    (lambda: bd3lm.window_candidates(4, delta=0.0), "delta=0.0"),
  ],
)
def test_mistakes_are_named(make, words):
  with pytest.raises(ValueError, match=words):
    make()


def test_search_offers_windows_and_noise_stays_within_the_one_chosen():
  assert Bd3lm(MASK, block=4).candidates == ()
  objective, batch = Bd3lm(MASK, block=4, search=True), oracle.rows(np.tile(TOKENS, (20, 1)))
  first, *others = objective.candidates
  assert first == {"window": bd3lm.FULL_WINDOW}
  assert any(other["window"] == pytest.approx((0.3, 0.8)) for other in others)
  for extra in ({"window": (0.3, 0.8)}, {"window": (0.55, 0.95)}):
    fixed = dataclasses.replace(objective, **extra)
    chosen = oracle.corrupt(objective, 0, batch.replace(extra=extra))
    want = oracle.corrupt(fixed, 0, batch)
    np.testing.assert_array_equal(chosen.inputs_BxW, want.inputs_BxW)
    np.testing.assert_allclose(chosen.weight_BxL, want.weight_BxL, rtol=1e-6)


def test_spread_is_the_variance_of_block_means():
  losses = np.random.default_rng(0).normal(size=(6, 8))
  want = losses.reshape(6, 2, 4).mean(-1).var(ddof=1)
  assert float(bd3lm.spread(jnp.asarray(losses, jnp.float32), 4)) == pytest.approx(want, rel=1e-5)
