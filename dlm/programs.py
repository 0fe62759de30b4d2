"""What a program costs, read off it: products of a traced one, collectives of a compiled one.

XLA's own analysis counts the body of a loop once, and the layers of a model are one loop. So both
readers here follow loops: of a traced program they are scans of known length, of a compiled one
`while`s whose condition compares with a constant.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16}
_SHAPE = re.compile(r"\b(pred|bf16|[fsuc]\d+\w*)\[([\d,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%([\w.-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%([\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$")
_FREE = ("parameter", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "constant")


@dataclasses.dataclass(frozen=True)
class Collective:
  """One instruction of a compiled program. Bytes are of the whole array, on one device."""

  kind: str
  shape: str
  bytes: int
  group: int  # devices that take part together; 0: as many as there are
  times: int  # it runs: those of the loops around it
  is_async: bool
  dcn: bool = False  # between slices of TPUs, over the network of their data center

  def received(self, devices: int) -> float:
    """Bytes that a device must receive at least, all times together."""
    group = self.group or devices
    if self.kind == "collective-permute":
      return self.times * self.bytes
    passes = 2 if self.kind == "all-reduce" else 1
    return self.times * passes * self.bytes * (group - 1) / group


@dataclasses.dataclass(frozen=True)
class Buffer:
  """An array that a compiled program makes, and the line of Python that asked for it, if told."""

  shape: str
  bytes: int
  op: str
  source: str


@dataclasses.dataclass(frozen=True)
class _Instruction:
  shape: str
  opcode: str
  rest: str  # operands and attributes

  def called(self, attribute: str) -> str | None:
    found = re.search(rf"\b{attribute}=%([\w.-]+)", self.rest)
    return found and found[1]


def nbytes(shape: str) -> int:
  """Of an array or a tuple of them, as HLO writes it; 4 bits count as a whole byte."""
  total = 0
  for kind, sizes in _SHAPE.findall(shape):
    bits = re.search(r"\d+", kind)
    each = _BYTES.get(kind) or max(int(bits[0]) // 8, 1)
    total += each * math.prod(int(size) for size in sizes.split(",") if size)
  return total


class Program:
  """A compiled program, of the text that XLA prints."""

  def __init__(self, text: str):
    self._text = text
    self._computations: dict[str, list[_Instruction]] = {}
    entry, body = "", None
    for line in text.splitlines():
      if head := _HEAD.match(line):
        body = self._computations.setdefault(head[2], [])
        entry = head[2] if head[1] else entry
      elif body is not None and (found := _LINE.match(line)):
        body.append(_Instruction(found[2], found[3], found[4]))
    if not entry:
      raise ValueError("program: the text has no ENTRY, so it is no HLO")
    self.open_loops = 0  # whose number of turns is not known; they count once
    self._times: collections.Counter[str] = collections.Counter()
    self._async: set[str] = set()
    self._visit(entry, 1)

  def _visit(self, name: str, times: int) -> None:
    self._times[name] += times
    for each in self._computations[name]:
      if each.opcode == "while":
        turns = self._turns(each.called("condition"))
        self.open_loops += turns is None
        self._visit(each.called("body"), times * (turns or 1))
      elif each.opcode == "conditional":
        for branch in re.findall(r"%([\w.-]+)", _braces(each.rest, "branch_computations")):
          self._visit(branch, times)
        for attribute in ("true_computation", "false_computation"):
          if branch := each.called(attribute):
            self._visit(branch, times)
      elif each.opcode in ("call", "call-start"):  # a TPU's SparseCore gathers for itself
        called = each.called("to_apply")
        if each.opcode == "call-start":
          self._async.add(called)
        self._visit(called, times)
      elif (called := each.called("calls")) and called in self._computations:
        if each.opcode == "async-start":
          self._async.add(called)
        if each.opcode not in ("async-done", "async-update"):
          self._visit(called, times)

  def _turns(self, condition: str) -> int | None:
    """Of a loop that counts from 0 to a constant; None: it ends otherwise."""
    body = self._computations[condition]
    limits = [
      int(found[1])
      for each in body
      if each.opcode == "constant" and (found := re.match(r"(\d+)\)", each.rest))
    ]
    counts = any("direction=LT" in each.rest for each in body if each.opcode == "compare")
    return limits[0] if counts and len(limits) == 1 else None

  def collectives(self) -> list[Collective]:
    # One that runs beside a product stands in three fusions: at its start, beside it, at its end.
    started = {
      channel
      for name, body in self._computations.items()
      if self._holds(name, "AsyncCollectiveStart")
      for each in body
      if (channel := _channel(each.rest))
    }
    found = []
    for name, times in self._times.items():
      starting = self._holds(name, "AsyncCollectiveStart")
      for each in self._computations[name]:
        if each.opcode == "recv" and "_xla_megascale_transfer_type" in each.rest:
          found.append(_between_slices(each, times))
          continue
        kind = each.opcode.removesuffix("-start")
        if kind not in KINDS or (_channel(each.rest) in started and not starting):
          continue
        shape, starts = _result(each), each.opcode != kind
        size = nbytes(shape)
        group = _group(each.rest)
        if kind == "reduce-scatter":
          size *= group or 1
        # A fusion of a sum with the choice of one's own part, which never makes the whole.
        if kind == "all-reduce" and "all-reduce-scatter" in name:
          kind = "reduce-scatter"
        apart = starts or starting or name in self._async
        found.append(Collective(kind, _plain(shape), size, group, times, apart))
    return found

  def _holds(self, name: str, target: str) -> bool:
    """Whether a computation calls this part of the compiler's own."""
    return any(f'custom_call_target="{target}"' in each.rest for each in self._computations[name])

  def largest(self, count: int) -> list[Buffer]:
    """The largest arrays that instructions make outside of fusions; those of a kind once."""
    return _largest(
      buffer
      for body in self._run(fused=False)
      for each in body
      if each.opcode not in _FREE and not each.shape.startswith("(")
      for buffer in self._buffers(each, each.shape)
    )[:count]

  def gathered(self, kind: str, least: int) -> list[Buffer]:
    """Arrays of a type, as "f32", of so many bytes that are gathered; the largest first."""
    found = (
      buffer
      for body in self._run(fused=True)
      for each in body
      if each.opcode in ("all-gather", "all-gather-start")
      for buffer in self._buffers(each, _result(each))
      if buffer.shape.startswith(kind) and buffer.bytes >= least
    )
    return _largest(found)

  def _run(self, fused: bool) -> Iterator[list[_Instruction]]:
    """The computations that run; `fused`: also those inside of one instruction."""
    for name in self._times:
      if fused or not name.startswith(("fused", "called", "wrapped")):
        yield self._computations[name]

  def _buffers(self, made: _Instruction, shape: str) -> Iterator[Buffer]:
    """The arrays of a shape."""
    op = re.search(r'op_name="([^"]*)"', made.rest)
    label = "/".join(op[1].rsplit("/", 3)[1:]) if op else made.opcode
    for kind, sizes in _SHAPE.findall(shape):
      each = f"{kind}[{sizes}]"
      yield Buffer(each, nbytes(each), label, self._source(made.rest))

  def _source(self, rest: str) -> str:
    """FILE:LINE of the innermost frame that XLA tells; empty: it tells none."""
    if found := re.search(r'source_file="([^"]*)" source_line=(\d+)', rest):
      return f"{_short(found[1])}:{found[2]}"
    frame = re.search(r"stack_frame_id=(\d+)", rest)
    if frame is None:
      return ""
    location = self._table("StackFrames").get(int(frame[1]), "")
    location = re.search(r"file_location_id=(\d+)", location)
    found = self._table("FileLocations").get(int(location[1]), "") if location else ""
    found = re.search(r"file_name_id=(\d+).* line=(\d+)", found)
    if found is None:
      return ""
    file = self._table("FileNames").get(int(found[1]), "").strip('"')
    return f"{_short(file)}:{found[2]}"

  def _table(self, name: str) -> dict[int, str]:
    tables = self.__dict__.setdefault("_tables", {})
    if name not in tables:
      found = re.search(rf"^{name}\n((?:\d+ .*\n)*)", self._text, re.M)
      rows = found[1].splitlines() if found else []
      tables[name] = {int(row.split(" ", 1)[0]): row.split(" ", 1)[1] for row in rows}
    return tables[name]


def matmul_flops(jaxpr: Any) -> float:
  """Of all products of a traced program (`jax.make_jaxpr`), two for a multiply and an add.

  Scans count each turn, a branch the dearest of its kind, an open `while` one turn, and what a
  mesh's devices do by hand all of them. ValueError for kernels: their grids may be known only when
  they run, so trace the program with `implementation="xla"`.
  """
  total = 0.0
  for eqn in jaxpr.eqns:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
      (contracted, _), _ = params["dimension_numbers"]
      inner = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
      total += 2.0 * inner * math.prod(eqn.outvars[0].aval.shape)
    elif name.startswith("ragged_dot"):
      rows, width = eqn.invars[0].aval.shape
      total += 2.0 * rows * width * eqn.invars[1].aval.shape[-1]
    elif name == "cond":
      total += max(matmul_flops(branch.jaxpr) for branch in params["branches"])
    elif name == "pallas_call":
      raise ValueError("matmul_flops: the program holds a kernel, whose turns are not known")
    elif name == "while":
      total += matmul_flops(params["body_jaxpr"].jaxpr)
    else:
      turns = params["length"] if name == "scan" else 1
      if name == "shard_map":
        turns = math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
      total += turns * sum(map(matmul_flops, _inner(params)))
  return total


def of_last_axis(jaxpr: Any, sizes: Collection[int]) -> list[Buffer]:
  """Arrays of a traced program with two axes or more, the last of one of these sizes.

  As they are traced: XLA may fuse them away. Kernels are left out: theirs are tiles.
  """

  def made(jaxpr: Any) -> Iterator[Buffer]:
    for eqn in jaxpr.eqns:
      for aval in (var.aval for var in eqn.outvars):
        axes = [size for size in getattr(aval, "shape", ()) if size > 1]
        if len(axes) > 1 and axes[-1] in sizes:
          shape = f"{aval.dtype}[{','.join(map(str, aval.shape))}]"
          size = math.prod(aval.shape) * aval.dtype.itemsize
          yield Buffer(shape, size, eqn.primitive.name, str(eqn.source_info.name_stack))
      if eqn.primitive.name != "pallas_call":
        for value in eqn.params.values():  # branches are a tuple
          for inner in value if isinstance(value, tuple) else (value,):
            inner = getattr(inner, "jaxpr", inner)
            yield from made(inner) if hasattr(inner, "eqns") else ()

  return _largest(made(jaxpr))


def _inner(params: dict[str, Any]) -> Iterator[Any]:
  """The programs that an equation calls, but not the rule of its gradient."""
  for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
    if name in params:
      yield getattr(params[name], "jaxpr", params[name])


def _plain(shape: str) -> str:
  """Without layouts: `bf16[4096,128]`."""
  return ", ".join(f"{kind}[{sizes}]" for kind, sizes in _SHAPE.findall(shape))


def _largest(found: Iterable[Buffer]) -> list[Buffer]:
  """Each kind once, by size."""
  best: dict[tuple[str, str], Buffer] = {}
  for each in found:
    best.setdefault((each.shape, each.source), each)
  return sorted(best.values(), key=lambda each: -each.bytes)


def _result(collective: _Instruction) -> str:
  """Its shape: what starts has operands, then results, then what the wait needs."""
  starts = collective.opcode.endswith("-start") and collective.opcode != "all-reduce-start"
  return _second(collective.shape) if starts else collective.shape


def _second(shape: str) -> str:
  """Of a tuple its second part, which may be a tuple too."""
  parts, depth, start = [], 0, 1
  for i, letter in enumerate(shape):
    depth += (letter in "([{") - (letter in ")]}")
    if depth == 0 or (depth == 1 and letter == ","):
      parts.append(shape[start:i])
      start = i + 1
  return parts[1] if len(parts) > 1 else shape


def _channel(rest: str) -> str | None:
  """The number that all parts of one collective share."""
  found = re.search(r"\bchannel_id=(\d+)", rest)
  return found and found[1]


def _group(rest: str) -> int:
  """Devices that exchange together; 0: all."""
  if found := re.search(r"replica_groups=mesh\[([^\]]*)\].*? \{('[^}]*)\}", rest):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
  if found := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
    return int(found[1])
  if found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
    return found[1].count(",") + 1
  if "replica_groups=" in rest and "replica_groups={}" not in rest:
    raise ValueError(f"program: unknown form of groups in {rest[:200]!r}")
  return 0


def _between_slices(recv: _Instruction, times: int) -> Collective:
  """What libtpu makes of a collective between slices: a send and this, by way of the host."""
  kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', recv.rest)[1].lower().replace("_", "-")
  kind = "collective-permute" if kind == "one-to-one" else kind
  if kind not in KINDS:
    raise ValueError(f"program: unknown kind of transfer between slices in {recv.rest[:200]!r}")
  shape = _SHAPE.search(recv.shape)[0]
  # As {1,2}x{0:15}, slices 1 and 2 of 16 devices each, or {{100000,200000},...}, devices.
  group = re.search(r"_xla_megascale_target=\W*([\d,]+)", recv.rest)[1].count(",") + 1
  size = nbytes(shape) * (group if kind == "reduce-scatter" else 1)
  return Collective(kind, shape, size, group, times, True, dcn=True)


def _braces(rest: str, attribute: str) -> str:
  found = re.search(rf"{attribute}=\{{([^}}]*)\}}", rest)
  return found[1] if found else ""


def _short(file: str) -> str:
  """The last two folders tell a file of ours; a checkout may lie anywhere."""
  return "/".join(file.split("/")[-3:])
