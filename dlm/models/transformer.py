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
from dlm.models.config import DIT_SINUSOIDS, TIME_WIDTH, ModelConfig
from dlm.models.dit import DitBlock, DitHead, LayerNorm
from dlm.models.layers import Einsum, RMSNorm, SwiGLU, TimeEmbedding, query_scale, rotary
from dlm.models.modernbert import BertBlock, BertHead, nearby
from dlm.models.moe.experts import EXPERT_PRODUCT
from dlm.models.moe.layer import Moe
from dlm.types import Array, KVCache, LogitHead, Mask, ModelOutput
from kernels_pallas.block_attention import RESIDUALS, Keys, Sight, prepare


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
    ask_BxA: Array | None = None,
    place_BxW: Array | None = None,
    taps: tuple[int, ...] = (),
  ) -> ModelOutput:
    """See `dlm.types.Denoiser`."""
    cfg = self.config
    dtype = jnp.dtype(cfg.dtype)
    embed_VxD = self._table("embed")
    unembed_VxD = embed_VxD if cfg.tied else self._table("unembed")

    # A checkpoint without a mask token is given one past its last row: the lookup takes the last.
    x_BxWxD = jnp.take(embed_VxD, tokens_BxW, axis=0, mode="clip").astype(dtype)
    if soft_BxWxD is not None:
      x_BxWxD += soft_BxWxD.astype(dtype)
    if cfg.bert is not None:
      x_BxWxD = LayerNorm(cfg.norm_eps, name="embed_norm")(x_BxWxD)
    shared = self._shared(tokens_BxW, slot_BxW, mask, time_BxW, cache, write_BxW, place_BxW, taps)
    stored = None if cache is None else (cache.k_YxBxSxKxH, cache.v_YxBxSxKxH)
    tapped = jnp.zeros((len(taps), *x_BxWxD.shape), dtype) if taps else None
    kinds = shared
    if cfg.bert is not None:
      kinds = shared, self._local(shared, slot_BxW, mask, cache, place_BxW)
    (x_BxWxD, stored, tapped), facts = self._layers((x_BxWxD, stored, tapped), kinds)
    if write_BxW is not None:
      filled_BxS = kv_cache.filled(cache.filled_BxS, shared.target_BxW)
      k, v = stored
      cache = cache.replace(k_YxBxSxKxH=k, v_YxBxSxKxH=v, filled_BxS=filled_BxS)

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
    tokens_BxW: Array,
    slot_BxW: Array,
    mask: Mask,
    time_BxW: Array | None,
    cache: KVCache | None,
    write_BxW: Array | None,
    place_BxW: Array | None,
    taps: tuple[int, ...],
  ) -> Shared:
    cfg = self.config
    time_BxWxC, target_BxW, dtype = None, None, jnp.dtype(cfg.dtype)
    if cfg.dit:
      embed = TimeEmbedding(cfg.dit, DIT_SINUSOIDS, bias=True, name="time")
      time_BxWxC = embed(jnp.zeros((1, 1)), dtype)
    elif cfg.time_conditioned:
      time_BxWxC = TimeEmbedding(TIME_WIDTH, TIME_WIDTH, name="time")(time_BxW, dtype)
    key_BxW = self._keys(slot_BxW, cache, place_BxW)
    if write_BxW is not None:
      target_BxW = kv_cache.targets(slot_BxW, write_BxW, cache.filled_BxS.shape[1])
    nowhere = len(taps)
    tap_Y = [taps.index(layer) if layer in taps else nowhere for layer in range(cfg.layers)]
    return Shared(
      rotary=rotary(slot_BxW, cfg.rotary_dim or cfg.head_dim, cfg.rope_base, cfg.rope_scaling),
      query_scale_BxW=query_scale(slot_BxW, cfg.rope_scaling),
      sight=self._sight(key_BxW, mask, cache),
      target_BxW=target_BxW,
      time_BxWxC=time_BxWxC,
      level_BxW=time_BxW if cfg.moe is not None and cfg.moe.reads_noise else None,
      live_BxW=masks.live(mask, key_BxW),
      gate_BxW=tokens_BxW == cfg.lora.mask_id if cfg.lora and cfg.lora.gated else None,
      tap_Y=jnp.array(tap_Y) if taps else None,
    )

  def _local(
    self,
    shared: Shared,
    slot_BxW: Array,
    mask: Mask,
    cache: KVCache | None,
    place_BxW: Array | None,
  ) -> Shared:
    """What the local layers of a ModernBERT have in common."""
    cfg, key_BxW = self.config, self._keys(slot_BxW, cache, place_BxW)
    return shared.replace(
      rotary=rotary(slot_BxW, cfg.head_dim, cfg.bert.local_rope_base),
      sight=self._sight(key_BxW, nearby(mask, key_BxW, cfg.bert.reach), cache),
    )

  def _keys(self, slot_BxW: Array, cache: KVCache | None, place_BxW: Array | None) -> Array:
    """Where the window's keys sit: in the cache's slots, or in a row of their own."""
    if cache is None:
      return jnp.broadcast_to(jnp.arange(slot_BxW.shape[1], dtype=jnp.int32), slot_BxW.shape)
    return slot_BxW if place_BxW is None else place_BxW

  def _sight(self, key_BxW: Array, mask: Mask, cache: KVCache | None) -> Sight:
    cfg = self.config
    keys = [Keys(key_BxW)]
    if cache is not None:
      slots = cache.filled_BxS.shape[1]
      slot_BxS = jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32), cache.filled_BxS.shape)
      fresh_BxS = cache.filled_BxS & ~kv_cache.in_window(key_BxW, slots)
      keys.append(Keys(slot_BxS, fresh_BxS))
    return prepare(
      mask, keys, heads=cfg.heads, kv_heads=cfg.kv_heads, implementation=cfg.implementation
    )

  def _layers(
    self, carry: Carry, shared: Shared | tuple[Shared, Shared]
  ) -> tuple[Carry, dict[str, Array]]:
    """All layers: plain ones, then those with experts, whose facts are returned."""
    dense, routed = self.config.stacks()
    if self.config.bert is not None:
      carry, _ = self._stack("dense_layers", 1, routed=False)(carry, jnp.arange(1), shared)
      return self._stack("layers", dense - 1, routed=False)(carry, jnp.arange(1, dense), shared)
    facts = {}
    if dense:
      stack = self._stack("dense_layers" if routed else "layers", dense, routed=False)
      carry, _ = stack(carry, jnp.arange(dense), shared)
    if routed:
      stack = self._stack("layers", routed, routed=True)
      carry, facts = stack(carry, dense + jnp.arange(routed), shared)
    return carry, facts

  def _stack(self, name: str, layers: int, *, routed: bool) -> nn.Module:
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
    kind, options = (DitBlock, {}) if cfg.dit else (Block, {"routed": routed})
    if cfg.bert is not None:
      kind, options = BertBlock, {"first": name == "dense_layers"}
    block = nn.remat(kind, prevent_cse=False, policy=keep)
    stack = nn.scan(
      block,
      variable_axes={"params": 0, "layer": 0},
      variable_broadcast="apart",
      split_rngs={"params": True},
      in_axes=(0, nn.broadcast),
      length=layers,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return stack(cfg, name=name, **options)
