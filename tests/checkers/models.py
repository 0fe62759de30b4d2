"""Model families from their own checkpoints: logits, routers, greedy decoding, likelihoods.

Tolerances are those of the README.md beside the data, about ten times what float32 costs the
authors' code. Every array of a file must be read: a new one is not passed over.
"""

import dataclasses
import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from dlm import masks, weights
from dlm.evaluation.answer_likelihood import AnswerScorer, counted
from dlm.models import Model, bind
from dlm.models.rope import frequencies
from dlm.sampling import loop
from dlm.sampling.caching import PLANS
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policies import POLICIES
from dlm.sampling.sampler import Sampler
from dlm.types import KVCache, Mask, ModelOutput, Params
from tests.checkers.decoding import Case

TOLERANCE = {
  "qwen2": 3e-4,
  "qwen3": 3e-4,
  "llama": 3e-4,
  "llada": 2e-4,
  "dream": 2e-3,
  "sdar": 1e-3,
  "llada_moe": 1e-3,
  "llada2_moe": 6e-4,
  "fast_dllm_v2": 2e-3,
  "bd3lm": 2e-3,
  "nemotron_labs_diffusion": 1e-4,
  "modernbert": 3e-4,
}
# Tolerances are of arrays whose largest number is about this, and grow with a larger one.
LARGE = 20.0
# Of the same model read from GGUF files, in a file of logits: tests/checkers/gguf.py.
OF_GGUF = re.compile(r"logits_(f32|q8_0|q4_1)|(q8_0|q4_1|plain|permuted)/.*")
# Of cases that lie beside the model: tests/checkers/nemotron.py.
OF_CASES = re.compile(r"(yarn|loss)/.*")
# In the authors' code position * frequency is rounded to float32.
FAR = 3e-2


@dataclasses.dataclass
class Recorded:
  """One file of logits and the model it is of; arrays that were read are ticked off."""

  path: pathlib.Path
  arrays: dict[str, np.ndarray]
  source: weights.Source
  model: Model
  params: Params
  used: set[str] = dataclasses.field(default_factory=set)

  @classmethod
  def of(cls, path: pathlib.Path) -> "Recorded":
    folder = path.parent / path.stem.replace("logits", "model")
    return cls(path, dict(np.load(path)), *loaded(folder))

  @property
  def family(self) -> str:
    return self.path.parent.name

  def get(self, name: str) -> np.ndarray:
    self.used.add(name)
    return self.arrays[name]

  def close(self, got: jax.Array, name: str, *, atol: float = 0.0, where=...) -> None:
    atol = atol or TOLERANCE[self.family]
    want = self.get(name)[where]
    atol *= max(1.0, np.abs(want).max(initial=0.0) / LARGE)
    got = np.asarray(got) if want.shape == got.shape else np.asarray(got)[where]
    np.testing.assert_allclose(got, want, rtol=0, atol=atol, err_msg=name)


@functools.cache
def loaded(folder: pathlib.Path) -> tuple[weights.Source, Model, Params]:
  source = weights.open_source(folder)
  return source, bind(source.model), weights.load(source)


@functools.partial(jax.jit, static_argnums=0)
def forward(
  model: Model,
  params: Params,
  tokens_BxW: jax.Array,
  slot_BxW: jax.Array,
  mask: Mask,
  cache: KVCache | None = None,
) -> tuple[jax.Array, ModelOutput]:
  """Logits, and all that the model says; with a cache all of the window enters it."""
  write_BxW = None if cache is None else jnp.ones(tokens_BxW.shape, bool)
  out = model(params, tokens_BxW, slot_BxW=slot_BxW, mask=mask, cache=cache, write_BxW=write_BxW)
  return jnp.einsum("bad,vd->bav", out.head.hidden_BxAxD, out.head.unembed_VxD), out


def rule_of(source: weights.Source, block: int | None = None):
  return {
    "full": masks.Full(),
    "causal": masks.Causal(),
    "block_causal": masks.BlockCausal(block or source.facts.block or 1),
  }[source.facts.attention_name]


def run(file: Recorded, tokens, *, positions=None, keys=None, block=None, rule=None):
  """`positions` turn the heads only; `keys`: which are not padding, for every query.

  rule: what tokens see; None: what the model's own facts say, in blocks of `block`.
  """
  tokens_BxL = jnp.asarray(tokens, jnp.int32)
  batch, length = tokens_BxL.shape
  index_BxL = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
  mask = (rule or rule_of(file.source, block))(index_BxL, length)
  if keys is not None:
    shape = (batch, length, length)
    mask = mask.replace(dense_BxWxS=jnp.broadcast_to(jnp.asarray(keys)[:, None] > 0, shape))
  slot_BxL = index_BxL if positions is None else jnp.asarray(positions, jnp.int32)
  return forward(file.model, file.params, tokens_BxL, slot_BxL, mask)


def plain(file: Recorded) -> None:
  logits, out = run(file, file.get("input_ids"))
  file.close(logits, "logits")
  if any("router" in name for name in file.arrays):
    check_router(file, out)


def blocks(file: Recorded, block: int) -> None:
  logits, out = run(file, file.get("input_ids"), block=block)
  file.close(logits, f"logits_block{block}")
  if block == 8 and any("router" in name for name in file.arrays):  # recorded in this run
    check_router(file, out)


def noisy_after_clean(file: Recorded, block: int) -> None:
  """As it samples: every block of a noisy row sees itself and the blocks before it."""
  file.close(run(file, file.get("xt"), block=block)[0], f"logits_sample_block{block}")


def noisy_beside_clean(file: Recorded, block: int) -> None:
  """As it is trained, over [noisy; clean]."""
  noisy, clean = file.get("xt"), file.get("x0")
  batch, length = noisy.shape
  slot_BxW = jnp.broadcast_to(jnp.tile(jnp.arange(length, dtype=jnp.int32), 2), (batch, 2 * length))
  mask = masks.noisy_clean(batch, length, block)
  tokens_BxW = jnp.asarray(np.concatenate([noisy, clean], axis=1), jnp.int32)
  logits, _ = forward(file.model, file.params, tokens_BxW, slot_BxW, mask)
  file.close(logits[:, :length], f"logits_train_block{block}")


def padded(file: Recorded) -> None:
  """Padding on the left, positions counted from the text on; rows of padding are not compared."""
  keys, positions = file.get("padded_attention_mask"), file.get("padded_position_ids")
  logits, _ = run(file, file.get("padded_input_ids"), positions=positions, keys=keys)
  file.close(logits, "padded_logits", where=keys > 0)


def padded_in_place(file: Recorded) -> None:
  """LLaDA's: positions count the padding too, whose own rows are compared."""
  logits, _ = run(file, file.get("pad_input_ids"), keys=file.get("pad_attention_mask"))
  file.close(logits, "pad_logits")


def keys_hidden(file: Recorded) -> None:
  logits, _ = run(file, file.get("input_ids"), keys=file.get("key_padding_mask"))
  file.close(logits, "logits_with_key_padding")


def far(file: Recorded) -> None:
  logits, _ = run(file, file.get("input_ids"), positions=file.get("far_position_ids"))
  file.close(logits, "far_logits", atol=FAR)


def from_100(file: Recorded) -> None:
  tokens = file.get("input_ids")[:1]
  positions = 100 + np.arange(tokens.shape[1])[None]
  file.close(run(file, tokens, positions=positions)[0], "logits_positions_from_100")


def long(file: Recorded) -> None:
  file.close(run(file, file.get("long_input_ids"))[0], "long_logits")


def last_hidden(file: Recorded) -> None:
  """Of all recorded layers the last, after the final norm: no other leaves our model."""
  _, out = run(file, file.get("input_ids"))
  file.close(out.head.hidden_BxAxD[:1], "hidden_states_row0", where=slice(-1, None))


def cached(file: Recorded) -> None:
  """The last 8 positions against the cached keys of those before, in blocks of 8."""
  tokens_1xL = jnp.asarray(file.get("input_ids")[:1], jnp.int32)
  length, block = tokens_1xL.shape[1], 8
  rule, cache = masks.BlockCausal(block), file.model.empty_cache(1, length)
  for part in (slice(0, length - block), slice(length - block, length)):
    slot_1xW = jnp.arange(length, dtype=jnp.int32)[None, part]
    logits, out = forward(
      file.model, file.params, tokens_1xL[:, part], slot_1xW, rule(slot_1xW, length), cache
    )
    cache = out.cache
  file.close(logits, "cached_last8_logits_row0")


def causal(file: Recorded) -> None:
  file.close(run(file, file.get("input_ids"), rule=masks.Causal())[0], "logits_causal")


def bidirectional(file: Recorded) -> None:
  file.close(run(file, file.get("input_ids"), rule=masks.Full())[0], "logits_bidirectional")


def causal_far(file: Recorded) -> None:
  """Row 0, far beyond the length that its rotations and its query scale begin to change at."""
  tokens, positions = file.get("input_ids")[:1], file.get("positions_far")[None]
  logits, _ = run(file, tokens, positions=positions, rule=masks.Causal())
  file.close(logits, "logits_causal_far")


def block_after_causal_context(file: Recorded) -> None:
  """Cached text has seen no later token; the block sees all of it, and itself."""
  tokens_BxL = jnp.asarray(file.get("block_input_ids"), jnp.int32)
  (batch, length), rule = tokens_BxL.shape, file.source.facts.attention
  cache, answer_B = file.model.empty_cache(batch, length), jnp.full(batch, length - 8)
  slot_BxL = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), tokens_BxL.shape)
  for part, sees in ((slice(0, length - 8), rule.clean), (slice(length - 8, length), rule)):
    mask = sees(slot_BxL[:, part], length, answer_B)
    logits, out = forward(
      file.model, file.params, tokens_BxL[:, part], slot_BxL[:, part], mask, cache
    )
    cache = out.cache
  file.close(logits, "logits_causal_context_block_of_8")


def rotations(file: Recorded) -> None:
  cfg = file.source.model
  got = frequencies(cfg.head_dim, cfg.rope_base, cfg.rope_scaling)
  np.testing.assert_allclose(got, file.get("rope_inv_freq"), rtol=1e-6)
  assert cfg.rope_scaling.amplitude == file.get("rope_attention_scaling")


def check_router(file: Recorded, out: ModelOutput) -> None:
  """The same experts for every token, exactly; their weights and the router's logits closely."""
  moe = file.source.model.moe
  first = moe.dense_layers
  for index in range(file.source.model.layers - first):
    layer, tolerance = f"layer{first + index}", {"atol": TOLERANCE[file.family]}
    experts, gates = (out.aux[f"{name}_YxBxWxK"][index] for name in ("experts", "weights"))
    order = jnp.argsort(experts, axis=-1)
    np.testing.assert_array_equal(
      jnp.take_along_axis(experts, order, axis=-1), file.get(f"{layer}_expert_ids_sorted")
    )
    file.close(jnp.take_along_axis(gates, order, axis=-1), f"{layer}_expert_weights", **tolerance)
    file.close(out.aux["router_logits_YxBxWxE"][index], f"{layer}_router_logits", **tolerance)


VARIANTS = {
  "logits": plain,
  "padded_logits": padded,
  "pad_logits": padded_in_place,
  "logits_with_key_padding": keys_hidden,
  "far_logits": far,
  "logits_positions_from_100": from_100,
  "long_logits": long,
  "hidden_states_row0": last_hidden,
  "cached_last8_logits_row0": cached,
  "logits_causal": causal,
  "logits_bidirectional": bidirectional,
  "logits_causal_far": causal_far,
  "logits_causal_context_block_of_8": block_after_causal_context,
  "rope_inv_freq": rotations,
}
BY_BLOCK = {
  r"logits_block(\d+)": blocks,
  r"logits_sample_block(\d+)": noisy_after_clean,
  r"logits_train_block(\d+)": noisy_beside_clean,
}


def check_logits(path: pathlib.Path) -> None:
  """All that a file of logits holds."""
  file = Recorded.of(path)
  for name in file.arrays:
    if name in VARIANTS:
      VARIANTS[name](file)
    for pattern, check in BY_BLOCK.items():
      if block := re.fullmatch(pattern, name):
        check(file, int(block[1]))
  elsewhere = {name for name in file.arrays if OF_GGUF.fullmatch(name) or OF_CASES.fullmatch(name)}
  ignored = file.arrays.keys() - elsewhere - file.used
  assert not ignored, f"{path} holds arrays that no check reads: {ignored}"


# ---------------------------------------------------------------------------------------------
# Decoding


def greedy(
  case: Case, prompts: list[list[int]], new: int, eos: tuple[int, ...], model: str = "model"
):
  """Autoregressive greedy decoding with the exact cache, by the sampling loop: the final canvas.

  These models have no mask: -1, the id of no token, stands where nothing is written yet, and no
  later slot is seen.
  """
  source, model, params = loaded(case.folder / case.arg("model", model))
  assert case.arg("temperature", 0.0) == 0
  longest = max(map(len, prompts)) + new
  slots = -(-longest // 64) * 64
  sampler = Sampler(
    model,
    POLICIES["left_to_right"](k=1),
    PLANS["block"](),
    rule_of(source),
    block=1,
    max_forwards=2 * slots,
    mask_id=-1,
    may_predict_mask=True,
    eos_ids=eos,
    shift=source.facts.shift,
  )
  rows = [np.array(prompt + [-1] * new) for prompt in prompts]
  batch = max(3, len(rows))  # of few shapes, so that few programs are compiled
  spare = batch - len(rows)
  canvas = make_canvas(
    rows + rows[:1] * spare,
    [row == -1 for row in rows + rows[:1] * spare],
    list(range(batch)),
    slots=slots,
    block=1,
    align="prompt",
    mask_id=-1,
    seed=0,
  )
  canvas = canvas.replace(done_B=jnp.arange(batch) >= len(rows))
  return jax.device_get(_run(sampler, params, canvas).replace(key_B=None))


_run = jax.jit(loop.run, static_argnums=0)


def ar_greedy(case: Case) -> None:
  prompts, eos = case.line["prompt_ids"], tuple(case.arg("eos_token_ids", []))
  canvas = greedy(case, prompts, case.arg("max_new_tokens"), eos)
  for row, want in enumerate(case.expected["tokens"]):
    got = canvas.tokens_BxL[row]
    np.testing.assert_array_equal(got[: len(want)], want)
    assert (got[len(want) : canvas.length_B[row]] == -1).all()
  assert canvas.forwards_Bx3.sum(-1).max() == case.expected["nfe"]


def ar_greedy_batched_left_pad(case: Case) -> None:
  """Their rows are padded on the left to one length; ours start at slot 0."""
  case.arg("pad_token_id")
  prompts, new = case.line["prompt_ids"], case.arg("max_new_tokens")
  canvas = greedy(case, prompts, new, ())
  for row, want in enumerate(case.expected["new_tokens"]):
    begin = len(prompts[row])
    np.testing.assert_array_equal(canvas.tokens_BxL[row, begin : begin + new], want)
  assert canvas.forwards_Bx3.sum(-1).max() == case.expected["nfe"]


def llama_greedy(case: Case) -> None:
  new = case.arg("max_new_tokens")
  canvas = greedy(case, case.line["prompt_ids"], new, (), case.arg("weights"))
  for row, want in enumerate(case.expected["tokens"]):
    np.testing.assert_array_equal(canvas.tokens_BxL[row, : len(want)], want)
  assert case.expected["smallest_gap"] > 10 * TOLERANCE["llama"]


METHODS = {
  "ar_greedy": ar_greedy,
  "ar_greedy_batched_left_pad": ar_greedy_batched_left_pad,
  "llama_greedy": llama_greedy,
}


# ---------------------------------------------------------------------------------------------
# Likelihood


def check_likelihood(path: pathlib.Path) -> None:
  """LLaDA's get_log_likelihood on its own model, from the recorded draws."""
  source, model, params = loaded(path.parent / "model")
  arrays = dict(np.load(path))
  runs = sorted({name.partition("_")[0] for name in arrays})
  for name in runs:
    run = {key: arrays.pop(f"{name}_{key}") for key in LIKELIHOOD}
    cfg = float(run["cfg_scale"])
    scorer = AnswerScorer(model, source.facts.mask_id, estimator="llada", cfg=cfg)
    prompt, answer = run["prompt"], run["answer"]
    copies = int(run["batch_size"])
    assert run["perm"].shape[:2] == (int(run["mc_num"]) // copies, copies)
    plan = counted(run["k"], run["perm"])
    rows, length = scorer.rows(prompt, answer, plan), len(prompt) + len(answer)
    want = run["noisy"].reshape(-1, length)
    np.testing.assert_array_equal(scorer.noisy(rows).inputs_BxW[:, :length], want)
    weight = np.where(
      plan.masked_Dxn, 1 / run["p_mask"].reshape(len(want), -1)[:, -len(answer) :], 0
    )
    np.testing.assert_allclose(plan.weight_Dxn * len(want), weight, rtol=1e-5)
    (nats_D,) = scorer.sums(params, [(prompt, answer)], [plan])
    np.testing.assert_allclose(-nats_D.sum(), run["log_likelihood"], rtol=1e-4)
  assert runs and not arrays, f"{path} holds arrays that no check reads: {set(arrays)}"


LIKELIHOOD = (
  "prompt", "answer", "mc_num", "batch_size", "cfg_scale", "k", "perm", "noisy", "p_mask",
  "log_likelihood",
)  # fmt: skip
