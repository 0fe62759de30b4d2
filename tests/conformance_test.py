"""Ours against golden data of the authors' own code, case by case.

Cases are found under tests/conformance, or under DLM_CONFORMANCE_DIR, where more cases of the same
methods may lie; the README.md beside them says what their fields mean. `tests/checkers` holds what
checks them, by method. A method without a checker must be named here, and is skipped by its name;
one that is not named fails.
"""

import itertools
import os
import pathlib

import jax
import pytest

from tests.checkers import (
  adapters,
  bd3lm,
  block,
  block_objectives,
  decoding,
  dflash,
  diffusion_gemma,
  distillation,
  drafting,
  dream,
  ec_moe,
  gguf,
  graders,
  llada,
  llada22,
  models,
  multi_block,
  nemotron,
  objectives,
  peer_objectives,
  post_training,
  quant,
  rewards,
  rl,
  rnd1,
)

DEFAULT = pathlib.Path(__file__).parent / "conformance"
FOLDER = pathlib.Path(os.environ.get("DLM_CONFORMANCE_DIR", DEFAULT))  # as conftest.conformance_dir

# Decoding methods by family.
CHECKED = {
  "diffusion_gemma": diffusion_gemma.METHODS,
  "qwen2": models.METHODS,
  "qwen3": models.METHODS,
  "llama": {**models.METHODS, **gguf.METHODS},
  "llada": llada.METHODS,
  "dream": dream.METHODS,
  "sdar": block.METHODS,
  "llada2_moe": block.METHODS,
  "fast_dllm_v2": block.METHODS,
  "i_dlm": drafting.METHODS,
  "d2f": multi_block.METHODS,
  "d3llm": multi_block.METHODS,
  "bd3lm": bd3lm.METHODS,
  "families_short": {**rnd1.METHODS, **dflash.METHODS},
  "nemotron_labs_diffusion": nemotron.METHODS,
  "llada22": llada22.METHODS,
}
UNCHECKED = {
  "d3llm": {
    "d3llm_dream_multi_block_kv": "their cache holds keys twice once two blocks wait together"
  },
}
ELSEWHERE = {"serve_numbers": "costs of forwards are checked by tests/dlm/roofline_test.py"}
FAMILIES = tuple(models.TOLERANCE)
TRAINED = ("objectives", "ec_moe", "graders", "rl_2026", "distill_rl", "quant")
DECODED = tuple(dict.fromkeys((*FAMILIES, *CHECKED)))

OBJECTIVES = objectives.read(FOLDER / "objectives")
DECODING = [case for family in DECODED for case in decoding.read(FOLDER / family)]
LOGITS = sorted(path for family in FAMILIES for path in (FOLDER / family).glob("logits*.npz"))
GEMMA_LOGITS = sorted(FOLDER.glob("diffusion_gemma/logits*.npz"))
IN_GGUF = [path for path in LOGITS if any(path.parent.glob("*.gguf"))]
LIKELIHOODS = sorted(FOLDER.glob("llada/likelihood*.npz"))
TRAIN_LOSSES = sorted(FOLDER / family / "train_loss.npz" for family in block_objectives.TRAIN_LOSS)
EC_MOE = objectives.read(FOLDER / "ec_moe")
GRADERS = objectives.read(FOLDER / "graders")
QUANT = objectives.read(FOLDER / "quant")
RL_2026 = objectives.read(FOLDER / "rl_2026")
ADAPTERS = [case for case in RL_2026 if case.method == "peft_adapter"]
RL = [case for case in RL_2026 if case.method != "peft_adapter"]
RL += objectives.read(FOLDER / "distill_rl")
RL_METHODS = {
  **rl.METHODS, **post_training.METHODS, **rewards.METHODS, **distillation.METHODS
}  # fmt: skip
TRAINING = {**objectives.METHODS, **block_objectives.METHODS, **peer_objectives.METHODS}


def family_of(case: decoding.Case) -> str:
  return case.folder.name


def is_checked(case: decoding.Case) -> bool:
  return case.method in CHECKED.get(family_of(case), {})


def missing() -> dict[str, str]:
  """What the folder holds and no test checks, with the reason."""
  found = {}
  for case in RL:
    if reason := rl.unchecked(case):
      found[case.name] = reason
  for case in DECODING:
    if not is_checked(case):
      reason = UNCHECKED.get(family_of(case), {}).get(case.method, "unknown")
      found[f"{family_of(case)}/{case.method}"] = reason
  for path in {*FOLDER.glob("*/train_loss.npz")} - {*TRAIN_LOSSES}:
    found[named(path)] = "its model is not supported yet (a later issue)"
  for path in FOLDER.iterdir():
    if path.is_dir() and path.name not in (*TRAINED, *DECODED):
      found[path.name] = ELSEWHERE.get(path.name, "not supported yet (a later issue)")
  return found


def named(path: pathlib.Path) -> str:
  return f"{path.parent.name}/{path.stem}"


@pytest.fixture(autouse=True)
def _programs_of_few_cases():
  """Linux allows a process 65,530 memory maps; a decoding case's program holds hundreds of them."""
  yield
  maps = pathlib.Path("/proc/self/maps")
  if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
    jax.clear_caches()


@pytest.mark.parametrize("case", OBJECTIVES, ids=lambda case: case.name)
def test_objectives(case):
  TRAINING[case.method](case)
  case.check_all_used()


@pytest.mark.parametrize("case", EC_MOE, ids=lambda case: case.name)
def test_ec_moe(case):
  ec_moe.METHODS[case.method](case)
  case.check_all_used()


@pytest.mark.parametrize("case", QUANT, ids=lambda case: case.name)
def test_quantised_weights(case):
  quant.METHODS[case.method](case)
  case.check_all_used()


@pytest.mark.parametrize("case", GRADERS, ids=lambda case: case.name)
def test_graders(case):
  graders.METHODS[case.method](case)
  case.check_all_used()


@pytest.mark.parametrize("case", ADAPTERS, ids=lambda case: case.name)
def test_adapters(case):
  adapters.check(case, FOLDER / "rl_2026")
  case.check_all_used()


@pytest.mark.parametrize(
  "case", itertools.filterfalse(rl.unchecked, RL), ids=lambda case: case.name
)
def test_rl(case):
  RL_METHODS[case.method](case)
  case.check_all_used()


@pytest.mark.parametrize("path", LOGITS, ids=named)
def test_logits(path):
  models.check_logits(path)


@pytest.mark.parametrize("path", GEMMA_LOGITS, ids=named)
def test_logits_of_both_passes(path):
  diffusion_gemma.check_logits(path)


@pytest.mark.parametrize("path", IN_GGUF, ids=named)
def test_logits_of_gguf_files(path):
  gguf.check_logits(path)


@pytest.mark.parametrize("path", LIKELIHOODS, ids=named)
def test_likelihood(path):
  models.check_likelihood(path)


@pytest.mark.parametrize("path", filter(pathlib.Path.exists, TRAIN_LOSSES), ids=named)
def test_train_loss(path):
  block_objectives.check_train_loss(path)


@pytest.mark.parametrize(
  "case", filter(is_checked, DECODING), ids=lambda case: f"{family_of(case)}/{case.name}"
)
def test_decoding(case):
  CHECKED[family_of(case)][case.method](case)
  case.check_all_used()


@pytest.mark.parametrize(("name", "reason"), sorted(missing().items()))
def test_not_checked_here(name, reason):
  pytest.skip(f"{name}: {reason}")


def test_a_new_method_is_not_passed_over(conformance_dir):
  assert conformance_dir == FOLDER
  assert OBJECTIVES, f"no cases under {FOLDER}/objectives"
  shipped = {case.method for case in objectives.read(DEFAULT / "objectives")}
  assert shipped | {case.method for case in OBJECTIVES} == set(TRAINING)
  unknown = {
    f"{family_of(case)}/{case.method}"
    for case in DECODING
    if not is_checked(case) and case.method not in UNCHECKED.get(family_of(case), {})
  }
  assert not unknown, f"neither checked nor named as later work: {unknown}"


def test_every_family_brings_its_model():
  """Of the project's own copy; a folder of unseen cases may hold fewer."""
  assert {path.parent.name for path in DEFAULT.glob("*/logits*.npz")} >= set(FAMILIES)
