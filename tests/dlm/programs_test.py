"""Costs read off programs: collectives and buffers of HLO text, products of a traced function."""

import functools

import jax
import jax.numpy as jnp
import pytest

from dlm.programs import Buffer, Collective, Program, matmul_flops, nbytes, of_last_axis

# As XLA prints it for a v5p pod, shortened: five turns of a loop gather a layer's parameters beside
# a product and sum gradients; after it, a sum of which each device keeps its part.
TEXT = """HloModule jit_step, is_scheduled=true

FileNames
1 "/home/me/checkout/dlm/models/layers.py"

FileLocations
1 {file_name_id=1 function_name_id=1 line=61 end_line=61 column=6 end_column=30}

StackFrames
1 {file_location_id=1 parent_frame_id=1}

%start (p.1: bf16[64,4096]) -> (bf16[64,4096], bf16[4096,4096], u32[]) {
  %p.1 = bf16[64,4096]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[4096,4096]{1,0} all-gather(%p.1), channel_id=2, replica_groups=mesh['a'=64,'b'=1] {'a'}, dimensions={0}
  ROOT %custom-call.2 = (bf16[64,4096]{1,0}, bf16[4096,4096]{1,0}, u32[]) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%beside (p.2: bf16[64,4096], p.3: bf16[4096,4096]) -> bf16[4096,4096] {
  %p.2 = bf16[64,4096]{1,0} parameter(0)
  %p.3 = bf16[4096,4096]{1,0} parameter(1)
  %all-gather.2 = bf16[4096,4096]{1,0} all-gather(%p.2), channel_id=2, replica_groups=mesh['a'=64,'b'=1] {'a'}, dimensions={0}
  ROOT %convolution.1 = bf16[4096,4096]{1,0} convolution(%p.3, %all-gather.2), dim_labels=fb_io->bf
}

%all-reduce-scatter.1 (p.4: f32[4096,128]) -> f32[256,128] {
  %p.4 = f32[4096,128]{1,0} parameter(0)
  %all-reduce.9 = f32[4096,128]{1,0} all-reduce(%p.4), channel_id=5, replica_groups={{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15},{16,17}}, to_apply=%add
  ROOT %dynamic-slice.1 = f32[256,128]{1,0} dynamic-slice(%all-reduce.9), dynamic_slice_sizes={256,128}
}

%condition (p.5: (s32[], bf16[64,4096])) -> pred[] {
  %p.5 = (s32[], bf16[64,4096]{1,0}) parameter(0)
  %get-tuple-element.1 = s32[] get-tuple-element(%p.5), index=0
  %constant.1 = s32[] constant(5)
  ROOT %lt.1 = pred[] compare(%get-tuple-element.1, %constant.1), direction=LT
}

%body (p.6: (s32[], bf16[64,4096])) -> (s32[], bf16[64,4096]) {
  %p.6 = (s32[], bf16[64,4096]{1,0}) parameter(0)
  %get-tuple-element.2 = bf16[64,4096]{1,0} get-tuple-element(%p.6), index=1
  %fusion.1 = (bf16[64,4096]{1,0}, bf16[4096,4096]{1,0}, u32[]) fusion(%get-tuple-element.2), kind=kCustom, calls=%start
  %get-tuple-element.3 = bf16[4096,4096]{1,0} get-tuple-element(%fusion.1), index=1
  %fusion.2 = bf16[4096,4096]{1,0} fusion(%get-tuple-element.2, %get-tuple-element.3), kind=kOutput, calls=%beside, metadata={op_name="jit(step)/while/body/dot_general" stack_frame_id=1}
  %all-reduce.1 = bf16[4096,4096]{1,0} all-reduce(%fusion.2), channel_id=3, replica_groups=mesh['a'=16,'b'=1,'c'=4], device_ids=([4,16]T(1,0)) {'c'}, to_apply=%add
  ROOT %tuple.1 = (s32[], bf16[64,4096]{1,0}) tuple(%all-reduce.1)
}

ENTRY %main (p.7: bf16[64,4096]) -> f32[256,128] {
  %p.7 = bf16[64,4096]{1,0} parameter(0)
  %tuple.2 = (s32[], bf16[64,4096]{1,0}) tuple(%p.7)
  %while.1 = (s32[], bf16[64,4096]{1,0}) while(%tuple.2), condition=%condition, body=%body
  %all-gather-start.1 = (f32[64,128]{1,0}, f32[4096,128]{1,0}) all-gather-start(%p.7), channel_id=7, replica_groups=[1,64]<=[64], dimensions={0}
  %all-gather-done.1 = f32[4096,128]{1,0} all-gather-done(%all-gather-start.1)
  %collective-permute-start.1 = (bf16[64,4096]{1,0}, bf16[64,4096]{1,0}, u32[], u32[]) collective-permute-start(%p.7), channel_id=8, source_target_pairs={{0,1},{1,0}}
  ROOT %fusion.3 = f32[256,128]{1,0} fusion(%all-gather-done.1), kind=kCustom, calls=%all-reduce-scatter.1
}
"""  # noqa: E501
MATRIX = "bf16[4096,4096]"


def test_collectives_with_the_turns_of_their_loops():
  found = Program(TEXT).collectives()
  assert sorted(found, key=lambda each: (each.kind, each.bytes)) == [
    Collective("all-gather", "f32[4096,128]", 4 * 4096 * 128, 64, 1, True),
    Collective("all-gather", MATRIX, 2 * 4096**2, 64, 5, True),  # one, of two parts
    Collective("all-reduce", MATRIX, 2 * 4096**2, 4, 5, False),
    Collective("collective-permute", "bf16[64,4096]", 2 * 64 * 4096, 0, 1, True),
    Collective("reduce-scatter", "f32[4096,128]", 4 * 4096 * 128, 16, 1, False),
  ]


@pytest.mark.parametrize(
  ("kind", "target", "found"),
  [
    (
      "ALL_REDUCE",
      '"{1,2,3}x{0:15}"',
      Collective("all-reduce", "f32[8,128]", 4096, 3, 5, True, True),
    ),
    (
      "REDUCE_SCATTER",
      "{{100000,200000},{100001,200001}}",
      Collective("reduce-scatter", "f32[8,128]", 8192, 2, 5, True, True),
    ),
    (
      "ONE_TO_ONE",
      "{{100000->200000},{200000->100000}}",
      Collective("collective-permute", "f32[8,128]", 4096, 1, 5, True, True),
    ),
  ],
)
def test_what_goes_between_slices(kind, target, found):
  """Such a collective is a send and a receipt by way of the host, here in the loop."""
  start = TEXT.index("%all-reduce.1 =")
  recv = (
    "%recv.1 = (f32[8,128]{1,0:T(8,128)}, u32[], token[]) recv(%after-all.1), channel_id=3, "
    'is_host_transfer=true, frontend_attributes={_xla_megascale_reduce_operation="SUM",'
    f'_xla_megascale_target={target},_xla_megascale_transfer_type="{kind}"}}'
  )
  program = Program(TEXT[:start] + recv + TEXT[TEXT.index("\n", start) :])
  assert [each for each in program.collectives() if each.dcn] == [found]


def test_what_a_v7x_leaves_to_its_sparse_cores():
  text = """%called.1 (p.1: bf16[2,128], p.2: token[]) -> bf16[256,128] {
  %p.1 = bf16[2,128]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[256,128]{1,0} all-gather(%p.1), channel_id=1, replica_groups=[1,128]<=[128], dimensions={0}
}

ENTRY %main (p.3: bf16[2,128]) -> bf16[256,128] {
  %p.3 = bf16[2,128]{1,0} parameter(0)
  %call-start.1 = ((bf16[2,128]{1,0}, token[]), bf16[256,128]{1,0}) call-start(%p.3), async_execution_thread="sparsecore", to_apply=%called.1
  ROOT %call-done.1 = bf16[256,128]{1,0} call-done(%call-start.1)
}
"""  # noqa: E501
  assert Program(text).collectives() == [
    Collective("all-gather", "bf16[256,128]", 2 * 256 * 128, 128, 1, True)
  ]


@pytest.mark.parametrize(
  ("kind", "group", "factor"),
  [
    ("all-gather", 4, 3 / 4),
    ("reduce-scatter", 0, 7 / 8),
    ("all-reduce", 4, 3 / 2),
    ("collective-permute", 0, 1),
  ],
)
def test_what_a_device_receives_at_least(kind, group, factor):
  assert Collective(kind, MATRIX, 1000, group, 3, False).received(8) == 3 * factor * 1000


def test_a_loop_that_ends_by_its_data_counts_once():
  program = Program(TEXT.replace("direction=LT", "direction=NE"))
  assert program.open_loops == 1
  assert {each.times for each in program.collectives()} == {1}
  assert Program(TEXT).open_loops == 0


def test_largest_buffers_by_their_line_of_python():
  product = Buffer(MATRIX, 2 * 4096**2, "while/body/dot_general", "dlm/models/layers.py:61")
  summed = Buffer(MATRIX, 2 * 4096**2, "all-reduce", "")
  assert Program(TEXT).largest(2) == [product, summed]


def test_arrays_that_are_gathered_in_float32():
  program, size = Program(TEXT), 4 * 4096 * 128
  assert program.gathered("f32", size) == [Buffer("f32[4096,128]", size, "all-gather-start", "")]
  assert program.gathered("f32", size + 1) == []
  assert [each.shape for each in program.gathered("bf16", 1)] == [MATRIX]  # inside a fusion


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("nothing", "no ENTRY"),
    (TEXT.replace("replica_groups=[1,64]<=[64]", "replica_groups=@all"), "unknown form of groups"),
  ],
)
def test_text_that_cannot_be_read_is_refused(text, message):
  with pytest.raises(ValueError, match=message):
    Program(text).collectives()


def test_bytes_of_shapes():
  assert nbytes("(bf16[3,4]{1,0:T(8,128)}, (s32[], pred[5]), f8e4m3fn[2])") == 24 + 4 + 5 + 2


def flops(fn, *shapes):
  return matmul_flops(jax.make_jaxpr(fn)(*[jnp.zeros(shape) for shape in shapes]).jaxpr)


def test_products_are_counted_through_loops_branches_and_gradients():
  def layers(x, w_Y):
    return jax.lax.scan(lambda x, w: (jax.checkpoint(jnp.dot)(x, w), None), x, w_Y)[0]

  def branches(wide, x, w):
    narrow = functools.partial(jnp.dot, w[:, :1])
    return jax.lax.cond(wide.sum() > 0, lambda x: x @ w, lambda x: x @ narrow(w[:1]), x)

  assert flops(jnp.dot, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
  assert flops(layers, (3, 5), (4, 5, 5)) == 4 * 2 * 3 * 5 * 5
  total = jax.grad(lambda x, w_Y: layers(x, w_Y).sum(), argnums=(0, 1))
  assert flops(total, (3, 5), (4, 5, 5)) == 3 * 4 * 2 * 3 * 5 * 5
  assert flops(branches, (1,), (3, 5), (5, 5)) == 2 * 3 * 5 * 5 + 2 * 5 * 5


def test_arrays_by_their_last_axis_are_found_in_branches_loops_and_gradients():
  def loss(x, w):
    wide = jax.lax.map(lambda row: jax.checkpoint(jnp.tanh)(w @ row), x)
    return jax.lax.cond(x[0, 0] > 0, lambda y: (y @ w).sum(), lambda y: 0.0, wide)

  shapes = jnp.zeros((3, 5)), jnp.zeros((7, 5))
  program = jax.make_jaxpr(jax.grad(loss))(*shapes).jaxpr
  found = of_last_axis(program, {7})
  assert {each.shape for each in found} == {"float32[3,7]"}
  assert max(each.bytes for each in found) == 4 * 3 * 7
  assert "float32[3,5]" in {each.shape for each in of_last_axis(program, {5})}
  assert of_last_axis(program, {4}) == []
