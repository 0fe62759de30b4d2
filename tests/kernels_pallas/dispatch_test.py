import jax
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from kernels_pallas import dispatch


def refuse(*_, **__):
  raise NotImplementedError("needs a bigger machine")


def mistake(*_, **__):
  raise ValueError("rows must be positive")


def test_default_is_the_first_of_the_backend():
  table = {"reference": lambda x: ("reference", x), "xla": lambda x: ("xla", x), "tpu": refuse}
  assert dispatch.run("op", table, None, 3) == ("xla", 3)


@pytest.mark.parametrize(
  "kind,first",
  [
    ("NVIDIA H100 80GB HBM3", "gpu"),
    ("NVIDIA H200", "gpu"),
    ("NVIDIA GH200 480GB", "gpu"),
    ("NVIDIA A100-SXM4-80GB", "xla"),
    ("NVIDIA B200", "xla"),
  ],
)
def test_of_gpus_only_hopper_has_kernels_which_must_be_named(kind, first, caplog):
  device = AbstractDevice(kind, 132, platform="gpu")
  table = {"xla": lambda: "xla", "gpu": lambda: "gpu"}
  with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("data",), abstract_device=device)):
    assert dispatch.run("op", table, None) == "xla"
    assert dispatch.run("op", table, "gpu,xla") == first
    why = "" if first == "gpu" else f"; not as gpu: the kernels are for Hopper, not for {kind}"
    assert caplog.messages[-1] == f"op on {kind} runs as {first}{why}"
    if first == "xla":
      with pytest.raises(
        NotImplementedError, match=f"gpu: the kernels are for Hopper, not for {kind}"
      ):
        dispatch.run("op", table, "gpu")


def test_not_implemented_means_try_the_next():
  table = {"reference": lambda *, x: ("reference", x), "xla": refuse}
  assert dispatch.run("op", table, None, x=3) == ("reference", 3)


def test_a_callers_mistake_is_not_hidden_by_the_next():
  with pytest.raises(ValueError, match="rows must be positive"):
    dispatch.run("op", {"xla": mistake, "reference": lambda: 1}, None)


def test_a_named_implementation_is_used_or_fails():
  table = {"reference": lambda: "reference", "xla": refuse}
  assert dispatch.run("op", table, "reference") == "reference"
  with pytest.raises(NotImplementedError, match="bigger machine"):
    dispatch.run("op", table, "xla")


def test_an_unknown_name_lists_the_known():
  with pytest.raises(ValueError, match=r"op: implementation='gpu' is not one of reference, xla"):
    dispatch.run("op", {"reference": refuse, "xla": refuse}, "gpu")


def test_of_several_names_the_first_that_can_is_used():
  table = {"reference": lambda: "reference", "xla": lambda: "xla", "tpu": refuse}
  assert dispatch.run("op", table, "gpu,tpu,xla") == "xla"
  with pytest.raises(NotImplementedError, match="bigger machine"):
    dispatch.run("op", table, "gpu,tpu")
  with pytest.raises(ValueError, match="op: implementation='gpu,tpu' is not one of reference, xla"):
    dispatch.run("op", {"reference": refuse, "xla": refuse}, "gpu,tpu")


def test_names_are_checked_before_anything_runs():
  dispatch.check("gpu,xla")
  with pytest.raises(ValueError, match=r"implementation='gpu, xla' must name some of .* gpu"):
    dispatch.check("gpu, xla")


def test_all_failures_are_listed():
  with pytest.raises(NotImplementedError, match=r"'cpu'.*xla: needs.*reference: needs"):
    dispatch.run("op", {"reference": refuse, "xla": refuse}, None)
