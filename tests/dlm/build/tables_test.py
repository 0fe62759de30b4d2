"""Tables from files, from the command line and from code become dataclasses, or one line of why."""

import json
import pathlib

import pytest

from dlm.build import RunConfig, SamplingConfig, plain
from dlm.diffusion.schedules import LogLinear
from dlm.sampling.policies import Ancestral, Fixed, Smooth, Threshold, Wino
from dlm.sampling.policy import Policy

FILE = """
ARMS = {"wino": dict(name="wino", back=0.5), "smooth": dict(
  name="smooth", start=0.25, inner=dict(name="threshold", threshold=0.5, decay=0.25))}

def get_config(arm="wino"):
  return dict(policy=ARMS[arm], block=8, seed=3)
"""


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "paper.py"
  path.write_text(FILE)
  return str(path)


def policy(file: str, *fields: str) -> Policy:
  return SamplingConfig.read(file, fields).policy.make(block=8, end_ids=(), vocab=9)


def test_the_command_line_stands_above_the_file_and_the_file_above_the_defaults(file):
  config = SamplingConfig.read(file, ("seed=4", "policy.threshold=0.75", "mesh.fsdp=2"))
  assert (config.seed, config.block, config.commit) == (4, 8, "auto")
  assert config.policy.make() == Wino(threshold=0.75, back=0.5)
  assert (config.mesh.data, config.mesh.fsdp) == (-1, 2)


@pytest.mark.parametrize(
  ("text", "field", "value"),
  [
    ("block=16", "block", 16),
    ("top_p=1", "top_p", 1.0),
    ("top_p=5e-1", "top_p", 0.5),
    ("bos=true", "bos", True),
    ("bos=False", "bos", False),
    ("implementation=gpu,xla", "implementation", "gpu,xla"),
    ("implementation=None", "implementation", None),
    ("commit=None", "commit", "None"),
  ],
)
def test_text_is_read_by_the_type_of_its_field(file, text, field, value):
  found = getattr(SamplingConfig.read(file, (text,)), field)
  assert found == value and type(found) is type(value)


def test_another_policy_starts_from_its_own_defaults(file):
  assert policy(file, "policy.name=threshold") == Threshold()
  assert policy(file, "policy.name=wino") == Wino(back=0.5), "the same one keeps the file's fields"
  assert policy(file, "policy=wino", "seed=1") == Wino(back=0.5)
  made = policy(file, "policy.k=2", "policy.name=fixed", "policy.order=random")
  assert made == Fixed(k=2, order="random")


def test_policies_inside_policies_and_schedules_are_tables_too(file):
  smooth = f"{file}:smooth"
  inner = Threshold(0.5, band=1e-5, decay=0.25)
  assert policy(smooth, "policy.inner.band=1e-5") == Smooth(inner, start=0.25)
  other = policy(smooth, "policy.inner.name=fixed", "policy.inner.k=1", "policy.limit=0.5")
  assert other == Smooth(Fixed(k=1), start=0.25, limit=0.5)
  ancestral = ("policy.name=ancestral", "policy.steps=4", "policy.schedule.name=log_linear")
  made = policy(file, *ancestral, "policy.schedule.eps=0.5")
  assert made == Ancestral(LogLinear(eps=0.5), 4)
  assert policy(file, *ancestral[:2], "policy.schedule=log_linear") == Ancestral(LogLinear(), 4)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (["blok=3"], "config.blok is unknown; known: align, attention, batch, block, "),
    (["policy.treshold=0.5"], "config.policy.treshold is unknown; known: back, name, threshold"),
    (["policy.name=vino"], "config.policy.name='vino' is unknown; known: ancestral, cad"),
    (["policy.name=threshold", "policy.back=1"], "policy.back is unknown; known: band, decay,"),
    (["policy.vocab=3", "policy.name=renoise"], "config.policy.vocab is unknown; known: budget"),
    (["policy.name=smooth"], "config.policy.inner is missing"),
    (["policy.name=smooth", "policy.inner.k=1"], "config.policy.inner.name=None is unknown"),
    (["cache.name=sub_block", "cache.sise=4"], "config.cache.sise is unknown; known: fill, name"),
    (["cache.every=2"], "config.cache.every is unknown; known: name"),
    (["block=many"], "config.block='many' must be of type int"),
    (["block=1.5"], "config.block=1.5 must be of type int"),
    (["block=True"], "config.block=True must be of type int"),
    (["bos=1"], "config.bos=1 must be of type bool"),
    (["top_p=nan"], "config.top_p='nan' must be of type float"),
    (["top_p=1e999"], "config.top_p=inf must be finite"),
    (["policy.name=region", "policy.inner=fixed", "policy.first=0", "policy.last=1",
      "policy.forced=((1,),)"], "forced=((1,),) must be of type tuple[tuple[int, int], ...]"),
    (["mesh=3"], "config.mesh='3' must be a table of fields"),
    (["policy=fixed", "policy.k=1"], "config.policy.k is a field of policy='fixed', which is set"),
    (["policy.k=1", "policy=fixed"], "config.policy='fixed' is set as a whole, and by field"),
  ],
)  # fmt: skip
def test_a_mistake_names_the_field_the_value_and_the_rule(file, fields, message):
  with pytest.raises(ValueError) as error:
    SamplingConfig.read(file, fields)
  assert message in str(error.value)


@pytest.mark.parametrize(
  ("text", "argument", "message"),
  [
    ("", "", "paper.py has no get_config"),
    ("a = '\0'", "", "paper.py: source code string cannot contain null bytes"),
    ("a = 1\ndef get_config()\n", "", "paper.py, line 2: expected ':'"),
    ("def get_config():\n  return unknown\n", "", "line 2: NameError: name 'unknown' is not defi"),
    (FILE, ":winn", "paper.py does not know 'winn'"),
    ("def get_config():\n  return {}\n", ":arm", "paper.py does not know 'arm'"),
  ],
)
def test_a_file_that_is_no_config(file, text, argument, message):
  pathlib.Path(file).write_text(text)
  with pytest.raises(ValueError) as error:
    SamplingConfig.read(file + argument)
  assert message in str(error.value)


def test_a_config_comes_back_from_its_json():
  config = SamplingConfig.read("configs/sample/dinfer.py", ("mesh.fsdp=2",))
  assert SamplingConfig.of(json.loads(json.dumps(plain(config)))) == config
  run = RunConfig.read("configs/train/ec_dlm.py", ("objective.anneal=7",))
  assert RunConfig.of(json.loads(json.dumps(plain(run)))) == run
