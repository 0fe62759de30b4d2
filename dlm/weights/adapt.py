"""An autoregressive checkpoint becomes the start of a diffusion model: it gets a mask token.

What else changes is not in the parameters: attention (`objectives.Annealed` opens it), and logits
that stay shifted by one (`objectives.Shifted`). DiffuLLaMA, arXiv 2410.17891; Dream, 2508.15487.
"""

import functools

import jax
import jax.numpy as jnp

from dlm.types import Array, Params

TABLES = ("embed", "unembed")  # the latter where the model is not tied


def with_mask_row(params: Params, mask_id: int) -> Params:
  """Row `mask_id` of the embedding and of an untied head becomes the mean of the rows before it.

  A row of zeros or of old noise, as the spare rows of published embeddings are, makes gradients
  explode at high noise levels (LLaDA2.0's report). Tables that end before the row grow by it. The
  tables given are used up: no second copy of them exists.

  Raises:
    ValueError: a table ends before the row before it.
  """
  rows = params["embed"].shape[0]
  if mask_id > rows:
    raise ValueError(f"mask_id={mask_id} must follow the last of the embedding's {rows} rows")
  changed = {name: _with_mean_row(params[name], mask_id) for name in TABLES if name in params}
  return {**params, **changed}


def _with_mean_row(table_VxD: Array, row: int) -> Array:
  grows = row == table_VxD.shape[0]
  write = jax.jit(
    functools.partial(_write, row=row),
    out_shardings=table_VxD.sharding,
    donate_argnums=() if grows else 0,
  )
  return write(table_VxD)


def _write(table_VxD: Array, row: int) -> Array:
  before_V = (jnp.arange(table_VxD.shape[0]) < row).astype(table_VxD.dtype)
  sum_D = jnp.einsum(  # XLA for CPUs would copy the rows to add them up
    "v,vd->d", before_V, table_VxD, precision="highest", preferred_element_type=jnp.float32
  )
  mean_D = (sum_D / row).astype(table_VxD.dtype)
  if row == table_VxD.shape[0]:
    return jnp.concatenate([table_VxD, mean_D[None]])
  return table_VxD.at[row].set(mean_D)
