import dataclasses

import jax
import pytest

from dlm.models import PRESETS, GemmaConfig, ModelConfig, MoeConfig, bind, from_preset
from dlm.models.lora import LoraConfig

SMALL = ModelConfig(vocab=11, width=12, layers=3, heads=4, kv_heads=2, head_dim=6, mlp=10)
MOE = MoeConfig(experts=4, per_token=2, mlp=5)
CHOOSING = MoeConfig(experts=64, per_token=20, mlp=16, choice="expert")


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"qk_norm": True},
    {"qkv_bias": True},
    {"out_bias": True, "mlp_bias": True},
    {"tied": False},
    {"time_conditioned": True},
    {"qk_norm": True, "qkv_bias": True, "tied": False, "time_conditioned": True, "kv_heads": 1},
    {"moe": MOE},
    {"moe": dataclasses.replace(MOE, shared=7, dense_layers=2, bias=True), "qk_norm": True},
    {"moe": dataclasses.replace(MOE, dense_layers=1), "time_conditioned": True, "mlp_bias": True},
    {"dit": 5},
    {"dit": 5, "tied": False, "kv_heads": 4},
    {
      "gemma": GemmaConfig((0, 2), 4, 1, 8),
      "moe": dataclasses.replace(MOE, renormalise=True),
      "qk_norm": True,
      "lora": LoraConfig(2, 4.0),
    },
  ],
)
def test_n_params_counts_the_tree(changes):
  config = dataclasses.replace(SMALL, **changes)
  leaves = jax.tree.leaves(bind(config).abstract())
  assert config.n_params() == sum(leaf.size for leaf in leaves)


@pytest.mark.parametrize(
  ("name", "vocab", "count"),
  [
    ("llada-8b", 126464, 8_015_581_184),
    ("dream-7b", 152064, 7_615_616_512),
    ("qwen3-8b", 151936, 8_190_735_360),
    ("smollm2-135m", 49152, 134_515_008),
    ("llada-moe-7b", 157184, 7_356_880_896),
    ("llada2-mini", 157184, 16_255_643_392),
    ("diffusion-gemma", 262144, 25_250_986_812),  # without its vision tower
  ],
)
def test_named_shapes_have_the_checkpoints_size(name, vocab, count):
  """Counts of the published checkpoints."""
  assert from_preset(name, vocab=vocab).n_params() == count


@pytest.mark.parametrize("name", [name for name in PRESETS if name[:-1].isdigit()])
def test_presets_are_as_large_as_their_name(name):
  config = from_preset(name, vocab=32_000)
  count = config.n_params()
  if name in ("1m", "3m", "10m"):
    count -= config.vocab * config.width
  named = int(name[:-1]) * {"m": 1e6, "b": 1e9}[name[-1]]
  assert abs(count / named - 1) < 0.06


def test_flops_are_two_per_weight_and_four_per_attended_channel():
  """LLaDA-8B: all weights but the lookup table and the norms multiply every token."""
  config = from_preset("llada-8b", vocab=126464)
  norms = (2 * 32 + 1) * 4096
  weights = config.n_params() - norms - 126464 * 4096
  assert config.flops_per_token(0) == 2 * weights
  assert config.flops_per_token(10) - config.flops_per_token(0) == 10 * 4 * 4096 * 32


def test_flops_count_the_experts_that_a_token_is_routed_to():
  """LLaDA2-mini: 1.43 B active with the lookup table."""
  config = from_preset("llada2-mini", vocab=157184)
  active = config.flops_per_token(0) / 2 + config.vocab * config.width
  assert active == pytest.approx(1.433e9, rel=1e-3)
  one_more = dataclasses.replace(config.moe, per_token=9)
  step = dataclasses.replace(config, moe=one_more).flops_per_token(0) - config.flops_per_token(0)
  assert step == 2 * 19 * 3 * 2048 * 512


def test_flops_of_a_schedule_are_those_of_its_mean():
  """FLOP-matched: static 20 experts a token, or 8 to 32 by the level."""
  static = from_preset("1m", vocab=260, moe=CHOOSING)
  ends = {"schedule": "linear_reverse", "per_token_range": (8, 32)}
  dynamic = dataclasses.replace(static, moe=dataclasses.replace(CHOOSING, **ends))
  assert dynamic.flops_per_token(64) == static.flops_per_token(64)
  assert (static.reads_noise, dynamic.reads_noise) == (False, True)
  fewer = dataclasses.replace(static, moe=dataclasses.replace(CHOOSING, per_token=19))
  step = static.flops_per_token(64) - fewer.flops_per_token(64)
  assert step == 2 * 4 * 3 * 128 * 16


def test_overrides_win_over_the_preset():
  config = from_preset("1m", vocab=260, layers=2, qk_norm=True)
  assert (config.vocab, config.layers, config.width, config.qk_norm) == (260, 2, 128, True)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"kv_heads": 3}, "heads=4 must be a multiple of kv_heads=3"),
    ({"vocab": 0}, "vocab=0"),
    ({"head_dim": 5}, "head_dim=5"),
    ({"dtype": "float64"}, "float32, bfloat16"),
    ({"soft_cap": 0.0}, "soft_cap=0.0"),
    ({"rotary_dim": 3}, "rotary_dim=3 must be even"),
    ({"rotary_dim": 8}, "in 0..head_dim=6"),
    ({"moe": dataclasses.replace(MOE, dense_layers=3)}, "dense_layers=3 must be below layers=3"),
    ({"dit": -1}, "dit=-1 must be 0"),
    ({"dit": 5, "moe": MOE}, "then moe is None"),
    ({"dit": 5, "time_conditioned": True}, "time_conditioned=True"),
  ],
)
def test_impossible_configurations_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(SMALL, **changes)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"experts": 0}, "experts=0 must be at least 1"),
    ({"shared": -1}, "shared=-1 must be at least 0"),
    ({"per_token": 5}, "per_token=5 exceeds the 4 experts"),
    ({"per_token": 3, "groups": 2}, "per_token=3 exceeds the 2 experts"),
    ({"score": "relu"}, "score='relu' must be one of softmax, sigmoid"),
    ({"bias_in_weight": True}, "needs bias=True"),
    ({"scale": 0.0}, "scale=0.0 must be positive"),
    ({"groups": 3}, "experts=4 must be a multiple of groups=3"),
    ({"groups": 4, "top_groups": 4}, "groups=4 must hold at least two experts each"),
    ({"groups": 2, "top_groups": 3}, "top_groups=3 must lie in 1..groups=2"),
    ({"choice": "both"}, "choice='both' must be one of token, expert"),
    ({"per_token": 1, "renormalise": True}, "renormalise=True with per_token=1"),
    ({"capacity_factor": -1}, "capacity_factor=-1 must be at least 0"),
    ({"bias_rate": 0.1}, "bias_rate=0.1 needs bias=True"),
    ({"match_shared": True, "shared": 7}, "shared=7 to be a multiple of mlp=5"),
    ({"pool": 8}, "pool=8 with choice='token' needs admitted"),
    (
      {"schedule": "linear", "per_token_range": (1, 2)},
      "'linear' goes with choice='expert'",
    ),
  ],
)
def test_impossible_experts_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(MOE, **changes)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"capacity_factor": 1.25}, "capacity_factor=1.25 goes with choice='token'"),
    ({"groups": 4, "top_groups": 2}, "top_groups=2 goes with choice='token'"),
    ({"bias": True, "bias_rate": 0.1}, "bias_rate=0.1 goes with choice='token'"),
    ({"schedule": "quadratic"}, "schedule='quadratic' must be one of static, linear, "),
    ({"schedule": "linear"}, "per_token_range=None with schedule='linear'"),
    ({"per_token_range": (1, 2)}, "per_token_range=.1, 2. with schedule"),
    ({"schedule": "bell", "per_token_range": (4, 2)}, "must be .least, most. in 1..experts=64"),
    ({"schedule": "bell", "per_token_range": (4, 65)}, "must be .least, most. in 1..experts=64"),
    ({"sigma": 0.0}, "sigma=0.0 must be positive"),
    ({"gate_scales": (1.0, 2.0)}, "2 entries and needs experts . 1 = 65"),
    ({"shared": 16, "match_shared": True}, "need renormalise=True"),
    ({"pool": 3}, "pool=3 slots with 20 experts a token are too few for experts="),
  ],
)
def test_impossible_choices_of_experts_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CHOOSING, **changes)


def test_unknown_names_list_the_known_ones():
  with pytest.raises(ValueError, match="'2m'; known: 1m, 3m"):
    from_preset("2m", vocab=10)
  with pytest.raises(ValueError, match=r"\['depth'\]; known: .*layers"):
    from_preset("1m", vocab=10, depth=3)
