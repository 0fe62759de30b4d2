"""What a forward costs at least: operations and bytes of each operator, and which of them binds.

The idea is LLM-Viewer's (2402.16363): an operator takes the longer of its operations at the chip's
peak and its bytes at the memory's bandwidth. A diffusion model's forwards differ in how many slots
they compute, how many they attend to and how many meet the vocabulary (`Forward`).
"""

import dataclasses
from collections.abc import Mapping

from dlm.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Chip:
  """Dense peaks in operations a second, bandwidth in bytes a second, as the makers state them.

  `memory` in bytes; `link`: bytes a second that a link to another chip brings, and their number;
  half of what is stated for both ways; `dcn`: bytes a second between slices; `slice`: chips of one
  at most; `cores`: that jax shows as a device each. 0: not said here.
  """

  name: str
  bandwidth: float
  bf16: float
  int8: float
  memory: float = 0
  link: float = 0
  links: int = 0
  dcn: float = 0
  slice: int = 0
  cores: int = 1

  @property
  def axes(self) -> int:
    """Of the torus that a slice is: two links along each."""
    return self.links // 2

  def peak(self, bits: "Bits") -> float:
    """Of products whose operands have so many bits: all of 8 or fewer take the faster units."""
    return self.int8 if max(bits.weights, bits.activations, bits.cache) <= 8 else self.bf16

  def seconds(self, operator: "Operator", bits: "Bits") -> float:
    return max(operator.operations / self.peak(bits), operator.bytes / self.bandwidth)

  def bound(self, operator: "Operator", bits: "Bits") -> str:
    """What takes the time: "compute" or "memory"."""
    at_memory = operator.operations / operator.bytes < self.peak(bits) / self.bandwidth
    return "memory" if at_memory else "compute"


CHIPS = {
  chip.name: chip
  for chip in (
    Chip("h100", 3350e9, 989.4e12, 1978.9e12),
    Chip("h200", 4800e9, 989.4e12, 1978.9e12),
    Chip("a100", 2039e9, 312e12, 624e12),
    Chip("v100", 900e9, 112e12, 62e12),
    # docs.cloud.google.com/tpu/docs/{v5e,v5p-training,v6e,tpu7x}, read 2026-11-30; of v5p and v7x
    # the 8-bit peak is FP8's.
    Chip("v5e", 819e9, 197e12, 393e12, 16e9, link=50e9, links=4, dcn=3.125e9, slice=256),
    Chip("v5p", 2765e9, 459e12, 459e12, 95 * 2**30, link=100e9, links=6, dcn=6.25e9, slice=8960),
    Chip("v6e", 1638e9, 918e12, 1836e12, 32e9, link=100e9, links=4, dcn=12.5e9, slice=256),
    Chip("v7x", 7380e9, 2307e12, 4614e12, 192 * 2**30, 100e9, 6, dcn=12.5e9, slice=9216, cores=2),
  )
}


def named(kind: str) -> Chip | None:
  """The chip whose name is a word of a device's kind, as of "NVIDIA H200"; None: not known."""
  return CHIPS.get(next((word for word in kind.lower().split() if word in CHIPS), ""))


@dataclasses.dataclass(frozen=True)
class Bits:
  """Of what is stored; sums are not."""

  weights: int = 16
  activations: int = 16
  cache: int = 16


@dataclasses.dataclass(frozen=True)
class Forward:
  """One forward of a batch.

  Args:
    rows: of the batch.
    queries: slots that each row computes.
    keys: slots that each of them attends to.
    asked: slots of each row that meet the vocabulary.
    stored: slots of each row whose keys and values are kept.
    fused: scores of attention are not written to memory.
  """

  rows: int
  queries: int
  keys: int
  asked: int
  stored: int
  fused: bool = True


@dataclasses.dataclass(frozen=True)
class Operator:
  """Operations, and bytes by what they are."""

  name: str
  operations: float
  weights: float = 0  # read
  reads: float = 0  # activations
  writes: float = 0
  cache_reads: float = 0
  cache_writes: float = 0

  @property
  def bytes(self) -> float:
    return self.weights + self.reads + self.writes + self.cache_reads + self.cache_writes


def forwards(rows: int, slots: int, block: int) -> dict[str, Forward]:
  """Those of a block sampler in a row of `slots` slots, the active block its last; by their names.

  prefill: what stands before the block, whose queries see half of it on average; refresh: the whole
  canvas, as of models that see all of it.
  """
  if not 0 < block < slots:
    raise ValueError(f"roofline: block={block} must lie between 0 and slots={slots}")
  before = slots - block
  return {
    "prefill": Forward(rows, before, -(-before // 2), 0, before),
    "denoise": Forward(rows, block, slots, block, 0),
    "commit": Forward(rows, block, slots, 0, block),
    "refresh": Forward(rows, slots, slots, block, slots),
  }


def layer(model: ModelConfig, forward: Forward, bits: Bits) -> list[Operator]:
  """The operators of one layer. ValueError for experts, which are not told apart here."""
  if model.moe is not None:
    raise ValueError("roofline: models with experts (model.moe) are not covered")
  slots = forward.rows * forward.queries
  wide, inner = model.width, model.heads * model.head_dim
  byte, kv_byte = bits.activations / 8, bits.cache / 8
  kept = forward.rows * forward.stored * kv_byte

  def linear(name: str, inputs: int, outputs: int, to_cache: bool = False) -> Operator:
    return Operator(
      name,
      2 * inputs * outputs * slots,
      weights=inputs * outputs * bits.weights / 8,
      reads=inputs * slots * byte,
      writes=0 if to_cache and forward.stored else outputs * slots * byte,
      cache_writes=outputs * kept if to_cache else 0,
    )

  def by_slot(name: str, operations: int, width: int, inputs: int = 1) -> Operator:
    moved = slots * width * byte
    return Operator(name, operations * slots * width, reads=inputs * moved, writes=moved)

  kv = model.kv_heads * model.head_dim
  return [
    by_slot("attn_norm", 7, wide),
    linear("q_proj", wide, inner),
    linear("k_proj", wide, kv, to_cache=True),
    linear("v_proj", wide, kv, to_cache=True),
    *_attention(model, forward, bits),
    linear("out_proj", inner, wide),
    by_slot("attn_add", 1, wide),
    by_slot("mlp_norm", 7, wide),
    linear("gate_proj", wide, model.mlp),
    linear("up_proj", wide, model.mlp),
    by_slot("mlp_act", 2, model.mlp, inputs=2),
    linear("down_proj", model.mlp, wide),
    by_slot("mlp_add", 1, wide),
  ]


def head(model: ModelConfig, forward: Forward, bits: Bits) -> Operator:
  """The product with the unembedding, whose logits are read where they are made."""
  asked = forward.rows * forward.asked
  return Operator(
    "lm_head",
    2 * model.width * model.vocab * asked,
    weights=model.width * model.vocab * bits.weights / 8 * (asked > 0),
    reads=model.width * asked * bits.activations / 8,
  )


def operations(model: ModelConfig, forward: Forward) -> float:
  """Of all layers and the head."""
  each = sum(operator.operations for operator in layer(model, forward, Bits()))
  return model.layers * each + head(model, forward, Bits()).operations


def seconds(model: ModelConfig, forward: Forward, bits: Bits, chip: Chip) -> float:
  """Of all layers and the head, one operator after the other."""
  each = sum(chip.seconds(operator, bits) for operator in layer(model, forward, bits))
  last = head(model, forward, bits)
  return model.layers * each + (chip.seconds(last, bits) if last.bytes else 0.0)


def table(model: ModelConfig, kinds: Mapping[str, Forward], bits: Bits, chip: Chip) -> list[str]:
  """Lines to read: the time of each forward, and of each operator of all layers together."""
  lines = []
  for kind, forward in kinds.items():
    total = seconds(model, forward, bits, chip)
    slots = f"{forward.rows} x {forward.queries} slots"
    lines.append(f"{kind:16}{1e3 * total:10.3f} ms  {slots}")
    found = [(model.layers, each) for each in layer(model, forward, bits)]
    if forward.asked:
      found.append((1, head(model, forward, bits)))
    for count, each in found:
      took, bound = count * chip.seconds(each, bits), chip.bound(each, bits)
      lines.append(
        f"  {each.name:16}{1e3 * took:8.3f} ms  {bound:8}{count * each.operations / 1e9:12.3f} "
        f"GFLOP{count * each.bytes / 1e6:12.3f} MB"
      )
  return lines


def _attention(model: ModelConfig, forward: Forward, bits: Bits) -> list[Operator]:
  byte = bits.activations / 8
  query_bytes = forward.rows * forward.queries * model.heads * model.head_dim * byte
  pairs = forward.rows * model.heads * forward.queries * forward.keys
  held = forward.rows * forward.keys * model.kv_heads * model.head_dim * bits.cache / 8
  product, scores = 2 * pairs * model.head_dim, pairs * byte
  if forward.fused:
    every = 2 * product + 5 * pairs
    return [
      Operator(
        "fused_attention", every, reads=query_bytes, writes=query_bytes, cache_reads=2 * held
      )
    ]
  return [
    Operator("qk_matmul", product, reads=query_bytes, writes=scores, cache_reads=held),
    Operator("softmax", 5 * pairs, reads=scores, writes=scores),
    Operator("sv_matmul", product, reads=scores, writes=query_bytes, cache_reads=held),
  ]
