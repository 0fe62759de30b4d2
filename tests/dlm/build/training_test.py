import copy
import json
import math
import pathlib

import pytest
from ml_collections import ConfigDict

from dlm import build
from dlm.build import RunConfig
from dlm.data import ByteTokenizer
from dlm.diffusion.schedules import Linear, LogLinear
from dlm.objectives import Autoregressive, Bd3lm, D2f, ExactCount, IDlm, Mdlm, Shifted, Uniform
from tests.dlm.build import directories

CONFIG = {
  "seed": 0,
  "steps": 6,
  "batch": 8,
  "model": {"preset": "1m", "layers": 2},
  "objective": {"name": "mdlm"},
  "data": {"sources": (("lists", 1.0),), "length": 32, "mode": "pad"},
  "optimizer": {"lr": 1e-2},
  "checkpoint": {"keep_best": 0},
}
EXPERTS = {"experts": 4, "per_token": 2, "mlp": 8, "choice": "expert"}
BLOCKS = {"name": "bd3lm", "block": 16}


def changed(fields):
  config = copy.deepcopy(CONFIG)
  for field, value in fields.items():
    *tables, name = field.split(".")
    table = config
    for each in tables:
      table = table.setdefault(each, {})
    table[name] = value
  return config


def test_preset_with_overrides_and_the_tokenizers_vocabulary():
  model = build.everything(CONFIG).model.config
  assert (model.width, model.layers, model.vocab) == (128, 2, 260)


def test_config_dict_and_plain_dict_build_the_same():
  plain, config_dict = build.everything(CONFIG), build.everything(ConfigDict(CONFIG))
  for field in ("run", "model", "objective", "facts"):
    assert getattr(plain, field) == getattr(config_dict, field)


def test_schedule_by_name_and_with_fields():
  named = build.everything(changed({"objective.schedule": "linear"})).objective
  assert named == Mdlm(mask_id=259, schedule=Linear())
  table = changed({"objective.schedule": {"name": "log_linear", "eps": 0.5}})
  assert build.everything(table).objective.schedule == LogLinear(eps=0.5)


@pytest.mark.parametrize(
  ("objective", "attention", "block", "shift"),
  [
    ({"name": "mdlm"}, "full", None, 0),
    ({"name": "bd3lm", "block": 8}, "block_causal", 8, 0),
    ({"name": "exact_count"}, "full", None, 0),
    ({"name": "exact_count", "block": 8}, "block_causal", 8, 0),
    ({"name": "ar"}, "causal", None, 1),
    ({"name": "sdar", "block": 8}, "block_causal", 8, 0),
    ({"name": "fast_dllm_v2", "block": 8}, "block_causal", 8, 1),
    ({"name": "llada2_sft", "block": 8, "shift": 1}, "block_causal", 8, 1),
    ({"name": "efficient_dlm", "block": 8}, "block_causal", 8, 0),
    ({"name": "i_dlm", "block": 2}, "causal", 2, 1),
    ({"name": "d2f", "block": 8}, "prompt_blocks", 8, 0),
    ({"name": "nemotron", "block": 8}, "causal_context", 8, 0),
    ({"name": "diffusion_gemma", "block": 8}, "canvas", 8, 0),
    ({"name": "uniform", "block": 8}, "block_causal", 8, 0),
    ({"name": "uniform", "block": None}, "full", None, 0),
  ],
)
def test_facts_say_what_a_sampler_must_know(objective, attention, block, shift):
  facts = build.everything(changed({"objective": objective})).facts
  assert (facts.attention_name, facts.block, facts.shift) == (attention, block, shift)
  assert (facts.mask_id, facts.eos_ids) == (259, (258,))


@pytest.mark.parametrize(
  ("objective", "name", "expected"),
  [
    ({"name": "mdlm"}, "auto", ExactCount(259)),
    ({"name": "bd3lm", "block": 8}, "auto", ExactCount(259, block=8)),
    ({"name": "bd3lm", "block": 8}, "mdlm", Mdlm(259)),
    ({"name": "bd3lm", "block": 8}, "training", Bd3lm(259, block=8)),
    ({"name": "ar"}, "auto", Autoregressive(259)),
    ({"name": "fast_dllm_v2", "block": 8}, "auto", Shifted(ExactCount(259, block=8))),
    ({"name": "i_dlm", "block": 2}, "auto", IDlm(259, 2)),
    ({"name": "d2f", "block": 8, "shift": 1}, "auto", Shifted(D2f(259, 8))),
    ({"name": "uniform", "block": 8}, "auto", Uniform(259, 8, 260)),
    ({"name": "bd3lm", "block": 8}, "uniform", Uniform(259, 8, 260)),
  ],
)
def test_estimator_of_the_likelihood(objective, name, expected):
  run = RunConfig.of(changed({"objective": objective}))
  assert build.estimator(run.objective, ByteTokenizer(), name) == expected


@pytest.mark.parametrize(
  ("objective", "name", "message"),
  [
    ({"name": "d2f", "block": 8}, "exact_count", "does not go with objective.name='d2f'"),
    ({"name": "mdlm"}, "bd3lm", "estimator='bd3lm' needs a block, which objective.name='mdlm' has"),
    (
      {"name": "mdlm"},
      "ar",
      "estimator='ar' asks for next tokens, which the model does not predict",
    ),
    ({"name": "mdlm", "shift": 1}, "sedd", "objective.shift=1 does not go with Sedd"),
  ],
)
def test_an_estimator_that_would_ask_the_model_amiss_is_refused(objective, name, message):
  run = RunConfig.of(changed({"objective": objective}))
  with pytest.raises(ValueError, match=message):
    build.estimator(run.objective, ByteTokenizer(), name)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"stepz": 3}, r"config.stepz is unknown; known: .*steps"),
    ({"steps": 0}, "steps=0 must be at least 1"),
    ({"steps": 10**20}, r"steps=1\d* must be at most 2\^31 - 1"),
    ({"batch": 2**31}, r"batch=2147483648 must be at most 2\^31 - 1"),
    ({"steps": "many"}, "steps='many' must be of type int"),
    ({"parallel": "xmap"}, "'xmap' is unknown; known: shard_map, pmap"),
    ({"model": 3}, "model=3 must be a table"),
    ({"mesh": None}, "mesh=None must be a table"),
    ({"model.preset": "7m"}, "model.preset='7m' is unknown; known: .*30m"),
    ({"model.widht": 3}, "model.widht is unknown; known: .*width"),
    ({"model.width": 3.5}, "model.width=3.5 must be of type int"),
    ({"model.vocab": 100}, "mask id 259 lies outside the vocabulary, 100 ids"),
    ({"objective.name": "mlm"}, "objective.name='mlm' is unknown; known: ar, bd3lm"),
    ({"objective.schedule": "lin"}, "schedule.name='lin' is unknown; known: .*log_linear"),
    ({"objective.blok": 4}, "objective.blok is unknown; known: .*schedule"),
    ({"objective": {"name": "bd3lm"}}, "objective.block is missing"),
    ({"objective": {"name": "bd3lm", "block": 5}}, "block=5 must divide data.length=32"),
    ({"objective": {"name": "sdar", "block": None}}, "objective.block=None must be of type int"),
    ({"objective": {"name": "sedd", "shift": 1}}, "objective.shift=1 does not go with Sedd"),
    ({"objective": {"name": "i_dlm", "block": 2, "anneal": 1}}, "anneal=1 does not go with IDlm"),
    (
      {"objective": {"name": "fast_dllm_v2", "block": 8, "shift": 0}},
      "objective.shift=0 does not go with fast_dllm_v2",
    ),
    ({"data.lenght": 4}, "data.lenght is unknown; known: .*length.*sources"),
    ({"data.sources": (("books", 1.0),)}, "books"),
    ({"data.mode": "stack"}, "stack"),
    ({"data.tokenizer": "words"}, "words"),
    ({"optimizer.name": "adam"}, "optimizer.name='adam' is unknown"),
    ({"optimizer.lr": math.nan}, "optimizer.lr=nan must be finite"),
    ({"optimizer.stages": ((2, 0.1, math.inf),)}, "optimizer.stages=.*inf.* must be finite"),
    ({"optimizer.stages": ((2, 0.1),)}, "stages=.* must be of type tuple.*int, float, float"),
    ({"optimizer.rate": 1.0}, "optimizer.rate is unknown; known: .*lr"),
    ({"optimizer.trainable": "norms"}, "trainable='norms' is unknown; known: all, router"),
    ({"optimizer.trainable": "router"}, "trainable='router' needs model.moe"),
    ({"model.moe": EXPERTS | {"pool": 8}, "objective": {"name": "ar"}}, "attention 'causal' lets"),
    ({"model.moe": EXPERTS, "objective": BLOCKS}, "unless model.moe.pool=0 divides .*block=16"),
    ({"model.moe": EXPERTS | {"pool": 12}, "objective": BLOCKS}, "unless model.moe.pool=12 div"),
    ({"optimizer.warmup": 10}, "do not fit into steps=6"),
    ({"mesh.data": 3}, "devices"),
    ({"mesh.model": 1}, "mesh.model is unknown; known: data, dcn, expert, fsdp, sequence, tensor"),
    ({"microbatches": 3}, "batch=8 must divide by 1 shards x microbatches=3"),
    ({"eval.every": -1}, "eval.every=-1 must not be negative"),
    ({"checkpoint.keep_best": 1}, "keep_best needs eval.every"),
    ({"objective": BLOCKS | {"search": True}}, "objective.search needs eval.every"),
    (
      {"objective": {"name": "d3llm", "order": "random"}, "microbatches": 2},
      "microbatches=2 must be 1: objective.name='d3llm' takes means over all that a device",
    ),
    (
      {"objective": {"name": "genmd4"}, "model.moe": EXPERTS, "optimizer.trainable": "router"},
      "objective.name='genmd4' learns parameters of its own: neither model.lora nor",
    ),
    ({"checkpoint.every": "x"}, "checkpoint.every='x' must be of type int"),
    ({"checkpoint.keep": 1}, "checkpoint.keep is unknown; known: every, keep_best, keep_last"),
  ],
)
def test_mistake_is_told_by_field_value_and_rule(fields, message):
  with pytest.raises(ValueError, match=message):
    build.everything(changed(fields))


FILES = sorted((pathlib.Path(__file__).parents[3] / "configs" / "train").glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_config_builds_with_fields_of_the_command_line(path, tmp_path):
  """With lists of bytes in place of text, and a tiny model in place of weights, of the authors."""
  given = RunConfig.read(str(path))
  kind = given.objective.kind
  source = "lists"
  if given.data.sources[0][0].startswith("traces:"):
    trace = {"row": [1, 2, 3], "when": [-1, 2, 1], "tokens": [2, 3], "reason": "length"}
    (tmp_path / "traces.jsonl").write_text((json.dumps(trace) + "\n") * 40)
    source = f"traces:{tmp_path / 'traces.jsonl'}"
  elif kind.paired and given.rollout is None:
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    (tmp_path / "pairs.jsonl").write_text((json.dumps(pair) + "\n") * 40)
    source = f"pairs:{tmp_path / 'pairs.jsonl'}"
  fields = [f"data.sources=(('{source}', 1.0),)", "data.mode=pad", "data.document_mask=false"]
  fields += ["model.implementation=xla", "sample.prompts=('a',)", "checkpoint.keep_last=5"]
  fields.append("optimizer.b1=0.5")
  if given.objective.name == "dreamon":
    fields.append("objective.expand_id=0")
  if given.tools is not None:
    (tmp_path / "corpus.jsonl").write_text('{"title": "word", "text": "friend"}\n')
    fields.append(f"tools.corpus={tmp_path / 'corpus.jsonl'}")
    facts = {"mask": "<|mask|>", "attention": "block_causal", "block": 16, "shift": 0}
    fields.append(f"init_from={directories.write(tmp_path / 'hf', 'sdar', **facts)}")
  elif "width" in given.model.fields:
    fields.append("data.tokenizer=byte")
  elif kind.drafts:
    fields += [
      f"teacher={directories.write(tmp_path / 'hf')}",
      "model.drafter.taps=(0,)",
      "model.drafter.target_layers=2",
    ]
  elif "moe" in given.model.fields or not kind.teacher_shift or not (kind.shift or kind.shiftable):
    facts = {"mask": "<|mask|>", "attention": "full", "shift": 0}
    family = "llada_moe" if "moe" in given.model.fields else "llada"
    fields.append(f"init_from={directories.write(tmp_path / 'hf', family, **facts)}")
  else:  # it goes on from published weights
    fields.append(f"init_from={directories.write(tmp_path / 'hf')}")
  training = build.everything(RunConfig.read(str(path), fields))
  run = training.run
  prompts = given.batch // (1 if given.rewards is None else given.rewards.group)
  assert training.rows[0].tokens_BxL.shape == (prompts, given.data.length)
  assert training.model.config.implementation == "xla" and run.optimizer.b1 == 0.5
  assert (run.data.document_mask, run.sample.prompts) == (False, ("a",))
  assert run.checkpoint.keep_last == 5


def test_a_model_that_is_taught_by_its_like_needs_one(tmp_path):
  causal = directories.write(tmp_path / "hf")
  config = RunConfig.read("configs/train/duo_dcd.py", [f"init_from={causal}"])
  with pytest.raises(ValueError, match=r"shift=0, as objective\.name='duo_dcd' asks it, not of"):
    build.everything(config)


def test_a_teacher_whose_block_is_the_row_is_one_that_sees_all(tmp_path):
  """So the demo's model teaches: its block is as long as its rows, and no longer ones."""
  facts = {"mask": "<|mask|>", "attention": "block_causal", "block": 24, "shift": 0}
  teacher = directories.write(tmp_path / "hf", "sdar", **facts)
  fields = [f"init_from={teacher}", "data.document_mask=false"]
  assert build.everything(RunConfig.read("configs/train/sdtt.py", fields)).teacher is not None
  with pytest.raises(ValueError, match=r"of attention 'full' and .* asks it, not of 'block_c"):
    build.everything(RunConfig.read("configs/train/sdtt.py", [*fields, "data.length=48"]))


def test_d2f_is_taught_by_a_model_that_sees_all(tmp_path):
  """Its own blocks do not; neither does one that has learned in them."""
  objective = {"name": "d2f", "block": 4, "target": "teacher"}

  def config(family, **fields):
    facts = {"mask": "<|mask|>", "shift": 0} | fields
    teacher = directories.write(tmp_path / family, family, **facts)
    found = changed({"init_from": str(teacher), "objective": objective})
    return {name: each for name, each in found.items() if name != "model"}

  taught = config("llada", attention="full")
  built = build.everything(taught)
  assert built.teacher is not None and not built.taught_by_base
  assert built.facts.attention_name == "prompt_blocks"
  assert build.everything(taught | {"model": {"lora": {"rank": 2, "alpha": 2.0}}}).taught_by_base
  wrong = (
    r"^init_from='.*', the teacher where none is named, must be a model of attention 'full' and "
  )
  with pytest.raises(ValueError, match=wrong + "shift=0, as .*'d2f' asks it"):
    build.everything(config("sdar", attention="block_causal", block=4))
  with pytest.raises(ValueError, match=r"teacher='x' does not go with objective\.name='d2f'"):
    build.everything(changed({"objective": {"name": "d2f", "block": 4}, "teacher": "x"}))


def test_missing_fields_are_named():
  config = copy.deepcopy(CONFIG)
  del config["data"]["length"]
  with pytest.raises(ValueError, match=r"data.length is missing"):
    build.everything(config)
