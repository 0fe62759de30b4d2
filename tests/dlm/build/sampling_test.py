"""What "auto" and 0 in a sampling config become, by what the checkpoint says of its model."""

import dataclasses
import pathlib
import runpy

import jax
import pytest

from dlm import build, masks
from dlm.diffusion.schedules import LogLinear
from dlm.facts import ATTENTION, ModelFacts
from dlm.models import LoraConfig, ModelConfig, MoeConfig, bind
from dlm.models.config import DrafterConfig
from dlm.parallel import AXES
from dlm.sampling.caching import Ahead, Dual, ExactBlock, NoCache, Rolling, SubBlock, Text
from dlm.sampling.clock import BlockMaskRatio, MaskRatio
from dlm.sampling.policies import (
  Ancestral,
  Cad,
  DFlash,
  Distilled,
  Dream,
  DreamOn,
  Edit,
  Fixed,
  InDel,
  Introspective,
  Parts,
  Pipelined,
  Prophet,
  Quota,
  Renoise,
  Rnd1,
  Saber,
  SelfSpeculative,
  ServedInDel,
  Smooth,
  Threshold,
  WeDlm,
  Wino,
)
from dlm.sampling.sampler import Drafter

CONFIGS = pathlib.Path(__file__).parents[3] / "configs" / "sample"
MODEL = bind(ModelConfig(vocab=260, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp=16))
DEEP = bind(dataclasses.replace(MODEL.config, layers=2))
DRAFTER = bind(
  dataclasses.replace(MODEL.config, qk_norm=True, drafter=DrafterConfig((0,), 2, mask_id=257))
)
TIMED = bind(dataclasses.replace(MODEL.config, time_conditioned=True))
FACTS = {"mask_id": 259, "eos_ids": [258], "shift": 0, "attention": "full", "block": None}
MDLM = FACTS | {"length": 64, "vocab": 260}
BD3LM = MDLM | {"attention": "block_causal", "block": 16}
AR = MDLM | {"attention": "causal", "shift": 1}


def sampling(facts, name="default", model=MODEL, **fields):
  name, _, argument = name.partition(":")
  config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](*argument.split())
  config.update(fields)
  return build.sampling(config, model, ModelFacts.from_json(facts))


@pytest.mark.parametrize(
  ("name", "facts", "policy", "block", "plan"),
  [
    ("rnd1", MDLM | {"shift": 1}, Rnd1(256), 256, NoCache()),
    ("diffullama", MDLM | {"shift": 1}, Ancestral(LogLinear(), 64), 2048, NoCache()),
    ("modernbert", MDLM, Fixed(steps=32), 32, NoCache()),
    (
      "dreamon",
      MDLM | {"shift": 1, "vocab": 151668},
      DreamOn(151667, 64, end_ids=(258,)),
      128,
      NoCache(),
    ),
    ("wedlm", AR | {"shift": 0}, WeDlm(0.6, 0.02), 16, ExactBlock()),
    ("stable_diffcoder", BD3LM | {"block": 4}, Fixed(steps=4), 4, ExactBlock()),
    ("dream:dream_coder", MDLM | {"shift": 1}, Dream(768), 768, NoCache()),
    ("dream:diffucoder", MDLM | {"shift": 1}, Dream(256), 256, NoCache()),
  ],
)
def test_published_settings(name, facts, policy, block, plan):
  sampler, _ = sampling(facts | {"length": 2048}, name)
  assert (sampler.policy, sampler.block, sampler.plan) == (policy, block, plan)


@pytest.mark.parametrize(("vocab", "mask_id"), [(151667, 259), (151668, 151667)])
def test_a_token_that_the_checkpoint_has_not_is_waited_for_in_vain(vocab, mask_id):
  facts = MDLM | {"vocab": vocab, "mask_id": mask_id}
  message = f"'dreamon' waits for the token 151667, .*: vocab={vocab}, mask_id={mask_id}"
  with pytest.raises(ValueError, match=message):
    sampling(facts, "dreamon")


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


def choosing(**fields):
  """A model whose experts choose; with a schedule unless `fields` say otherwise."""
  dynamic = {"schedule": "linear", "per_token_range": (1, 3)}
  moe = MoeConfig(experts=4, per_token=2, mlp=8, choice="expert", **(dynamic | fields))
  return bind(dataclasses.replace(MODEL.config, moe=moe))


STATIC = {"schedule": "static", "per_token_range": None}


def test_experts_that_choose_are_told_the_level_of_their_pool():
  assert sampling(MDLM, model=choosing())[0].clock == MaskRatio(prompt=True)
  assert sampling(BD3LM, model=choosing(pool=8), block=32)[0].clock == BlockMaskRatio(16)
  assert sampling(BD3LM, model=choosing(pool=8, **STATIC))[0].clock is None


@pytest.mark.parametrize(
  ("facts", "pool", "fields", "plan"),
  [
    (BD3LM, 16, {}, ExactBlock()),
    (BD3LM, 8, {"block": 32}, ExactBlock()),
    (BD3LM, 0, {}, NoCache()),
    (BD3LM, 16, {"align": "prompt"}, NoCache()),
    (BD3LM | {"shift": 1}, 16, {}, NoCache()),
    (MDLM, 16, {}, NoCache()),
    (MDLM, 16, {"align": "canvas", "block": 16, "cache": {"name": "dual"}}, Dual()),
  ],
)
def test_experts_that_choose_are_cached_where_windows_hold_whole_pools(facts, pool, fields, plan):
  assert sampling(facts, model=choosing(pool=pool), **fields)[0].plan == plan


@pytest.mark.parametrize(
  ("facts", "model", "fields", "message"),
  [
    (BD3LM, choosing(), {"cache": {"name": "block"}}, "pool=0 to be a number of slots.*'none'"),
    (BD3LM, choosing(pool=16), {"cache": {"name": "block"}, "align": "prompt"}, "align='canvas'"),
    (MDLM, choosing(**STATIC), {"cache": {"name": "dkv_decode"}}, "leaves tokens out of the pools"),
    (BD3LM | {"block": 8}, choosing(pool=16), {}, "pool=16 must divide the model's block=8"),
    (AR, choosing(**STATIC), {}, "not for attention 'causal'"),
    (BD3LM | {"attention": "prompt_blocks"}, choosing(), {}, "reads noise levels"),
    (MDLM, choosing(), {"row_tile": 2}, "row_tile=2 must be 1, or 0"),
  ],
)
def test_experts_that_choose_are_refused_what_would_change_their_pools(
  facts, model, fields, message
):
  with pytest.raises(ValueError, match=message):
    sampling(facts, model=model, **fields)


def test_where_a_mesh_splits_parameters_forwards_are_over_all_rows():
  own, _ = sampling(MDLM)
  assert own.positions == 64
  alone, split = (jax.sharding.AbstractMesh(n, AXES) for n in ((2, 1, 1, 1, 1), (1, 2, 1, 1, 1)))
  assert build.on_mesh(own, alone) == own and build.on_mesh(own, split).positions == 0
  with pytest.raises(ValueError, match="positions=-1 must not be negative"):
    sampling(MDLM, positions=-1)


def test_small_models_take_rows_one_by_one_on_a_cpu_unless_the_config_says_otherwise():
  assert sampling(MDLM)[1].row_tile == 1
  large = bind(dataclasses.replace(MODEL.config, vocab=2**20))  # 64 MiB of embeddings
  assert sampling(MDLM, model=large)[1].row_tile == 0
  assert sampling(MDLM, model=large, row_tile=1)[1].row_tile == 1
  assert [sampling(MDLM, row_tile=n)[1].row_tile for n in (0, 4)] == [0, 4]
  assert sampling(MDLM, model=choosing(**STATIC), row_tile=4)[1].row_tile == 4
  with pytest.raises(ValueError, match="row_tile=-1 must not be negative"):
    sampling(MDLM, row_tile=-1)


def test_a_sampler_drops_no_token():
  moe = MoeConfig(experts=4, per_token=2, mlp=8, capacity_factor=1.25)
  model = bind(dataclasses.replace(MODEL.config, moe=moe))
  assert sampling(MDLM, model=model)[0].denoise.config.moe == dataclasses.replace(
    moe, capacity_factor=0
  )


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
LLADA22 = BD3LM | {"insert_id": 7, "delete_id": 8}
D2F = BD3LM | {"attention": "prompt_blocks"}
NEMOTRON = BD3LM | {"attention": "causal_context"}


@pytest.mark.parametrize(
  ("name", "facts", "policy", "plan", "block"),
  [
    ("sdar", BD3LM, Quota(16, threshold=0.85), ExactBlock(), 16),
    ("llada2", BD3LM, Quota(16, threshold=0.95), ExactBlock(), 16),
    ("llada21", BD3LM, Edit(0.7, 0.5), ExactBlock(), 16),
    ("llada22", LLADA22, InDel(7, 8), ExactBlock(), 16),
    ("llada22:served", LLADA22, ServedInDel(7, 8), ExactBlock(), 16),
    ("efficient_dlm", BD3LM, Threshold(0.9), ExactBlock(), 16),
    ("fast_dllm_v2", SHIFTED, Parts(Threshold(0.9)), SubBlock(8), 16),
    ("d2f", D2F, Pipelined(16, end_ids=(258,)), Ahead(), 16),
    ("d3llm", MDLM, Distilled(32, 0.5, begin=0.1, end_ids=(258,)), NoCache(), 32),
    ("i_dlm", AR, Introspective(4), Rolling(), 8),
    ("ar", AR, Introspective(1), Rolling(), 2),
    ("nemotron", NEMOTRON, Threshold(), ExactBlock(), 16),
    ("nemotron:self_speculation", NEMOTRON, SelfSpeculative(16), Rolling(), 17),
    ("nemotron:autoregressive", NEMOTRON, Introspective(1), Rolling(), 2),
    ("diffusion_gemma", BD3LM, Renoise(260), ExactBlock(), 16),
    ("diffusion_gemma", MDLM, Renoise(260), NoCache(), 64),
    ("diffusion_gemma", BD3LM | {"attention": "canvas"}, Renoise(260), Text(), 16),
  ],
)
def test_configs_of_papers_sample_their_kind_of_checkpoint(name, facts, policy, plan, block):
  sampler, own = sampling(facts, name, max_new_tokens=32)
  assert (sampler.policy, sampler.plan, sampler.block) == (policy, plan, block)
  assert (own.align == "prompt") == (facts["attention"] != "block_causal")


@pytest.mark.parametrize(
  ("name", "fields", "sees", "shift", "commit"),
  [
    ("nemotron", {}, masks.CausalContext(16), 0, "separate"),
    ("nemotron", {"block": 8}, masks.CausalContext(8), 0, "separate"),
    ("nemotron", {"attention": "prompt_blocks"}, masks.PromptBlocks(16), 0, "fused"),
    ("nemotron:self_speculation", {}, masks.Causal(), 1, "fused"),
    ("nemotron:autoregressive", {}, masks.Causal(), 1, "fused"),
  ],
)
def test_one_checkpoint_is_read_in_three_modes(name, fields, sees, shift, commit):
  sampler, own = sampling(NEMOTRON, name, max_new_tokens=32, **fields)
  assert (sampler.sees, sampler.shift, sampler.commit) == (sees, shift, commit)
  assert isinstance(sampler.sees, ATTENTION[own.attention])
  with pytest.raises(ValueError, match="attention='causal' must be 'auto': the checkpoint knows"):
    sampling(BD3LM, name, attention="causal")
  with pytest.raises(ValueError, match="attention='full' is unknown; known: causal, causal_con"):
    sampling(NEMOTRON, name, attention="full")


def test_adapters_of_a_model_that_drafts_for_itself_are_off_while_it_checks():
  lora = LoraConfig(rank=2, alpha=4.0, drafts=True)
  adapted = bind(dataclasses.replace(MODEL.config, lora=lora))
  sampler, _ = sampling(NEMOTRON, "nemotron:self_speculation", model=adapted)
  assert (sampler.denoise, sampler.adapted) == (MODEL, adapted)
  plain, _ = sampling(NEMOTRON, "nemotron", model=adapted)
  assert (plain.denoise, plain.adapted) == (MODEL, None)
  gated = dataclasses.replace(lora, drafts=False, gated=True, mask_id=259)
  gated = bind(dataclasses.replace(MODEL.config, lora=gated))  # what it settles sees no mask
  sampler, _ = sampling(NEMOTRON, "nemotron:self_speculation", model=gated)
  assert (sampler.denoise, sampler.adapted) == (gated, None)


def test_a_drafter_has_the_models_vocabulary():
  config = runpy.run_path(str(CONFIGS / "deer.py"))["get_config"]()
  ar, mdlm = ModelFacts.from_json(AR), ModelFacts.from_json(MDLM)
  other = dataclasses.replace(mdlm, vocab=270)
  sampler, _ = build.sampling(config, MODEL, ar, (MODEL, mdlm))
  assert sampler.drafter == Drafter(MODEL, masks.Full(), 259) and sampler.block == 34
  with pytest.raises(ValueError, match="drafter's vocabulary of 270 ids must be the model's of"):
    build.sampling(config, MODEL, ar, (MODEL, other))
  with pytest.raises(ValueError, match="a drafter goes with policies 'deer' and 'dflash' alone"):
    build.sampling(config, MODEL, ar)


def test_a_dflash_drafter_belongs_to_its_target():
  ar, own = ModelFacts.from_json(AR), ModelFacts.from_json(MDLM | {"block": 16})
  config = runpy.run_path(str(CONFIGS / "dflash.py"))["get_config"]()
  sampler, _ = build.sampling(config, DEEP, ar, (DRAFTER, own))
  assert sampler.drafter == Drafter(DRAFTER, masks.Full(), 257, taps=(0,))
  assert (sampler.policy, sampler.plan, sampler.block) == (DFlash(15), Rolling(), 17)
  with pytest.raises(ValueError, match="target_layers=2 must be its target's 1"):
    build.sampling(config, MODEL, ar, (DRAFTER, own))
  with pytest.raises(ValueError, match="length=15 must be below the drafter's block of 8"):
    build.sampling(config, DEEP, ar, (DRAFTER, dataclasses.replace(own, block=8)))
  with pytest.raises(ValueError, match="a DFlash drafter writes nothing alone"):
    build.sampling(config, DRAFTER, own)


def test_the_implementation_of_kernels_is_the_samplers_to_choose():
  sampler, _ = sampling(MDLM)
  assert sampler.denoise == MODEL
  sampler, _ = sampling(MDLM, implementation="gpu,xla")
  assert sampler.denoise.config == dataclasses.replace(MODEL.config, implementation="gpu,xla")
  config = runpy.run_path(str(CONFIGS / "deer.py"))["get_config"]()
  config.implementation = "xla"
  ar, mdlm = ModelFacts.from_json(AR), ModelFacts.from_json(MDLM)
  sampler, _ = build.sampling(config, MODEL, ar, (MODEL, mdlm))
  assert sampler.drafter.denoise == sampler.denoise != MODEL
  with pytest.raises(ValueError, match="implementation='cuda' must name some of reference, xla, "):
    sampling(MDLM, implementation="cuda")


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


# Fields that the file does not name, of what it names; and what they are then.
UNNAMED = {
  "ar": {"policy.checked": 1},
  "bd3lm": {"policy.k": 0, "policy.steps": 4},
  "d2f": {"policy.score": "margin"},
  "d3llm": {"policy.score": "margin", "policy.always": False},
  "default": {"policy.band": 1e-5},
  "difftester": {"policy.k": 0, "policy.steps": 4},
  "dinfer": {"cache.every": 2},
  "dkv_cache": {"cache.shift_rule": "un"},
  "efficient_dlm": {"policy.decay": 0.5},
  "fast_dllm": {"policy.band": 1e-5, "cache.every": 2, "cache.settles": True},
  "fast_dllm_v2": {"policy.inner.band": 1e-5},
  "i_dlm": {"policy.correct": True},
  "llada2": {"policy.order": "left_to_right"},
  "llada21": {"policy.least": 2},
  "p_react": {"policy.inner.k": 0, "policy.inner.steps": 4},
  "prophet": {"policy.inner.exact_steps": True},
  "nemotron": {"policy.steps": 8},
  "sdar": {"policy.order": "left_to_right"},
}
BLOCKS = ("bd3lm", "efficient_dlm", "llada2", "llada21", "sdar", "stable_diffcoder")
KINDS = {
  **dict.fromkeys(("ar", "i_dlm", "deer", "dflash"), AR),
  **dict.fromkeys(BLOCKS, BD3LM),
  "llada22": LLADA22,
  "fast_dllm_v2": SHIFTED,
  "d2f": D2F,
  "wedlm": AR | {"shift": 0},
  "dreamon": MDLM | {"vocab": 152_064},
}  # else MDLM


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.py")))
def test_every_config_takes_every_field_on_the_command_line(name):
  unnamed = UNNAMED.get(name, {})
  texts = [f"{field}={value}" for field, value in unnamed.items()]
  config = build.SamplingConfig.read(
    str(CONFIGS / f"{name}.py"), ["implementation=xla", "max_forwards=7", *texts]
  )
  facts = ModelFacts.from_json(KINDS.get(name, MDLM))
  drafters = {"deer": MODEL, "dflash": DRAFTER}
  drafter = (drafters[name], ModelFacts.from_json(BD3LM)) if name in drafters else None
  sampler, _ = build.sampling(config, DEEP, facts, drafter)
  assert sampler.denoise.config.implementation == "xla" and sampler.max_forwards == 7
  for field, value in unnamed.items():
    at = sampler
    for part in field.replace("cache.", "plan.").split("."):
      at = getattr(at, part)
    assert at == value, field


def test_every_config_takes_another_policy_and_cache_on_the_command_line():
  for path in sorted(CONFIGS.glob("*.py")):
    fields = ["policy.name=wino", "policy.back=0.8", "cache.name=none", "context=0"]
    config = build.SamplingConfig.read(str(path), [*fields, "commit=fused"])
    sampler, _ = build.sampling(config, MODEL, ModelFacts.from_json(MDLM))
    assert sampler.policy == Wino(back=0.8) and sampler.plan == NoCache()
