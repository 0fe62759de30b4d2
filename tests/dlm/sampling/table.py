"""A denoiser that looks logits up: every sampler can be checked against arithmetic by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dlm.types import KVCache, LogitHead, ModelOutput


@dataclasses.dataclass(frozen=True)
class Lookup:
  """logits[i] = own[i] + left[token i-1] + right[token i+1]; what lies past the row adds nothing.

  `params` is {"own": [L, V], "left": [V, V], "right": [V, V]}; it only runs on whole canvases.
  A token's embedding is its unit vector, of which left and right are linear maps.
  """

  width: int = 7  # of an embedding: the vocabulary

  def __call__(
    self,
    params,
    tokens_BxW,
    *,
    slot_BxW,
    mask,
    time_BxW=None,
    soft_BxWxD=0.0,
    cache=None,
    write_BxW=None,
    ask_BxA=None,
  ):
    vocab = params["own"].shape[1]
    inside_BxW = slot_BxW < mask.hi_BxWxR[..., 0]
    embedded_BxWxV = (jax.nn.one_hot(tokens_BxW, vocab) + soft_BxWxD) * inside_BxW[:, :, None]
    left_BxWxV = jnp.pad((embedded_BxWxV @ params["left"])[:, :-1], ((0, 0), (1, 0), (0, 0)))
    right_BxWxV = jnp.pad((embedded_BxWxV @ params["right"])[:, 1:], ((0, 0), (0, 1), (0, 0)))
    logits_BxWxV = params["own"][slot_BxW] + left_BxWxV + right_BxWxV
    if ask_BxA is not None:
      logits_BxWxV = jnp.take_along_axis(logits_BxWxV, ask_BxA[..., None], axis=1)
    return ModelOutput(LogitHead(logits_BxWxV, jnp.eye(vocab), jnp.eye(vocab)), None, {})

  def empty_cache(self, batch: int, slots: int) -> KVCache:
    raise NotImplementedError("a table has no cache")


def random_table(seed: int, slots: int, vocab: int, scale: float = 2.0) -> dict[str, jax.Array]:
  rng = np.random.default_rng(seed)
  shapes = {"own": (slots, vocab), "left": (vocab, vocab), "right": (vocab, vocab)}
  return {k: jnp.asarray(rng.normal(size=v) * scale, jnp.float32) for k, v in shapes.items()}


def logits_by_hand(params: dict, row: np.ndarray) -> np.ndarray:
  """[len(row), V] in float64, written as one would explain it."""
  own, left, right = (np.asarray(params[k], np.float64) for k in ("own", "left", "right"))
  out = own[: len(row)].copy()
  out[1:] += left[row[:-1]]
  out[:-1] += right[row[1:]]
  return out
