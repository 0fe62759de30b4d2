"""A source whose every conditional is known: a stationary Markov chain.

Its Denoiser answers from what the attention mask lets each query see, so that a label leak, a
wrong position or a wrong document shows up as a wrong likelihood.
"""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np

from dlm.objectives import OBJECTIVES, Objective
from dlm.objectives.estimators import CountedElbo
from dlm.objectives.objective import with_own
from dlm.types import Batch, LogitHead, ModelOutput
from kernels_pallas.block_attention import Keys, visible

STEP = np.array([[0.7, 0.1, 0.1, 0.1], [0.05, 0.8, 0.1, 0.05], [0.25] * 4, [0.1, 0, 0.1, 0.8]])
STATES = 4
MASK = 4
# What asks for other things than the text asks for the text alone.
AS_TEXT = {"dreamon": {"merge": 0.0, "ends": 1}}
_VALUES, _VECTORS = np.linalg.eig(STEP.T)
FIRST = np.real(_VECTORS[:, np.argmax(np.real(_VALUES))])
FIRST = FIRST / FIRST.sum()


def made(name: str, mask_id: int = MASK, vocab: int = STATES + 1) -> Objective:
  """The objective of OBJECTIVES, with the fields that it demands."""
  known = {
    "mask_id": mask_id, "block": 4, "vocab": vocab, "end_id": 2, "expand_id": 3, "insert_id": 0,
    "delete_id": 1, "anchors": 2, "estimator": CountedElbo(draws=1),
  }  # fmt: skip
  parameters = inspect.signature(OBJECTIVES[name]).parameters.values()
  demanded = {p.name: known[p.name] for p in parameters if p.default is p.empty}
  return OBJECTIVES[name](**demanded | AS_TEXT.get(name, {}))


def sample(rows: int, length: int, seed: int = 0) -> np.ndarray:
  rng = np.random.default_rng(seed)
  tokens = np.zeros((rows, length), np.int32)
  for i in range(length):
    prob = np.tile(FIRST, (rows, 1)) if i == 0 else STEP[tokens[:, i - 1]]
    tokens[:, i] = (rng.random((rows, 1)) > prob.cumsum(-1)).sum(-1).clip(0, STATES - 1)
  return tokens


def exact_nats(tokens: np.ndarray) -> np.ndarray:
  """-log p of every token given those before it, [B, L]."""
  first = -np.log(FIRST[tokens[:, :1]])
  return np.concatenate([first, -np.log(STEP[tokens[:, :-1], tokens[:, 1:]])], axis=1)


def rows(tokens: np.ndarray, segment: np.ndarray | None = None) -> Batch:
  tokens = jnp.asarray(tokens)
  segment = jnp.ones(tokens.shape, jnp.int32) if segment is None else jnp.asarray(segment)
  return Batch(
    tokens_BxL=tokens,
    noisable_BxL=segment > 0,
    segment_BxL=segment,
    position_BxL=jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape),
    extra={
      "when": jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape),
      "advantage_B": jnp.where(jnp.arange(len(tokens)) % 2, -1.0, 1.0),
      "hidden_BxL": jnp.ones(tokens.shape, bool),
      "confidence_BxL": jnp.ones(tokens.shape),
    },
  )


def asked(objective: Objective, denoise, params, teacher, theirs):
  """What `losses` takes: pairs where the objective is taught."""
  return ((denoise, teacher), (params, theirs)) if objective.taught else (denoise, params)


@dataclasses.dataclass(frozen=True)
class Oracle:
  """p(token at a slot | visible tokens that are not masked): the nearest on each side decide.

  Logits are log-probabilities of the 4 states; the mask id, which must be left out, gets +3.
  """

  longest: int = 16
  ahead: int = 0  # 1: predicts the token after the query's own, as autoregressive models do

  def __call__(self, params, tokens_BxW, *, slot_BxW, mask, ask_BxA=None, **_):
    del params
    powers = np.stack([np.linalg.matrix_power(STEP, d) for d in range(self.longest + 1)])
    log_step = jnp.asarray(np.log(np.maximum(powers, 1e-30)), jnp.float32)
    width = tokens_BxW.shape[1]
    seen = visible(mask, Keys(jnp.broadcast_to(jnp.arange(width), tokens_BxW.shape)))
    seen &= (tokens_BxW != MASK)[:, None, :]
    query = slot_BxW[:, :, None] + self.ahead
    key = slot_BxW[:, None, :]

    def nearest(allowed, sign):
      """Token and distance of the nearest allowed key on one side, and whether there is one."""
      away = jnp.where(allowed, sign * (query - key), 2 * self.longest)
      index = away.argmin(-1)
      token = jnp.take_along_axis(tokens_BxW, index, axis=1)
      distance = jnp.minimum(away.min(-1), self.longest)
      return jnp.where(allowed.any(-1), token, 0), distance, allowed.any(-1)

    left, to_left, has_left = nearest(seen & (key < query), 1)
    right, to_right, has_right = nearest(seen & (key > query), -1)
    first = jnp.asarray(np.log(FIRST), jnp.float32)
    logp = jnp.where(has_left[..., None], log_step[to_left, left], first[None, None])
    logp += jnp.where(has_right[..., None], log_step.mT[to_right, right], 0.0)
    logits = jnp.concatenate([logp, jnp.full((*logp.shape[:2], 1), 3.0)], -1)
    if ask_BxA is not None:
      logits = jnp.take_along_axis(logits, ask_BxA[..., None], axis=1)
    return ModelOutput(LogitHead(logits, jnp.eye(STATES + 1)), None, {})


@dataclasses.dataclass(frozen=True)
class Constant:
  """Every token costs `nats`: logits over two ids and the mask id, which is 2."""

  nats: float = 1.0

  def __call__(self, params, tokens_BxW, *, ask_BxA=None, **_):
    del params
    shape = tokens_BxW.shape if ask_BxA is None else ask_BxA.shape
    p = float(np.exp(-self.nats))  # of id 0, which all tests of this model predict
    logits = jnp.log(jnp.array([p, 1 - p, 1e-30]))
    hidden = jnp.broadcast_to(logits, (*shape, 3))
    return ModelOutput(LogitHead(hidden, jnp.eye(3)), None, {})


# Jitted, because eager JAX compiles every small operation of a test by itself.


@functools.partial(jax.jit, static_argnums=(0, 1))
def draw(objective, seed: int, batch):
  return objective.draw(jax.random.key(seed), batch)


@functools.partial(jax.jit, static_argnums=0)
def replay(objective, draws, batch):
  return objective.corrupt_with(draws, batch, 0)


@functools.partial(jax.jit, static_argnums=(0, 1))
def corrupt(objective, seed: int, batch):
  return objective.corrupt(jax.random.key(seed), batch, 0)


@functools.partial(jax.jit, static_argnums=(0, 1))
def token_losses(objective, denoise, params, noisy) -> jax.Array:
  return objective.token_losses(denoise, with_own(params, objective.init(STATES + 1)), noisy)


def losses(objective, draws, batch, denoise) -> jax.Array:
  """Loss by token of one replayed draw."""
  return token_losses(objective, denoise, {}, replay(objective, draws, batch))
