"""DFlash (2602.06036): a few layers that draft a block from what another model's layers tell of it.

The drafter has no embedding and no head: it takes the target's. What the target's tapped layers put
out for the settled text is projected once, and gives every layer keys and values besides those of
the block. A block is the last settled token and masks; each of its tokens sees all of it and all
that is settled, and predicts itself.

Parameters: context/kernel [T * D, D] of T tapped layers, context_norm/scale [D]; layers, stacked,
and final_norm as in `dlm.models.transformer`.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from dlm import masks
from dlm.models import cache as kv_cache
from dlm.models.apart import collections
from dlm.models.attention import Shared
from dlm.models.cache import Stored
from dlm.models.config import ModelConfig
from dlm.models.layers import Einsum, RMSNorm, lookup, query_scale, rotary, rotate
from dlm.models.transformer import Block, scanned
from dlm.types import Array, KVCache, LogitHead, Mask, ModelOutput, Params
from kernels_pallas.block_attention import Keys, prepare

CONTEXT = ("context", "context_norm")  # parameters of `_Context`


class _Layer(Block):
  def __call__(self, x_BxWxD: Array, context: Stored, shared: Shared) -> tuple[Array, None]:
    """`context`: this layer's keys and values of the settled text."""
    one = jax.tree.map(lambda x: x[None], context)
    (x_BxWxD, _, _), _ = super().__call__((x_BxWxD, one, None), jnp.int32(0), shared)
    return x_BxWxD, None


class _Layers(nn.Module):
  config: ModelConfig

  @nn.compact
  def __call__(self, x_BxWxD: Array, context: Stored, shared: Shared) -> Array:
    cfg = self.config
    block = nn.remat(_Layer, prevent_cse=False)
    layers = scanned(block, cfg.layers, self.is_initializing())
    x_BxWxD, _ = layers(cfg, routed=False, name="layers")(x_BxWxD, context, shared)
    return RMSNorm(cfg.norm_eps, ("embed",), name="final_norm")(x_BxWxD)


class _Context(nn.Module):
  config: ModelConfig

  @nn.compact
  def __call__(self, features_BxCxF: Array) -> Array:
    cfg = self.config
    shape = (len(cfg.drafter.taps) * cfg.width, cfg.width)
    linear = Einsum("...F,FD->...D", shape, (None, "embed"), name="context")
    return RMSNorm(cfg.norm_eps, ("embed",), name="context_norm")(linear(features_BxCxF))


@dataclasses.dataclass(frozen=True)
class DFlash:
  """A configuration with `drafter` as pure functions. Equal ones share one compile."""

  config: ModelConfig

  @property
  def taps(self) -> tuple[int, ...]:
    return self.config.drafter.taps

  def __call__(
    self,
    params: Params,
    target: Params,
    tokens_BxW: Array,
    *,
    slot_BxW: Array,
    key_BxW: Array,
    mask: Mask,
    context: Stored,
    live_BxS: Array | None = None,
  ) -> ModelOutput:
    """Blocks of tokens and masks; every input is asked, and predicts itself.

    Args:
      target: parameters of the target, whose embedding and head these are.
      slot_BxW: rotary positions.
      key_BxW: where `mask` finds each input among the keys; it finds the context at 0, 1, ..., by
        its first range, which `DrafterConfig.window` cuts.
      context: keys and values [Y, B, S, K, H] of the settled text, see `context` and `remember`.
      live_BxS: which of them there are; None: all.
    """
    cfg = self.config
    dtype = jnp.dtype(cfg.dtype)
    x_BxWxD = lookup(target["embed"], tokens_BxW).astype(dtype)
    shared = self._shared(slot_BxW, key_BxW, mask, context[0].shape[2], live_BxS)
    own = {name: part for name, part in params.items() if name not in CONTEXT}
    hidden_BxWxD = _Layers(cfg).apply(collections(own), x_BxWxD, context, shared)
    unembed_VxD = target["unembed"] if "unembed" in target else target["embed"]
    head = LogitHead(
      hidden_BxWxD, unembed_VxD.astype(dtype), soft_cap=cfg.soft_cap,
      implementation=cfg.implementation,
    )  # fmt: skip
    return ModelOutput(head=head, cache=None, aux={})

  def context(self, params: Params, features_BxCxF: Array, slot_BxC: Array) -> Stored:
    """Keys and values [Y, B, C, K, H] of text of which the target's layers told the features."""
    cfg = self.config
    own = {name: params[name] for name in CONTEXT}
    x_BxCxD = _Context(cfg).apply({"params": own}, features_BxCxF.astype(jnp.dtype(cfg.dtype)))
    turn = rotary(slot_BxC, cfg.head_dim, cfg.rope_base, cfg.rope_scaling)
    attention = params["layers"]["attention"]

    def project(name: str, layer: int) -> Array:
      kernel = attention[name]["kernel"][layer].astype(x_BxCxD.dtype)
      flat = jnp.einsum("RD,DKH->RKH", x_BxCxD.reshape(-1, cfg.width), kernel)
      return flat.reshape(*x_BxCxD.shape[:2], *flat.shape[1:])

    def key(layer: int) -> Array:
      scale = {"scale": attention["key_norm"]["scale"][layer]}
      k = RMSNorm(cfg.norm_eps, ("head_dim",)).apply({"params": scale}, project("key", layer))
      return rotate(k, turn)

    layers = range(cfg.layers)
    return jnp.stack([*map(key, layers)]), jnp.stack([project("value", i) for i in layers])

  def remember(
    self, params: Params, features_BxWxF: Array, *, slot_BxW: Array, write_BxW: Array,
    cache: KVCache,
  ) -> KVCache:  # fmt: skip
    """The cache with the context of the slots where `write`, and otherwise unchanged."""
    own = self.context(params, features_BxWxF, slot_BxW)
    target_BxW = kv_cache.targets(slot_BxW, write_BxW, cache.filled_BxS.shape[1])
    row_Bx1 = jnp.arange(target_BxW.shape[0])[:, None]

    def put(store: Array, new: Array) -> Array:
      return store.at[:, row_Bx1, target_BxW].set(new.astype(store.dtype), mode="drop")

    k, v = put(cache.k_YxBxSxKxH, own[0]), put(cache.v_YxBxSxKxH, own[1])
    return KVCache(k, v, kv_cache.filled(cache.filled_BxS, target_BxW))

  def empty_cache(self, batch: int, slots: int) -> KVCache:
    cfg = self.config
    return kv_cache.empty(
      layers=cfg.layers, batch=batch, slots=slots, kv_heads=cfg.kv_heads, head_dim=cfg.head_dim,
      dtype=jnp.dtype(cfg.dtype),
    )  # fmt: skip

  def init(self, key: Array) -> Params:
    """Fresh parameters, float32. Under `jax.jit(..., out_shardings=...)` they are born sharded."""
    return nn.unbox(self._init_boxed(key))

  def abstract(self) -> Params:
    """Shapes of the parameters with their logical axes, for `dlm.parallel.shard_params`."""
    return jax.eval_shape(self._init_boxed, jax.random.key(0))

  def _init_boxed(self, key: Array) -> Params:
    cfg = self.config
    key_context, key_layers = jax.random.split(key)
    features_1x1xF = jnp.zeros((1, 1, len(self.taps) * cfg.width))
    x_1x1xD, slot_1x1 = features_1x1xF[..., : cfg.width], jnp.zeros((1, 1), jnp.int32)
    keys = jnp.zeros((cfg.layers, 1, 1, cfg.kv_heads, cfg.head_dim))
    shared = self._shared(slot_1x1, slot_1x1, masks.Full()(slot_1x1, 1), 1, None)
    layers = _Layers(cfg).init(key_layers, x_1x1xD, (keys, keys), shared)
    return _Context(cfg).init(key_context, features_1x1xF)["params"] | layers["params"]

  def _shared(
    self, slot_BxW: Array, key_BxW: Array, mask: Mask, slots: int, live_BxS: Array | None
  ) -> Shared:
    cfg = self.config
    slot_BxS = jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32), (len(slot_BxW), slots))
    if cfg.drafter.window:
      mask = masks.nearby(mask, slot_BxW, cfg.drafter.window)
    return Shared(
      rotary=rotary(slot_BxW, cfg.head_dim, cfg.rope_base, cfg.rope_scaling),
      sight=prepare(
        mask, [Keys(key_BxW), Keys(slot_BxS, live_BxS)], heads=cfg.heads, kv_heads=cfg.kv_heads,
        dim=cfg.head_dim, dtype=cfg.dtype, implementation=cfg.implementation,
      ),
      query_scale_BxW=query_scale(slot_BxW, cfg.rope_scaling),
      target_BxW=None, time_BxWxC=None, level_BxW=None, live_BxW=None, gate_BxW=None,
    )  # fmt: skip
