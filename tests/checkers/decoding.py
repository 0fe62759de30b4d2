"""Runs a recorded decoding case through the real loop, one forward at a time.

The loop, the policies and the plans are the product's. Only chance is replaced: where a case brings
the numbers that the authors' code drew, candidates and coins come from them.
"""

import dataclasses
import functools
import json
import pathlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from dlm import weights
from dlm.models import bind
from dlm.sampling import chance, forward, loop
from dlm.sampling.canvas import at_slot, make_canvas
from dlm.sampling.sampler import Sampler
from dlm.sampling.score import score


@dataclasses.dataclass
class Case:
  """A line of cases.jsonl. `used`: arguments that were read; an unread one is a wrong test."""

  folder: pathlib.Path
  line: dict
  used: set[str] = dataclasses.field(default_factory=set)

  @property
  def name(self) -> str:
    return self.line["name"]

  @property
  def method(self) -> str:
    return self.line["method"]

  @property
  def expected(self) -> dict:
    return self.line["expected"]

  def arg(self, name: str, default=None):
    self.used.add(name)
    value = self.line["args"].get(name, default)
    return default if value is None else value

  def table(self, name: str, *known: str) -> dict:
    """An argument that is a table, whose keys must be known: {} where it is not given."""
    found = self.arg(name, {})
    assert set(found) <= set(known), f"{self.name}: {name} has unknown {set(found) - set(known)}"
    return found

  def check_all_used(self) -> None:
    ignored = set(self.line["args"]) - self.used
    assert not ignored, f"{self.name} has arguments that its checker does not read: {ignored}"


def read(folder: pathlib.Path) -> list[Case]:
  path = folder / "cases.jsonl"
  lines = path.read_text().splitlines() if path.exists() else []
  return [Case(folder, json.loads(line)) for line in lines]


@functools.cache
def model_of(folder: pathlib.Path):
  source = weights.open_source(folder / "model")
  return bind(source.model), weights.load(source)


def text_of(case: Case) -> list[np.ndarray]:
  """The columns of each recorded prompt that hold text, not padding."""
  keep = case.line.get("attention_mask") or case.arg("attention_mask")
  if keep is None:
    return [np.arange(len(row)) for row in case.line["prompt_ids"]]
  return [np.flatnonzero(row) for row in keep]


def columns_of(case: Case, generated: int) -> list[np.ndarray]:
  """Where each slot of our rows stands in the recorded ones, which may be padded on either side."""
  rows = zip(text_of(case), case.line["prompt_ids"], strict=True)
  return [np.concatenate([text, len(row) + np.arange(generated)]) for text, row in rows]


def canvas_of(
  case: Case,
  generated: int,
  mask_id: int,
  block: int,
  start: str = "prompt",
  padded: bool = False,
):
  """The case's prompts without padding, then `generated` masks; masks in a prompt are open too.

  Rows start at the end of their prompt, as the authors' blocks do ("canvas": at the block of slots
  that holds it). `padded`: padding stays, as closed slots.
  """
  prompts = [np.array(row) for row in case.line["prompt_ids"]]
  if not padded:
    prompts = [row[text] for row, text in zip(prompts, text_of(case), strict=True)]
  rows = [np.concatenate([row, np.full(generated, mask_id)]) for row in prompts]
  canvas = make_canvas(
    rows,
    [row == mask_id for row in rows],
    list(range(len(rows))),
    slots=max(map(len, rows)),
    block=block,
    align="prompt",
    mask_id=mask_id,
    seed=0,
  )
  ends = np.array([len(row) for row in prompts])
  first = ends if start == "prompt" else ends // block * block
  return canvas.replace(start_B=jnp.asarray(first, jnp.int32)), prompts


@dataclasses.dataclass
class Trace:
  """What happened: canvases after every forward (host), and the state at the end."""

  prompts: list[np.ndarray]
  states: list

  @property
  def canvases(self):
    return [state.canvas for state in self.states[1:]]

  def row(self, canvas, b: int) -> np.ndarray:
    return np.asarray(canvas.tokens_BxL[b, : int(canvas.length_B[b])])

  def generated(self, canvas, b: int) -> np.ndarray:
    return self.row(canvas, b)[len(self.prompts[b]) :]

  def forwards(self) -> np.ndarray:
    return np.asarray(self.states[-1].canvas.forwards_Bx3.sum(-1))

  def queries(self, b: int) -> list[int]:
    spent = [int(state.canvas.queries_B[b]) for state in self.states]
    return list(np.diff(spent))


def play(sampler: Sampler, params, canvas, prompts, draws=None, turns: int = 400) -> Trace:
  """Steps the loop until every row is done. `draws(i, state)`: the chance of forward i, or None."""
  state = jax.jit(loop.start, static_argnums=0)(sampler, canvas)
  states = [state]
  while not np.asarray(state.canvas.done_B).all():
    assert len(states) <= turns, "does not end"
    chances = draws(len(states) - 1, state) if draws else None
    state = _step(sampler, params, state, chances)
    states.append(state)
  return Trace(prompts, states)


@functools.partial(jax.jit, static_argnums=0)
def _step(sampler, params, state, chances):
  if chances is None:
    return loop.step(sampler, params, state)
  recorded = functools.partial(_score, chances.get("gumbel_BxLxV"))
  uniform = functools.partial(_coins, chances.get("uniform_BxL"))
  gumbel = functools.partial(_coins, chances.get("gumbel_BxL"))
  with (
    mock.patch.object(forward, "score", recorded),
    mock.patch.multiple(chance, uniform=uniform, gumbel=gumbel),
  ):
    return loop.step(sampler, params, state)


def _score(
  gumbel_BxLxV, head, spec, *, temperature_B, bars, served, current_BxA, key_B, slot_BxA,
  gather_BxAxJ,
):  # fmt: skip
  """The statistics at temperature 0, then the candidate that the recorded noise chooses."""
  own = (temperature_B, served, bars[1])
  assert own == (None, None, None), "no recorded policy sets its own temperature, or bars ids"
  cold = dataclasses.replace(spec, temperature=0.0)
  tempered = head.replace(hidden_BxAxD=head.hidden_BxAxD / spec.divisor(None))
  stats = score(
    spec.told(head, tempered, tempered), cold, current_BxA=current_BxA, key_B=key_B,
    slot_BxA=slot_BxA, gather_BxAxJ=gather_BxAxJ,
  )  # fmt: skip
  if gumbel_BxLxV is None or spec.temperature == 0:
    return stats
  plain, z = logits(head, spec), logits(tempered, spec)
  shaped = shape(z, spec)
  noise = jnp.take_along_axis(gumbel_BxLxV, slot_BxA[..., None], axis=1)
  token = jnp.argmax(shaped + noise, axis=-1).astype(jnp.int32)
  stats.token = token
  logit = jnp.take_along_axis(spec.told(plain, z, shaped), token[..., None], axis=-1)[..., 0]
  among = jnp.isin(token, jnp.array(spec.outside, jnp.int32))
  stats.logit = jnp.where(among, -jnp.inf, logit)
  return stats


def logits(head, spec):
  z = jnp.einsum("bad,vd->bav", head.hidden_BxAxD, head.unembed_VxD)
  forbidden = jnp.isin(jnp.arange(z.shape[-1]), jnp.array(spec.forbidden, jnp.int32))
  return jnp.where(forbidden[None, None], -jnp.inf, z)


def shape(z, spec):
  """Tempered logits cut by top-k and top-p: of what top-k keeps (SDAR), or before it (Dream)."""
  cuts = [_cut_p, _cut_k] if spec.top_p_of == "all" else [_cut_k, _cut_p]
  for cut in cuts:
    z = cut(z, spec)
  return z


def _cut_p(z, spec):
  if spec.top_p == 1:
    return z
  order = jnp.sort(z, axis=-1, descending=True)
  p = jax.nn.softmax(order, axis=-1)
  mass = jnp.cumsum(p, axis=-1)
  kept = mass - p <= spec.top_p
  if spec.top_p_rule == "within":
    kept = (mass <= spec.top_p).at[..., 0].set(True)
  return jnp.where(z >= jnp.where(kept, order, jnp.inf).min(-1, keepdims=True), z, -jnp.inf)


def _cut_k(z, spec):
  if not spec.top_k:
    return z
  return jnp.where(z >= jax.lax.top_k(z, spec.top_k)[0][..., -1:], z, -jnp.inf)


def _coins(coins_BxL, key_B, view):
  """Recorded coins by canvas slot, for the slots in scope."""
  return at_slot(coins_BxL, view.slot_BxA)


def at_queries(value: np.ndarray, sampler: Sampler, state) -> np.ndarray:
  """Draws [B, queries, ...], queries ascending, at their slots [B, L, ...]."""
  batch, slots = state.canvas.tokens_BxL.shape
  if value.shape[1] == slots:
    return value
  out = np.zeros((batch, slots, *value.shape[2:]))
  window_BxL = np.asarray(sampler.plan.window_BxL(loop.progress(sampler, state)))
  for b in range(batch):
    out[b, window_BxL[b]] = value[b]
  return out
