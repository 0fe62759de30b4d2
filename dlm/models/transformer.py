"""One decoder for all dense models: LLaMA/Qwen layers, any mask, optional cache and noise level.

Parameters, stacked over layers on axis 0 under "layers":
  embed [V, D], unembed [V, D] unless tied, final_norm/scale [D], time/{inner,outer}/kernel [C, C]
  layers/attention/{query,key,value}/kernel [D, N|K, H], /bias [N|K, H], out/kernel [N, H, D]
  layers/attention/{query,key}_norm/scale [H], layers/{attention,mlp}_norm/scale [D]
  layers/mlp/{gate,up}/kernel [D, F], layers/mlp/down/kernel [F, D]
  layers/modulation/kernel [C, 6, D]
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dlm import masks
from dlm.models import cache as kv_cache
from dlm.models.attention import Attention, Shared
from dlm.models.layers import Einsum, RMSNorm, SwiGLU, TimeEmbedding, rotary
from dlm.models.presets import TIME_WIDTH, ModelConfig
from dlm.types import Array, KVCache, LogitHead, Mask, ModelOutput


def _bias(sees_BxWxS: Array) -> Array:
  return jnp.where(sees_BxWxS, jnp.float32(0), -jnp.inf)


class Block(nn.Module):
  """x + attention(norm(x)), then x + mlp(norm(x)); each modulated by the noise level if asked."""

  config: ModelConfig

  @nn.compact
  def __call__(
    self, x_BxWxD: Array, cached: tuple[Array, Array] | None, shared: Shared
  ) -> tuple[Array, tuple[Array, Array] | None]:
    cfg = self.config
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

    y, keys = Attention(cfg, out_gain, name="attention")(
      normed("attention_norm", x_BxWxD, attention_change), cached, shared
    )
    x_BxWxD = residual(x_BxWxD, y, attention_change)
    y = SwiGLU(cfg.width, cfg.mlp, out_gain, name="mlp")(normed("mlp_norm", x_BxWxD, mlp_change))
    return residual(x_BxWxD, y, mlp_change), None if cached is None else keys


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
    cache: KVCache | None = None,
    write_BxW: Array | None = None,
    ask_BxA: Array | None = None,
  ) -> ModelOutput:
    """See `dlm.types.Denoiser`."""
    cfg = self.config
    dtype = jnp.dtype(cfg.dtype)
    embed_VxD = self._table("embed")
    unembed_VxD = embed_VxD if cfg.tied else self._table("unembed")

    x_BxWxD = embed_VxD[tokens_BxW].astype(dtype)
    shared = self._shared(slot_BxW, mask, time_BxW, cache)
    stored = None if cache is None else (cache.k_YxBxSxKxH, cache.v_YxBxSxKxH)
    x_BxWxD, keys = self._layers()(x_BxWxD, stored, shared)
    if write_BxW is not None:
      cache = kv_cache.write(cache, *keys, slot_BxW, write_BxW)

    if ask_BxA is not None:  # norm and head cost nothing where nobody asks
      x_BxWxD = jnp.take_along_axis(x_BxWxD, ask_BxA[:, :, None], axis=1)
    hidden_BxAxD = RMSNorm(cfg.norm_eps, ("embed",), name="final_norm")(x_BxWxD)
    head = LogitHead(hidden_BxAxD, unembed_VxD.astype(dtype), soft_cap=cfg.soft_cap)
    return ModelOutput(head=head, cache=cache, aux={})

  def _table(self, name: str) -> Array:
    cfg = self.config
    init = nn.with_logical_partitioning(nn.initializers.normal(cfg.width**-0.5), ("vocab", "embed"))
    return self.param(name, init, (cfg.vocab, cfg.width))

  def _shared(
    self, slot_BxW: Array, mask: Mask, time_BxW: Array | None, cache: KVCache | None
  ) -> Shared:
    cfg = self.config
    time_BxWxC = None
    if cfg.time_conditioned:
      time_BxWxC = TimeEmbedding(TIME_WIDTH, name="time")(time_BxW, jnp.dtype(cfg.dtype))
    if cache is None:
      window = slot_BxW.shape[1]
      key_BxW = jnp.broadcast_to(jnp.arange(window, dtype=jnp.int32), slot_BxW.shape)
      bias_BxWxS, filled_BxS = None, None
    else:
      key_BxW, filled_BxS = slot_BxW, cache.filled_BxS
      slots = filled_BxS.shape[1]
      key_BxS = jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32), filled_BxS.shape)
      fresh_BxS = filled_BxS & ~kv_cache.in_window(slot_BxW, slots)
      bias_BxWxS = _bias(masks.visible(mask, key_BxS) & fresh_BxS[:, None, :])
    return Shared(
      rotary=rotary(slot_BxW, cfg.rotary_dim or cfg.head_dim, cfg.rope_base),
      bias_BxWxW=_bias(masks.visible(mask, key_BxW)),
      bias_BxWxS=bias_BxWxS,
      filled_BxS=filled_BxS,
      time_BxWxC=time_BxWxC,
    )

  def _layers(self) -> nn.Module:
    """One traced block for all layers, so that compile time does not grow with depth.

    The backward pass recomputes attention weights and elementwise work in any case: to store them
    for every layer takes more memory and, on CPUs, more time. With `remat` it recomputes all.
    """
    cfg = self.config
    keep = None if cfg.remat else jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    block = nn.remat(Block, prevent_cse=False, policy=keep)
    stack = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(0, nn.broadcast),
      length=cfg.layers,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return stack(cfg, name="layers")
