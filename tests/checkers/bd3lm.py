"""BD3-LM's semi-autoregressive sampler, its nucleus and its stop rule.

Their first-hitting sampler is policy "fixed", one token a forward in a random order; their other
one is "ancestral". Both ask the model nothing in steps that write nothing. What they do twice is
their cache's last commit, whose keys nobody reads. Their grid of times ends at 0 a step early: the
last step divides by zero. Ours is even, so of their coins we take the step at which each token is
written, by their formula; the rest is the product's.
"""

import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks
from dlm.diffusion.schedules import LINEAR
from dlm.sampling import chance, forward, loop, variety
from dlm.sampling.caching import ExactBlock, NoCache
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policies import Ancestral, Fixed
from dlm.sampling.sampler import Sampler
from dlm.sampling.score import score
from kernels_pallas.token_stats import StatSpec, token_stats
from tests.checkers import block as blocks
from tests.checkers import decoding
from tests.checkers.decoding import Case, Trace, model_of


def gumbel(k: np.ndarray) -> np.ndarray:
  u = (k + 0.5) / 2**16
  return -np.log(1e-10 - np.log(u + 1e-10))


def bd3lm_semi_ar(case: Case) -> None:
  model, params = model_of(case.folder)
  size, rows = case.arg("block_size"), case.arg("n_samples")
  slots, context = size * case.arg("num_strides"), case.arg("context_size")
  steps, hits_first = case.arg("num_steps"), case.arg("first_hitting")
  mask_id, cached = model.config.vocab - 1, case.arg("kv_cache")
  if context < slots and not cached:
    pytest.skip(
      f"bd3lm/{case.name}: without a cache their window computes the keys of clean blocks anew "
      "when the oldest one leaves it; ours see a context that slides with them, as with a cache"
    )
  case.arg("var_length")
  assert slots <= variety.WINDOW, "longer texts may end early, or not be returned at all"
  policy = Ancestral(LINEAR, steps)
  if hits_first:
    policy = Fixed(k=1, order="random")
    if steps < size:
      assert not cached, "a block with masks left never enters their cache"
      policy = blocks.Leaves(policy, steps)
  sampler = Sampler(
    model,
    policy,
    ExactBlock() if cached else NoCache(),
    masks.BlockCausal(size, context if context < slots else 0),
    block=size,
    max_forwards=400,
    mask_id=mask_id,
    commit="separate",
    temperature=1.0,
    top_p=case.arg("nucleus_p"),
    top_p_rule="within",
    confidence="shaped",
  )
  row = np.array([case.arg("bos_token_id")] + [mask_id] * (slots - 1))
  canvas = make_canvas(
    [row] * rows, [row == mask_id] * rows, list(range(rows)), slots=slots, block=size,
    align="canvas", mask_id=mask_id, seed=0,
  )  # fmt: skip
  noise = {
    name: np.load(case.folder / "noise.npz")[key] for name, key in case.line["draws"].items()
  }
  if hits_first:
    trace = decoding.play(sampler, params, canvas, [row[:1]] * rows, hits(sampler, noise))
  else:
    trace = play_ancestral(case, sampler, params, canvas, gumbel(noise["k"]))
  check(case, trace, commits=cached)


def hits(sampler: Sampler, noise: dict):
  """Their place and the noise of its token, at each forward that decides."""

  def draws(_, state) -> dict:
    canvas = state.canvas
    assert len(canvas.tokens_BxL) == 1
    start, slots = int(canvas.start_B[0]), canvas.tokens_BxL.shape[1]
    uniform, noise_LxV = np.zeros((1, slots)), np.zeros((1, slots, sampler.denoise.config.vocab))
    if not sampler.plan.commits or int(state.cached_B[0]) == start:
      turn = int(canvas.forwards_Bx3[0, :2].sum())
      active = np.asarray(canvas.tokens_BxL[0, start : start + sampler.block])
      place = np.flatnonzero(active == sampler.mask_id)[noise["rank"][turn]]
      assert place == noise["pos"][turn]
      uniform[0, start + place] = 0.5
      noise_LxV[0, start + place] = gumbel(noise["k"][turn])
    return {
      "uniform_BxL": jnp.asarray(uniform, jnp.float32),
      "gumbel_BxLxV": jnp.asarray(noise_LxV, jnp.float32),
    }

  return draws


# ---------------------------------------------------------------------------------------------
# Ancestral steps


def play_ancestral(case: Case, sampler: Sampler, params, canvas, noise_UxBxAxV) -> Trace:
  """`noise`: of all their updates; those of a block are the same for every row."""
  of_block = np.array([step["block"] for step in case.expected["steps"]])
  states = [jax.jit(loop.start, static_argnums=0)(sampler, canvas)]
  while not np.asarray(states[-1].canvas.done_B).all():
    starts = np.asarray(states[-1].canvas.start_B) // sampler.block
    noise_TxBxAxV = np.zeros((sampler.policy.steps, *noise_UxBxAxV.shape[1:]), np.float32)
    for b, number in enumerate(starts):
      mine = noise_UxBxAxV[of_block == number, b]
      noise_TxBxAxV[: len(mine), b] = mine
    states.append(_ancestral_step(sampler, params, states[-1], noise_TxBxAxV))
  return Trace([np.asarray(canvas.tokens_BxL[0, :1])] * len(canvas.tokens_BxL), states)


@functools.partial(jax.jit, static_argnums=0)
def _ancestral_step(sampler: Sampler, params, state, noise_TxBxAxV):
  coins = []

  def recorded(head, spec, **fields):
    stats = score(head, dataclasses.replace(spec, temperature=0.0), **fields)
    token_BxA, coin_BxA = _written(sampler, state.policy, head, spec, noise_TxBxAxV)
    return dataclasses.replace(stats, token=token_BxA, top2=coin_BxA)  # a field nobody else needs

  def run(*args, **fields):
    seen = forward.forward(*args, **fields)
    coins.append(seen.stats.top2)
    return seen

  with (
    mock.patch.object(forward, "score", recorded),
    mock.patch.object(loop, "forward", run),
    mock.patch.object(chance, "uniform", lambda key_B, view: coins[-1]),
  ):
    return loop.step(sampler, params, state)


def _written(sampler: Sampler, taken_B, head, spec: StatSpec, noise_TxBxAxV):
  """The tokens their updates write, and our coins for the steps at which they do."""
  z = jnp.einsum("bad,vd->bav", head.hidden_BxAxD, head.unembed_VxD)
  z = jnp.where(jnp.arange(z.shape[-1])[None, None] == sampler.mask_id, -jnp.inf, z)
  log_p_BxAxV = jax.nn.log_softmax(decoding.shape(z, spec), axis=-1)
  score_TxBxAxV = log_p_BxAxV[None] + noise_TxBxAxV
  steps = len(noise_TxBxAxV)
  t_T = jnp.linspace(1, 0, steps)
  stays_T = jnp.where(jnp.arange(steps) < steps - 1, (t_T - 1 / steps) / t_T, 0)[:, None, None]
  writes_TxBxA = (score_TxBxAxV.max(-1) + jnp.log1p(-stays_T)) > (
    jnp.log(stays_T) + noise_TxBxAxV[..., sampler.mask_id]
  )
  writes_TxBxA &= jnp.arange(steps)[:, None, None] >= taken_B[None, :, None]
  at_1xBxA = jnp.argmax(writes_TxBxA, axis=0)[None]
  token_BxA = jnp.take_along_axis(jnp.argmax(score_TxBxAxV, -1), at_1xBxA, axis=0)[0]
  # Of a level that falls by 1 / steps: the middle of those that our step `at + 1` goes through.
  level_BxA = 1 - (at_1xBxA[0] + 0.5) / steps
  return token_BxA.astype(jnp.int32), level_BxA / (1 - taken_B / steps)[:, None]


def check(case: Case, trace: Trace, *, commits: bool) -> None:
  """Every change of every row, and for a row alone its forwards in order.

  What their division by zero writes is token id 0: a row is compared up to there.
  """
  want, rows, last = case.expected, len(trace.prompts), case.arg("num_steps") - 1
  divides = last > 0 and not case.arg("first_hitting")
  for b in range(rows):
    grid, grids, first = trace.row(trace.states[0].canvas, b).copy(), [], {}
    for n, step in enumerate(want["steps"]):
      written = zip(step["committed"], step["tokens"], strict=True)
      mine = {place: token for (row, place), token in written if row == b}
      by_zero = n - first.setdefault(step["block"], n) == last and divides
      if mine and by_zero:
        assert set(mine.values()) == {0}
        break
      if mine:
        grid[list(mine)] = list(mine.values())
        grids.append(grid.copy())
    else:
      np.testing.assert_array_equal(trace.row(trace.canvases[-1], b), want["tokens"][b])
      by_zero = False
    got = blocks.decided(trace, b)
    blocks.same(got[: len(grids)] if by_zero else got, grids, f"{case.name}, row {b}")
  if rows == 1 and not by_zero:
    assert kinds(trace) == want["forward_kinds"][: -1 if commits else None]
    assert trace.forwards()[0] + commits == want["nfe"]


def kinds(trace: Trace) -> str:
  """D for a forward that decides, C for a commit."""
  spent = np.array([state.canvas.forwards_Bx3[0] for state in trace.states])
  return "".join("C" if commit else "D" for commit in np.diff(spent, axis=0)[:, 2])


# ---------------------------------------------------------------------------------------------
# Functions


def bd3lm_nucleus(case: Case) -> None:
  """Probabilities of what the cut leaves, id by id."""
  p_RxV = np.concatenate(case.arg("probs"))
  case.arg("block_size")
  rows, vocab = p_RxV.shape
  spec = StatSpec(
    current=True, confidence="shaped", top_p=case.arg("nucleus_p"), top_p_rule="within"
  )
  for implementation in ("reference", "xla"):
    stats = token_stats(
      jnp.log(jnp.repeat(jnp.asarray(p_RxV, jnp.float32), vocab, axis=0)),
      jnp.eye(vocab),
      spec,
      current_R=jnp.tile(jnp.arange(vocab), rows),
      implementation=implementation,
    )
    got = jnp.exp(stats.current - stats.lse).reshape(rows, vocab)
    np.testing.assert_allclose(got, np.concatenate(case.expected["probs"]), rtol=1e-5)


def bd3lm_stop_rule(case: Case) -> None:
  (ids,), (left,) = np.array(case.line["prompt_ids"]), case.expected["tokens"]
  np.testing.assert_allclose(
    variety.entropy(ids[-variety.WINDOW :]), case.expected["entropy"], 1e-5
  )
  eos_id = case.arg("eos_token_id")
  if case.arg("var_length"):
    end = variety.end(ids, (eos_id,))
    assert (end is not None) == case.expected["stop"]
    np.testing.assert_array_equal(ids[:end], left)
  else:
    assert variety.is_lost(ids) == case.expected["stop"]


METHODS = {
  "bd3lm_semi_ar": bd3lm_semi_ar,
  "bd3lm_nucleus": bd3lm_nucleus,
  "bd3lm_stop_rule": bd3lm_stop_rule,
}
