"""What a run would need of machines that are not here: its real programs, compiled for them.

The update step of a training config, or a sampler of its model, is traced with shapes, split as
`dlm.train` splits it, and compiled by XLA for a TPU topology (`kernels_pallas.aot`). Nothing runs.
Bytes, collectives and buffers are the compiled program's own. Seconds are an estimate from below:
every product at the chip's peak, every link busy, and what is not asynchronous one after the other.
"""

import collections
import dataclasses
import functools
import math
import pathlib
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dlm import build, generate, parallel, roofline
from dlm.build import RunConfig, SamplingConfig, Training
from dlm.models import quantised
from dlm.models.bind import bind
from dlm.programs import Buffer, Collective, Program, matmul_flops, of_last_axis
from dlm.train import Step
from dlm.types import Params
from kernels_pallas import aot

GPUS = ("h100", "h200", "a100")
BUFFERS = 5
GATHERED = 1 << 20  # bytes: a matrix of parameters is as large; norms and biases are not


@dataclasses.dataclass(frozen=True)
class Traffic:
  """Collectives of one kind: instructions, and what a device receives of them in one step."""

  count: int
  asynchronous: int  # of them
  bytes: float
  asynchronous_bytes: float


@dataclasses.dataclass(frozen=True)
class Plan:
  """Bytes and FLOPs are a device's, of one update, or of one turn of a sampler's loop.

  Args:
    parameters, optimizer, other: what the program is given; together its arguments.
    temporary: what it makes besides, as XLA says; some of it lies where arguments lay.
    peak: the most that is held at once, arguments among it.
    flops_formula: of the model, see `Step.flops`; None: of a sampler.
    flops_counted: of all products, what is computed again among them; with XLA's ops in place of
      kernels, so attention to keys that a mask hides counts.
    flops_xla: XLA's analysis, which counts a loop's body once and no kernel.
    traffic, dcn: within a slice, and between slices, over the network of their data center.
    open_loops: whose turns are not known, so that they count once.
    logits: arrays of the traced program whose last axis is the vocabulary, or a part of it.
    wide: float32 arrays of `GATHERED` bytes or more that are gathered: a parameter should be
      rounded before it travels.
  """

  chip: roofline.Chip
  mesh: dict[str, int]
  batch: int
  parameters: int
  optimizer: int
  other: int
  temporary: int
  peak: int
  flops_formula: float | None
  flops_counted: float
  flops_xla: float
  traffic: dict[str, Traffic]
  dcn: dict[str, Traffic]
  open_loops: int
  largest: list[Buffer]
  logits: list[Buffer]
  wide: list[Buffer]
  compile_seconds: float

  @property
  def memory(self) -> float:
    """Of a device: a chip's, or its core's share."""
    return self.chip.memory / self.chip.cores

  @property
  def compute_seconds(self) -> float:
    return self.flops_counted * self.chip.cores / self.chip.bf16

  @property
  def link_seconds(self) -> float:
    """Of all collectives within a slice."""
    return sum(self._on_links(kind, each.bytes) for kind, each in self.traffic.items())

  @property
  def dcn_seconds(self) -> float:
    """Of all between slices, which are asynchronous."""
    received = sum(each.bytes for each in self.dcn.values())
    return received * self.chip.cores / self.chip.dcn

  @property
  def seconds(self) -> float:
    """Asynchronous collectives hide behind the products, the others do not."""
    hidden = sum(
      self._on_links(kind, each.asynchronous_bytes) for kind, each in self.traffic.items()
    )
    state = 2 * (self.parameters + self.optimizer) if self.optimizer else self.parameters
    moved = state * self.chip.cores / self.chip.bandwidth
    behind = (moved, hidden, self.dcn_seconds)
    return max(self.compute_seconds, *behind) + self.link_seconds - hidden

  @property
  def mfu(self) -> float | None:
    """Share of the peak that the model's own FLOPs would reach."""
    if self.flops_formula is None:
      return None
    return self.flops_formula * self.chip.cores / self.chip.bf16 / self.seconds

  def _on_links(self, kind: str, received: float) -> float:
    """Seconds: a permutation takes one link, all others every link."""
    links = 1 if kind == "collective-permute" else self.chip.links
    return received * self.chip.cores / (links * self.chip.link)

  def plain(self) -> dict[str, Any]:
    """For JSON, with what is estimated."""
    told = ("memory", "compute_seconds", "link_seconds", "dcn_seconds", "seconds", "mfu")
    return dataclasses.asdict(self) | {name: getattr(self, name) for name in told}


def chip_of(topology: str) -> roofline.Chip:
  """ValueError: the chip is not one that can be planned for, or has no slices of this shape."""
  slices, one = aot.sliced(topology)
  name, _, shape = one.partition(":")
  known = [chip.name for chip in roofline.CHIPS.values() if chip.links]
  if name in GPUS:
    raise ValueError(
      f"{topology=}: no compiler for several hosts of {name} is known here, only TPUs"
    )
  if name not in known:
    raise ValueError(
      f"{topology=} must be CHIP:AxB, CHIP:AxBxC or, of N slices, NxCHIP:... with a chip of "
      + ", ".join(known)
    )
  chip = roofline.CHIPS[name]
  form = "x".join("ABC"[: chip.axes])
  if slices < 1 or not re.fullmatch(rf"[1-9]\d*(x[1-9]\d*){{{chip.axes - 1}}}", shape):
    raise ValueError(
      f"{topology=} must be {name}:{form}, or Nx{name}:{form}: chips along each axis"
    )
  if (chips := math.prod(map(int, shape.split("x")))) > chip.slice:
    raise ValueError(f"{topology=}: a slice of {name} has at most {chip.slice} chips, not {chips}")
  return chip


def training(config: RunConfig, topology: str) -> tuple[Training, roofline.Chip]:
  """The run over the topology, checked but not compiled.

  Raises:
    ValueError: the topology is unknown, or the mesh or the batch does not divide, or see
      `build.planned`.
    ModuleNotFoundError: the compiler is not here.
  """
  chip = chip_of(topology)
  planned = build.planned(config, aot.tpus(topology))
  Step(planned).shardings()  # raises where a parameter does not divide
  return planned, chip


def update(planned: Training, chip: roofline.Chip) -> Plan:
  """Compiles the update step."""
  step = Step(planned)
  state, batch = step.abstract(), step.abstract_batch()
  return _compiled(
    lambda run: Step(run).update.trace(state, batch, None),
    planned,
    chip=chip,
    batch=planned.run.batch,
    parameters=held(state.params) + (held(state.ema) if state.ema is not None else 0),
    optimizer=held(state.opt_state),
    flops_formula=step.flops() / planned.mesh.size,
  )


def sampler(planned: Training, sampling: SamplingConfig, chip: roofline.Chip) -> Plan:
  """Compiles the sampler's loop, parameters in the model's data type or as `weights` says, over
  `batch` canvases of `data.length` slots, half of each a prompt.
  """
  # All rows in one forward, which is what a turn is here.
  own = dataclasses.replace(sampling, mesh=planned.run.mesh, batch=planned.run.batch, positions=0)
  params = parameters(planned, own.weights)
  length = planned.run.data.length
  prompt = np.zeros(length // 2, np.int32)
  request = generate.Request.from_ids(0, "", prompt, planned.tokenizer.mask_id, slots=length)

  def traced(run: Training) -> jax.stages.Traced:
    return generate.generator(own, run, mesh=run.mesh)[0].traced(params, request)

  return _compiled(
    traced,
    planned,
    chip=chip,
    batch=planned.run.batch,
    parameters=held(params),
    optimizer=0,
    flops_formula=None,
  )


def parameters(planned: Training, weights: str) -> Params:
  """Of a sampler: shapes, types and shardings, as loading gives them."""
  model = planned.model
  shardings = parallel.shard_params(model.abstract(), planned.mesh)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  shapes = jax.tree.map(lambda x: x.update(dtype=jnp.dtype(model.config.dtype)), shapes)
  if weights:
    kept = quantised.as_kept(weights, shapes, shardings)
    shapes, shardings = (quantised.from_dicts(each, weights) for each in kept)
  return jax.tree.map(lambda x, at: x.update(sharding=at), shapes, shardings)


def held(tree: Any) -> int:
  """Bytes of the arrays of a tree on one device."""
  return sum(
    x.dtype.itemsize * int(np.prod(x.sharding.shard_shape(x.shape))) for x in jax.tree.leaves(tree)
  )


def table(rows: list[Mapping[str, Any]]) -> list[str]:
  """Markdown of what the main keeps: a row a program."""
  lines = [
    "| topology | program | parameters | optimizer | temporary | peak (of memory) | "
    "TFLOP, formula / counted | received | asynchronous | compute | links | step | MFU |",
    "|" + "---|" * 13,
  ]
  for row in rows:
    at = f"| {row['asked']['topology']} | {name(row['asked'])} |"
    if "refused" in row:
      lines.append(f"{at} {row['refused']} |")
      continue
    made = row["plan"]
    within, between = made["traffic"].values(), made["dcn"].values()
    kinds = [*within, *between]
    received = _gb(sum(kind["bytes"] for kind in within))
    links = f"{1e3 * made['link_seconds']:.0f} ms"
    if between:
      received += f", DCN {_gb(sum(kind['bytes'] for kind in between))}"
      links += f", DCN {1e3 * made['dcn_seconds']:.0f} ms"
    formula = "-" if made["mfu"] is None else f"{made['flops_formula'] / 1e12:.1f}"
    cells = [
      *(_gb(made[name]) for name in ("parameters", "optimizer", "temporary")),
      f"{_gb(made['peak'])} ({100 * made['peak'] / made['memory']:.0f} %)",
      f"{formula} / {made['flops_counted'] / 1e12:.1f}",
      received,
      f"{sum(k['asynchronous'] for k in kinds)} of {sum(k['count'] for k in kinds)}",
      f"{1e3 * made['compute_seconds']:.0f} ms",
      links,
      f"{1e3 * made['seconds']:.0f} ms",
      "-" if made["mfu"] is None else f"{100 * made['mfu']:.0f} %",
    ]
    lines.append(f"{at} {' | '.join(cells)} |")
  return lines


def name(asked: Mapping[str, Any]) -> str:
  """As `llada_8b batch=64 mesh.fsdp=64`, or `llada_8b by fast_dllm ...` of a sampler."""
  by = ["by", pathlib.Path(asked["sample"]).stem] if asked["sample"] else []
  by += asked.get("sample_fields", [])
  return " ".join([pathlib.Path(asked["config"]).stem, *by, *asked["fields"]])


def details(row: Mapping[str, Any]) -> list[str]:
  """Lines to read: collectives by kind, the largest buffers, and those that there should not be."""
  if "refused" in row:
    return [row["refused"]]
  made = row["plan"]
  lines = [
    f"{kind:20}{each['count']:4} instructions, {each['asynchronous']} asynchronous, a device "
    f"receives {_gb(each['bytes'])}{over}"
    for kinds, over in ((made["traffic"], ""), (made["dcn"], " over DCN"))
    for kind, each in kinds.items()
  ]
  lines += [
    f"{_gb(each['bytes']):>10}  {each['shape']}  {each['op']}  {each['source']}"
    for each in made["largest"]
  ]
  for title, key in (("[rows, vocabulary]", "logits"), ("gathered in float32", "wide")):
    found = [f"{each['shape']} ({each['op']} {each['source']})" for each in made[key]]
    lines.append(f"{title}: {', '.join(found) or 'none'}")
  if made["open_loops"]:
    lines.append(f"loops whose turns are not known, so they count once: {made['open_loops']}")
  return lines


def _gb(count: float) -> str:
  return f"{count / 1e9:.2f} GB"


def _compiled(
  trace: Callable[[Training], jax.stages.Traced], planned: Training, **known: Any
) -> Plan:
  began = time.perf_counter()
  traced = trace(planned)
  compiled = traced.lower(lowering_platforms=("tpu",)).compile()
  took = time.perf_counter() - began
  memory, devices = compiled.memory_analysis(), planned.mesh.size
  program = Program(compiled.as_text())  # of one slice
  collectives = program.collectives()
  # Devices of one slice may not say which.
  slices = len({getattr(each, "slice_index", 0) for each in planned.mesh.devices.flat})
  flops_xla = (compiled.cost_analysis() or {}).get("flops", 0.0)
  plain = dataclasses.replace(planned.model.config, implementation="xla")
  counted = trace(dataclasses.replace(planned, model=bind(plain)))
  given, vocab = memory.argument_size_in_bytes, plain.vocab
  return Plan(
    mesh=dict(planned.mesh.shape),
    other=given - known["parameters"] - known["optimizer"],
    temporary=memory.temp_size_in_bytes,
    peak=memory.peak_memory_in_bytes,
    flops_counted=matmul_flops(counted.jaxpr.jaxpr) / devices,
    flops_xla=flops_xla,
    traffic=_by_kind([each for each in collectives if not each.dcn], devices // slices),
    dcn=_by_kind([each for each in collectives if each.dcn], slices),
    open_loops=program.open_loops,
    largest=program.largest(BUFFERS),
    logits=of_last_axis(traced.jaxpr.jaxpr, {vocab, vocab // planned.mesh.shape["tensor"]}),
    wide=program.gathered("f32", GATHERED),
    compile_seconds=took,
    **known,
  )


def _by_kind(found: list[Collective], devices: int) -> dict[str, Traffic]:
  kinds: dict[str, list[Collective]] = collections.defaultdict(list)
  for each in found:
    kinds[each.kind].append(each)
  received = functools.partial(Collective.received, devices=devices)
  return {
    kind: Traffic(
      len(those),
      sum(each.is_async for each in those),
      sum(map(received, those)),
      sum(received(each) for each in those if each.is_async),
    )
    for kind, those in sorted(kinds.items())
  }
