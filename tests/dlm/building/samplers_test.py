"""What "auto" and 0 in a sampling config become, by what the checkpoint says of its model."""

import dataclasses
import pathlib
import runpy

import pytest

from dlm import build, masks
from dlm.models import ModelConfig, bind
from dlm.sampling.caching import PLANS, Ahead, ExactBlock, NoCache, Rolling, SubBlock
from dlm.sampling.clock import BlockMaskRatio, MaskRatio
from dlm.sampling.policies import (
  POLICIES,
  Ancestral,
  Cad,
  Distilled,
  Dream,
  Edit,
  Fixed,
  Introspective,
  Parts,
  Pipelined,
  Prophet,
  Quota,
  Renoise,
  Saber,
  Smooth,
  Threshold,
)
from dlm.sampling.sampler import Drafter

CONFIGS = pathlib.Path(__file__).parents[3] / "configs" / "sample"
MODEL = bind(ModelConfig(vocab=260, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp=16))
TIMED = bind(dataclasses.replace(MODEL.config, time_conditioned=True))
FACTS = {"mask_id": 259, "eos_ids": [258], "shift": 0, "attention": "full", "block": None}
MDLM = FACTS | {"length": 64, "vocab": 260}
BD3LM = MDLM | {"attention": "block_causal", "block": 16}
AR = MDLM | {"attention": "causal", "shift": 1}


def sampling(facts, name="default", model=MODEL, **fields):
  config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]()
  config.update(fields)
  return build.sampling(config, model, facts)


@pytest.mark.parametrize(
  ("facts", "sees", "block", "align", "plan"),
  [
    (MDLM, masks.Full(), 64, "prompt", NoCache()),
    (BD3LM, masks.BlockCausal(16), 16, "canvas", ExactBlock()),
    (AR, masks.Causal(), 1, "prompt", ExactBlock()),
  ],
  ids=["mdlm", "bd3lm", "ar"],
)
def test_the_checkpoint_fills_in_what_is_open(facts, sees, block, align, plan):
  sampler, own = sampling(facts)
  assert (sampler.sees, sampler.block, sampler.plan) == (sees, block, plan)
  assert (own.align, own.slots, own.block, own.max_forwards) == (align, 64, block, 128)
  assert (sampler.shift, sampler.mask_id, sampler.eos_ids) == (facts["shift"], 259, (258,))
  assert sampler.policy == Threshold() and sampler.clock is None
  assert sampling(facts, stop="never")[0].eos_ids == ()


@pytest.mark.parametrize(
  ("facts", "fields", "plan"),
  [
    (BD3LM, {"align": "prompt"}, NoCache()),
    (BD3LM, {"block": 8}, NoCache()),
    (BD3LM, {"block": 32}, ExactBlock()),
    (AR, {"align": "canvas", "block": 8}, ExactBlock()),
  ],
)
def test_cache_auto_is_block_only_where_that_is_exact(facts, fields, plan):
  assert sampling(facts, **fields)[0].plan == plan


@pytest.mark.parametrize(
  ("facts", "clock"),
  [(MDLM, MaskRatio()), (BD3LM, BlockMaskRatio(16)), (AR, BlockMaskRatio(1))],
  ids=["mdlm", "bd3lm", "ar"],
)
def test_clock_is_that_of_training_whatever_the_block(facts, clock):
  assert sampling(facts, model=TIMED, block=32)[0].clock == clock


@pytest.mark.parametrize(
  ("name", "policy"),
  [
    ("llada", Fixed(steps=8)),
    ("fast_dllm", Threshold(0.9)),
    ("mdlm", Ancestral),
    ("prophet", Prophet(Fixed(steps=32), steps=256, answer_start=203)),
    ("saber", Saber(2)),
    ("dream", Dream),
    ("dinfer", Smooth(Threshold(0.8, band=1e-5, decay=0.02))),
    ("cd4lm", Cad(max_steps=32, end_ids=(258,))),
  ],
)
def test_configs_of_papers_sample_any_checkpoint(name, policy):
  for facts in (MDLM, BD3LM, AR):
    sampler, _ = sampling(facts, name)
    assert policy in (sampler.policy, type(sampler.policy))


SHIFTED = BD3LM | {"shift": 1}
D2F = BD3LM | {"attention": "prompt_blocks"}


@pytest.mark.parametrize(
  ("name", "facts", "policy", "plan", "block"),
  [
    ("sdar", BD3LM, Quota(16, threshold=0.85), ExactBlock(), 16),
    ("llada2", BD3LM, Quota(16, threshold=0.95), ExactBlock(), 16),
    ("llada21", BD3LM, Edit(0.7, 0.5), ExactBlock(), 16),
    ("efficient_dlm", BD3LM, Threshold(0.9), ExactBlock(), 16),
    ("fast_dllm_v2", SHIFTED, Parts(Threshold(0.9)), SubBlock(8), 16),
    ("d2f", D2F, Pipelined(16, end_ids=(258,)), Ahead(), 16),
    ("d3llm", MDLM, Distilled(32, 0.5, begin=0.1, end_ids=(258,)), NoCache(), 32),
    ("i_dlm", AR, Introspective(4), Rolling(), 8),
    ("ar", AR, Introspective(1), Rolling(), 2),
    ("diffusion_gemma", BD3LM, Renoise(260), ExactBlock(), 16),
    ("diffusion_gemma", MDLM, Renoise(260), NoCache(), 64),
  ],
)
def test_configs_of_papers_sample_their_kind_of_checkpoint(name, facts, policy, plan, block):
  sampler, own = sampling(facts, name, max_new_tokens=32)
  assert (sampler.policy, sampler.plan, sampler.block) == (policy, plan, block)
  assert (own.align == "prompt") == (facts["attention"] != "block_causal")


def test_a_drafter_has_the_models_vocabulary():
  config = runpy.run_path(str(CONFIGS / "deer.py"))["get_config"]()
  sampler, _ = build.sampling(config, MODEL, AR, (MODEL, MDLM))
  assert sampler.drafter == Drafter(MODEL, masks.Full(), 259) and sampler.block == 34
  with pytest.raises(ValueError, match="drafter's vocabulary of 7 ids must be the model's of"):
    build.sampling(config, MODEL, AR, (MODEL, MDLM | {"vocab": 7}))
  with pytest.raises(ValueError, match="a drafter goes with policy 'deer' and no other"):
    build.sampling(config, MODEL, AR)


def test_bd3lm_samples_as_published():
  sampler, own = sampling(BD3LM, "bd3lm")
  assert sampler.policy == Fixed(k=1, order="random") and sampler.plan == ExactBlock()
  assert (sampler.temperature, sampler.top_p, sampler.top_p_rule) == (1.0, 0.9, "within")
  assert sampler.sees == masks.BlockCausal(16, context=1024)
  assert (own.bos, sampler.least_entropy, sampler.on_eos) == (True, 4.0, "stop_block")
  with pytest.raises(
    ValueError, match="context=1024 is for block-causal checkpoints, not attention 'full'"
  ):
    sampling(MDLM, "bd3lm")


def test_the_default_config_names_every_field_of_every_policy_and_cache():
  config = runpy.run_path(str(CONFIGS / "default.py"))["get_config"]()
  for table, makes in (("policy", POLICIES), ("cache", PLANS)):
    fields = {field.name for make in makes.values() for field in dataclasses.fields(make)}
    assert set(config[table]) - {"name"} == fields - {"end_ids", "block", "vocab"}  # filled in
  assert set(config.policy.inner) == set(config.policy) - {"inner"}
