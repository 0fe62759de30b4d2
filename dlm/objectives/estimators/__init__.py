"""Estimators of log p(completion), one paper's a class: see `Estimator` for what each of them is.

Bias, variance and forwards of each against the exact law: BENCHMARKS.md, by
`experiments/studies/estimators.py`.
"""

from dlm.objectives.estimators.autoregressive import LeftToRight
from dlm.objectives.estimators.coupled import CoupledMasks
from dlm.objectives.estimators.elbo import CountedElbo, CoupledElbo
from dlm.objectives.estimators.estimator import Estimator
from dlm.objectives.estimators.full_mask import FullMask
from dlm.objectives.estimators.sandwich import Sandwich
from dlm.objectives.estimators.trace import (
  BlockElbo,
  BlockExact,
  BlockMasks,
  BlockOneStep,
  Trace,
)

ESTIMATORS: dict[str, type[Estimator]] = {
  "full_mask": FullMask,  # d1, 2504.12216; wd1
  "coupled_masks": CoupledMasks,  # DiffuCoder, 2506.20639
  "coupled_elbo": CoupledElbo,  # ESPO, github.com/ML-GSAI/ESPO
  "counted_elbo": CountedElbo,  # VRPO, 2505.19223
  "sandwich": Sandwich,  # SPG, github.com/facebookresearch/SPG
  "trace": Trace,  # TraceRL, 2509.06949
  "block_masks": BlockMasks,  # TraceRL's "random_masking" and "coupled"
  "block_one_step": BlockOneStep,  # LightningRL, 2603.13319
  "block_exact": BlockExact,  # all orders of writing a block
  "autoregressive": LeftToRight,
  "block_elbo": BlockElbo,  # DLLM-Searcher's Agentic VRPO, 2602.07035
}

__all__ = [
  "ESTIMATORS",
  "BlockElbo",
  "BlockExact",
  "BlockMasks",
  "BlockOneStep",
  "CountedElbo",
  "CoupledElbo",
  "CoupledMasks",
  "Estimator",
  "FullMask",
  "LeftToRight",
  "Sandwich",
  "Trace",
]
