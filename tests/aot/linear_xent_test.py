"""linear_xent's value and gradients compile at the shapes of models, without memory for logits."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from kernels_pallas import aot
from kernels_pallas.linear_xent import linear_xent

ROWS, WIDTH, VOCAB = 4096, 4096, 126_464  # LLaDA-8B
BF16 = (jnp.bfloat16, jnp.bfloat16)
WHOLE = (P(), P())


def compiled(mesh, rows, width, vocab, dtypes=BF16, soft_cap=None, split=WHOLE):
  """What the device runs by itself. `split`: of rows, and of the unembedding."""
  platform = mesh.devices.flat[0].platform  # GPU kernels must be named

  def loss(hidden_RxD, unembed_VxD, target_R, weight_R):
    forbidden = (vocab - 1,)
    how = dict(forbidden=forbidden, soft_cap=soft_cap, implementation=platform)
    ce_R = linear_xent(hidden_RxD, unembed_VxD, target_R, **how)
    return jnp.where(weight_R > 0, weight_R * ce_R, 0).sum()

  by_row, by_id = (NamedSharding(mesh, spec) for spec in split)
  shape = functools.partial(jax.ShapeDtypeStruct, sharding=by_row)
  return aot.compile_for(
    mesh,
    jax.value_and_grad(loss, argnums=(0, 1)),
    shape((rows, width), dtypes[0]),
    shape((vocab, width), dtypes[1], sharding=by_id),
    shape((rows,), jnp.int32),
    shape((rows,), jnp.float32),
    out_shardings=(None, (by_row, by_id)),
  )


def assert_kernels(program):
  """That of the forward pass, and one for each gradient."""
  text = program.as_text()
  assert text.count('custom_call_target="tpu_custom_call"') == 3
  assert "linear_xent_d_hidden" in text
  assert "linear_xent_d_unembed" in text


@pytest.mark.tpu
@pytest.mark.parametrize("device", ["v5p", pytest.param("v6e", marks=pytest.mark.long)])
def test_a_training_step_of_llada_holds_no_logits(device):
  program = compiled(aot.mesh(device), ROWS, WIDTH, VOCAB)
  assert_kernels(program)
  hidden = 2 * ROWS * WIDTH
  assert program.memory_analysis().temp_size_in_bytes < 2 * hidden < 2 * ROWS * VOCAB / 15


@pytest.mark.tpu
@pytest.mark.parametrize(
  "rows,width,vocab,dtypes,soft_cap",
  [
    (37, 768, 50_257, (jnp.bfloat16, jnp.float32), 30.0),
    # a bias is a column more
    pytest.param(130, 769, 1001, (jnp.float32, jnp.float32), None, marks=pytest.mark.long),
    pytest.param(1, 64, 300, BF16, None, marks=pytest.mark.long),
  ],
)
def test_ragged_shapes(rows, width, vocab, dtypes, soft_cap):
  assert_kernels(compiled(aot.mesh("v6e"), rows, width, vocab, dtypes, soft_cap))


@pytest.mark.tpu
def test_a_split_vocabulary_stays_where_it_is():
  mesh = aot.mesh("v5e", (2, 2), ("fsdp", "tensor"))
  rows, width, vocab = 8192, 256, 32_768
  program = compiled(mesh, rows, width, vocab, split=(P("fsdp"), P("tensor", "fsdp")))
  assert_kernels(program)
  own_logits = 2 * (rows // 2) * (vocab // 2)
  assert program.memory_analysis().temp_size_in_bytes < own_logits / 16


@pytest.mark.cuda
@pytest.mark.parametrize(
  "rows,vocab,soft_cap,most",
  [(ROWS, VOCAB, None, 2 * ROWS * VOCAB // 4), (37, 157_184, 30.0, 2 * WIDTH * 157_184)],
  ids=["LLaDA-8B: logits / 4", "few, capped: the unembedding"],
)
def test_hopper_has_a_kernel_forward_and_one_backward(rows, vocab, soft_cap, most):
  program = compiled(aot.mesh("h100"), rows, WIDTH, vocab, soft_cap=soft_cap)
  assert program.as_text().count('custom_call_target="mosaic_gpu_v2"') == 2
  assert program.memory_analysis().temp_size_in_bytes < most
