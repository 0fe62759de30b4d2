"""What transformers makes of the config.json that we write."""

import dataclasses
import json
import pathlib

import pytest

from dlm import weights
from dlm.models import RopeScaling
from dlm.weights.configs import config_of
from tests.dlm.weights import small
from tests.dlm.weights.published import CONFIGS

transformers = pytest.importorskip("transformers", reason="it is of pip install 'dlm[test]'")

LLAMA = pathlib.Path(__file__).parents[2] / "conformance" / "llama" / "model"


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "mistral"])
def test_it_reads_an_export(family, tmp_path):
  small.write(tmp_path, family, config=CONFIGS[family])
  model, theirs = small.MODELS[family], transformers.AutoConfig.from_pretrained(tmp_path)
  assert type(theirs).model_type == family and theirs.vocab_size == model.vocab
  assert (theirs.hidden_size, theirs.intermediate_size) == (model.width, model.mlp)
  assert (theirs.num_attention_heads, theirs.num_key_value_heads) == (model.heads, model.kv_heads)
  if family != "qwen2":  # whose class has no such key: transformers divides
    assert theirs.head_dim == model.head_dim
  assert theirs.rope_parameters["rope_theta"] == model.rope_base
  assert theirs.rms_norm_eps == model.norm_eps and theirs.tie_word_embeddings == model.tied
  if family == "llama":
    assert theirs.attention_bias and theirs.mlp_bias
  if family == "mistral":
    assert theirs.sliding_window is None


@pytest.mark.parametrize(
  "scaling",
  [
    RopeScaling("linear", 2.0),
    RopeScaling("llama3", 8.0, 8192),
    RopeScaling("yarn", 4.0, 32768, mscale=0.7, mscale_all_dim=1.0),
  ],
)
def test_it_reads_how_rotations_are_scaled(scaling, tmp_path):
  model = dataclasses.replace(small.MODELS["llama"], rope_scaling=scaling)
  config = config_of("llama", model, small.facts_of("llama"), CONFIGS["llama"], "float32")
  (tmp_path / "config.json").write_text(json.dumps(config))
  theirs = transformers.AutoConfig.from_pretrained(tmp_path).rope_parameters
  assert theirs.pop("rope_theta") == model.rope_base
  assert RopeScaling(**theirs) == scaling
  assert {*theirs} == {*config["rope_scaling"]}


def test_a_recorded_llama_leaves_as_it_came(tmp_path):
  """Every tensor's bits and every key."""
  source = weights.open_source(LLAMA)
  params = weights.load(source)
  weights.export(
    tmp_path / "out", source.family, source.model, params, facts=source.facts, config=source.config
  )
  again = weights.open_source(tmp_path / "out")
  small.same_bits(weights.load(again), params)
  assert again.model == source.model and again.facts == source.facts
  theirs = json.loads((LLAMA / "config.json").read_text())
  assert {key: again.config.get(key) for key in theirs} == theirs
