import dataclasses

import jax
import pytest

from dlm.models import PRESETS, ModelConfig, bind

SMALL = ModelConfig(vocab=11, width=12, layers=3, heads=4, kv_heads=2, head_dim=6, mlp=10)


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"qk_norm": True},
    {"qkv_bias": True},
    {"tied": False},
    {"time_conditioned": True},
    {"qk_norm": True, "qkv_bias": True, "tied": False, "time_conditioned": True, "kv_heads": 1},
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
  ],
)
def test_named_shapes_have_the_checkpoints_size(name, vocab, count):
  """Counts of the published checkpoints (specs moe_distill_rl 3)."""
  assert ModelConfig.from_preset(name, vocab=vocab).n_params() == count


@pytest.mark.parametrize("name", [name for name in PRESETS if name[:-1].isdigit()])
def test_presets_are_as_large_as_their_name(name):
  config = ModelConfig.from_preset(name, vocab=32_000)
  count = config.n_params()
  if name in ("1m", "3m", "10m"):
    count -= config.vocab * config.width
  named = int(name[:-1]) * {"m": 1e6, "b": 1e9}[name[-1]]
  assert abs(count / named - 1) < 0.06


def test_flops_are_two_per_weight_and_four_per_attended_channel():
  """LLaDA-8B: all weights but the lookup table and the norms multiply every token."""
  config = ModelConfig.from_preset("llada-8b", vocab=126464)
  norms = (2 * 32 + 1) * 4096
  weights = config.n_params() - norms - 126464 * 4096
  assert config.flops_per_token(0) == 2 * weights
  assert config.flops_per_token(10) - config.flops_per_token(0) == 10 * 4 * 4096 * 32


def test_overrides_win_over_the_preset():
  config = ModelConfig.from_preset("1m", vocab=260, layers=2, qk_norm=True)
  assert (config.vocab, config.layers, config.width, config.qk_norm) == (260, 2, 128, True)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"kv_heads": 3}, "heads=4 must be a multiple of kv_heads=3"),
    ({"vocab": 0}, "vocab=0"),
    ({"head_dim": 5}, "head_dim=5"),
    ({"dtype": "float64"}, "float32, bfloat16"),
    ({"soft_cap": 0.0}, "soft_cap=0.0"),
  ],
)
def test_impossible_configurations_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(SMALL, **changes)


def test_unknown_names_list_the_known_ones():
  with pytest.raises(ValueError, match="'2m'; known: 1m, 3m"):
    ModelConfig.from_preset("2m", vocab=10)
  with pytest.raises(ValueError, match=r"\['depth'\]; known: .*layers"):
    ModelConfig.from_preset("1m", vocab=10, depth=3)
