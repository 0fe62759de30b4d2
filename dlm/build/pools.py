"""What experts ask of a sampler: whole pools, where there are any, and that none drops a token.

A pool is the row or a block of slots (`dlm.models.moe.layer.Moe`). A cached
window of whole blocks has the pools of the whole canvas; a row that is its own pool has lost what
the window leaves out.
"""

import dataclasses

from dlm import masks
from dlm.facts import ModelFacts
from dlm.models.bind import Model, bind
from dlm.models.moe.config import MoeConfig
from dlm.sampling.caching.plan import CachePlan
from dlm.sampling.policy import Policy


def in_windows(moe: MoeConfig | None, *, block: int, align: str, shift: int) -> bool:
  """Whether windows of whole blocks hold whole pools."""
  if moe is None or not moe.pooled:
    return True
  return moe.pool > 0 and block % moe.pool == 0 and align == "canvas" and not shift


def check(
  moe: MoeConfig | None,
  facts: ModelFacts,
  plan: CachePlan,
  policy: Policy,
  whole: bool,
  row_tile: int,
) -> None:
  """Raises ValueError where experts would choose among other tokens than in training.

  Or where they would compute them in a shape that depends on other rows, which `row_tile` excludes.

  Args:
    whole: what `in_windows` says.
  """
  if moe is None or not moe.pooled:
    return
  if isinstance(facts.attention, masks.Causal):
    raise ValueError(
      f"{_rule(moe)} lets a token's experts depend on later tokens: not for attention 'causal'"
    )
  if isinstance(facts.attention, masks.BlockCausal) and moe.pool and facts.block % moe.pool:
    raise ValueError(
      f"model.moe.pool={moe.pool} must divide the model's block={facts.block}: a pool must not "
      "hold tokens of two blocks"
    )
  if plan.cached and not (whole and plan.whole_blocks):
    raise ValueError(
      f"cache {plan} leaves tokens out of the pools of {_rule(moe)}: a cache needs "
      f"model.moe.pool={moe.pool} to be a number of slots that divides the sampler's block, "
      "align='canvas', a model without shift, and windows of whole blocks. Use cache 'none'."
    )
  if moe.reads_noise and row_tile > 1:
    raise ValueError(
      f"row_tile={row_tile} must be 1, or 0 (off), where experts choose by noise level: their "
      "buffers are as large as all rows of a tile need"
    )
  if policy.judges:
    raise ValueError(
      f"{policy} puts copies of slots into the window, which would count in the pools of "
      f"{_rule(moe)}"
    )


def _rule(moe: MoeConfig) -> str:
  if moe.admitted:
    return f"model.moe.admitted={moe.admitted}"
  return f"model.moe.choice={moe.choice!r}"


def dropless(model: Model) -> Model:
  """The model without `capacity_factor`: it would let a row's tokens depend on its neighbours."""
  moe = model.config.moe
  if moe is None or not moe.capacity_factor:
    return model
  moe = dataclasses.replace(moe, capacity_factor=0.0)
  return bind(dataclasses.replace(model.config, moe=moe))
