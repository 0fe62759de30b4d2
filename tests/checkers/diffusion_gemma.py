"""DiffusionGemma: both passes of its model, its sampler, its rules of acceptance and of stopping.

Few programs run everything of a folder: windows are padded to one width, canvases to one length,
and the settings of a case are arrays.
"""

import copy
import dataclasses
import functools
import pathlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from dlm import masks
from dlm.models import bind
from dlm.models.rope import frequencies
from dlm.objectives.cross_entropy import logits
from dlm.sampling import ends, loop
from dlm.sampling import forward as forwarding
from dlm.sampling.caching import Text as TextCache
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policies import Renoise
from dlm.sampling.policies.entropy_bounded import within_budget
from dlm.sampling.sampler import Sampler
from dlm.sampling.score import score
from dlm.types import LogitHead, View
from dlm.weights.adapt import with_mask_row
from tests.checkers.decoding import Case, text_of
from tests.checkers.models import loaded

TOLERANCE = 2e-4  # four times what a forward in float64 differs by
WINDOW, SLOTS = 32, 48


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, tokens_BxW, slot_BxW, mask, time_BxW, soft_BxWxD, cache, write_BxW):
  out = model(
    params, tokens_BxW, slot_BxW=slot_BxW, mask=mask, time_BxW=time_BxW, soft_BxWxD=soft_BxWxD,
    cache=cache, write_BxW=write_BxW,
  )  # fmt: skip
  return logits(out.head), out


class Text:
  """A batch that is read piece by piece; its cache holds what was read as text."""

  def __init__(self, folder: pathlib.Path, rows: int):
    self.source, self.model, self.params = loaded(folder / "model")
    self.rule = self.source.facts.attention
    self.cache, self.start = self.model.empty_cache(rows, SLOTS), 0

  def _run(self, tokens, noisy: bool, soft=None, live=None, cached=True):
    """Logits and output of `tokens`, which come next."""
    tokens = np.asarray(tokens)
    rows, width = tokens.shape
    pad = ((0, 0), (0, WINDOW - width))
    slot = np.pad(self.start + np.tile(np.arange(width), (rows, 1)), pad, constant_values=SLOTS)
    slot = jnp.asarray(slot, jnp.int32)
    start_B = jnp.full(rows, self.start if noisy else SLOTS)
    mask = self.rule(slot, SLOTS, start_B=start_B)
    if live is not None:  # padding on the left
      first_B = jnp.asarray(np.argmax(live, axis=1))
      lo_BxW = jnp.maximum(mask.lo_BxWxR[..., 1], first_B[:, None])
      mask = mask.replace(lo_BxWxR=mask.lo_BxWxR.at[..., 1].set(lo_BxW))
    soft = np.zeros((rows, width, self.model.width)) if soft is None else soft
    write = np.pad(np.ones((rows, width), bool) if live is None else live > 0, pad)
    logits, out = forward(
      self.model,
      self.params,
      jnp.asarray(np.pad(tokens, pad), jnp.int32),
      slot,
      mask,
      jnp.full((rows, WINDOW), float(noisy)),
      jnp.asarray(np.pad(soft, (*pad, (0, 0))), jnp.float32),
      self.cache,
      jnp.asarray(write & (not noisy)),
    )
    return logits[:, :width], out

  def read(self, tokens, live=None):
    """Causally; `live`: which are text, and not padding."""
    logits, out = self._run(tokens, noisy=False, live=live)
    self.cache, self.start = out.cache, self.start + tokens.shape[1]
    return logits, np.asarray(out.head.hidden_BxAxD[:, : tokens.shape[1]])

  def denoise(self, canvas, soft=None):
    return self._run(canvas, noisy=True, soft=soft)

  def soft(self, logits_BxCxV) -> np.ndarray:
    return np.asarray(jax.nn.softmax(jnp.asarray(logits_BxCxV), axis=-1) @ self.params["embed"])


def check_logits(path: pathlib.Path) -> None:
  arrays = {n: x for n, x in np.load(path).items() if not n.startswith(("rule/", "processed_"))}
  used = set()

  def want(name: str) -> np.ndarray:
    used.add(name)
    return arrays[name]

  def close(got, name: str) -> None:
    np.testing.assert_allclose(got, want(name), rtol=0, atol=TOLERANCE, err_msg=name)

  for prompt in sorted({n.partition("/")[0] for n in arrays} - {"rope", "padded"}):
    part = functools.partial("{}/{}".format, prompt)
    canvas = want(part("canvas"))
    text = Text(path.parent, len(canvas))
    encoded, hidden = text.read(want(part("input_ids")))
    close(hidden, part("encoder_last_hidden"))
    close(encoded, part("encoder_logits"))
    plain, out = text.denoise(canvas)
    close(plain, part("denoise_logits"))
    _check_router(text, out, canvas.shape, close, want, part)
    soft = text.soft(want(part("sc_logits")))
    close(text.denoise(canvas, soft)[0], part("denoise_logits_sc"))
    first_alone = np.where(np.arange(len(soft))[:, None, None] == 0, soft, 0)
    close(text.denoise(canvas, first_alone)[0], part("denoise_logits_sc_first_row_only"))
    uniform = text.soft(np.zeros_like(want(part("sc_logits"))))
    close(text.denoise(canvas, uniform)[0], part("denoise_logits_sc_of_zero_logits"))
    without_cache(text, want(part("input_ids")), canvas, plain)
    close(text.read(canvas)[1], part("commit_last_hidden"))
    close(text.denoise(canvas[::-1])[0], part("next_canvas_logits"))

  if "padded/canvas" in arrays:
    text = Text(path.parent, len(want("padded/canvas")))
    text.read(want("padded/input_ids"), live=want("padded/attention_mask"))
    close(text.denoise(want("padded/canvas"))[0], "padded/denoise_logits")
  source, _, _ = loaded(path.parent / "model")
  cfg, gemma = source.model, source.model.gemma
  full = frequencies(gemma.head_dim, gemma.rope_base)
  full[int(gemma.rotated * gemma.head_dim // 2) :] = 0
  sliding = frequencies(cfg.head_dim, cfg.rope_base)
  for name, got in (("sliding_attention", sliding), ("full_attention", full)):
    np.testing.assert_allclose(got, want(f"rope/{name}_inv_freq"), rtol=1e-6)
  assert used == arrays.keys(), f"{path} holds arrays that no check reads: {arrays.keys() - used}"


def _check_router(text: Text, out, shape, close, want, part) -> None:
  """The same experts for every token, exactly; their probabilities and weights closely."""
  for layer in range(text.model.config.layers):
    told = {
      name: out.aux[f"{name}_YxBxWx{axis}"][layer, :, : shape[1]]
      for name, axis in (("router_logits", "E"), ("experts", "K"), ("weights", "K"))
    }
    close(jax.nn.softmax(told["router_logits"], axis=-1), part(f"layer{layer}_router_probs"))
    order = jnp.argsort(told["experts"], axis=-1)
    np.testing.assert_array_equal(
      jnp.take_along_axis(told["experts"], order, axis=-1),
      want(part(f"layer{layer}_expert_ids_sorted")),
    )
    weights = jnp.take_along_axis(told["weights"], order, axis=-1)
    close(weights, part(f"layer{layer}_expert_weights"))


def without_cache(text: Text, prompt: np.ndarray, canvas: np.ndarray, want) -> None:
  """Prompt and canvas in one forward: both passes in one window."""
  tokens = np.concatenate([prompt, canvas], axis=1)
  rows, width = tokens.shape
  pad = ((0, 0), (0, WINDOW - width))
  slot = jnp.broadcast_to(jnp.arange(WINDOW, dtype=jnp.int32), (rows, WINDOW))
  mask = text.rule(slot, WINDOW, start_B=jnp.full(rows, prompt.shape[1]))
  got, _ = forward(
    text.model,
    text.params,
    jnp.asarray(np.pad(tokens, pad), jnp.int32),
    slot,
    masks.within(mask, jnp.full(rows, width)),
    (slot >= prompt.shape[1]).astype(jnp.float32),
    jnp.zeros((rows, WINDOW, text.model.width)),
    None,
    None,
  )
  np.testing.assert_allclose(got[:, prompt.shape[1] : width], want, rtol=0, atol=TOLERANCE)


# ---------------------------------------------------------------------------------------------
# The sampler

NUMBERS = ("steps", "budget", "still", "stable")


@dataclasses.dataclass(frozen=True)
class Told(Renoise):
  """The product's rule, whose numbers are in the state: cases share a program."""

  conditions: bool = True

  def enter(self, masked_BxA, state):
    numbers = {name: jnp.zeros(len(masked_BxA)) for name in NUMBERS} if state is None else state[1]
    return super().enter(masked_BxA, None), numbers

  def decide(self, view, state, key_B):
    own = copy.copy(self)
    for name, values_B in state[1].items():
      object.__setattr__(own, name, values_B[0])
    decision, seen = Renoise.decide(own, view, state[0], key_B)
    return decision, (seen, state[1])


@functools.partial(jax.jit, static_argnums=0)
def _step(sampler, params, state, temperature_B, gumbel_BxAxV, random_BxA, next_BxA, stop_2):
  """One turn of the loop, and the statistics that it decides by.

  `random`: what takes the place of tokens that are not accepted; `next`: how a next canvas begins;
  `stop`: the case's stop ids.
  """
  seen, ids = [], iter([random_BxA, next_BxA])

  def drawn(head, spec, **rows):
    stats = score(head, dataclasses.replace(spec, temperature=0.0), **rows)
    z_BxAxV = logits(head) / rows["temperature_B"][:, None, None]
    z_BxAxV = z_BxAxV.at[:, :, list(spec.forbidden)].set(-jnp.inf)
    stats.token = jnp.argmax(z_BxAxV + gumbel_BxAxV, axis=-1).astype(jnp.int32)
    return stats

  def run(*args):
    seen.append(forwarding.forward(*args))
    return seen[0]

  def written(sampler, canvas):
    return canvas.open_BxL & (canvas.when_BxL >= 0) & jnp.isin(canvas.tokens_BxL, stop_2)

  with (
    mock.patch.object(ends, "written", written),
    mock.patch.object(forwarding, "score", drawn),
    mock.patch.object(loop, "forward", run),
    mock.patch.object(Told, "noise", lambda *_: next(ids)),
    mock.patch.object(Told, "temperature", lambda *_: temperature_B),
  ):
    state = loop.step(sampler, params, state)
  return state, seen[0].stats


class Recorded:
  """A case's draws: how each canvas begins, and by forward the noise and the new random ids."""

  def __init__(self, case: Case, rows: int, given):
    arrays = np.load(case.folder / "noise.npz")
    draws = [arrays[key] for _, key in case.line["draws"]]
    steps = [step["step"] for step in case.expected["steps"]]
    first = [i for i, step in enumerate(steps) if step == max(steps)]
    self.first_of = [*first, len(steps)]  # among all forwards
    self.begins, self.forwards = [], []
    for begin, end in zip(first, self.first_of[1:], strict=True):
      self.begins.append(self._rows(draws.pop(0), rows))
      self.forwards += [(draws.pop(0), self._rows(draws.pop(0), rows)) for _ in range(begin, end)]
    assert not draws
    if given is not None:
      self.begins[0] = self._rows(np.asarray(given), rows)

  @staticmethod
  def _rows(draw: np.ndarray, rows: int) -> np.ndarray:
    """A case of one row is run as two alike: one program for both."""
    return np.broadcast_to(draw, (rows, draw.shape[-1])) if len(draw) == 1 else draw

  def canvases(self) -> int:
    return len(self.begins)


def generate(case: Case) -> None:
  source, model, params = loaded(case.folder / "model")
  vocab, block = source.model.vocab, case.arg("canvas_length")
  assert source.facts.block == block
  prompts = [
    np.array(row)[text] for row, text in zip(case.line["prompt_ids"], text_of(case), strict=True)
  ]
  count = len(prompts)
  rows = max(count, 2)
  prompts = (prompts * rows)[:rows]
  noise = Recorded(case, rows, case.arg("decoder_input_ids"))
  room = noise.canvases() * block
  assert -(-case.arg("max_new_tokens") // block) >= noise.canvases()
  eos, pad = tuple(case.arg("eos_token_id")), case.arg("pad_token_id")
  policy = Renoise(
    vocab,
    steps=case.arg("max_denoising_steps"),
    hot=case.arg("t_max"),
    cold=case.arg("t_min"),
    budget=case.arg("entropy_bound"),
    still=case.arg("confidence_threshold"),
    stable=case.arg("stability_threshold"),
  )
  sampler = Sampler(
    bind(dataclasses.replace(model.config, vocab=vocab + 1)),
    Told(vocab),
    TextCache(),
    source.facts.attention,
    block=block,
    max_forwards=10_000,
    mask_id=vocab,
    on_eos="stop_block",
    commit="separate",
    temperature=1.0,
  )
  texts = [np.concatenate([prompt, np.full(room, vocab)]) for prompt in prompts]
  canvas = make_canvas(
    texts, [text == vocab for text in texts], list(range(rows)), slots=max(SLOTS, *map(len, texts)),
    block=block, align="prompt", mask_id=vocab, seed=0,
  )  # fmt: skip
  with mock.patch.object(Told, "noise", lambda *_: jnp.asarray(noise.begins[0], jnp.int32)):
    state = loop.start(sampler, canvas)
  numbers = {name: jnp.full(rows, getattr(policy, name), jnp.float32) for name in NUMBERS}
  state = state.replace(policy=(state.policy[0], numbers))
  params = with_mask_row(jax.tree.map(jnp.copy, params), vocab)

  spent = np.zeros((rows, noise.canvases()), int)
  while not np.asarray(state.canvas.done_B).all():
    state = _turn(case, sampler, params, state, policy, noise, prompts, spent)
  _check_text(case, state, prompts[:count], spent[:count], eos, pad)


def _turn(case, sampler, params, before, policy, noise, prompts, spent):
  """A forward of all rows, each at its own place in the recording; `spent` counts them."""
  rows, block, vocab = len(prompts), sampler.block, policy.vocab
  live = np.flatnonzero(~np.asarray(before.canvas.done_B))
  starts, steps = np.asarray(before.canvas.start_B), np.asarray(before.step_B)
  gumbel = np.zeros((rows, block, vocab + 1), np.float32)
  random, begins = np.zeros((2, rows, block), np.int32)
  at = {}
  for b in live:
    number = (starts[b] - len(prompts[b])) // block
    at[b] = noise.first_of[number] + steps[b]
    exponential, new = noise.forwards[at[b]]
    mine = exponential.astype(np.float32).reshape(-1, block, vocab)
    gumbel[b, :, :vocab] = -np.log(mine[b % len(mine)])
    random[b] = new[b]
    begins[b] = noise.begins[min(number + 1, noise.canvases() - 1)][b]
  state, stats = _step(
    sampler,
    params,
    before,
    policy.temperature(before.step_B),
    gumbel,
    random,
    begins,
    np.array(case.arg("eos_token_id")),
  )
  for b in live:
    if int(state.canvas.turn_B[b]) == int(before.canvas.turn_B[b]):
      continue  # a commit, or another row's
    spent[b, (starts[b] - len(prompts[b])) // block] += 1
    want = {
      name: x[b % len(x)] for name, x in case.expected["steps"][at[b]].items() if name != "step"
    }
    here = slice(starts[b], starts[b] + block)
    where = f"{case.name}, row {b}, forward {at[b]}: "
    np.testing.assert_array_equal(
      before.canvas.tokens_BxL[b, here], want["canvas_in"], where + "canvas_in"
    )
    np.testing.assert_array_equal(stats.token[b], want["sampled"], where + "sampled")
    np.testing.assert_array_equal(stats.best[b, :, 0], want["argmax"], where + "argmax")
    np.testing.assert_allclose(stats.entropy[b].mean(), want["mean_entropy"], atol=1e-3)
    stays = int(state.canvas.start_B[b]) == starts[b] and not bool(state.canvas.done_B[b])
    last = case.expected["steps"][at[b]]["step"] == 1
    assert stays == (not (want["finished"] or last)), where
    left = want["canvas_out"] if stays else want["argmax"]
    np.testing.assert_array_equal(state.canvas.tokens_BxL[b, here], left, where + "canvas_out")
  return state


def _check_text(case: Case, state, prompts, spent, eos, pad: int) -> None:
  """What is written up to the first stop id, forwards by row and of the batch, and the stream."""
  want, block = case.expected, state.policy[0].best_BxA.shape[1]
  padded = np.array(case.line["prompt_ids"])
  stream = [["put", padded.tolist()]]
  written = np.full((len(prompts), spent.shape[1] * block), pad)
  for b, prompt in enumerate(prompts):
    mine = np.asarray(state.canvas.tokens_BxL[b])[len(prompt) :][: (spent[b] > 0).sum() * block]
    stops = np.flatnonzero(np.isin(mine, eos))
    mine = mine[: stops[0] + 1] if len(stops) else mine
    written[b, : len(mine)] = mine
  np.testing.assert_array_equal(np.concatenate([padded, written], axis=1), want["sequences"])
  tokens = (written != pad).sum(1)
  np.testing.assert_allclose(tokens / spent.sum(1), want["tokens_per_forward"], atol=1e-5)
  assert spent.max(0).sum() == want["decoder_forwards"]
  for number, forwards in enumerate(spent.max(0)):
    stream += [["draft"]] * int(forwards)
    stream.append(["put", written[:, number * block : (number + 1) * block].tolist()])
  assert [*stream, ["end"]] == want["stream"]


def accept(case: Case) -> None:
  """Acceptance and two calls of the stop rule, of given logits."""
  arrays = np.load(case.folder / "logits.npz")
  z = jnp.asarray(arrays[case.arg("logits")], jnp.float32)
  rows, block, vocab = z.shape
  policy = Renoise(
    vocab,
    budget=case.arg("entropy_bound"),
    still=case.arg("confidence_threshold"),
    stable=case.arg("stability_threshold"),
  )
  zeros = jnp.zeros((rows, block), jnp.int32)
  stats = score(
    LogitHead(z, jnp.eye(vocab)),
    dataclasses.replace(policy.needs(), temperature=0.0),
    current_BxA=zeros,
    key_B=None,
    slot_BxA=zeros,
  )
  np.testing.assert_allclose(stats.entropy, case.expected["entropies"], atol=1e-5)
  own = jnp.ones((rows, block), bool)
  accepted = within_budget(stats.entropy, -stats.entropy, own, policy.budget)
  np.testing.assert_array_equal(accepted, np.array(case.expected["accepted"], bool))
  canvas = np.where(accepted, case.arg("sampled"), case.arg("current"))
  np.testing.assert_array_equal(canvas, case.expected["canvas"])
  seen = policy.enter(own, None)
  for call in ("first", "second"):
    decision, seen = policy.decide(
      _view(stats, own), seen, jax.random.split(jax.random.key(0), rows)
    )
    np.testing.assert_array_equal(~decision.stay_B, case.expected[f"stop_{call}_call"])


def _view(stats, own_BxA):
  rows, block = own_BxA.shape
  zero_B, slot_BxA = jnp.zeros(rows, jnp.int32), jnp.tile(jnp.arange(block), (rows, 1))
  return View(
    slot_BxA=slot_BxA, tokens_BxA=slot_BxA, masked_BxA=~own_BxA, later_BxA=~own_BxA,
    open_BxA=own_BxA, inside_BxA=own_BxA, scored_BxA=own_BxA, stats=stats, start_B=zero_B,
    step_B=zero_B, turn_B=zero_B, mask_id=-1,
  )  # fmt: skip


def temperature(case: Case) -> None:
  steps = case.arg("max_denoising_steps")
  policy = Renoise(2, steps, case.arg("t_max"), case.arg("t_min"))
  got = policy.temperature(jnp.arange(steps))
  np.testing.assert_allclose(got, case.expected["temperature_of_forward"], rtol=1e-6)


METHODS = {
  "diffusion_gemma_generate": generate,
  "diffusion_gemma_accept": accept,
  "diffusion_gemma_temperature": temperature,
}
