"""Adapters that PEFT wrote, and logits that PEFT computed, from tests/conformance/rl_2026."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from dlm import weights
from dlm.models import bind, lora
from dlm.weights import names, peft
from dlm.weights.families import FAMILIES
from tests.checkers.objectives import Case

TOLERANCE = dict(rtol=1e-4, atol=2e-5)
WHOLE = ("dora", "embedding", "modules_to_save", "bias_lora_only")  # no pairs of projections alone


def check(case: Case, folder: pathlib.Path) -> None:
  source = weights.open_source(folder / case.arg("base"))
  assert source.family == case.arg("family")
  adapter = peft.open_adapter(folder / case.arg("adapter"))
  params, given = weights.load(source), (source.family, source.model)
  tokens, out = jnp.asarray(case.inputs["input_ids"], jnp.int32), case.outputs
  logits = functools.partial(_logits, rule=source.facts.attention)
  near = functools.partial(np.testing.assert_allclose, **TOLERANCE)

  near(logits(bind(source.model), params, tokens), out["logits_base"])
  held = json.loads(json.dumps(case.expected["tensors"]))
  assert held == {n: list(t.shape) for n, t in _header(adapter).items()}
  merged = peft.merged(adapter, *given, params)
  with_it = logits(bind(source.model), merged, tokens)
  near(with_it, out["logits_merged"])
  near(with_it, out["logits_adapter"])
  assert _changed(*given, params, merged) == set(case.expected["changed_by_merge"])
  biased = any(name.endswith(".bias") for name in held)  # which PEFT does not switch off
  assert biased != np.array_equal(out["logits_disabled"], out["logits_base"])

  if case.name.removeprefix("peft/") in WHOLE:
    return
  config, own = peft.separate(adapter, *given)
  model = dataclasses.replace(source.model, lora=config)
  near(logits(bind(model), lora.joined(params, own), tokens), out["logits_adapter"])
  if "gate" in case.inputs:
    gate = case.inputs["gate"] > 0
    near(_gated(model, lora.joined(params, own), tokens, gate, logits), out["logits_gated"])


def _gated(model, params, tokens, gate, logits):
  """At positions of `gate` alone: one more id marks them, and the embedding it hides is added."""
  mask_id, ids = model.vocab, model.vocab
  grown = {n: jnp.pad(x, ((0, 1), (0, 0))) for n, x in params.items() if n in ("embed", "unembed")}
  config = dataclasses.replace(model.lora, gated=True, mask_id=mask_id)
  model = bind(dataclasses.replace(model, vocab=ids + 1, lora=config))
  soft = jnp.where(gate[..., None], params["embed"][tokens], 0)
  tokens = jnp.where(gate, mask_id, tokens)
  return logits(model, {**params, **grown}, tokens, soft_BxWxD=soft)[..., :ids]


@functools.partial(jax.jit, static_argnames=("model", "rule"))
def _logits(model, params, tokens, rule, **arguments):
  slots = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  mask = rule(slots, tokens.shape[1], jnp.zeros(tokens.shape[0], jnp.int32))
  head = model(params, tokens, slot_BxW=slots, mask=mask, **arguments).head
  return jnp.einsum("BAD,VD->BAV", head.hidden_BxAxD, head.unembed_VxD, precision="highest")


def _header(adapter):
  return weights.files.read_header(adapter.directory / peft.TENSORS)


def _changed(family, model, before, after) -> set[str]:
  """Tensors of the family, of which one has other numbers than the other."""
  before, after = names.paths(before), names.paths(after)
  shapes = {path: leaf.shape for path, leaf in before.items()}
  return {
    part.name
    for part in names.parts(FAMILIES[family].table, shapes, model)
    if not np.array_equal(before[part.path][part.at], after[part.path][part.at])
  }
