"""Finds tests that pass by luck: they compare tokens of two programs, and rounding decides.

python -m pytest -p tests.margins --moved=0 tests/dlm/sampling tests/dlm/generate_test.py

XLA may sum a matmul of another shape in another order, so two programs (a row alone and in a
batch, with a cache and without) agree on tokens where decisions have a margin, and by luck
elsewhere. Under this plugin every program moves its logits, and those of routers, by up to 1e-5 of
their size, each by numbers of its own; rows of one program are moved alike. A test that fails now,
with one seed `--moved` or another, compares two programs at a case without a margin: give it other
numbers, or equal shapes.
"""

import zlib

import jax
import numpy as np

from dlm.models.moe import expert_choice, token_choice
from dlm.sampling import drafts, guidance, shadow

RELATIVE = 1e-5
seed = 0


def _moved(x: jax.Array, rows: int, *program: object) -> jax.Array:
  """`x`, its elements moved by numbers that depend on their place behind the first `rows` axes."""
  own = zlib.crc32(repr((x.shape, program)).encode())
  noise = np.random.default_rng((seed, own)).uniform(-1, 1, (1,) * rows + x.shape[rows:])
  return x * (1 + RELATIVE * noise).astype(x.dtype)


def _moves_head(denoise):
  def moved(sampler, params, tokens_BxW, *args, **rows):
    out = denoise(sampler, params, tokens_BxW, *args, **rows)
    hidden = _moved(out.head.hidden_BxAxD, 1, sampler, tokens_BxW.shape)
    return out.replace(head=out.head.replace(hidden_BxAxD=hidden))

  return moved


def _moves_drafts(score):
  def moved(head, spec, **rows):
    hidden = _moved(head.hidden_BxAxD, 1, spec)
    return score(head.replace(hidden_BxAxD=hidden), spec, **rows)

  return moved


def _moves_router(choose):
  def moved(moe, logits, *args, **rows):
    return choose(moe, _moved(logits, 1), *args, **rows)

  return moved


def pytest_addoption(parser):
  parser.addoption("--moved", type=int, default=0, help="seed of what logits are moved by")


def pytest_configure(config):
  global seed
  seed = config.getoption("moved")
  guidance.denoise = _moves_head(guidance.denoise)
  shadow.denoise = _moves_head(shadow.denoise)
  drafts.score = _moves_drafts(drafts.score)
  expert_choice.choose = _moves_router(expert_choice.choose)
  token_choice.token_choice = _moves_router(token_choice.token_choice)
