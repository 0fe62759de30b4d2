"""Classifier-free guidance: each row once as it is, once without its prompt."""

from typing import Any

import jax
import jax.numpy as jnp

from dlm.sampling.sampler import Sampler
from dlm.types import Array, ModelOutput, Params


def twice(tree: Any) -> Any:
  """Every leaf behind itself: rows 0..B-1 as they are, rows B..2B-1 for their unguided twins."""
  return jax.tree.map(lambda x: jnp.concatenate([x, x]), tree)


def denoise(
  sampler: Sampler, params: Params, tokens_BxW: Array, open_BxW: Array, **rows: Any
) -> ModelOutput:
  """The model's output; with guidance w, that of logits (w + 1) l - w l', l' without the prompt.

  LLaDA's form (arXiv 2502.09992, after 2410.18514). Logits are linear in the hidden rows, so the
  rows are mixed and no logits are needed. A cache holds 2B rows.

  Args:
    open_BxW: where the sampler may write; all else is prompt, and masked in the twin.
    rows: the other arguments of the model; all but `cache` and `taps` lead with B.
  """
  if not sampler.guidance:
    return sampler.denoise(params, tokens_BxW, **rows)
  whole = {name: rows.pop(name) for name in ("cache", "taps") if name in rows}
  twin_BxW = jnp.where(open_BxW, tokens_BxW, sampler.mask_id)
  tokens_2BxW = jnp.concatenate([tokens_BxW, twin_BxW])
  out = sampler.denoise(params, tokens_2BxW, **whole, **twice(rows))
  if out.head.soft_cap is not None:
    raise ValueError("guidance mixes hidden rows, which a model with soft_cap does not allow")
  with_prompt, without = jnp.split(out.head.hidden_BxAxD.astype(jnp.float32), 2)
  mixed = without + (sampler.guidance + 1) * (with_prompt - without)
  return out.replace(head=out.head.replace(hidden_BxAxD=mixed))
