"""Out and in again: every family, bit for bit; what is written where, and what cannot be."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from dlm import masks, weights
from dlm.facts import ModelFacts
from dlm.models import ModelConfig
from dlm.models.quantised import quantise, quantised
from dlm.weights.families import FAMILIES
from tests.dlm.weights import small


def numbers(model: ModelConfig, kind):
  """Parameters that every dtype holds exactly."""

  def leaf(x):
    return (np.arange(x.size) % 251 / 8).astype(x.dtype).reshape(x.shape)

  return jax.tree.map(leaf, small.params_of(model, jnp.dtype(kind)))


def stored(directory) -> dict[str, np.ndarray]:
  found = {}
  for path in directory.glob("*.safetensors"):
    found |= load_file(path)
  return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_comes_back_bit_for_bit(family, tmp_path):
  params = small.write(tmp_path / "out", family)
  source = weights.open_source(tmp_path / "out")
  assert source.family == family
  assert source.model == dataclasses.replace(small.MODELS[family], dtype="bfloat16")
  assert source.facts == small.facts_of(family)
  small.same_bits(weights.load(source), params)


def test_kernels_may_become_codes_as_they_are_read(tmp_path):
  small.write(tmp_path / "out", "llada2_moe", np.float32)
  source, kept = weights.open_source(tmp_path / "out"), quantise("int8")
  small.same_bits(weights.load(source, kept=kept), quantised(weights.load(source), kept))


def test_a_second_export_writes_the_same_bytes(tmp_path):
  small.write(tmp_path / "a", "llada2_moe", shard_bytes=3000)
  source = weights.open_source(tmp_path / "a")
  weights.export(
    tmp_path / "b", source.family, source.model, weights.load(source), facts=source.facts,
    config=source.config, shard_bytes=3000,
  )  # fmt: skip
  names = sorted(path.name for path in (tmp_path / "a").iterdir())
  assert len(names) > 3 and names == sorted(path.name for path in (tmp_path / "b").iterdir())
  for name in names:
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_names_and_shapes_are_the_authors(tmp_path):
  small.write(tmp_path / "out", "sdar_moe")
  shapes = {name: tensor.shape for name, tensor in stored(tmp_path / "out").items()}
  assert shapes["model.layers.0.self_attn.q_proj.weight"] == (32, 16)
  assert shapes["model.layers.2.mlp.experts.7.down_proj.weight"] == (16, 12)
  assert shapes["model.layers.1.mlp.gate.weight"] == (8, 16)
  assert len(shapes) == 3 + 3 * (2 + 4 + 2 + 1 + 8 * 3)


def test_linear_weights_are_stored_as_rows_of_outputs(tmp_path):
  params = small.write(tmp_path / "out", "qwen3", np.float32)
  kernel_DxKxH = params["layers"]["attention"]["key"]["kernel"][1]
  got = stored(tmp_path / "out")["model.layers.1.self_attn.k_proj.weight"]
  np.testing.assert_array_equal(got.view(np.uint32), kernel_DxKxH.reshape(16, 16).T.view(np.uint32))


def test_one_fused_matrix_holds_queries_then_keys_then_values(tmp_path):
  params = small.write(tmp_path / "out", "llada2_moe")
  got = stored(tmp_path / "out")["model.layers.2.attention.query_key_value.weight"]
  assert got.shape == ((4 + 2 + 2) * 8, 16)
  value_DxKxH = params["layers"]["attention"]["value"]["kernel"][1]  # layer 0 is in a stack apart
  want = np.ascontiguousarray(value_DxKxH.reshape(16, 16).T)
  np.testing.assert_array_equal(got[48:].view(np.uint16), want.view(np.uint16))


def test_bd3lm_leaves_as_its_authors_wrote_it(tmp_path):
  """All their tensors, the constants among them that follow from config.json."""
  theirs = pathlib.Path(__file__).parents[2] / "conformance" / "bd3lm" / "model"
  source = weights.open_source(theirs)
  weights.export(
    tmp_path / "out", source.family, source.model, weights.load(source), facts=source.facts,
    config=source.config,
  )  # fmt: skip
  got, want = stored(tmp_path / "out"), stored(theirs)
  assert got.keys() == want.keys()
  for name, tensor in want.items():
    np.testing.assert_array_equal(got[name].ravel().view(np.uint32), tensor.ravel().view(np.uint32))
  config = weights.open_source(tmp_path / "out").config
  assert {name: config[name] for name in source.config} == source.config


def test_shards_are_indexed_and_bounded(tmp_path):
  small.write(tmp_path / "out", "qwen3", shard_bytes=4000)
  index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
  files = {path.name for path in (tmp_path / "out").glob("*.safetensors")}
  assert set(index["weight_map"].values()) == files and len(files) > 3
  assert not (tmp_path / "out" / "model.safetensors").exists()
  total = 0
  for name in files:
    with safe_open(tmp_path / "out" / name, "np") as file:
      assert file.metadata() == {"format": "pt"}
      sizes = [file.get_tensor(tensor).nbytes for tensor in file.keys()]  # noqa: SIM118
    assert sum(sizes) <= 4000 or len(sizes) == 1
    total += sum(sizes)
  assert index["metadata"]["total_size"] == total


def test_a_tied_head_is_not_written_nor_read(tmp_path):
  params = small.write(tmp_path / "out", "qwen2")
  tensors = stored(tmp_path / "out")
  assert "lm_head.weight" not in tensors
  path = tmp_path / "out" / "model.safetensors"
  save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, path)
  small.same_bits(weights.load(weights.open_source(tmp_path / "out")), params)


@pytest.mark.parametrize(
  ("kept", "asked", "got"),
  [(np.float32, "bfloat16", "bfloat16"), ("bfloat16", "float32", "float32"),
   (np.float16, None, "float16")],
)  # fmt: skip
def test_dtypes_change_only_when_asked(kept, asked, got, tmp_path):
  model = small.MODELS["llada2_moe"]
  params = numbers(model, kept)
  weights.export(tmp_path / "out", "llada2_moe", model, params, facts=small.facts_of("llada2_moe"))
  loaded = weights.load(weights.open_source(tmp_path / "out"), dtype=asked)
  assert loaded["embed"].dtype == loaded["layers"]["moe"]["down"]["kernel"].dtype == got
  assert loaded["layers"]["moe"]["router"]["bias"].dtype == jnp.float32
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(np.asarray(a), b.astype(a.dtype)), loaded, params
  )


def test_export_in_another_dtype(tmp_path):
  model = small.MODELS["llada2_moe"]
  weights.export(
    tmp_path / "out", "llada2_moe", model, numbers(model, np.float32),
    facts=small.facts_of("llada2_moe"), dtype="bfloat16",
  )  # fmt: skip
  tensors = stored(tmp_path / "out")
  assert tensors["model.norm.weight"].dtype == ml_dtypes.bfloat16
  assert tensors["model.layers.1.mlp.gate.expert_bias"].dtype == np.float32
  assert weights.open_source(tmp_path / "out").config["torch_dtype"] == "bfloat16"


def test_other_fields_of_a_config_are_kept(tmp_path):
  base = {"auto_map": {"AutoModel": "modeling.X"}, "max_position_embeddings": 32768, "dtype": "x"}
  small.write(tmp_path / "out", "sdar", config=base)
  config = weights.open_source(tmp_path / "out").config
  assert config["auto_map"] == base["auto_map"] and config["max_position_embeddings"] == 32768
  assert "dtype" not in config


SDAR_MOE = small.MODELS["sdar_moe"]
EXPERTS_CHOOSE = dataclasses.replace(SDAR_MOE.moe, choice="expert")


def test_how_experts_were_trained_is_left_unsaid(tmp_path):
  moe = dataclasses.replace(SDAR_MOE.moe, capacity_factor=1.25, z_loss=1e-3, balance_loss=0.01)
  model = dataclasses.replace(SDAR_MOE, moe=moe)
  facts = small.facts_of("sdar_moe")
  weights.export(tmp_path / "out", "sdar_moe", model, small.params_of(model), facts=facts)
  assert weights.open_source(tmp_path / "out").model.moe == SDAR_MOE.moe


@pytest.mark.parametrize(
  ("family", "model", "facts", "message"),
  [
    ("gpt2", {}, {}, "unknown family 'gpt2'; known: llada_moe, llada, "),
    ("qwen3", {"time_conditioned": True}, {}, "cannot say time_conditioned=True"),
    ("qwen3", {"qkv_bias": True}, {}, "cannot say qkv_bias=True"),
    ("sdar", {}, {"shift": 1}, "cannot say shift=1: it would mean 0"),
    ("dream", {}, {"attention": "causal"}, "cannot say attention='causal'"),
    ("sdar_moe", {"moe": EXPERTS_CHOOSE}, {}, "cannot say moe=.*'choice': 'expert'"),
  ],
)
def test_what_a_family_cannot_say_is_refused(family, model, facts, message, tmp_path):
  config = dataclasses.replace(small.MODELS.get(family, small.MODELS["qwen3"]), **model)
  with pytest.raises(ValueError, match=message):
    weights.export(
      tmp_path / "out", family, config, small.params_of(config),
      facts=ModelFacts.from_json(small.facts_of(family).to_json() | facts),
    )  # fmt: skip
  assert list(tmp_path.iterdir()) == []


def test_an_adapted_qwen2_says_that_it_sees_everything(tmp_path):
  model = small.MODELS["qwen2"]
  facts = dataclasses.replace(small.facts_of("qwen2"), attention=masks.Full(), mask_id=39)
  weights.export(tmp_path / "out", "qwen2", model, small.params_of(model), facts=facts)
  source = weights.open_source(tmp_path / "out")
  assert source.config["is_causal"] is False and source.facts == facts


def test_nothing_is_written_over_and_nothing_is_left_behind(tmp_path, monkeypatch):
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "mine").write_text("")
  with pytest.raises(ValueError, match="not empty"):
    small.write(tmp_path / "out", "qwen3")

  def full_disk(*_, **__):
    raise OSError("no space left")

  monkeypatch.setattr("dlm.weights.writing.save_file", full_disk)
  with pytest.raises(OSError, match="no space"):
    small.write(tmp_path / "new", "qwen3")
  assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_progress_counts_all_bytes(tmp_path):
  small.write(tmp_path / "out", "llada_moe")
  seen = []
  weights.load(weights.open_source(tmp_path / "out"), progress=lambda *at: seen.append(at))
  done, total = zip(*seen, strict=True)
  assert sorted(done) == list(done) and done[-1] == total[0] == total[-1]


def test_large_tensors_are_read_in_pieces(tmp_path, monkeypatch):
  """Pieces of a few rows, ends that do not divide, and files that are closed in between."""
  monkeypatch.setattr("dlm.weights.reading.CHUNK", 200)
  monkeypatch.setattr("dlm.weights.files.MAPPED", 100)
  model = ModelConfig(**small.QWEN3 | dict(width=36, mlp=50))
  params = small.params_of(model, np.float32)
  weights.export(tmp_path / "out", "qwen3", model, params, facts=small.facts_of("qwen3"))
  small.same_bits(weights.load(weights.open_source(tmp_path / "out")), params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pieces_of_experts_are_those_of_a_whole(tmp_path, monkeypatch, dtype):
  """Put together on the device, and on the host."""
  small.write(tmp_path / "out", "llada_moe")
  whole = weights.load(weights.open_source(tmp_path / "out"), dtype=dtype)
  monkeypatch.setattr("dlm.weights.reading.CHUNK", 200)
  small.same_bits(weights.load(weights.open_source(tmp_path / "out"), dtype=dtype), whole)
