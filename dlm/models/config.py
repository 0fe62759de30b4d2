"""What a transformer is made of, and what it then costs: parameters, FLOPs."""

import dataclasses
import itertools
from collections.abc import Iterator

from dlm.models.lora import ALL, ATTENTION, MLP, LoraConfig
from dlm.models.moe.config import MoeConfig
from dlm.models.rope import RopeScaling
from kernels_pallas import dispatch

TIME_WIDTH = 128  # of the noise level's embedding, as in MDLM (arXiv 2406.07524)
DIT_SINUSOIDS = 256  # from which DiT makes it

DTYPES = ("float32", "bfloat16")

# What a drafter may choose; all else is as its plain layers have it.
DRAFTER_HAS = (
  "vocab", "width", "layers", "heads", "kv_heads", "head_dim", "mlp", "rope_base", "rope_scaling",
  "norm_eps", "soft_cap", "dtype", "implementation", "remat",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class DrafterConfig:
  """What a DFlash drafter (`dlm.models.dflash`) is told of its target.

  Args:
    taps: layers of the target, from 0, whose outputs it is given; not the last, which only the head
      reads.
    target_layers: how many the target has.
    mask_id: row of the target's embedding that stands for a token to draft; None: that of the
      tokenizer's mask token.
    window: text further back from a token of the block is not seen: the last `window` tokens, the
      token itself among them, at least the block (NeMo Automodel's sliding_window); 0: all is seen.
  """

  taps: tuple[int, ...]
  target_layers: int
  mask_id: int | None = None
  window: int = 0

  def __post_init__(self):
    if self.window < 0:
      raise ValueError(f"model.drafter.window={self.window} must not be negative (0: all is seen)")
    ascend = all(a < b for a, b in itertools.pairwise((-1, *self.taps, self.target_layers - 1)))
    if not self.taps or not ascend:
      raise ValueError(
        f"model.drafter.taps={self.taps} must ascend within 0..{self.target_layers - 2}: layers of "
        f"a target of {self.target_layers} (target_layers), but for the last"
      )

  @classmethod
  def of(cls, target_layers: int, layers: int) -> "DrafterConfig":
    """A drafter of so many layers: as many taps, spread evenly from the second layer on.

    The authors': 1 + i (target_layers - 4) / (layers - 1), rounded; a single one in the middle.
    """
    if layers == 1:
      return cls((target_layers // 2,), target_layers)
    step = (target_layers - 4) / (layers - 1)
    return cls(tuple(round(1 + i * step) for i in range(layers)), target_layers)


@dataclasses.dataclass(frozen=True)
class BertConfig:
  """ModernBERT's layers: of every `full_every` one sees all, the first of them; the others nearby.

  Args:
    reach: tokens that a local layer sees on either side of a token.
    local_rope_base: of local layers; `ModelConfig.rope_base` is that of the others.
  """

  full_every: int = 3
  reach: int = 64
  local_rope_base: float = 1e4

  def __post_init__(self):
    for name in ("full_every", "reach"):
      if getattr(self, name) < 1:
        raise ValueError(f"BertConfig: {name}={getattr(self, name)} must be at least 1")
    if not self.local_rope_base > 0:
      raise ValueError(f"BertConfig: local_rope_base={self.local_rope_base} must be positive")


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
  """DiffusionGemma's layers: sliding ones have the sizes of `ModelConfig`, full ones these.

  Args:
    full: the full layers, counted from 0; all others slide.
    window: tokens that a sliding layer sees, a token itself among them.
    rotated: share of a full layer's channels that turn: the first of each half of a head.
  """

  full: tuple[int, ...]
  window: int
  kv_heads: int
  head_dim: int
  rope_base: float = 1e6
  rotated: float = 0.25

  def __post_init__(self):
    for name in ("window", "kv_heads", "head_dim"):
      if getattr(self, name) < 1 + (name == "window"):
        raise ValueError(f"GemmaConfig: {name}={getattr(self, name)} is too small")
    if self.head_dim % 2:
      raise ValueError(f"GemmaConfig: head_dim={self.head_dim} must be even: RoPE turns pairs")
    if self.rope_base <= 0 or not 0 <= self.rotated <= 1:
      raise ValueError(
        f"GemmaConfig: rope_base={self.rope_base} must be positive, rotated={self.rotated} in 0..1"
      )
    if list(self.full) != sorted({*self.full}) or not all(i >= 0 for i in self.full):
      raise ValueError(f"GemmaConfig: full={self.full} must be layers in order, each once")


@dataclasses.dataclass(frozen=True)
class Stack:
  """Layers in a row that are alike: one traced block, one subtree of the parameters."""

  name: str
  first: int  # of its layers
  layers: int
  routed: bool
  full: bool = True  # attention sees all that the mask allows


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A LLaMA/Qwen-style decoder, a DiT, a ModernBERT or a DiffusionGemma. Hashable."""

  vocab: int  # rows of the embedding, special tokens included
  width: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp: int
  moe: MoeConfig | None = None
  rope_base: float = 10000.0
  rope_scaling: RopeScaling | None = None  # for texts longer than were trained on
  rotary_dim: int = 0  # leading channels of a head that are rotated; 0: all
  norm_eps: float = 1e-6
  qk_norm: bool = False  # RMSNorm of every query and key head, before the rotation (Qwen3)
  qkv_bias: bool = False  # Qwen2
  out_bias: bool = False  # of attention's output; LLaMA's attention_bias means both
  mlp_bias: bool = False  # of gate, up and down
  tied: bool = True  # one matrix embeds and unembeds
  time_conditioned: bool = False  # the noise level shifts, scales and gates every layer
  dit: int = 0  # layers as in MDLM's and BD3-LM's DiT, with a conditioning so wide; 0: they are not
  bert: BertConfig | None = None  # layers, embedding and head as in ModernBERT
  gemma: GemmaConfig | None = None  # layers, embedding and self-conditioning of DiffusionGemma
  soft_cap: float | None = None  # logits become cap * tanh(logits / cap)
  dtype: str = "float32"  # of activations and of the cache; parameters are always float32
  implementation: str | None = None  # of attention and the head's ops, see `dispatch`; None: best
  lora: LoraConfig | None = None  # adapters: training then changes them and nothing else
  drafter: DrafterConfig | None = None  # a DFlash drafter of another model, not a model by itself
  remat: bool = False  # the backward pass recomputes whole layers: least memory, one more forward

  def __post_init__(self):
    for name in ("vocab", "width", "layers", "heads", "kv_heads", "head_dim", "mlp"):
      if getattr(self, name) < 1:
        raise ValueError(f"ModelConfig: {name}={getattr(self, name)} must be at least 1")
    if self.heads % self.kv_heads:
      raise ValueError(
        f"ModelConfig: heads={self.heads} must be a multiple of kv_heads={self.kv_heads}"
      )
    if self.head_dim % 2:
      raise ValueError(f"ModelConfig: head_dim={self.head_dim} must be even: RoPE turns pairs")
    if self.rotary_dim % 2 or not 0 <= self.rotary_dim <= self.head_dim:
      raise ValueError(
        f"ModelConfig: rotary_dim={self.rotary_dim} must be even and in 0..head_dim={self.head_dim}"
      )
    if self.rope_scaling is not None and self.rope_base <= 1:
      raise ValueError(
        f"ModelConfig: rope_base={self.rope_base} must exceed 1 where rope_scaling is set"
      )
    if self.moe is not None and self.moe.dense_layers >= self.layers:
      raise ValueError(
        f"ModelConfig: moe.dense_layers={self.moe.dense_layers} must be below layers={self.layers}"
      )
    if self.dit < 0 or (
      self.dit and (self.moe is not None or self.time_conditioned or self.mlp_bias)
    ):
      raise ValueError(
        f"ModelConfig: dit={self.dit} must be 0 (off) or a width, and then moe is None, and "
        f"time_conditioned and mlp_bias False; moe={self.moe}, "
        f"time_conditioned={self.time_conditioned}, mlp_bias={self.mlp_bias}"
      )
    self._check_bert()
    self._check_gemma()
    self._check_lora()
    if self.drafter is not None:
      self._check_drafter()
    if self.soft_cap is not None and self.soft_cap <= 0:
      raise ValueError(f"ModelConfig: soft_cap={self.soft_cap} must be positive, or None for off")
    dispatch.check(self.implementation)
    if self.dtype not in DTYPES:
      raise ValueError(f"ModelConfig: dtype={self.dtype!r} must be one of {', '.join(DTYPES)}")

  def _check_bert(self) -> None:
    plain = dict(
      moe=None, rope_scaling=None, rotary_dim=0, qk_norm=False, qkv_bias=False, out_bias=False,
      mlp_bias=False, time_conditioned=False, dit=0,
    )  # fmt: skip
    for name, value in plain.items() if self.bert else ():
      if getattr(self, name) != value:
        raise ValueError(f"ModelConfig: {name}={getattr(self, name)} must be {value} with bert")
    if self.bert and self.layers < 2:
      raise ValueError(f"ModelConfig: layers={self.layers} must be at least 2 with bert")

  def _check_gemma(self) -> None:
    """Raises ValueError where layers are asked for that are not DiffusionGemma's."""
    if self.gemma is None:
      return
    if self.gemma.full[-1:] != (self.layers - 1,):
      raise ValueError(
        f"ModelConfig: gemma.full={self.gemma.full} must end with the last of layers={self.layers}"
      )
    if self.heads % self.gemma.kv_heads:
      raise ValueError(
        f"ModelConfig: heads={self.heads} must be a multiple of kv_heads={self.gemma.kv_heads} of "
        "gemma"
      )
    moe = self.moe
    if moe is None or moe != MoeConfig(
      experts=moe.experts, per_token=moe.per_token, mlp=moe.mlp, renormalise=True,
      z_loss=moe.z_loss, balance_loss=moe.balance_loss,
    ):  # fmt: skip
      raise ValueError(
        "ModelConfig: gemma needs moe with experts, per_token, mlp and renormalise=True, and no "
        f"other setting but losses; moe={moe}"
      )
    plain = dict(
      rope_scaling=None, rotary_dim=0, qk_norm=True, qkv_bias=False, out_bias=False, mlp_bias=False,
      tied=True, time_conditioned=False, dit=0,
    )  # fmt: skip
    for name, value in plain.items():
      if getattr(self, name) != value:
        raise ValueError(f"ModelConfig: {name}={getattr(self, name)} must be {value} with gemma")

  def _check_lora(self) -> None:
    if self.lora is None:
      return
    mlp = [name for name in self.lora.names if name in MLP]
    if self.moe is not None and mlp and self.gemma is None:
      raise ValueError(
        f"model.lora.targets={self.lora.targets!r}: experts have no adapters; with model.moe name "
        f"some of {', '.join(ATTENTION)}"
      )
    if self.dit and "gate" in mlp and self.lora.targets != ALL:
      raise ValueError(f"model.lora.targets={self.lora.targets!r}: the MLP of a DiT has no gate")

  def _check_drafter(self) -> None:
    """Its layers are Qwen3's, and it has no table of its own."""
    plain = ModelConfig(
      **{field: getattr(self, field) for field in DRAFTER_HAS}, qk_norm=True, drafter=None
    )
    odd = [
      f"{field.name}={getattr(self, field.name)!r}"
      for field in dataclasses.fields(self)
      if field.name != "drafter" and getattr(self, field.name) != getattr(plain, field.name)
    ]
    if odd:
      raise ValueError(f"ModelConfig: a drafter's layers are Qwen3's, without {', '.join(odd)}")
    if (self.drafter.mask_id or 0) >= self.vocab:
      raise ValueError(
        f"model.drafter.mask_id={self.drafter.mask_id} lies outside the vocabulary of {self.vocab}"
      )

  @property
  def reads_noise(self) -> bool:
    """Whether the model must be told the noise level of every input."""
    return (
      self.time_conditioned
      or self.gemma is not None  # clean text and noise are other passes
      or (self.moe is not None and self.moe.reads_noise)
    )

  def _matmul_params(self, experts: float = 0) -> float:
    """Weights that multiply every token: all but the embedding lookup, norms and biases.

    `experts`: how many of a layer's routed experts count.
    """
    attention, dense, routed = 0, 0, 0
    for stack in self.stacks():
      kind = self.of_stack(stack)
      keys = kind.kv_heads * (1 if self.gemma and stack.full else 2)  # its keys are its values
      attention += stack.layers * self.width * (2 * kind.heads + keys) * kind.head_dim
      dense += 0 if stack.routed and not self.gemma else stack.layers
      routed += stack.layers if stack.routed else 0
    dense += 1 if self.gemma else 0  # self-conditioning
    feed_forward = dense * (2 if self.dit else 3) * self.width * self.mlp
    if self.moe is not None:
      moe = self.moe
      feed_forward += routed * self.width * (moe.experts + 3 * (experts * moe.mlp + moe.shared))
    modulation, time = 0, 0
    if self.time_conditioned:
      modulation = TIME_WIDTH * 6 * self.width
      time = 2 * TIME_WIDTH * TIME_WIDTH
    adapters = sum(stack.layers * self._lora_params(stack) for stack in self.stacks())
    layers = attention + self.layers * modulation + adapters
    head = self.width * self.width if self.bert else 0
    return layers + feed_forward + time + head + self.vocab * self.width

  def _lora_params(self, stack: Stack) -> int:
    """Of a layer."""
    if self.lora is None:
      return 0
    kind = self.of_stack(stack)
    queries, keys = kind.heads * kind.head_dim, kind.kv_heads * kind.head_dim
    out = {"query": queries, "key": keys, "value": keys, "out": queries}
    if self.gemma and stack.full:
      del out["value"]
    out |= dict.fromkeys(MLP[1:] if self.dit else MLP, self.mlp)
    return sum(self.lora.rank * (self.width + out[n]) for n in self.lora.names if n in out)

  def stacks(self) -> tuple[Stack, ...]:
    """All layers in order: those with a plain MLP, then those with experts.

    DiffusionGemma's: runs of sliding layers and of full ones, all with both.
    """
    if self.gemma is not None:
      return tuple(self._runs())
    lead, routed = self.leading, self.moe is not None
    first = Stack("dense_layers", 0, lead, routed=False)
    rest = Stack("layers", lead, self.layers - lead, routed)
    return (first, rest) if lead else (rest,)

  def _runs(self) -> Iterator[Stack]:
    kinds = (layer in self.gemma.full for layer in range(self.layers))
    first = 0
    for number, (full, run) in enumerate(itertools.groupby(kinds)):
      layers = len(list(run))
      yield Stack(f"layers_{number}", first, layers, routed=True, full=full)
      first += layers

  def of_stack(self, stack: Stack) -> "ModelConfig":
    """With the sizes of its attention."""
    if self.gemma is None or not stack.full:
      return self
    full = {name: getattr(self.gemma, name) for name in ("kv_heads", "head_dim", "rope_base")}
    return dataclasses.replace(self, **full)

  @property
  def leading(self) -> int:
    """Layers of the stack "dense_layers", which come before those of "layers"."""
    if self.bert is not None:
      return 1  # has no norm before its attention
    return 0 if self.moe is None else self.moe.dense_layers

  def n_params(self) -> int:
    """Exact size of the parameter tree."""
    layer = 2 * self.width
    if self.gemma is not None:
      return round(self._matmul_params(self.moe.experts)) + self._gemma_params()
    if self.qk_norm:
      layer += 2 * self.head_dim
    if self.qkv_bias:
      layer += (self.heads + 2 * self.kv_heads) * self.head_dim
    if self.out_bias:
      layer += self.width
    lookup = 0 if self.tied else self.vocab * self.width
    experts, router_bias = 0, 0
    if self.moe is not None:
      experts = self.moe.experts
      router_bias = (self.layers - self.moe.dense_layers) * experts if self.moe.bias else 0
    dense = self.layers if self.moe is None else self.moe.dense_layers
    mlp_bias = dense * (2 * self.mlp + self.width) if self.mlp_bias else 0
    others = self.layers * layer + self.width + lookup + router_bias + mlp_bias
    more = self._dit_params() + self._drafter_params() + self._bert_params()
    return self._matmul_params(experts) + others + more

  def _drafter_params(self) -> int:
    """What a drafter has besides its layers, less the table that it has not."""
    if self.drafter is None:
      return 0
    return (len(self.drafter.taps) * self.width + 1 - self.vocab) * self.width

  def _bert_params(self) -> int:
    """A norm of the embedding, in place of the first layer's; the head's norm and bias."""
    return self.width + self.vocab if self.bert else 0

  def _gemma_params(self) -> int:
    """Norms and scales, which multiply no token: seven norms a layer, and two beside the layers."""
    heads = sum(2 * stack.layers * self.of_stack(stack).head_dim for stack in self.stacks())
    layer = 7 * self.width + 2 + self.width + self.moe.experts
    return self.layers * layer + heads + 2 * self.width

  def _dit_params(self) -> int:
    """What only a DiT has: its conditioning, which multiplies no token, and biases."""
    if not self.dit:
      return 0
    time = (DIT_SINUSOIDS + self.dit + 2) * self.dit
    modulation = (6 * self.layers + 2) * self.width * (self.dit + 1)
    return time + modulation + self.layers * (self.mlp + self.width) + self.vocab

  def flops_per_token(self, context: int) -> int:
    """Matmul FLOPs of one forward for a token that sees `context` keys; a backward costs twice.

    Of the experts only those that a token is routed to count; where a schedule says how many, on
    average over all noise levels.
    """
    attention = 0
    for stack in self.stacks():
      seen = context if stack.full else min(context, self.gemma.window)
      attention += 4 * seen * self.heads * self.of_stack(stack).head_dim * stack.layers
    if self.bert is not None:
      near = self.layers + -self.layers // self.bert.full_every
      unseen = context - min(context, 2 * self.bert.reach + 1)
      attention -= 4 * near * unseen * self.heads * self.head_dim
    active = 0 if self.moe is None else self.moe.mean_per_token()
    return round(2 * self._matmul_params(active)) + attention
