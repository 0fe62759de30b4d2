"""One decoder for all models: LLaMA/Qwen layers, with experts or not, DiT's or ModernBERT's.

Any mask, a cache.

Parameters, stacked over layers on axis 0 under "layers":
  embed [V, D], unembed [V, D] unless tied, final_norm/scale [D], time/{inner,outer}/kernel [C, C]
  layers/attention/{query,key,value}/kernel [D, N|K, H], /bias [N|K, H]
  layers/attention/out/kernel [N, H, D], /bias [D]
  layers/attention/{query,key}_norm/scale [H], layers/{attention,mlp}_norm/scale [D]
  layers/mlp/{gate,up}/kernel [D, F], /bias [F], layers/mlp/down/kernel [F, D], /bias [D]
  layers/modulation/kernel [C, 6, D]
With `ModelConfig.lora` beside the kernel of a projection lora_a [in..., R], lora_b [R, out...].
With `ModelConfig.moe` instead of layers/mlp:
  layers/moe/router/kernel [D, E], /bias [E], layers/moe/{gate,up}/kernel [E, D, F], down/kernel
  [E, F, D], layers/moe/shared/{gate,up,down}/kernel as in mlp
and the first `dense_layers` layers are a stack of their own, "dense_layers", with mlp.
With `ModelConfig.gemma` (see `dlm.models.gemma`) stacks "layers_0", "layers_1", ..., each a run of
sliding or of full layers with mlp and moe, further norms, moe/router/{scale [D],gain [E]} and
{clean,noisy}_scale [1]; and self_conditioning/{norm/scale,mlp}.
With `ModelConfig.dit` (see `dlm.models.dit`) layers/mlp/{up,down} alone, they, time/{inner,outer}
and layers/modulation/linear with a bias, and head/{norm/scale,modulation/linear/*,bias [V]} in
place of final_norm.
With `ModelConfig.bert` (see `dlm.models.modernbert`) the first layer, without attention_norm, is
the stack "dense_layers"; embed_norm/scale [D], and behind final_norm head/{dense/kernel [D, D],
norm/scale, bias [V]}.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dlm import masks
from dlm.models import cache as kv_cache
from dlm.models.attention import Attention, Carry, Shared, tap
from dlm.models.cache import Stored
from dlm.models.config import DIT_SINUSOIDS, TIME_WIDTH, ModelConfig, Stack
from dlm.models.dit import DitBlock, DitHead, LayerNorm
from dlm.models.gemma import GemmaBlock, SelfConditioning, sliding
from dlm.models.layers import (
  Einsum,
  RMSNorm,
  SwiGLU,
  TimeEmbedding,
  lookup,
  query_scale,
  rotary,
)
from dlm.models.modernbert import BertBlock, BertHead, nearby
from dlm.models.moe.experts import EXPERT_PRODUCT
from dlm.models.moe.layer import Moe
from dlm.types import Array, KVCache, LogitHead, Mask, ModelOutput, Ring
from kernels_pallas.block_attention import RESIDUALS, Keys, Sight, prepare
from kernels_pallas.shards import collected, dealt, split_rows


class Block(nn.Module):
  """x + attention(norm(x)), then x + mlp(norm(x)); each modulated by the noise level if asked."""

  config: ModelConfig
  routed: bool  # experts in place of the MLP

  @nn.compact
  def __call__(self, carry: Carry, layer: Array, shared: Shared) -> tuple[Carry, dict[str, Array]]:
    """Returns the carry as it is after `layer`, and the router's facts."""
    cfg, (x_BxWxD, stored, tapped) = self.config, carry
    out_gain = (2 * cfg.layers) ** -0.5  # the residual stream keeps its scale at any depth
    attention_change, mlp_change = None, None
    if cfg.time_conditioned:
      modulation = Einsum(
        "...C,CMD->...MD", (TIME_WIDTH, 6, cfg.width), (None, None, "embed"), gain=0.0,
        name="modulation",
      )  # fmt: skip
      change = jnp.split(modulation(shared.time_BxWxC), 6, axis=2)
      change = [part.squeeze(2) for part in change]
      attention_change, mlp_change = change[:3], change[3:]

    def residual(x: Array, y: Array, change: list[Array] | None) -> Array:
      return x + y if change is None else x + (1 + change[2]) * y

    def normed(name: str, x: Array, change: list[Array] | None) -> Array:
      x = RMSNorm(cfg.norm_eps, ("embed",), name=name)(x)
      return x if change is None else x * (1 + change[0]) + change[1]

    y, stored = Attention(cfg, out_gain, name="attention")(
      normed("attention_norm", x_BxWxD, attention_change), stored, layer, shared
    )
    x_BxWxD = residual(x_BxWxD, y, attention_change)
    y, facts = normed("mlp_norm", x_BxWxD, mlp_change), {}
    if self.routed:
      y, facts = Moe(cfg, out_gain, name="moe")(y, shared.live_BxW, shared.level_BxW)
    else:
      mlp = SwiGLU(cfg.width, cfg.mlp, out_gain, cfg.mlp_bias, cfg.lora, name="mlp")
      y = mlp(y, shared.gate_BxW)
    x_BxWxD = residual(x_BxWxD, y, mlp_change)
    return (x_BxWxD, stored, tap(tapped, x_BxWxD, layer, shared)), facts


def scanned(block: type[nn.Module], layers: int, initializing: bool) -> type[nn.Module]:
  """So many layers as one: a single one is traced, over parameters that are stacked."""
  return nn.scan(
    block,
    variable_axes={"params": 0, "quantised": 0, "layer": 0},
    variable_broadcast=("apart", "stacked"),
    split_rngs={"params": True},
    in_axes=(0, nn.broadcast),
    length=layers,
    metadata_params={nn.PARTITION_NAME: "layers"},
    # flax's check traces the block once more. It stays where parameters are drawn: without it they
    # are others for the same seed.
    check_constancy_invariants=initializing,
  )


class Transformer(nn.Module):
  config: ModelConfig

  @nn.compact
  def __call__(
    self,
    tokens_BxW: Array,
    *,
    slot_BxW: Array,
    mask: Mask,
    time_BxW: Array | None = None,
    soft_BxWxD: Array | None = None,
    cache: KVCache | None = None,
    write_BxW: Array | None = None,
    final_B: Array | None = None,
    ask_BxA: Array | None = None,
    place_BxW: Array | None = None,
    taps: tuple[int, ...] = (),
  ) -> ModelOutput:
    """See `dlm.types.Denoiser`."""
    cfg = self.config
    dtype = jnp.dtype(cfg.dtype)
    embed_VxD = self._table("embed")
    unembed_VxD = embed_VxD if cfg.tied else self._table("unembed")
    key_BxW = self._keys(slot_BxW, cache, place_BxW)
    order_W = dealt(key_BxW.shape[1]) if cache is None else None
    if order_W is not None:  # the rest of this works in any order of the inputs
      tokens_BxW, slot_BxW, key_BxW = (x[:, order_W] for x in (tokens_BxW, slot_BxW, key_BxW))
      mask = masks.taken(mask, order_W)
      time_BxW = None if time_BxW is None else time_BxW[:, order_W]
      soft_BxWxD = None if soft_BxWxD is None else soft_BxWxD[:, order_W]

    # A checkpoint without a mask token is given one past its last row: the lookup takes the last.
    x_BxWxD = split_rows(lookup(embed_VxD, tokens_BxW).astype(dtype))
    if cfg.gemma is not None:
      conditioned = SelfConditioning(cfg, name="self_conditioning")
      x_BxWxD = conditioned(x_BxWxD, soft_BxWxD, time_BxW)
    elif soft_BxWxD is not None:
      x_BxWxD += soft_BxWxD.astype(dtype)
    if cfg.bert is not None:
      x_BxWxD = LayerNorm(cfg.norm_eps, name="embed_norm")(x_BxWxD)
    tapped = jnp.zeros((len(taps), *x_BxWxD.shape), dtype) if taps else None
    given = tokens_BxW, slot_BxW, key_BxW, mask, time_BxW, cache, write_BxW, taps
    if cfg.gemma is not None:
      x_BxWxD, cache, tapped, facts = self._gemma_layers(x_BxWxD, tapped, *given)
    else:
      shared = self._shared(cfg, *given, final_B=final_B)
      stored = None if cache is None else (cache.k_YxBxSxKxH, cache.v_YxBxSxKxH)
      kinds = shared
      if cfg.bert is not None:
        kinds = shared, self._local(shared, slot_BxW, key_BxW, mask, cache)
      (x_BxWxD, stored, tapped), facts = self._layers((x_BxWxD, stored, tapped), kinds)
      if write_BxW is not None:
        if shared.offer is not None:
          filled_BxS = kv_cache.filled_by(shared.offer, cache.filled_BxS)
        else:
          filled_BxS = kv_cache.filled(cache.filled_BxS, shared.target_BxW)
        k, v = stored
        cache = cache.replace(k_YxBxSxKxH=k, v_YxBxSxKxH=v, filled_BxS=filled_BxS)
        if shared.coding is not None:
          cache = cache.replace(coded_B=shared.coding[1])

    if order_W is not None:
      x_BxWxD = collected(x_BxWxD)
      tapped = jnp.stack([collected(each) for each in tapped]) if taps else None
    if ask_BxA is not None:  # norm and head cost nothing where nobody asks
      x_BxWxD = jnp.take_along_axis(x_BxWxD, ask_BxA[:, :, None], axis=1)
    unembed_VxD, embed_VxD = unembed_VxD.astype(dtype), embed_VxD.astype(dtype)
    if cfg.dit:
      hidden_BxAxD, unembed_VxD = DitHead(cfg, name="head")(x_BxWxD, unembed_VxD, shared.time_BxWxC)
    elif cfg.bert is not None:
      x_BxWxD = LayerNorm(cfg.norm_eps, name="final_norm")(x_BxWxD)
      hidden_BxAxD, unembed_VxD = BertHead(cfg, name="head")(x_BxWxD, unembed_VxD)
    else:
      hidden_BxAxD = RMSNorm(cfg.norm_eps, ("embed",), name="final_norm")(x_BxWxD)
    head = LogitHead(
      hidden_BxAxD, unembed_VxD, embed_VxD, soft_cap=cfg.soft_cap, implementation=cfg.implementation
    )
    features_BxWxF = jnp.concatenate(tapped, axis=-1) if taps else None
    return ModelOutput(head=head, cache=cache, aux=facts, features_BxWxF=features_BxWxF)

  def _table(self, name: str) -> Array:
    cfg = self.config
    init = nn.with_logical_partitioning(nn.initializers.normal(cfg.width**-0.5), ("vocab", "embed"))
    return self.param(name, init, (cfg.vocab, cfg.width))

  def _shared(
    self,
    kind: ModelConfig,
    tokens_BxW: Array,
    slot_BxW: Array,
    key_BxW: Array,
    mask: Mask,
    time_BxW: Array | None,
    cache: KVCache | None,
    write_BxW: Array | None,
    taps: tuple[int, ...],
    *,
    final_B: Array | None = None,
    ring: bool = False,
  ) -> Shared:
    """`kind`: with the sizes of the layers; `ring`: of those whose keys are in the cache's ring."""
    cfg = self.config
    time_BxWxC, target_BxW, dtype = None, None, jnp.dtype(cfg.dtype)
    if cfg.dit:
      embed = TimeEmbedding(cfg.dit, DIT_SINUSOIDS, bias=True, name="time")
      time_BxWxC = embed(jnp.zeros((1, 1)), dtype)
    elif cfg.time_conditioned:
      time_BxWxC = TimeEmbedding(TIME_WIDTH, TIME_WIDTH, name="time")(time_BxW, dtype)
    live_BxW, offer = masks.live(mask, key_BxW), None
    if write_BxW is not None and cache.choice is not None:
      offer = kv_cache.Offer(write_BxW, live_BxW & ~write_BxW, cache.choice)
    elif write_BxW is not None:
      targets = kv_cache.ring_targets if ring else kv_cache.targets
      slots = (cache.ring.slot_BxS if ring else cache.filled_BxS).shape[1]
      target_BxW = targets(slot_BxW, write_BxW, slots)
    coding = None
    if write_BxW is not None and final_B is not None:
      coding = cache.coded_B, kv_cache.coded_to(cache, final_B)
    rotated = cfg.gemma.rotated if cfg.gemma and not ring else 1.0
    dim = kind.rotary_dim or kind.head_dim
    return Shared(
      rotary=rotary(slot_BxW, dim, kind.rope_base, cfg.rope_scaling, rotated),
      query_scale_BxW=query_scale(slot_BxW, cfg.rope_scaling),
      sight=self._sight(kind, key_BxW, mask, cache, ring),
      target_BxW=target_BxW,
      coding=coding,
      time_BxWxC=time_BxWxC,
      level_BxW=time_BxW if cfg.gemma or (cfg.moe and cfg.moe.reads_noise) else None,
      offer=offer,
      live_BxW=live_BxW,
      reads=cache is None or cache.read,
      gate_BxW=tokens_BxW == cfg.lora.mask_id if cfg.lora and cfg.lora.gated else None,
      tap_Y=self._taps(taps, ring) if taps else None,
    )

  def _taps(self, taps: tuple[int, ...], ring: bool) -> Array:
    """Int [Y]: the place in `taps` of each of these layers; one past the last where it is none."""
    stacks = [stack for stack in self.config.stacks() if stack.full != ring]
    layers = [stack.first + i for stack in stacks for i in range(stack.layers)]
    return jnp.array([taps.index(layer) if layer in taps else len(taps) for layer in layers])

  def _local(
    self,
    shared: Shared,
    slot_BxW: Array,
    key_BxW: Array,
    mask: Mask,
    cache: KVCache | None,
  ) -> Shared:
    """What the local layers of a ModernBERT have in common."""
    cfg = self.config
    return shared.replace(
      rotary=rotary(slot_BxW, cfg.head_dim, cfg.bert.local_rope_base),
      sight=self._sight(cfg, key_BxW, nearby(mask, key_BxW, cfg.bert.reach), cache),
    )

  def _keys(self, slot_BxW: Array, cache: KVCache | None, place_BxW: Array | None) -> Array:
    """Where the window's keys sit: in the cache's slots, or in a row of their own."""
    if cache is None:
      return jnp.broadcast_to(jnp.arange(slot_BxW.shape[1], dtype=jnp.int32), slot_BxW.shape)
    return slot_BxW if place_BxW is None else place_BxW

  def _sight(
    self, kind: ModelConfig, key_BxW: Array, mask: Mask, cache: KVCache | None, ring: bool = False
  ) -> Sight:
    keys = [Keys(key_BxW)]
    if cache is not None and cache.read:
      slots = cache.filled_BxS.shape[1]
      slot_BxS = jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32), cache.filled_BxS.shape)
      if cache.choice is not None:  # any place of a row that is seen whole; none in the window
        keys.append(Keys(jnp.zeros_like(slot_BxS), cache.filled_BxS))
        return self._prepared(kind, mask, keys)
      fresh_BxS = cache.filled_BxS & ~kv_cache.in_window(key_BxW, slots)
      if ring:
        slot_BxS = cache.ring.slot_BxS
        fresh_BxS = (slot_BxS >= 0) & jnp.take_along_axis(fresh_BxS, slot_BxS, axis=1)
      if cache.coded_B is not None:
        recent_BxS = kv_cache.recent_slots(cache)
        keys.append(Keys(slot_BxS, fresh_BxS & (slot_BxS < cache.coded_B[:, None])))
        there_BxS = jnp.minimum(recent_BxS, slots - 1)
        fresh_BxS = jnp.take_along_axis(fresh_BxS, there_BxS, axis=1) & (recent_BxS < slots)
        slot_BxS = there_BxS
      keys.append(Keys(slot_BxS, fresh_BxS))
    return self._prepared(kind, mask, keys)

  def _prepared(self, kind: ModelConfig, mask: Mask, keys: list[Keys]) -> Sight:
    return prepare(
      mask, keys, heads=kind.heads, kv_heads=kind.kv_heads, dim=kind.head_dim,
      dtype=kind.dtype, implementation=kind.implementation,
    )  # fmt: skip

  def _layers(
    self, carry: Carry, shared: Shared | tuple[Shared, Shared]
  ) -> tuple[Carry, dict[str, Array]]:
    """All layers: plain ones, then those with experts, whose facts are returned."""
    facts = {}
    for stack in self.config.stacks():
      layer_Y = stack.first + jnp.arange(stack.layers)
      carry, told = self._stack(stack)(carry, layer_Y, shared)
      facts |= told
    return carry, facts

  def _gemma_layers(
    self,
    x_BxWxD: Array,
    tapped: Array | None,
    tokens_BxW: Array,
    slot_BxW: Array,
    key_BxW: Array,
    mask: Mask,
    time_BxW: Array,
    cache: KVCache | None,
    write_BxW: Array | None,
    taps: tuple[int, ...],
  ) -> tuple[Array, KVCache | None, Array | None, dict[str, Array]]:
    """Sliding and full layers, either kind with a sight, rotations and a cache of its own."""
    cfg = self.config
    stored, shared, done, facts = {}, {}, {True: 0, False: 0}, []
    rest = time_BxW, cache, write_BxW, taps
    for stack in cfg.stacks():
      full = stack.full
      if full not in shared:
        seen = mask if full else sliding(mask, cfg.gemma.window)
        kind = cfg.of_stack(stack)
        shared[full] = self._shared(kind, tokens_BxW, slot_BxW, key_BxW, seen, *rest, ring=not full)
        held = cache if full or cache is None else cache.ring
        stored[full] = None if cache is None else (held.k_YxBxSxKxH, held.v_YxBxSxKxH)
      carry = x_BxWxD, stored[full], tapped
      layer_Y = done[full] + jnp.arange(stack.layers)
      (x_BxWxD, stored[full], tapped), told = self._stack(stack)(carry, layer_Y, shared[full])
      done[full] += stack.layers
      facts.append(told)
    if write_BxW is not None:
      cache = self._written(cache, stored, shared, slot_BxW)
    return x_BxWxD, cache, tapped, jax.tree.map(lambda *x: jnp.concatenate(x), *facts)

  def _written(
    self,
    cache: KVCache,
    stored: dict[bool, Stored],
    shared: dict[bool, Shared],
    slot_BxW: Array,
  ) -> KVCache:
    """`stored`, `shared`: of full layers, and of sliding ones where there are some."""
    ring, filled_BxS = cache.ring, kv_cache.filled(cache.filled_BxS, shared[True].target_BxW)
    if False in stored:
      held_BxS = kv_cache.held(ring.slot_BxS, shared[False].target_BxW, slot_BxW)
      ring = Ring(*stored[False], held_BxS)
    k, v = stored[True]
    return cache.replace(k_YxBxSxKxH=k, v_YxBxSxKxH=v, filled_BxS=filled_BxS, ring=ring)

  def _stack(self, stack: Stack) -> nn.Module:
    """One traced block for all its layers, so that compile time does not grow with depth.

    The backward pass recomputes attention weights and elementwise work in any case: to store them
    for every layer takes more memory and, on CPUs, more time. With `remat` it recomputes all.
    """
    cfg = self.config
    policies = jax.checkpoint_policies
    keep = None
    if not cfg.remat:
      keep = policies.save_from_both_policies(
        policies.dots_with_no_batch_dims_saveable,
        policies.save_only_these_names(EXPERT_PRODUCT, RESIDUALS),
      )
    kind, options = (DitBlock, {}) if cfg.dit else (Block, {"routed": stack.routed})
    if cfg.gemma is not None:
      kind, options = GemmaBlock, {"full": stack.full}
    if cfg.bert is not None:
      kind, options = BertBlock, {"first": stack.name == "dense_layers"}
    block = nn.remat(kind, prevent_cse=False, policy=keep)
    layers = scanned(block, stack.layers, self.is_initializing())
    return layers(cfg.of_stack(stack), name=stack.name, **options)
