"""linear_distill compiles at the shapes of models, with gradients and without memory for logits."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dlm import build, plan
from dlm.objectives import Dscd
from dlm.train import Step
from kernels_pallas import aot
from kernels_pallas.linear_distill import Spec, linear_distill

ROWS, WIDTH, VOCAB = 4096, 4096, 126_464  # LLaDA-8B, which learns from one of its size
BF16 = (jnp.bfloat16, jnp.bfloat16)
WHOLE = (P(), P())


def compiled(mesh, rows, widths, vocab, dtypes=BF16, spec=None, split=WHOLE, implementation=None):
  """What the device runs by itself. `widths`, `dtypes`: the student's, the teacher's."""
  spec = spec or Spec(forbidden=(vocab - 1,))

  def loss(hidden_RxD, unembed_VxD, teacher_hidden_RxE, teacher_unembed_VxE, weight_R):
    student, teacher = (hidden_RxD, unembed_VxD), (teacher_hidden_RxE, teacher_unembed_VxE)
    nats_R = linear_distill(*student, *teacher, spec, implementation=implementation)
    return jnp.where(weight_R > 0, weight_R * nats_R, 0).sum()

  by_row, by_id = (NamedSharding(mesh, spec) for spec in split)
  shape = jax.ShapeDtypeStruct
  heads = [
    shape((count, width), dtype, sharding=sharding)
    for width, dtype in zip(widths, dtypes, strict=True)
    for count, sharding in ((rows, by_row), (vocab, by_id))
  ]
  return aot.compile_for(
    mesh,
    jax.value_and_grad(loss, argnums=(0, 1)),
    *heads,
    shape((rows,), jnp.float32, sharding=by_row),
    out_shardings=(None, (by_row, by_id)),
  )


def assert_kernels(program):
  """One of the forward pass, and one of the backward pass."""
  text = program.as_text()
  assert text.count('custom_call_target="tpu_custom_call"') == 2
  assert "linear_distill_d_logits" in text


@pytest.mark.tpu
@pytest.mark.parametrize("device", ["v5e", pytest.param("v5p", marks=pytest.mark.long)])
def test_memory_does_not_grow_with_the_vocabulary(device):
  """It is hidden's gradient in float32, and a stretch's logits and parts of the unembeddings."""
  of = functools.partial(compiled, aot.mesh(device), ROWS, (WIDTH, WIDTH))
  half, whole = (of(vocab) for vocab in (VOCAB // 2, VOCAB))
  assert_kernels(whole)
  half, whole = (each.memory_analysis().temp_size_in_bytes for each in (half, whole))
  assert abs(whole - half) < 0.01 * half, (half, whole)
  assert whole < 2 * ROWS * VOCAB / 4


@pytest.mark.tpu
@pytest.mark.parametrize(
  "rows,widths,vocab,dtypes,spec",
  [
    (
      37,
      (768, 1024),
      50_257,
      (jnp.bfloat16, jnp.float32),
      Spec(0.3, 2.0, 0.5, soft_cap=30.0, teacher_soft_cap=20.0),
    ),
    pytest.param(
      130, (769, 64), 1001, (jnp.float32, jnp.bfloat16), Spec(1.0), marks=pytest.mark.long
    ),
    pytest.param(1, (64, 128), 300, BF16, Spec(0.5), marks=pytest.mark.long),
  ],
)
def test_ragged_shapes(rows, widths, vocab, dtypes, spec):
  assert_kernels(compiled(aot.mesh("v5e"), rows, widths, vocab, dtypes, spec))


@pytest.mark.tpu
@pytest.mark.long
def test_a_split_vocabulary_stays_where_it_is():
  mesh = aot.mesh("v5e", (2, 2), ("fsdp", "tensor"))
  rows, width, vocab = 8192, 256, 32_768
  split = (P("fsdp"), P("tensor", "fsdp"))
  program = compiled(mesh, rows, (width, width), vocab, split=split)
  assert_kernels(program)
  own_logits = 2 * (rows // 2) * (vocab // 2)
  assert program.memory_analysis().temp_size_in_bytes < own_logits


@pytest.mark.tpu
def test_an_update_of_a_run_that_is_taught_uses_it():
  """Nothing names it: DSCD on four chips that split parameters, and rows with them."""
  run = build.RunConfig.of(
    dict(
      steps=10,
      batch=16,
      mesh=dict(data=1, fsdp=4),
      model=dict(
        width=256, layers=2, heads=2, kv_heads=2, head_dim=128, mlp=512, vocab=32_000,
        dtype="bfloat16", remat=True,
      ),
      objective=dict(name="llada"),
      data=dict(sources=(("stdlib", 1.0),), length=256),
      optimizer=dict(lr=1e-3),
      checkpoint=dict(keep_best=0),
    )
  )  # fmt: skip
  planned, _ = plan.training(run, "v5e:2x2")
  # A plan reads no checkpoint, so none of a run whose teacher is one: here is its model alone.
  teacher = SimpleNamespace(model=planned.model)
  objective = Dscd(mask_id=31_999, end_id=31_998, updates=10)
  step = Step(dataclasses.replace(planned, objective=objective, teacher=teacher))
  state = step.abstract()
  traced = step.update.trace(state, step.abstract_batch(), state.params)
  text = traced.lower(lowering_platforms=("tpu",)).compile().as_text()
  assert "linear_distill_d_logits" in text
  assert f"[{16 // 4 * 256},32000]" not in text and "[4,256,32000]" not in text
