"""Cross-entropy and its gradient on Hopper: logits are in registers and nowhere else.

Forward is one pass of `token_stats`. Neither gradient's sum, [R, D] or [V, D] in float32, fits into
a multiprocessor, so backward goes over stretches of the ids: a kernel computes their logits again
and leaves those logits' gradients in bfloat16, which XLA multiplies by the unembedding and by the
hidden rows. Four matmuls in all. No GPU has run this yet: it is interpreted and compiled in tests.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels_pallas import hopper, vocabulary
from kernels_pallas.hopper import Tiling
from kernels_pallas.linear_xent.gradient import by_statistics, cross_entropy
from kernels_pallas.token_stats import gpu as token_stats
from kernels_pallas.vocabulary import Held

Array = jax.Array

_TILE = hopper.MAX_TILE
_LANES = 64  # ids that are stored at once: a line of what the hardware copies
_BESIDE = 2 * hopper.WORKERS * hopper.ROWS * _TILE + (5 << 10)  # a tile, and 5 numbers a row
_STRETCH_ELEMENTS = 1 << 25  # 64 MiB: little beside a model, and much work for one launch


def linear_xent(
  hidden_RxD: Array,
  unembed_VxD: Array,
  target_R: Array,
  *,
  forbidden: tuple[int, ...],
  soft_cap: float | None,
  tilings: tuple[Tiling | None, Tiling | None] = (None, None),
) -> Array:
  """See `kernels_pallas.linear_xent.linear_xent`.

  Args:
    tilings: forward, and of a stretch backward. None: `hopper.tiling_for` and `stretch_for`.

  Raises:
    NotImplementedError: not bfloat16, or sizes that the hardware's copies cannot cut.
  """
  return cross_entropy(_Passes(forbidden, soft_cap, *tilings), hidden_RxD, unembed_VxD, target_R)


def stretch_for(rows: int, vocab: int) -> Tiling:
  """Of as many ids as give `_STRETCH_ELEMENTS`, and of half the vocabulary at most.

  Raises:
    NotImplementedError: half the vocabulary is less than a tile.
  """
  tiling = dataclasses.replace(hopper.tiling_for(rows, vocab), tile=_TILE)
  most = min(max(_STRETCH_ELEMENTS // tiling.rows, tiling.block_ids), vocab // 2)
  splits = min(tiling.splits, most // tiling.block_ids)
  if splits == 0:
    raise NotImplementedError(f"the vocabulary, {vocab}, must be at least two tiles of {_TILE}")
  turns = pl.cdiv(vocab, splits * tiling.block_ids)  # of all programs, a tile each

  def cost(walk: int) -> float:  # adding to hidden's gradient takes about an eighth of a turn
    return pl.cdiv(turns, walk) * (walk + 1 / 8)

  walk = min(range(1, most // (splits * tiling.block_ids) + 1), key=cost)
  splits = pl.cdiv(vocab, pl.cdiv(turns, walk) * walk * tiling.block_ids)
  tiling = dataclasses.replace(tiling, splits=splits, walk=walk)
  return tiling.filling(_BESIDE)


@dataclasses.dataclass(frozen=True)
class _Passes:
  """See `gradient.Passes`."""

  forbidden: tuple[int, ...]
  soft_cap: float | None
  whole: Tiling | None
  stretch: Tiling | None

  def forward(
    self, hidden_RxD: Array, unembed_VxD: Array, target_R: Array, held: Held
  ) -> tuple[Array, Array]:
    self._stretch(hidden_RxD, unembed_VxD)  # asked here too: backward would raise too late
    how = dict(held=held, soft_cap=self.soft_cap, tiling=self.whole)
    return by_statistics(
      token_stats.token_stats, self.forbidden, hidden_RxD, unembed_VxD, target_R, **how
    )

  def _stretch(self, hidden_RxD: Array, unembed_VxD: Array) -> Tiling:
    return self.stretch or stretch_for(hidden_RxD.shape[0], unembed_VxD.shape[0])

  def backward(
    self,
    hidden_RxD: Array,
    unembed_VxD: Array,
    target_R: Array,
    lse_R: Array,
    grad_R: Array,
    held: Held,
    dtypes: tuple[jnp.dtype, jnp.dtype],
  ) -> tuple[Array, Array]:
    rows, tiling = hidden_RxD.shape[0], self._stretch(hidden_RxD, unembed_VxD)
    by_row = hidden_RxD, target_R.astype(jnp.int32), lse_R, grad_R
    hidden_RxD, *by_row = (hopper.padded(tiling, x) for x in by_row)  # of gradient 0
    hidden_dtype, unembed_dtype = dtypes

    def add(state: tuple[Array, Array], part: vocabulary.Tile) -> tuple[Array, Array]:
      fresh = part.ids_T[0] + (~part.live_T).sum(dtype=jnp.int32)
      ids = (jnp.full(tiling.rows, id, jnp.int32) for id in (part.ids_T[0], fresh))
      d_z_RxT = self._d_z(tiling, hidden_RxD, part.unembed_TxD, (*ids, *by_row))
      return vocabulary.add_gradients(state, d_z_RxT, hidden_RxD, part.unembed_TxD, part.start)

    d_hidden_RxD, d_unembed_VxD = vocabulary.sweep(
      add,
      vocabulary.no_gradients(hidden_RxD, unembed_VxD, unembed_dtype),
      unembed_VxD,
      tile=tiling.ids,
      forbidden=(),
      first=held.first,
    )
    return d_hidden_RxD[:rows].astype(hidden_dtype), d_unembed_VxD

  def _d_z(
    self, tiling: Tiling, hidden_RxD: Array, unembed_TxD: Array, asked: tuple[Array, ...]
  ) -> Array:
    """The gradients of a stretch's logits, bfloat16, those of ids below `fresh` 0."""

    def gradient(z_RxT: Array, offset_RxT: Array, asked: tuple[Array, ...]) -> Array:
      first, fresh, target, lse, grad = (hopper.wide(x_R, z_RxT) for x_R in asked)
      ids_RxT = offset_RxT + first
      slope = grad
      if self.soft_cap is not None:
        tanh = jnp.tanh(z_RxT / self.soft_cap)
        z_RxT = self.soft_cap * tanh
        slope = grad * (1 - tanh * tanh)
      d_z_RxT = slope * (jnp.exp(z_RxT - lse) - jnp.where(ids_RxT == target, 1.0, 0.0))
      dead = vocabulary.among(ids_RxT, self.forbidden) | (ids_RxT < fresh) | (grad == 0)
      return jnp.where(dead, 0.0, d_z_RxT).astype(jnp.bfloat16)

    def work(place: hopper.Place, asked: tuple[Array, ...], out_refs, stage) -> None:
      here = stage.at[place.worker]

      @pl.loop(0, tiling.walk)
      def _tile(tile):
        z_RxT = place.multiply(tile)
        plgpu.wait_smem_to_gmem(0)  # the tile before has left
        for lane in range(0, tiling.tile, _LANES):
          z_RxN = z_RxT[:, lane : lane + _LANES]
          offset_RxN = place.start(tile) + lane
          offset_RxN += jax.lax.broadcasted_iota(jnp.int32, z_RxN.shape, 1)
          here[:, pl.ds(lane, _LANES)] = gradient(z_RxN, offset_RxN, asked)
        plgpu.commit_smem()
        ids = pl.ds(place.start(tile), tiling.tile)
        plgpu.copy_smem_to_gmem(here, out_refs[0].at[place.rows, ids])

      plgpu.wait_smem_to_gmem(0)

    out = jax.ShapeDtypeStruct((tiling.rows, tiling.ids), jnp.bfloat16)
    stage = plgpu.SMEM(
      (hopper.WORKERS, hopper.ROWS, tiling.tile), jnp.bfloat16, transforms=hopper.SWIZZLED
    )
    return hopper.walk(tiling, hidden_RxD, unembed_TxD, asked, work, [out], stage)[0]
