"""One door to checkpoints of ours and of others, and training that starts from either."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import build, train, weights
from dlm.checkpoint import CheckpointError
from dlm.models.quantised import Format
from dlm.objectives import Annealed, Autoregressive, Bd3lm, DiffuLlama, ExactCount, Mdlm, Shifted
from dlm.train import Step
from tests.dlm.build import directories

CONFIG = {
  "seed": 0,
  "steps": 2,
  "batch": 8,
  "data": {"sources": (("lists", 1.0),), "length": 32, "mode": "pad", "tokenizer": ""},
  "objective": {"name": "mdlm"},
  "optimizer": {"lr": 1e-3},
  "checkpoint": {"keep_best": 0},
}


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
  return directories.write(tmp_path_factory.mktemp("hf") / "qwen", dtype="bfloat16")


@pytest.fixture(scope="module")
def sdar(tmp_path_factory):
  facts = {"attention": "block_causal", "block": 4, "shift": 0}
  path = tmp_path_factory.mktemp("hf") / "sdar"
  return directories.write(path, "sdar", mask="|<MASK>|", **facts)


def tables_of(params):
  return {name: np.asarray(params[name], np.float32) for name in ("embed", "unembed")}


def test_facts_tokenizer_and_measure_of_a_block_diffusion_model(sdar):
  found = build.pretrained(sdar)
  mask_id = found.tokenizer.specials()["|<MASK>|"]
  assert (found.facts.mask_id, found.facts.block, found.facts.shift) == (mask_id, 4, 0)
  assert found.facts.vocab == found.tokenizer.vocab_size < found.model.config.vocab
  estimator = build.estimator(found.objective, found.tokenizer)
  assert estimator == ExactCount(mask_id, block=4)
  params, step = found.params()
  jax.tree.map(np.testing.assert_array_equal, params, weights.load(found.source))
  assert step == 0


def test_bd3lm_has_a_row_for_the_mask_that_its_tokenizer_lacks(tmp_path):
  """As the authors use GPT-2's: the mask is one past its ids."""
  facts = {"attention": "block_causal", "block": 4, "shift": 0}
  found = build.pretrained(directories.write(tmp_path / "hf", "bd3lm", spare=1, **facts))
  last = found.model.config.vocab - 1
  assert found.facts.mask_id == found.tokenizer.mask_id == last
  assert found.tokenizer.vocab_size == last + 1 and not found.needs_mask_row
  with pytest.raises(ValueError, match="is not the tokenizer's"):
    build.pretrained(directories.write(tmp_path / "spare", "bd3lm", spare=2, **facts))


@pytest.mark.parametrize("spare", [0, 4])
def test_autoregressive_model_gets_a_mask_token_after_its_last_id(tmp_path, spare):
  """In a spare row where there is one; as it is stored unless the row is to mean something."""
  found = build.pretrained(directories.write(tmp_path / "hf", "qwen3", spare=spare))
  stored = tables_of(weights.load(found.source))
  rows = len(stored["embed"])
  mask_id = found.facts.mask_id
  assert mask_id == rows - spare and found.model.config.vocab == max(rows, mask_id + 1)
  plain, adapted = (tables_of(each.params()[0]) for each in (found, found.adapted()))
  for name, table in stored.items():
    mean = table[:mask_id].mean(0)
    np.testing.assert_array_equal(plain[name][:rows], table)
    np.testing.assert_array_equal(adapted[name][:mask_id], table[:mask_id])
    np.testing.assert_array_equal(adapted[name][mask_id + 1 :], table[mask_id + 1 :])
    for changed in (adapted[name], *([plain[name]] if spare == 0 else [])):
      assert len(changed) == max(rows, mask_id + 1)
      np.testing.assert_allclose(changed[mask_id], mean, rtol=1e-5, atol=1e-7)


def test_adapted_facts(qwen):
  found = build.pretrained(qwen)
  assert build.estimator(found.objective, found.tokenizer) == Autoregressive(found.facts.mask_id)
  adapted = found.adapted()
  assert (adapted.facts.attention_name, adapted.facts.shift) == ("full", 1)
  bound = build.estimator(adapted.objective, adapted.tokenizer)
  assert bound == Shifted(ExactCount(found.facts.mask_id))
  with pytest.raises(ValueError, match="no autoregressive checkpoint: attention='full'"):
    adapted.adapted()


@pytest.mark.parametrize(
  ("objective", "made"),
  [
    ({"name": "mdlm"}, lambda m: Shifted(Mdlm(m))),
    ({"name": "mdlm", "shift": 0}, Mdlm),
    ({"name": "bd3lm", "block": 8, "anneal": 2}, lambda m: Annealed(Shifted(Bd3lm(m, 8)), 2)),
    ({"name": "diffullama", "anneal": 1}, lambda m: Annealed(DiffuLlama(m), 1)),
    ({"name": "ar"}, Autoregressive),
  ],
)
def test_objective_that_goes_on_from_an_autoregressive_model(qwen, objective, made):
  training = build.everything(CONFIG | {"init_from": str(qwen), "objective": objective})
  mask_id = training.source.facts.mask_id
  assert training.objective == made(mask_id)
  assert training.facts.shift == (0 if objective.get("shift") == 0 else 1)
  assert training.facts.attention_name == {"ar": "causal", "bd3lm": "block_causal"}.get(
    objective["name"], "full"
  )
  assert training.source.needs_mask_row == (objective["name"] != "ar")
  assert training.model.config == training.source.model.config


def test_run_starts_from_the_sources_parameters_in_float32(qwen, tmp_path):
  """Fresh moments, an average that starts with them; then saved, resumed and sampled alone."""
  config = CONFIG | {"init_from": str(qwen), "optimizer": {"lr": 1e-3, "ema": 0.9}}
  training = build.everything(config)
  state = Step(training).init()
  params, _ = training.source.params(dtype="float32")
  for each in (state.params, state.ema):
    jax.tree.map(np.testing.assert_array_equal, each, params)
  assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
  assert not any(np.asarray(x).any() for x in jax.tree.leaves(state.opt_state))

  train.train(training, tmp_path / "run")
  written = tmp_path / "run" / "config.json"  # by a version that kept nothing for the exporter
  kept = json.loads(written.read_text())
  assert kept.pop("huggingface")["family"] == "qwen2"
  written.write_text(json.dumps(kept))
  again = train.train(build.everything(config | {"steps": 3}), tmp_path / "run")
  assert int(again.step) == 3
  found = build.pretrained(tmp_path / "run")
  assert found.model == training.model and found.facts.shift == 1
  assert found.tokenizer.fingerprint == training.tokenizer.fingerprint
  second = build.everything(CONFIG | {"init_from": str(tmp_path / "run")})
  assert second.objective == training.objective
  started = Step(second).init().params
  jax.tree.map(np.testing.assert_array_equal, started, again.best_params())


def test_model_table_may_agree_and_choose_how_to_compute(qwen):
  table = {"width": 16, "layers": 2, "dtype": "float32", "remat": True, "implementation": "xla"}
  model = build.everything(CONFIG | {"init_from": str(qwen), "model": table}).model.config
  assert (model.dtype, model.remat, model.implementation, model.heads) == (
    "float32",
    True,
    "xla",
    2,
  )


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model": {"width": 32, "layers": 3}}, r"another model .*: layers: 2 -> 3; width: 16 -> 32"),
    ({"model": {"widht": 32}}, "model.widht is unknown; known: .*width"),
    ({"data": CONFIG["data"] | {"tokenizer": "byte"}}, "data.tokenizer='byte' is not that of /"),
    ({"objective": {"name": "sedd"}}, "objective.shift=1 does not go with Sedd"),
    ({"objective": {"name": "mdlm", "shift": 2}}, "objective.shift=2 must be 0 or 1"),
    ({"objective": {"name": "mdlm", "anneal": 3}}, "objective.anneal=3 must end within steps=2"),
    ({"objective": {"name": "mdlm", "anneal": -1}}, "objective.anneal=-1 must not be negative"),
    ({"init_from": "/nowhere"}, "/nowhere is no checkpoint folder"),
  ],
)  # fmt: skip
def test_run_that_cannot_start_from_there_is_refused(qwen, changes, message):
  with pytest.raises(ValueError, match=message):
    build.everything(CONFIG | {"init_from": str(qwen)} | changes)


def test_source_that_cannot_be_read_leaves_no_run_behind(qwen, tmp_path):
  broken = tmp_path / "broken"
  shutil.copytree(qwen, broken)
  data = (broken / "model.safetensors").read_bytes()
  (broken / "model.safetensors").write_bytes(data[:-100])
  training = build.everything(CONFIG | {"init_from": str(broken)})
  with pytest.raises(weights.WeightsError, match="truncated"):
    train.train(training, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_directory_of_neither_kind(tmp_path):
  with pytest.raises(CheckpointError, match=r"holds no config\.json"):
    build.pretrained(tmp_path)
  (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
  with pytest.raises(weights.WeightsError, match="unknown model_type 'gpt2'; known: "):
    build.pretrained(tmp_path)


def test_diffusion_model_whose_tokenizer_has_no_mask_token(tmp_path):
  """An added token would be noise to a model that was trained with another."""
  folder = directories.write(tmp_path / "hf", attention="full")
  with pytest.raises(ValueError, match="names no mask token"):
    build.pretrained(folder)
  (folder / "tokenizer.json").unlink()
  with pytest.raises(ValueError, match=r"need a tokenizer\.json"):
    build.pretrained(folder)


def test_tokens_that_were_added_without_rows_are_named(tmp_path):
  """And not the mask that comes after them."""
  folder = directories.write(tmp_path / "hf", spare=0)
  rows = build.pretrained(folder).source.model.vocab
  added = {f"<new {i}>": rows + i for i in range(3)}
  (folder / "added_tokens.json").write_text(json.dumps(added))
  message = rf"has 3 ids that the embedding of {rows} rows lacks: {rows} \(<new 0>\), "
  with pytest.raises(ValueError, match=message):
    build.pretrained(folder)


FULL = {"mask": "<|mask|>", "attention": "full", "shift": 0}
BLOCKS = {"mask": "<|mask|>", "attention": "block_causal", "block": 8, "shift": 0}
CHOOSES = {"choice": "expert", "renormalise": False, "schedule": "linear_reverse"}


@pytest.mark.parametrize(
  ("family", "facts", "objective", "moe"),
  [
    ("llada_moe", FULL, {"name": "llada_sft"}, CHOOSES | {"per_token_range": (1, 3)}),
    ("llada2_moe", BLOCKS, {"name": "llada2_sft", "block": 8}, {"choice": "expert", "pool": 8}),
  ],
)
def test_experts_choose_from_now_on_with_the_same_weights(tmp_path, family, facts, objective, moe):
  """What was of token choice alone is dropped; the rest stays where the config names nothing."""
  folder = directories.write(tmp_path / "hf", family, **facts)
  config = {"init_from": str(folder), "objective": objective, "model": {"moe": moe}}
  training = build.everything(CONFIG | config)
  was, now = training.source.model.config.moe, training.model.config.moe
  assert (now.choice, now.experts, now.bias, now.score) == ("expert", was.experts, True, was.score)
  assert now.renormalise == moe.get("renormalise", was.renormalise)
  assert (now.scale, now.top_groups, now.bias_in_weight) == (was.scale, now.groups, False)
  params = training.source.params(dtype="float32")[0]
  jax.tree.map(np.testing.assert_array_equal, Step(training).init().params, params)


def test_a_source_of_experts_keeps_its_routing_but_for_what_is_named(tmp_path):
  folder = directories.write(tmp_path / "hf", "llada2_moe", **BLOCKS)
  start = CONFIG | {"init_from": str(folder), "objective": {"name": "llada2_sft", "block": 8}}
  own = build.everything(start).model.config.moe
  moe = build.everything(start | {"model": {"moe": {"bias_rate": 1e-3}}}).model.config.moe
  assert moe == dataclasses.replace(own, bias_rate=1e-3)
  for wrong, message in (
    ({"experts": 4}, r"another model .*: moe.experts: 8 -> 4"),
    ({"bias": False}, r"another model .*: moe.bias: True -> False"),
    ({"expert": 4}, "model.moe.expert is unknown"),
    (3, "moe=3 must be a table"),
  ):
    with pytest.raises(ValueError, match=message):
      build.everything(start | {"model": {"moe": wrong}})


def test_experts_are_a_table_of_the_model_table():
  moe = {"experts": 4, "per_token": 2, "mlp": 8, "score": "sigmoid"}
  scratch = CONFIG | {"model": {"preset": "1m", "moe": moe}}
  assert build.everything(scratch).model.config.moe.score == "sigmoid"
  for wrong, message in (
    ({"expert": 4}, "model.moe.expert is unknown"),
    (3, "moe=3 must be a table"),
    ({"experts": 4, "mlp": 8}, "MoeConfig: per_token is missing"),
  ):
    with pytest.raises(ValueError, match=message):
      build.everything(CONFIG | {"model": {"preset": "1m", "moe": wrong}})


def test_fields_stand_above_those_of_a_preset_table_by_table():
  preset = {"preset": "llada-moe-7b", "vocab": 260}
  whole = build.RunConfig.of(CONFIG | {"model": preset}).model
  part = build.RunConfig.of(CONFIG | {"model": preset | {"moe": {"z_loss": 0.5}}}).model
  expected = dataclasses.replace(whole.make().moe, z_loss=0.5)
  assert part.make() == dataclasses.replace(whole.make(), moe=expected)


@pytest.fixture(scope="module")
def own(sdar, tmp_path_factory):
  """A checkpoint folder of ours."""
  folder = tmp_path_factory.mktemp("own") / "sdar"
  build.write_checkpoint(folder, build.pretrained(sdar))
  return folder


@pytest.mark.parametrize(
  ("file", "field", "value", "message"),
  [
    ("facts.json", "mask_id", 3, r"mask_id=3 of facts.json is not the tokenizer's, \d+"),
    ("facts.json", "vocab", 10**6, "vocab=1000000 of facts.json exceeds the model's"),
    ("facts.json", "eos_ids", [10**6], r"facts.json: eos_ids=\(1000000,\) must lie below vocab="),
    ("config.json", "model", [], r"model=\(\) must be a table"),
    ("config.json", "model.width", "32", "model.width='32' must be"),
    ("config.json", "model.width", 64, r"embed has shape .*, 16\), in .*, 64\)"),
    ("config.json", "model.tied", True, r"it holds \d+ arrays, the model of"),
  ],
)
def test_own_folder_that_disagrees_with_itself_is_named(own, tmp_path, file, field, value, message):
  folder = tmp_path / "run"
  shutil.copytree(own, folder)
  content = json.loads((folder / file).read_text())
  *tables, name = field.split(".")
  table = content
  for each in tables:
    table = table[each]
  table[name] = value
  (folder / file).write_text(json.dumps(content))
  with pytest.raises(ValueError, match=message):
    build.pretrained(folder).params()


def test_folder_keeps_kernels_as_codes(tmp_path, sdar):
  """Written once, they are to the bit what the directory's become; no other format, no training."""
  made = build.pretrained(sdar)
  folder, again = tmp_path / "w4", tmp_path / "again"
  build.write_checkpoint(folder, made, weights="dgq8")
  kept = build.pretrained(folder)
  want, found = made.params(weights="dgq8")[0], kept.params()[0]
  jax.tree.map(np.testing.assert_array_equal, found, want)
  also = kept.params(weights="w4a8g8")[0]["layers"]["mlp"]["up"]["kernel"]
  assert also.format == Format.of("w4a8g8")
  narrow = kept.params(dtype="bfloat16")[0]
  assert narrow["embed"].dtype == jnp.bfloat16
  assert narrow["layers"]["mlp"]["up"]["kernel"].scale.dtype == jnp.float32
  build.write_checkpoint(again, kept)
  copied = build.pretrained(again).params()[0]
  jax.tree.map(np.testing.assert_array_equal, copied, want)


def test_what_was_not_imported_is_exported_in_a_layout_that_is_named(tmp_path, sdar):
  made = dataclasses.replace(build.pretrained(sdar), config={})
  with pytest.raises(ValueError, match=r"was not imported, so --family must name a layout: .*sdar"):
    build.write_huggingface(tmp_path / "hf", made)
  assert not (tmp_path / "hf").exists()


def test_codes_are_neither_rounded_twice_nor_written_as_numbers(tmp_path, sdar):
  folder = tmp_path / "int8"
  build.write_checkpoint(folder, build.pretrained(sdar), weights="int8")
  kept = build.pretrained(folder)
  with pytest.raises(ValueError, match=r"weights='int4': .*int8 keeps its kernels as int8"):
    kept.params(weights="int4")
  for refused in (
    lambda: build.write_huggingface(tmp_path / "hf", kept),
    lambda: build.everything(CONFIG | {"init_from": str(folder)}),
  ):
    with pytest.raises(ValueError, match="keeps its kernels as int8, to sample, evaluate and"):
      refused()
  with pytest.raises(ValueError, match=r"weights='int4g7': the .* inputs of layers/attention/"):
    build.write_checkpoint(tmp_path / "none", build.pretrained(sdar), weights="int4g7")
  assert [path.name for path in tmp_path.iterdir()] == ["int8"]
  config = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps(config | {"weights": "int3"}))
  with pytest.raises(ValueError, match=r"config\.json: weights='int3' must be int8"):
    build.pretrained(folder)
