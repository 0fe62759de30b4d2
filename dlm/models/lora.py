"""LoRA (2106.09685): frozen kernels, and beside each a thin pair of matrices that alone learns.

y = W x + s B A x, with A random and B zero, so that training starts at the base model. A is
"lora_a" [in..., R] and B "lora_b" [R, out...], next to "kernel" in the parameter tree; `Einsum` of
`dlm.models.layers` applies them. The functions below take a tree of parameters apart and together.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from dlm.types import Array, Params

ATTENTION, MLP = ("query", "key", "value", "out"), ("gate", "up", "down")
PROJECTIONS = (*ATTENTION, *MLP)
ALL = "all-linear"
A, B = "lora_a", "lora_b"


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Which projections have an adapter, and of which rank.

  Args:
    alpha: the adapter's output is multiplied by alpha / rank.
    targets: names among PROJECTIONS, as a tuple or with commas; "all-linear": all that are there.
    rslora: by alpha / sqrt(rank) instead (2312.03732).
    gated: the adapter acts on mask tokens and nowhere else: what a causal model computes of clean
      text stays the base model's, to the bit.
    drafts: the adapter acts while the model drafts for itself, and is off while it checks and in
      all else (NVIDIA's linear_spec_lora): of a checkpoint that is read; a run trains gated ones.
    mask_id: of the mask token; `dlm.build` takes the tokenizer's.
  """

  rank: int
  alpha: float
  targets: str | tuple[str, ...] = ALL
  rslora: bool = False
  gated: bool = False
  drafts: bool = False
  mask_id: int | None = None

  def __post_init__(self):
    if self.rank < 1:
      raise ValueError(f"model.lora.rank={self.rank} must be at least 1")
    if self.alpha <= 0:
      raise ValueError(f"model.lora.alpha={self.alpha} must be positive")
    unknown = [name for name in self.names if name not in PROJECTIONS]
    if unknown or not self.names:
      raise ValueError(
        f"model.lora.targets={self.targets!r} must name some of {', '.join(PROJECTIONS)}, or be "
        f"{ALL!r}"
      )

  @property
  def names(self) -> tuple[str, ...]:
    """The projections."""
    if self.targets == ALL:
      return PROJECTIONS
    return tuple(self.targets.split(",")) if isinstance(self.targets, str) else self.targets

  @property
  def scale(self) -> float:
    return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def on(lora: LoraConfig | None, name: str) -> LoraConfig | None:
  """The adapter of a projection; None: it has none."""
  return lora if lora is not None and name in lora.names else None


def adapters(tree: Any) -> dict[str, Any]:
  """The adapters of a tree shaped like the parameters; {}: it has none."""
  return _picked(tree, lambda name: name in (A, B))


def frozen(tree: Any) -> dict[str, Any]:
  """All but the adapters."""
  return _picked(tree, lambda name: name not in (A, B))


def joined(base: Any, own: Any) -> dict[str, Any]:
  """The tree of which `frozen` gives `base` and `adapters` gives `own`."""
  both = {**base, **own}
  return {
    name: joined(base[name], own[name]) if name in base and name in own else both[name]
    for name in both
  }


def merged(params: Params, lora: LoraConfig) -> Params:
  """The parameters of the model without adapters that computes the same.

  Raises:
    ValueError: the adapters are gated or only draft; no weights do that.
  """
  if lora.drafts:
    raise ValueError("an adapter that only drafts is off elsewhere: it is not merged into weights")
  if lora.gated:
    raise ValueError("a gated adapter acts on mask tokens alone and cannot be merged into weights")
  return _merged(params, lora.scale)


def _merged(tree: Any, scale: float) -> Any:
  if not isinstance(tree, Mapping):
    return tree
  if A not in tree:
    return {name: _merged(value, scale) for name, value in tree.items()}
  kernel = tree["kernel"]
  wide = kernel.astype(jnp.float32) + scale * product(tree[A], tree[B], stack=1)
  return {**frozen(tree), "kernel": wide.astype(kernel.dtype)}


def product(a: Array, b: Array, *, stack: int) -> Array:
  """The kernel [in..., out...] that A and B are together, in float32.

  Args:
    stack: leading axes of both, which count layers and experts.
  """
  lead, rank = a.shape[:stack], a.shape[-1]
  flat = jnp.matmul(
    a.astype(jnp.float32).reshape(*lead, -1, rank),
    b.astype(jnp.float32).reshape(*lead, rank, -1),
    precision="highest",
  )
  return flat.reshape(*a.shape[:-1], *b.shape[stack + 1 :])


def _picked(tree: Any, wanted: Any) -> dict[str, Any]:
  found = {}
  for name, value in tree.items():
    if not isinstance(value, Mapping):
      if wanted(name):
        found[name] = value
    elif below := _picked(value, wanted):
      found[name] = below
  return found
