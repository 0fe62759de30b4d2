"""Training objectives: one paper's recipe each. `draw` the noise, `corrupt_with` it, then `loss`.

`corrupt(key, batch, step)` is `corrupt_with(draw(key, batch), batch, step)`: tests replay recorded
noise through the second half. Noise is drawn for the global batch from a key of this step alone.
`token_losses` gives the loss by token, before it is summed.
"""

from dlm.objectives.ar import Autoregressive
from dlm.objectives.bd3lm import Bd3lm
from dlm.objectives.d2f import D2f
from dlm.objectives.d3pm import D3pm
from dlm.objectives.diffullama import Annealed, DiffuLlama, Shifted
from dlm.objectives.dream import DreamSft
from dlm.objectives.ec_dlm import EcDlm
from dlm.objectives.efficient_dlm import EfficientDlm
from dlm.objectives.exact_count import ExactCount
from dlm.objectives.fast_dllm_v2 import FastDllmV2
from dlm.objectives.i_dlm import IDlm
from dlm.objectives.llada import Llada, LladaSft
from dlm.objectives.llada2 import Llada2Sft
from dlm.objectives.mdlm import Mdlm
from dlm.objectives.sdar import Sdar
from dlm.objectives.sedd import Sedd
from dlm.objectives.uniform import Uniform
from dlm.types import Objective

OBJECTIVES: dict[str, type[Objective]] = {
  "ar": Autoregressive,
  "mdlm": Mdlm,
  "d3pm": D3pm,
  "sedd": Sedd,
  "exact_count": ExactCount,
  "llada": Llada,
  "llada_sft": LladaSft,
  "bd3lm": Bd3lm,
  "diffullama": DiffuLlama,
  "dream_sft": DreamSft,
  "sdar": Sdar,
  "fast_dllm_v2": FastDllmV2,
  "efficient_dlm": EfficientDlm,
  "llada2_sft": Llada2Sft,
  "i_dlm": IDlm,
  "d2f": D2f,
  "ec_dlm": EcDlm,
  "uniform": Uniform,
}

__all__ = [
  "OBJECTIVES",
  "Annealed",
  "Autoregressive",
  "Bd3lm",
  "D2f",
  "D3pm",
  "DiffuLlama",
  "DreamSft",
  "EcDlm",
  "EfficientDlm",
  "ExactCount",
  "FastDllmV2",
  "IDlm",
  "Llada",
  "Llada2Sft",
  "LladaSft",
  "Mdlm",
  "Sdar",
  "Sedd",
  "Shifted",
  "Uniform",
]
