"""Plans: formulas of FLOPs against programs, estimates by hand, mistakes before compiling."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from dlm import build, plan, roofline
from dlm.models import quantised
from dlm.programs import Buffer, matmul_flops
from dlm.train import Step

TINY = dict(
  steps=10,
  batch=8,
  mesh=dict(data=1),
  model=dict(
    width=32, layers=2, heads=2, kv_heads=2, head_dim=16, mlp=64, vocab=300, implementation="xla"
  ),
  objective=dict(name="mdlm"),
  data=dict(sources=(("stdlib", 1.0),), tokenizer="byte", length=32),
  optimizer=dict(lr=1e-2),
  checkpoint=dict(keep_best=0),
)
CHOOSING = dict(experts=8, mlp=16, shared=32, per_token=2, choice="expert", renormalise=True)
LAYERS, HEADS, HEAD_DIM, WIDTH, VOCAB = 2, 2, 16, 32, 300


@pytest.mark.parametrize(
  ("changes", "window"),
  [
    ({}, 32),
    ({"objective": dict(name="bd3lm", block=8)}, 64),  # [noisy; clean]
    ({"model": TINY["model"] | {"moe": CHOOSING}}, 32),
  ],
  ids=["full", "noisy_clean", "expert_choice"],
)
def test_the_formula_of_an_update_is_what_its_program_multiplies(changes, window):
  """Its backward is two forwards; logits and scores that it computes again are no model FLOPs."""
  run = build.planned(build.RunConfig.of(TINY | changes), jax.devices()[:1])
  step = Step(run)
  params = jax.eval_shape(run.model.init, jax.random.key(0))
  noisy = jax.eval_shape(
    lambda batch: step.corrupt("train", batch, jnp.int32(0), {}), step.abstract_batch()
  )

  def loss(params, noisy):
    return run.objective.loss(run.model, params, noisy)[0].total

  forward = matmul_flops(jax.make_jaxpr(loss)(params, noisy).jaxpr)
  both = matmul_flops(jax.make_jaxpr(jax.grad(loss))(params, noisy).jaxpr)
  logits = 2 * 8 * 32 * VOCAB * WIDTH
  scores = 2 * 8 * LAYERS * HEADS * window**2 * HEAD_DIM
  assert step.flops() == 3 * forward
  assert both == 3 * forward + logits + 2 * scores


@pytest.mark.parametrize("weights", ["", "int4g16"])
def test_a_sampler_is_planned_with_the_parameters_that_it_loads(weights):
  run = build.planned(build.RunConfig.of(TINY), jax.devices()[:1])
  loaded = jax.jit(run.model.init)(jax.random.key(0))
  if weights:
    loaded = quantised.quantised(loaded, quantised.quantise(weights))
  planned = plan.parameters(run, weights)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), planned) == jax.tree.map(
    lambda x: (x.shape, x.dtype), loaded
  )
  assert plan.held(planned) == sum(x.nbytes for x in jax.tree.leaves(loaded))


CHIP = roofline.Chip(
  "c", bandwidth=50, bf16=100, int8=100, memory=80, link=4, links=2, dcn=2, cores=2
)
PLAN = plan.Plan(
  chip=CHIP,
  mesh={"fsdp": 4},
  batch=8,
  parameters=10,
  optimizer=20,
  other=1,
  temporary=5,
  peak=30,
  flops_formula=150.0,
  flops_counted=200.0,
  flops_xla=10.0,
  traffic={
    "all-gather": plan.Traffic(3, 2, 24.0, 16.0),
    "collective-permute": plan.Traffic(1, 0, 2.0, 0.0),
  },
  dcn={},
  open_loops=1,
  largest=[Buffer("f32[4]", 16, "add", "dlm/train.py:1")],
  logits=[],
  wide=[Buffer("f32[512,512]", 1 << 20, "cast", "dlm/train.py:2")],
  compile_seconds=1.0,
)


def test_estimates():
  """A core has 50 FLOP/s, 25 B/s of memory, 4 B/s of links, of which a permutation takes half."""
  assert PLAN.memory == 40
  assert PLAN.compute_seconds == 4
  assert PLAN.link_seconds == 24 / 4 + 2 / 2
  assert PLAN.seconds == 4 + 8 / 4 + 2 / 2  # the other 16 B hide behind the products
  assert PLAN.mfu == 150 / 50 / 7
  bound = dataclasses.replace(PLAN, flops_counted=1.0, traffic={})
  assert bound.seconds == 2 * 30 / 25  # parameters and moments are read and written


def test_the_slowest_of_products_links_and_network_takes_the_rest_behind_it():
  """A core has a byte a second to other slices: all 12 s of it are asynchronous."""
  sliced = dataclasses.replace(PLAN, dcn={"all-reduce": plan.Traffic(2, 2, 12.0, 12.0)})
  assert sliced.dcn_seconds == 12 and sliced.link_seconds == PLAN.link_seconds
  assert sliced.seconds == 12 + 8 / 4 + 2 / 2
  row = {"asked": {"topology": "2xv5p:4x4x4", "config": "a.py", "sample": None, "fields": []}}
  row["plan"] = sliced.plain()
  assert (
    "| 0.00 GB, DCN 0.00 GB | 4 of 6 | 4000 ms | 7000 ms, DCN 12000 ms |" in plan.table([row])[2]
  )
  assert plan.details(row)[2].startswith("all-reduce")
  assert plan.details(row)[2].endswith("2 asynchronous, a device receives 0.00 GB over DCN")


def test_the_table_holds_programs_that_do_not_fit_too():
  asked = {"topology": "v5p:4x4x4", "config": "configs/train/tiny.py", "sample": None}
  asked |= {"fields": ["mesh.fsdp=4", "batch=8"]}
  rows = [{"asked": asked, "plan": PLAN.plain()}, {"asked": asked, "refused": "too large"}]
  head, rule, made, refused = plan.table(rows)
  assert head.count("|") == rule.count("|") == made.count("|")
  assert made.startswith("| v5p:4x4x4 | tiny mesh.fsdp=4 batch=8 | 0.00 GB |")
  assert made.endswith("| 2 of 4 | 4000 ms | 7000 ms | 7000 ms | 43 % |")
  assert refused == "| v5p:4x4x4 | tiny mesh.fsdp=4 batch=8 | too large |"
  by = {"sample": "configs/sample/wino.py", "sample_fields": ["weights=int8"]}
  assert plan.name(asked | by) == "tiny by wino weights=int8 mesh.fsdp=4 batch=8"
  *_, logits, wide, loops = plan.details(rows[0])
  assert logits == "[rows, vocabulary]: none"
  assert wide == "gathered in float32: f32[512,512] (cast dlm/train.py:2)"
  assert loops.endswith("count once: 1")


@pytest.mark.parametrize(
  ("fields", "topology", "message"),
  [
    ({}, "v9:2x2", "must be CHIP:AxB, .* with a chip of v5e, v5p, v6e, v7x"),
    ({"mesh": dict(dcn=2)}, "2xv5e:1x1", "mesh.dcn=2 must divide the number of processes, 1"),
    ({}, "h100:8", "no compiler for several hosts of h100"),
    ({}, "v5p:4x4", "must be v5p:AxBxC, or Nxv5p:AxBxC: chips along each axis"),
    ({}, "v5e:4x4x4", "must be v5e:AxB, or"),
    ({}, "0xv5p:4x4x4", "must be v5p:AxBxC, or"),
    ({}, "v6e:16x32", "a slice of v6e has at most 256 chips, not 512"),
    ({}, "v5p:16x16x36", "at most 8960 chips, not 9216"),
    ({"mesh": dict(data=1, fsdp=3)}, "v5e:2x2", "must multiply to the number of devices, 4"),
    ({"batch": 6, "mesh": dict(data=1, fsdp=4)}, "v5e:2x2", "batch=6"),
    ({"model": TINY["model"] | {"width": 34}, "mesh": dict(data=1, fsdp=4)}, "v5e:2x2", "divide"),
    ({"init_from": "there"}, "v5e:2x2", "init_from='there' cannot be planned"),
    ({"model": dict(preset="1m")}, "v5e:2x2", "model.vocab is missing"),
  ],
)
def test_mistakes_are_told_before_anything_compiles(monkeypatch, fields, topology, message):
  monkeypatch.setattr(plan.aot, "tpus", lambda name: jax.devices() * 4)
  with pytest.raises(ValueError, match=message):
    plan.training(build.RunConfig.of(TINY | fields), topology)


@pytest.mark.parametrize("topology", ["v5p:16x20x28", "2xv5p:2x2x1", "v6e:16x16", "v7x:4x4x4"])
def test_slices_that_there_are_can_be_planned(topology):
  assert plan.chip_of(topology).name in topology
