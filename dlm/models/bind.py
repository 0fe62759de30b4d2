"""A configuration becomes a `Denoiser`: pure functions of (params, inputs)."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from dlm import masks
from dlm.models import cache as kv_cache
from dlm.models.apart import collections
from dlm.models.config import ModelConfig
from dlm.models.dflash import DFlash
from dlm.models.transformer import Transformer
from dlm.types import Array, CacheFormat, KVCache, Mask, ModelOutput, Params


@dataclasses.dataclass(frozen=True)
class Model:
  """Meets `dlm.types.Denoiser`. Equal models are equal static arguments of `jax.jit`."""

  config: ModelConfig

  @property
  def width(self) -> int:
    return self.config.width

  def __call__(
    self,
    params: Params,
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
    """`params`: as `init` makes them, or as `dlm.models.apart` holds them.

    ValueError: a model that reads noise levels without `time`, `write` without a cache or, of one
    with a residual, without `final`; taps that are no layers.
    """
    if any(not 0 <= layer < self.config.layers for layer in taps):
      raise ValueError(f"{taps=} must lie in 0..{self.config.layers - 1}: the model's layers")
    if self.config.reads_noise and time_BxW is None:
      raise ValueError(
        "this model reads noise levels and needs time_BxW; got None "
        f"(time_conditioned={self.config.time_conditioned}, moe={self.config.moe})"
      )
    lora = self.config.lora
    if lora is not None and lora.gated and lora.mask_id is None:
      raise ValueError("model.lora.gated=True needs model.lora.mask_id: where the adapters act")
    if write_BxW is not None and cache is None:
      raise ValueError("write_BxW asks to store keys, but cache is None")
    if write_BxW is not None and (cache.coded_B is None) != (final_B is None):
      raise ValueError(
        "final_B goes with a cache that has a residual: it says which of its keys stay as they are"
      )
    if place_BxW is not None and self.config.gemma is not None:
      raise ValueError(
        "a ring of keys holds them by slot, so a model with gemma takes no place_BxW"
      )
    return Transformer(self.config).apply(
      collections(params),
      tokens_BxW,
      slot_BxW=slot_BxW,
      mask=mask,
      time_BxW=time_BxW,
      soft_BxWxD=soft_BxWxD,
      cache=cache,
      write_BxW=write_BxW,
      final_B=final_B,
      ask_BxA=ask_BxA,
      place_BxW=place_BxW,
      taps=taps,
    )

  def embedding(self, params: Params) -> Array:
    """[V, D] in float32, as the first layer is given it."""
    return params["embed"]

  def init(self, key: Array) -> Params:
    """Fresh parameters, float32. Under `jax.jit(..., out_shardings=...)` they are born sharded."""
    return nn.unbox(self._init_boxed(key))

  def abstract(self) -> Params:
    """Shapes of the parameters with their logical axes, for `dlm.parallel.shard_params`."""
    return jax.eval_shape(self._init_boxed, jax.random.key(0))

  def empty_cache(self, batch: int, slots: int, format: CacheFormat | None = None) -> KVCache:
    cfg = self.config
    if format is not None and (cfg.gemma is not None or (format.bits < 8 and cfg.head_dim % 8)):
      raise ValueError(
        f"cache_format of {format.bits} bits: a model with gemma has none, and of 2 and 4 bits "
        f"head_dim={cfg.head_dim} must be a multiple of 8"
      )
    rows = {"batch": batch, "dtype": jnp.dtype(cfg.dtype)}
    full = sum(stack.layers for stack in cfg.stacks() if stack.full)
    sizes = {"kv_heads": cfg.kv_heads, "head_dim": cfg.head_dim}
    if cfg.gemma is None:
      return kv_cache.empty(layers=full, slots=slots, format=format, **sizes, **rows)
    window = min(cfg.gemma.window - 1, slots)
    ring = kv_cache.ring(layers=cfg.layers - full, slots=window, **sizes, **rows)
    sizes = {"kv_heads": cfg.gemma.kv_heads, "head_dim": cfg.gemma.head_dim}
    return kv_cache.empty(layers=full, slots=slots, **sizes, **rows).replace(ring=ring)

  def _init_boxed(self, key: Array) -> Params:
    return _boxed(self.config, key)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _boxed(config: ModelConfig, key: Array) -> Params:
  """Jitted, it is traced once for shapes, for shardings and for the parameters themselves."""
  slot_1x1 = jnp.zeros((1, 1), jnp.int32)
  rule = masks.Full() if config.gemma is None else masks.Canvas(1)
  variables = Transformer(config).init(
    key,
    slot_1x1,
    slot_BxW=slot_1x1,
    mask=rule(slot_1x1, 1),
    time_BxW=jnp.zeros((1, 1), jnp.float32),
  )
  return variables["params"]


def bind(config: ModelConfig) -> Model | DFlash:
  return Model(config) if config.drafter is None else DFlash(config)
