"""token_stats compiles at the shapes of models, and needs no memory for logits."""

import jax
import jax.numpy as jnp
import pytest

from kernels_pallas import aot
from kernels_pallas.token_stats import StatSpec, token_stats

HEADS = {  # width, vocabulary
  "LLaDA-8B": (4096, 126_464),
  "LLaDA2-mini": (2048, 157_184),
  "Dream-7B": (3584, 152_064),
}
GREEDY = StatSpec(forbidden=(126_336,))
EVERYTHING = StatSpec(
  top2=True, entropy=True, current=True, gather=True, outside=(5,), temperature=1.0
)


def temporary_bytes(mesh, spec, rows, width, vocab, implementation, dtype=jnp.bfloat16):
  def call(hidden_RxD, unembed_VxD, current_R, gather_id_RxJ, key_R):
    return token_stats(
      hidden_RxD,
      unembed_VxD,
      spec,
      current_R=current_R,
      gather_id_RxJ=gather_id_RxJ,
      key_R=key_R if spec.temperature else None,
      implementation=implementation,
    )

  shape = jax.ShapeDtypeStruct
  compiled = aot.compile_for(
    mesh,
    call,
    shape((rows, width), dtype),
    shape((vocab, width), dtype),
    shape((rows,), jnp.int32),
    shape((rows, 2), jnp.int32),
    jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows)),
  )
  return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("rows", [32, 4096])
def test_greedy(mesh, rows):
  implementation = mesh.devices.flat[0].platform
  used = temporary_bytes(mesh, GREEDY, rows, *HEADS["LLaDA-8B"], implementation)
  assert used < 4 << 20 or used < 4 * rows * HEADS["LLaDA-8B"][1] / 100


@pytest.mark.cuda
@pytest.mark.parametrize("rows", [32, 4096])
def test_top_k_and_top_p_on_hopper(rows):
  spec = StatSpec(confidence="shaped", top_k=50, top_p=0.9, entropy=True)
  used = temporary_bytes(aot.mesh("h100"), spec, rows, *HEADS["LLaDA-8B"], "gpu")
  assert used < 8 << 20 or used < 4 * rows * HEADS["LLaDA-8B"][1] / 100


@pytest.mark.tpu
@pytest.mark.long
@pytest.mark.parametrize("head", ["LLaDA2-mini", "Dream-7B"])
def test_other_widths(head):
  temporary_bytes(aot.mesh("v5e"), GREEDY, 4096, *HEADS[head], "tpu")


@pytest.mark.tpu
def test_every_statistic_and_noise():
  used = temporary_bytes(aot.mesh("v6e"), EVERYTHING, 512, *HEADS["LLaDA-8B"], "tpu")
  assert used < 4 * 512 * HEADS["LLaDA-8B"][1] / 50


@pytest.mark.tpu
@pytest.mark.long
def test_float32_and_ragged():
  temporary_bytes(aot.mesh("v5e"), EVERYTHING, 37, 768, 50_257, "tpu", jnp.float32)


@pytest.mark.tpu
def test_a_kernel_is_what_a_tpu_runs_by_itself():
  mesh = aot.mesh("v5e")
  by_itself = temporary_bytes(mesh, GREEDY, 4096, *HEADS["LLaDA-8B"], None)
  named = temporary_bytes(mesh, GREEDY, 4096, *HEADS["LLaDA-8B"], "tpu")
  logits = temporary_bytes(mesh, GREEDY, 4096, *HEADS["LLaDA-8B"], "reference")
  assert by_itself == named
  assert logits >= 4 * 4096 * HEADS["LLaDA-8B"][1] > 50 * named
