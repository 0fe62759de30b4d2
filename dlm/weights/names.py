"""How a family names its tensors, and what becomes of them: one table, read in both directions.

A table maps a parameter's path (see `dlm.models.transformer`) to the name of its tensor and a
layout. In the name `{i}` counts layers and `{e}` experts. A layout is written as an einsum: on the
left the stored axes, comma-separated, on the right ours: "NH,D->DNH" is a matrix of N * H rows and
D columns that becomes our [D, N, H], its transpose. Parameters that share a name lie in it one
below the other, in the table's order. "[E]" before a layout: the tensor holds all experts, on an
axis before those.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from dlm.models.config import ModelConfig

NameTable = Mapping[str, tuple[str, str]]

STACKED = "[E]"

_LAYER = "model.layers.{i}."

_SWIGLU = {
  "layers/mlp/gate/kernel": (_LAYER + "mlp.gate_proj.weight", "F,D->DF"),
  "layers/mlp/up/kernel": (_LAYER + "mlp.up_proj.weight", "F,D->DF"),
  "layers/mlp/down/kernel": (_LAYER + "mlp.down_proj.weight", "D,F->FD"),
}
_ENDS = {
  "embed": ("model.embed_tokens.weight", "V,D->VD"),
  "unembed": ("lm_head.weight", "V,D->VD"),
  "final_norm/scale": ("model.norm.weight", "D->D"),
}
_NORMS = {
  "layers/attention_norm/scale": (_LAYER + "input_layernorm.weight", "D->D"),
  "layers/mlp_norm/scale": (_LAYER + "post_attention_layernorm.weight", "D->D"),
}

# LLaMA has none of the biases unless asked; Qwen2 has the first three, Qwen3 norms in their place.
QWEN: NameTable = {
  **_ENDS,
  **_NORMS,
  **_SWIGLU,
  "layers/attention/query/kernel": (_LAYER + "self_attn.q_proj.weight", "NH,D->DNH"),
  "layers/attention/key/kernel": (_LAYER + "self_attn.k_proj.weight", "KH,D->DKH"),
  "layers/attention/value/kernel": (_LAYER + "self_attn.v_proj.weight", "KH,D->DKH"),
  "layers/attention/out/kernel": (_LAYER + "self_attn.o_proj.weight", "D,NH->NHD"),
  "layers/attention/query/bias": (_LAYER + "self_attn.q_proj.bias", "NH->NH"),
  "layers/attention/key/bias": (_LAYER + "self_attn.k_proj.bias", "KH->KH"),
  "layers/attention/value/bias": (_LAYER + "self_attn.v_proj.bias", "KH->KH"),
  "layers/attention/query_norm/scale": (_LAYER + "self_attn.q_norm.weight", "H->H"),
  "layers/attention/key_norm/scale": (_LAYER + "self_attn.k_norm.weight", "H->H"),
}
# It has no `model.` before its names, and no table of tokens.
DFLASH: NameTable = {
  "context/kernel": ("fc.weight", "D,F->FD"),
  "context_norm/scale": ("hidden_norm.weight", "D->D"),
  **{
    path: (name.removeprefix("model."), layout)
    for path, (name, layout) in QWEN.items()
    if path not in ("embed", "unembed") and not path.endswith("bias")
  },
}
LLAMA: NameTable = {
  **QWEN,
  "layers/attention/out/bias": (_LAYER + "self_attn.o_proj.bias", "D->D"),
  "layers/mlp/gate/bias": (_LAYER + "mlp.gate_proj.bias", "F->F"),
  "layers/mlp/up/bias": (_LAYER + "mlp.up_proj.bias", "F->F"),
  "layers/mlp/down/bias": (_LAYER + "mlp.down_proj.bias", "D->D"),
}


def _named(theirs: str) -> str:
  """Of a tensor of `QWEN`, its name in Nemotron-Labs-Diffusion."""
  return theirs.replace("model.", "encoder.", 1).replace("lm_head.", "diffusion_head.")


NEMOTRON_LABS: NameTable = {path: (_named(name), eqn) for path, (name, eqn) in QWEN.items()}

_BLOCK = "model.transformer.blocks.{i}."

LLADA: NameTable = {
  "embed": ("model.transformer.wte.weight", "V,D->VD"),
  "unembed": ("model.transformer.ff_out.weight", "V,D->VD"),  # a block's down projection too
  "final_norm/scale": ("model.transformer.ln_f.weight", "D->D"),
  "layers/attention_norm/scale": (_BLOCK + "attn_norm.weight", "D->D"),
  "layers/mlp_norm/scale": (_BLOCK + "ff_norm.weight", "D->D"),
  "layers/attention/query/kernel": (_BLOCK + "q_proj.weight", "NH,D->DNH"),
  "layers/attention/key/kernel": (_BLOCK + "k_proj.weight", "KH,D->DKH"),
  "layers/attention/value/kernel": (_BLOCK + "v_proj.weight", "KH,D->DKH"),
  "layers/attention/out/kernel": (_BLOCK + "attn_out.weight", "D,NH->NHD"),
  "layers/mlp/gate/kernel": (_BLOCK + "ff_proj.weight", "F,D->DF"),
  "layers/mlp/up/kernel": (_BLOCK + "up_proj.weight", "F,D->DF"),
  "layers/mlp/down/kernel": (_BLOCK + "ff_out.weight", "D,F->FD"),
}

_EXPERT = _LAYER + "mlp.experts.{e}."
_EXPERTS = {
  "layers/moe/router/kernel": (_LAYER + "mlp.gate.weight", "E,D->DE"),
  "layers/moe/gate/kernel": (_EXPERT + "gate_proj.weight", "F,D->DF"),
  "layers/moe/up/kernel": (_EXPERT + "up_proj.weight", "F,D->DF"),
  "layers/moe/down/kernel": (_EXPERT + "down_proj.weight", "D,F->FD"),
}

QWEN_MOE: NameTable = {**QWEN, **_EXPERTS}

LLADA_MOE: NameTable = {
  **QWEN_MOE,
  "layers/moe/router/bias": (_LAYER + "mlp.expert_bias", "E->E"),
  "layers/moe/shared/gate/kernel": (_LAYER + "shared_expert.gate_proj.weight", "S,D->DS"),
  "layers/moe/shared/up/kernel": (_LAYER + "shared_expert.up_proj.weight", "S,D->DS"),
  "layers/moe/shared/down/kernel": (_LAYER + "shared_expert.down_proj.weight", "D,S->SD"),
}

_FUSED = _LAYER + "attention.query_key_value.weight"

LLADA2_MOE: NameTable = {
  **_ENDS,
  **_NORMS,
  **_SWIGLU,
  **_EXPERTS,
  "embed": ("model.word_embeddings.weight", "V,D->VD"),
  "layers/attention/query/kernel": (_FUSED, "NH,D->DNH"),
  "layers/attention/key/kernel": (_FUSED, "KH,D->DKH"),
  "layers/attention/value/kernel": (_FUSED, "KH,D->DKH"),
  "layers/attention/out/kernel": (_LAYER + "attention.dense.weight", "D,NH->NHD"),
  "layers/attention/query_norm/scale": (_LAYER + "attention.query_layernorm.weight", "H->H"),
  "layers/attention/key_norm/scale": (_LAYER + "attention.key_layernorm.weight", "H->H"),
  "layers/moe/router/bias": (_LAYER + "mlp.gate.expert_bias", "E->E"),
  "layers/moe/shared/gate/kernel": (_LAYER + "mlp.shared_experts.gate_proj.weight", "S,D->DS"),
  "layers/moe/shared/up/kernel": (_LAYER + "mlp.shared_experts.up_proj.weight", "S,D->DS"),
  "layers/moe/shared/down/kernel": (_LAYER + "mlp.shared_experts.down_proj.weight", "D,S->SD"),
}

_DIT = "backbone.blocks.{i}."
_QKV = _DIT + "attn_qkv.weight"
_OUTPUT = "backbone.output_layer."
_SIGMA = "backbone.sigma_map.mlp."

BD3LM: NameTable = {
  "embed": ("backbone.vocab_embed.embedding", "V,D->VD"),
  "unembed": (_OUTPUT + "linear.weight", "V,D->VD"),
  "head/bias": (_OUTPUT + "linear.bias", "V->V"),
  "head/norm/scale": (_OUTPUT + "norm_final.weight", "D->D"),
  "head/modulation/linear/kernel": (_OUTPUT + "adaLN_modulation.weight", "MD,C->CMD"),
  "head/modulation/linear/bias": (_OUTPUT + "adaLN_modulation.bias", "MD->MD"),
  "time/inner/kernel": (_SIGMA + "0.weight", "C,S->SC"),
  "time/inner/bias": (_SIGMA + "0.bias", "C->C"),
  "time/outer/kernel": (_SIGMA + "2.weight", "E,C->CE"),
  "time/outer/bias": (_SIGMA + "2.bias", "E->E"),
  "layers/attention_norm/scale": (_DIT + "norm1.weight", "D->D"),
  "layers/mlp_norm/scale": (_DIT + "norm2.weight", "D->D"),
  "layers/modulation/linear/kernel": (_DIT + "adaLN_modulation.weight", "MD,C->CMD"),
  "layers/modulation/linear/bias": (_DIT + "adaLN_modulation.bias", "MD->MD"),
  "layers/attention/query/kernel": (_QKV, "NH,D->DNH"),
  "layers/attention/key/kernel": (_QKV, "KH,D->DKH"),
  "layers/attention/value/kernel": (_QKV, "KH,D->DKH"),
  "layers/attention/out/kernel": (_DIT + "attn_out.weight", "D,NH->NHD"),
  "layers/mlp/up/kernel": (_DIT + "mlp.0.weight", "F,D->DF"),
  "layers/mlp/up/bias": (_DIT + "mlp.0.bias", "F->F"),
  "layers/mlp/down/kernel": (_DIT + "mlp.2.weight", "D,F->FD"),
  "layers/mlp/down/bias": (_DIT + "mlp.2.bias", "D->D"),
}

_WQKV, _WI = _LAYER + "attn.Wqkv.weight", _LAYER + "mlp.Wi.weight"

MODERNBERT: NameTable = {
  "embed": ("model.embeddings.tok_embeddings.weight", "V,D->VD"),
  "unembed": ("decoder.weight", "V,D->VD"),
  "embed_norm/scale": ("model.embeddings.norm.weight", "D->D"),
  "final_norm/scale": ("model.final_norm.weight", "D->D"),
  "head/dense/kernel": ("head.dense.weight", "E,D->DE"),
  "head/norm/scale": ("head.norm.weight", "D->D"),
  "head/bias": ("decoder.bias", "V->V"),
  "layers/attention_norm/scale": (_LAYER + "attn_norm.weight", "D->D"),
  "layers/mlp_norm/scale": (_LAYER + "mlp_norm.weight", "D->D"),
  "layers/attention/query/kernel": (_WQKV, "NH,D->DNH"),
  "layers/attention/key/kernel": (_WQKV, "KH,D->DKH"),
  "layers/attention/value/kernel": (_WQKV, "KH,D->DKH"),
  "layers/attention/out/kernel": (_LAYER + "attn.Wo.weight", "D,NH->NHD"),
  "layers/mlp/gate/kernel": (_WI, "F,D->DF"),
  "layers/mlp/up/kernel": (_WI, "F,D->DF"),
  "layers/mlp/down/kernel": (_LAYER + "mlp.Wo.weight", "D,F->FD"),
}


_DECODER = "model.decoder."
_GEMMA = _DECODER + "layers.{i}."
_GEMMA_MLP = {"gate": "F,D->DF", "up": "F,D->DF", "down": "D,F->FD"}

DIFFUSION_GEMMA: NameTable = {
  "embed": (_DECODER + "embed_tokens.weight", "V,D->VD"),
  "unembed": ("lm_head.weight", "V,D->VD"),  # tied: never there
  "final_norm/scale": (_DECODER + "norm.weight", "D->D"),
  "self_conditioning/norm/scale": (_DECODER + "self_conditioning.pre_norm.weight", "D->D"),
  **{
    f"self_conditioning/mlp/{name}/kernel": (
      _DECODER + f"self_conditioning.{name}_proj.weight", layout
    )
    for name, layout in _GEMMA_MLP.items()
  },
  **{
    f"layers/{ours}/scale": (_GEMMA + f"{theirs}.weight", "D->D")
    for ours, theirs in {
      "attention_norm": "input_layernorm",
      "attention_post_norm": "post_attention_layernorm",
      "mlp_norm": "pre_feedforward_layernorm",
      "mlp_post_norm": "post_feedforward_layernorm_1",
      "moe_norm": "pre_feedforward_layernorm_2",
      "moe_post_norm": "post_feedforward_layernorm_2",
      "post_norm": "post_feedforward_layernorm",
    }.items()
  },
  **{
    f"layers/mlp/{name}/kernel": (_GEMMA + f"mlp.{name}_proj.weight", layout)
    for name, layout in _GEMMA_MLP.items()
  },
  **{
    ours: (theirs.replace(_LAYER, _GEMMA), layout)
    for ours, (theirs, layout) in QWEN.items()
    if ours.startswith("layers/attention/") and not ours.endswith("bias")
  },
  "layers/moe/router/kernel": (_GEMMA + "router.proj.weight", "E,D->DE"),
  "layers/moe/router/scale": (_GEMMA + "router.scale", "D->D"),
  "layers/moe/router/gain": (_GEMMA + "router.per_expert_scale", "E->E"),
  "layers/moe/gate/kernel": (_GEMMA + "experts.gate_up_proj", STACKED + "F,D->DF"),
  "layers/moe/up/kernel": (_GEMMA + "experts.gate_up_proj", STACKED + "F,D->DF"),
  "layers/moe/down/kernel": (_GEMMA + "experts.down_proj", STACKED + "D,F->FD"),
  "layers/noisy_scale": (_GEMMA + "layer_scalar", "A->A"),
  "layers/clean_scale": ("model.encoder.language_model.layers.{i}.layer_scalar", "A->A"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Layout:
  """One tensor's axes, stored and ours."""

  groups: tuple[tuple[int, ...], ...]  # the sizes that each stored axis merges
  flip: bool  # ours are the stored axes in opposite order

  @classmethod
  def of(cls, layout: str, ours: tuple[int, ...]) -> "Layout":
    left, right = layout.split("->")
    sizes = dict(zip(right, ours, strict=True))
    groups = left.split(",")
    return cls(
      groups=tuple(tuple(sizes[letter] for letter in group) for group in groups),
      flip="".join(groups) != right,
    )

  @property
  def stored(self) -> tuple[int, ...]:
    return tuple(map(math.prod, self.groups))


@dataclasses.dataclass(frozen=True)
class TensorPart:
  """What one stored tensor holds of one parameter."""

  name: str
  row: int  # where it begins on the tensor's first axis
  path: str
  at: tuple[int, ...]  # the place in the stack: layer, expert
  layout: Layout
  experts: int = 0  # that the tensor holds, on an axis before the layout's; 0: it has none

  @property
  def stored(self) -> tuple[int, ...]:
    """The tensor's shape, up to and with these rows."""
    rows, *rest = self.layout.stored
    shape = (self.row + rows, *rest)
    return (self.experts, *shape) if self.experts else shape


def paths(tree: Any) -> dict[str, Any]:
  """Leaves of a parameter tree by path."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def rule(table: NameTable, path: str) -> tuple[str, str] | None:
  """Name and layout of a parameter; all stacks of layers share the rules of "layers"."""
  return table.get(_shared(path))


def _shared(path: str) -> str:
  """The path by which a table has the parameters of any stack of layers."""
  return re.sub(r"^(dense_layers|layers_\d+)/", "layers/", path)


def count(table: NameTable, shapes: Mapping[str, tuple[int, ...]]) -> int:
  """How many parts `parts` yields."""
  return sum(math.prod(_stack(table, path, shape)) for path, shape in shapes.items())


def parts(
  table: NameTable, shapes: Mapping[str, tuple[int, ...]], model: ModelConfig
) -> Iterator[TensorPart]:
  """All parts of all parameters, parameter by parameter, in the table's order.

  Args:
    shapes: of the parameters by path; each has a rule.
    model: whose stacks of layers they are.
  """
  below: dict[tuple[str, str], int] = {}  # rows that a name's earlier parameters take
  order = list(table)
  first_of = {stack.name: stack.first for stack in model.stacks()}

  def place(path: str) -> int:
    return order.index(_shared(path))

  for path in sorted(shapes, key=place):
    template, eqn = rule(table, path)
    stack, top = _stack(table, path, shapes[path]), path.partition("/")[0]
    layout = Layout.of(eqn.removeprefix(STACKED), shapes[path][len(stack) :])
    experts = stack[1] if eqn.startswith(STACKED) else 0
    key = template, top
    row = below.get(key, 0)
    below[key] = row + layout.stored[0]
    for at in itertools.product(*map(range, stack)):
      layer, expert = (*at, 0, 0)[:2]
      name = template.replace("{i}", str(first_of.get(top, 0) + layer))
      yield TensorPart(name.replace("{e}", str(expert)), row, path, at, layout, experts)


def _stack(table: NameTable, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """The leading axes that are spread over tensors: layers, experts."""
  template, eqn = rule(table, path)
  return shape[: ("{i}" in template) + ("{e}" in template or eqn.startswith(STACKED))]
