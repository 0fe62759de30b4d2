"""What tests/conformance does not record: what is written, and files that cannot be read."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dlm.models import LoraConfig, bind, lora
from dlm.weights import WeightsError, peft
from tests.dlm.weights.small import MODELS, facts_of, params_of

OURS = {"objective": {"name": "ar"}}
NAME = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"


def model_of(family, **fields):
  return dataclasses.replace(MODELS[family], lora=LoraConfig(rank=3, alpha=6.0, **fields))


def own_of(model, seed=0):
  """Adapters of random numbers, on the host."""
  rng = np.random.default_rng(seed)
  tree = jax.eval_shape(bind(model).init, jax.random.key(0))
  return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), lora.adapters(tree))


def write(folder, family, model, **options):
  folder.mkdir()
  own = own_of(model)
  ours = OURS | {"facts": facts_of(family).to_json()}
  peft.fill(folder, family, model, own, base="the/base", ours=ours, **options)
  return own


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
  folder = tmp_path_factory.mktemp("adapters") / "qwen3"
  write(folder, "qwen3", model_of("qwen3", targets="query,down"))
  return folder


@pytest.mark.parametrize("family", ["qwen2", "llada", "llama", "dream", "sdar"])
def test_what_is_written_is_read_bit_for_bit(tmp_path, family):
  model = model_of(family, gated=True, mask_id=39, rslora=True)
  own = write(tmp_path / "adapter", family, model)
  read = peft.open_adapter(tmp_path / "adapter")
  config, found = peft.separate(read, family, MODELS[family])
  assert (config.rank, config.alpha, config.rslora, config.gated) == (3, 6.0, True, True)
  assert config.names == lora.PROJECTIONS
  assert read.ours["facts"] == facts_of(family).to_json()
  jax.tree.map(np.testing.assert_array_equal, found, own)


def test_experts_stand_beside_dense_layers_with_adapters(tmp_path):
  model = model_of("llada_moe", targets=lora.ATTENTION)
  own = write(tmp_path / "adapter", "llada_moe", model)
  assert own.keys() == {"dense_layers", "layers"}
  names = load_file(tmp_path / "adapter" / peft.TENSORS)
  assert sum(".layers.0." in name for name in names) * model.layers == len(names)
  _, found = peft.separate(
    peft.open_adapter(tmp_path / "adapter"), "llada_moe", MODELS["llada_moe"]
  )
  jax.tree.map(np.testing.assert_array_equal, found, own)


def test_matrix_of_several_projections_is_not_written(tmp_path):
  with pytest.raises(ValueError, match="stores query, key and value in one matrix"):
    write(tmp_path / "adapter", "llada2_moe", model_of("llada2_moe", targets=lora.ATTENTION))


@pytest.mark.parametrize(
  ("family", "targets", "said"),
  [
    ("qwen3", "query,down", ["down_proj", "q_proj"]),
    ("llada", "query", ["q_proj"]),
    ("llada", "down", r"model\.transformer\.blocks\.\d+\.ff_out"),  # the head is an ff_out too
  ],
)
def test_target_modules_name_what_is_adapted_and_nothing_else(tmp_path, family, targets, said):
  write(tmp_path / "adapter", family, model_of(family, targets=targets))
  config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
  assert config["target_modules"] == said


def test_bfloat16_halves_the_file(tmp_path):
  for dtype in ("float32", "bfloat16"):
    write(tmp_path / dtype, "qwen3", model_of("qwen3"), dtype=dtype)
  large, small = (
    sum(x.nbytes for x in load_file(tmp_path / dtype / peft.TENSORS).values())
    for dtype in ("float32", "bfloat16")
  )
  assert large == 2 * small


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"peft_type": "LOHA"}, "peft_type='LOHA' is not read"),
    ({"lora_bias": True}, "lora_bias=True is not supported"),
    ({"layer_replication": [[0, 4], [2, 5]]}, "layer_replication=.* is not supported"),
    ({"target_parameters": ["mlp.experts"]}, "target_parameters=.* is not supported"),
    ({"trainable_token_indices": [3]}, "trainable_token_indices=.* is not supported"),
    ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens=.* is not supported"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' is not supported"),
    ({"dlm": {"gated": True}}, "must hold gated, facts and objective"),
    ({"target_modules": ["q_proj", "v_proj"]}, r"lacks the pairs of 3 modules .*\n- .*v_proj"),
    ({"target_modules": "all-linear"}, "lacks the pairs of 15 modules"),
    ({"target_modules": "(q_proj"}, "missing .*unterminated"),
    ({"use_dora": True}, "use_dora=True, and model.layers.0.mlp.down_proj has no lora_magnitude"),
    ({"target_modules": 3}, "target_modules=3 is of another type than PEFT's"),
    ({"lora_alpha": None}, "lora_alpha=None must be a positive number"),
    ({"alpha_pattern": {"q_proj": -1}}, "lora_alpha=-1 must be a positive number"),
  ],
)
def test_config_that_means_something_else_is_refused(adapter, tmp_path, fields, message):
  folder = tmp_path / "adapter"
  shutil.copytree(adapter, folder)
  path = folder / "adapter_config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))
  with pytest.raises(ValueError, match=message):
    peft.separate(peft.open_adapter(folder), "qwen3", MODELS["qwen3"])


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda t: t.pop(NAME), "model.layers.1.self_attn.q_proj needs both lora_A and lora_B"),
    (lambda t: t.update({NAME: t[NAME][:2]}), r"has A \[2, 16\] and B \[32, 3\] beside a weight"),
    (lambda t: t.update({NAME: t[NAME][:, 1:]}), r"has A \[3, 15\] and B \[32, 3\] beside"),
    (lambda t: t.update({NAME: t[NAME] * np.nan}), "q_proj.lora_A.weight is not finite"),
    (lambda t: t.update({NAME: t[NAME].astype(np.int32)}), "is of dtype I32, not F32/BF16/F16"),
    (lambda t: t.update({NAME.replace(".1.", ".7."): t[NAME]}), r"no module .*\n\+ .*layers\.7\."),
    (lambda t: t.update({NAME + ".default": t[NAME]}), r"no module .*\n\+ .*weight\.default"),
    (lambda t: t.update({"base_model.model.model.norm.weight": np.ones(16)}), "dtype F64"),
    (
      lambda t: t.update({"base_model.model.model.norm.weight": np.ones(16, np.float32)}),
      "must hold pairs of projections alone, .*; other modules: model.norm",
    ),
    (
      lambda t: t.update({"base_model.model.model.norm.weight": np.ones(15, np.float32)}),
      r"the weight of model.norm is \[15\], the model's \[16\]",
    ),
    (
      lambda t: t.update({NAME.replace("lora_A.weight", "lora_magnitude_vector"): t[NAME][0]}),
      "use_dora=False, and model.layers.1.self_attn.q_proj has a lora_magnitude_vector",
    ),
  ],
)
def test_damaged_or_foreign_tensors_are_named(adapter, tmp_path, change, message):
  folder = tmp_path / "adapter"
  shutil.copytree(adapter, folder)
  tensors = load_file(folder / peft.TENSORS)
  change(tensors)
  save_file(tensors, folder / peft.TENSORS)
  with pytest.raises(WeightsError, match=message):
    peft.separate(peft.open_adapter(folder), "qwen3", MODELS["qwen3"])


def test_tied_embedding_is_not_changed_behind_the_heads_back(tmp_path):
  """PEFT changes the lookup alone; merged into the one matrix, the head would change too."""
  write(tmp_path / "adapter", "qwen2", model_of("qwen2", targets="query"))
  path = tmp_path / "adapter" / peft.TENSORS
  table = np.ones((40, 16), np.float32)
  save_file(load_file(path) | {"base_model.model.model.embed_tokens.weight": table}, path)
  model = MODELS["qwen2"]
  params = jax.tree.map(jnp.asarray, params_of(model))
  assert model.tied
  with pytest.raises(WeightsError, match="changes the embedding of a model whose head is the same"):
    peft.merged(peft.open_adapter(tmp_path / "adapter"), "qwen2", model, params)
