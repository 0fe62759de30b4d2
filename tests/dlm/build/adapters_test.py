"""Adapters in PEFT's layout beside and in a checkpoint, and out of a run that trained them."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import build, train
from dlm.models import bind, lora
from dlm.weights import peft
from dlm.workdir import read_json
from tests.dlm.build import directories
from tests.dlm.train_adapters_test import same, table

FULL = {"name": "llada"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  return directories.write(tmp_path_factory.mktemp("sources") / "base")


def run_of(source, folder, **changes):
  training = build.everything(table(source, steps=1, **changes))
  return folder, train.train(training, folder)


@pytest.fixture(scope="module")
def gated(source, tmp_path_factory):
  return run_of(source, tmp_path_factory.mktemp("runs") / "gated")


@pytest.fixture(scope="module")
def plain(source, tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs") / "plain"
  return run_of(source, folder, model={"lora": {"rank": 2, "alpha": 4.0}}, objective=FULL)


def test_exported_gated_adapter_on_its_base_is_the_run(source, gated, tmp_path):
  folder, state = gated
  assert build.write_adapter(tmp_path / "peft", build.pretrained(folder)) == sum(
    leaf.size for leaf in jax.tree.leaves(lora.adapters(state.params))
  )
  made = build.pretrained(source, adapter=tmp_path / "peft")
  run = build.pretrained(folder)
  assert made.facts == run.facts and build.plain(made.objective) == build.plain(run.objective)
  assert made.model.config.lora.mask_id == run.model.config.lora.mask_id
  same(made.params()[0], state.params)
  said = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
  assert said["base_model_name_or_path"] == str(source)
  with pytest.raises(ValueError, match="cannot be merged into weights; --export_adapter writes"):
    build.write_checkpoint(tmp_path / "merged", made)
  assert not (tmp_path / "merged").exists()


def test_other_adapters_are_merged_by_whatever_way(source, plain, tmp_path):
  folder, state = plain
  run = build.pretrained(folder)
  build.write_adapter(tmp_path / "peft", run)
  build.write_checkpoint(tmp_path / "ours", run)
  build.write_huggingface(tmp_path / "theirs", run, "a2d-qwen2")
  want = lora.merged(state.params, run.model.config.lora)
  made = {
    "adapter": build.pretrained(source, adapter=tmp_path / "peft"),
    "ours": build.pretrained(tmp_path / "ours"),
    "theirs": build.pretrained(tmp_path / "theirs"),
  }
  for each in made.values():
    assert each.model.config.lora is None and each.facts.attention_name == "full"
    got = each.params()[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want)
  assert read_json(tmp_path / "ours", "config.json")["model"]["lora"] is None


def test_adapter_is_cast_and_kept_small(source, gated, tmp_path):
  build.write_adapter(tmp_path / "peft", build.pretrained(gated[0]), dtype="bfloat16")
  params, _ = build.pretrained(source, adapter=tmp_path / "peft").params(dtype="bfloat16")
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
  size = (tmp_path / "peft" / "adapter_model.safetensors").stat().st_size
  numbers = sum(leaf.size for leaf in jax.tree.leaves(lora.adapters(params)))
  assert size < 2 * numbers + 8192  # and a header


def test_what_takes_no_adapter_says_so(source, gated, tmp_path):
  build.write_adapter(tmp_path / "peft", build.pretrained(gated[0]))
  with pytest.raises(ValueError, match="has adapters of its own, and takes no other"):
    build.pretrained(gated[0], adapter=tmp_path / "peft")
  with pytest.raises(ValueError, match="is of no run that trained adapters"):
    build.write_adapter(tmp_path / "again", build.pretrained(source))
  with pytest.raises(ValueError, match="family='qwen' is unknown"):
    build.write_adapter(tmp_path / "again", build.pretrained(gated[0]), "qwen")
  with pytest.raises(ValueError, match=r"is no adapter: it holds no adapter_config\.json"):
    build.pretrained(source, adapter=source)
  with pytest.raises(ValueError, match="give the model as checkpoint and this directory as --ad"):
    build.pretrained(tmp_path / "peft")
  assert not (tmp_path / "again").exists()


def test_an_adapter_that_only_drafts_stands_beside_a_model_that_drafts_for_itself(source, tmp_path):
  """As NVIDIA ships it: PEFT's own files, of one projection."""
  family = "nemotron_labs_diffusion"
  facts = {"shift": 0, "attention": "causal_context", "block": 8}
  base = directories.write(tmp_path / "base", family, mask="<|mask|>", **facts)
  made = build.pretrained(base)
  adapted = lora.LoraConfig(rank=2, alpha=4.0, targets="out", drafts=True)
  model = dataclasses.replace(made.model.config, lora=adapted)
  rng = np.random.default_rng(0)
  own = jax.tree.map(
    lambda x: rng.standard_normal(x.shape, np.float32),
    lora.adapters(nn.unbox(bind(model).abstract())),
  )
  (tmp_path / "peft").mkdir()
  peft.fill(tmp_path / "peft", family, model, own, base=str(base), ours={})
  said = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
  said.pop("dlm")
  (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(said))

  drafting = build.pretrained(base, draft_adapter=tmp_path / "peft")
  found = drafting.model.config.lora
  assert found.drafts and not found.gated and (found.rank, found.names) == (2, ("out",))
  params, _ = drafting.params()
  same(lora.adapters(params), own)
  same(lora.frozen(params), made.params()[0])
  with pytest.raises(ValueError, match="its adapter only drafts"):
    build.write_checkpoint(tmp_path / "merged", drafting)
  with pytest.raises(ValueError, match="only drafts is off elsewhere"):
    lora.merged(params, found)
  with pytest.raises(ValueError, match="is for a checkpoint that drafts for itself"):
    build.pretrained(source, draft_adapter=tmp_path / "peft")
