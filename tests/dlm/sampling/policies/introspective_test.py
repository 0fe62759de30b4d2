"""Drafting changes how many forwards a text takes, never the text: it is the AR model's own."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks
from dlm.models import ModelConfig, bind
from dlm.sampling import forward, loop
from dlm.sampling.caching import ExactBlock, NoCache, Rolling
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policies import Introspective, LeftToRight, Threshold
from dlm.sampling.sampler import Sampler
from tests.dlm.models.small import jitter

MASK = 6
MODEL = bind(ModelConfig(vocab=7, width=16, layers=2, heads=2, kv_heads=2, head_dim=8, mlp=24))
M = MASK
ROWS = [[1, 2, 3] + [M] * 9, [4] * 7 + [M] * 5, [M] * 6, [0, 5, M, M, 3, M, M, M], [2, M]]
run = jax.jit(loop.run, static_argnums=0)
# For many rows optimising pays, which tests otherwise do without.
draw = jax.jit(loop.run, static_argnums=0, compiler_options={"xla_backend_optimization_level": 3})


@functools.cache
def params_of():
  params = jitter(jax.jit(MODEL.init)(jax.random.key(0)))
  return params | {"final_norm": {"scale": 2 * params["final_norm"]["scale"]}}


def sampler(policy, plan=None, **fields):
  fields = dict(block=policy.draft_span or 1, max_forwards=60, mask_id=MASK, shift=1) | fields
  return Sampler(MODEL, policy, plan or Rolling(), fields.pop("sees", masks.Causal()), **fields)


def canvas_of(rows=ROWS, row_ids=None, seed=0, slots=16):
  rows = [np.asarray(row) for row in rows]
  return make_canvas(
    rows, [row == MASK for row in rows], row_ids or list(range(len(rows))), slots=slots, block=1,
    align="prompt", mask_id=MASK, seed=seed,
  )  # fmt: skip


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1.7])
@pytest.mark.parametrize("stride", [2, 4])
def test_the_text_is_that_of_token_by_token_sampling(stride, temperature):
  """With the same key, at any temperature; and stride 1 is that."""
  plain = run(sampler(Introspective(1), temperature=temperature), params_of(), canvas_of())
  out = run(sampler(Introspective(stride), temperature=temperature), params_of(), canvas_of())
  np.testing.assert_array_equal(out.tokens_BxL, plain.tokens_BxL)
  assert plain.done_B.all() and not ((plain.tokens_BxL == MASK) & plain.open_BxL).any()
  assert (out.forwards_Bx3.sum(-1) <= plain.forwards_Bx3.sum(-1)).all()
  assert out.forwards_Bx3.sum() < plain.forwards_Bx3.sum(), "some drafts are right"
  # One whole canvas, then a window of one query a token.
  assert plain.forwards_Bx3[0].tolist() == [1, 8, 0]
  assert int(plain.queries_B[0]) == 12 + 8


def test_greedy_text_equals_that_of_an_uncached_model():
  """And of the exact block cache: two more ways to decode an autoregressive model."""
  plain = run(sampler(LeftToRight(), NoCache()), params_of(), canvas_of())
  drafted = run(sampler(Introspective(3)), params_of(), canvas_of())
  np.testing.assert_array_equal(drafted.tokens_BxL, plain.tokens_BxL)
  for commit in ("fused", "separate"):
    cached = sampler(LeftToRight(), ExactBlock(), commit=commit)
    out = run(cached, params_of(), canvas_of())
    np.testing.assert_array_equal(out.tokens_BxL, plain.tokens_BxL)


@pytest.mark.parametrize("stride", [1, 4])
def test_no_more_rows_meet_the_vocabulary_than_there_are_queries(stride, monkeypatch):
  rows, score = [], forward.score

  def counted(head, *args, **kwargs):
    rows.append(head.hidden_BxAxD.shape[1])
    return score(head, *args, **kwargs)

  monkeypatch.setattr(forward, "score", counted)
  drafts = functools.partial(loop.run, sampler(Introspective(stride)))
  jax.eval_shape(drafts, params_of(), canvas_of())
  # Of the whole canvas the block's, of a window its queries', one fewer.
  assert set(rows) == {2 * stride, 2 * stride - 1}


def law(length: int) -> np.ndarray:
  """Exact probabilities of all texts after the prompt [1], [6] * length; [MASK] is never drawn."""
  texts = np.array(list(itertools.product(range(MASK), repeat=length)))
  tokens = jnp.asarray(np.concatenate([np.ones((len(texts), 1), int), texts], axis=1), jnp.int32)
  slot = jnp.broadcast_to(jnp.arange(length + 1), tokens.shape)
  out = MODEL(params_of(), tokens, slot_BxW=slot, mask=masks.Causal()(slot, length + 1))
  logits = jnp.einsum("bad,vd->bav", out.head.hidden_BxAxD, out.head.unembed_VxD)
  logp = jax.nn.log_softmax(logits.at[..., MASK].set(-jnp.inf)[:, :-1], axis=-1)
  chosen = jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1)[..., 0]
  return np.exp(np.asarray(chosen, np.float64).sum(-1)).reshape((MASK,) * length)


def distance_to_law(program: Sampler, params, length: int = 4) -> tuple[float, np.ndarray]:
  """Total variation of 1e5 draws to the exact law, and what 40 exact samples of that size have."""
  rows, rounds = 12_500, 8
  exact = law(length)
  counts = np.zeros(exact.shape)
  for i in range(rounds):
    canvas = canvas_of([[1] + [M] * length] * rows, list(range(rows)), seed=i, slots=length + 1)
    out = draw(program, params, canvas)
    np.add.at(counts, tuple(np.asarray(out.tokens_BxL)[:, 1:].T), 1)
    assert out.forwards_Bx3.sum() < 0.95 * rows * length, "drafts are accepted"
  draws = rows * rounds
  samples = np.random.default_rng(0).multinomial(draws, exact.ravel() / exact.sum(), size=40)
  chance = 0.5 * np.abs(samples / draws - exact.ravel()).sum(-1)
  return 0.5 * np.abs(counts / draws - exact).sum(), chance


def test_the_law_at_temperature_1_is_the_autoregressive_one():
  """No further from it than sampling error makes it."""
  distance, chance = distance_to_law(sampler(Introspective(3), temperature=1.0), params_of())
  assert distance < chance.mean() + 5 * chance.std()


def test_rows_end_at_a_settled_stop_id_and_keep_no_unchecked_draft():
  plain = run(sampler(Introspective(1)), params_of(), canvas_of())
  stop = int(plain.tokens_BxL[0, 6])
  first = 3 + int(np.argmax(np.asarray(plain.tokens_BxL[0, 3:12]) == stop))
  out = run(sampler(Introspective(4), eos_ids=(stop,)), params_of(), canvas_of())
  assert out.done_B.all()
  np.testing.assert_array_equal(out.tokens_BxL[0, : first + 1], plain.tokens_BxL[0, : first + 1])
  end = int(out.start_B[0])
  assert end >= first and (np.asarray(out.tokens_BxL[0, end + 1 : 12]) == MASK).all()
  spent = run(sampler(Introspective(4), max_forwards=2), params_of(), canvas_of())
  end = int(spent.start_B[1])
  np.testing.assert_array_equal(spent.tokens_BxL[1, : end + 1], plain.tokens_BxL[1, : end + 1])
  assert (np.asarray(spent.tokens_BxL[1, end + 1 : 12]) == MASK).all()


def test_lenient_rules_accept_more():
  plain = run(sampler(Introspective(1)), params_of(), canvas_of())
  all_ = run(sampler(Introspective(4, "sure", 0.0)), params_of(), canvas_of())
  some = run(sampler(Introspective(4, "kept"), top_k=3), params_of(), canvas_of())
  exact = run(sampler(Introspective(4)), params_of(), canvas_of())
  spent = [int(out.forwards_Bx3.sum()) for out in (all_, some, exact, plain)]
  assert spent == sorted(spent) and spent[0] < spent[2] < spent[3]
  trusted = run(sampler(Introspective(4, checked=1)), params_of(), canvas_of())
  assert spent[0] <= int(trusted.forwards_Bx3.sum()) <= spent[2]
  again = run(sampler(Introspective(4, "sure", 0.0, correct=True)), params_of(), canvas_of())
  assert (again.tokens_BxL != all_.tokens_BxL).any()


def test_broken_models_end():
  for value in (jnp.nan, -jnp.inf):
    params = jax.tree.map(lambda x, v=value: jnp.full_like(x, v), params_of())
    out = run(sampler(Introspective(3)), params, canvas_of())
    assert out.done_B.all()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"policy": Introspective(2), "shift": 0}, "drafts, which needs cache 'rolling'"),
    ({"policy": Introspective(2), "plan": ExactBlock()}, "drafts, which needs cache 'rolling'"),
    ({"policy": Introspective(2), "block": 2}, "block=2 to be the policy's span 4"),
    ({"policy": Threshold()}, "policies that draft"),
  ],
)
def test_what_cannot_be_exact_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    sampler(**changes)
  with pytest.raises(ValueError, match="stride=0 must be at least 1"):
    dataclasses.replace(Introspective(), stride=0)
