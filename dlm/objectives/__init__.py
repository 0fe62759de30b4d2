"""Training objectives: one paper's recipe each. `draw` the noise, `corrupt_with` it, then `loss`.

`corrupt(key, batch, step)` is `corrupt_with(draw(key, batch), batch, step)`: tests replay recorded
noise through the second half. Noise is drawn for the global batch from a key of this step alone.
`token_losses` gives the loss by token, before it is summed.
"""

from dlm.objectives.ar import Autoregressive
from dlm.objectives.bd3lm import Bd3lm
from dlm.objectives.d3pm import D3pm
from dlm.objectives.diffullama import Annealed, DiffuLlama, Shifted
from dlm.objectives.exact_count import ExactCount
from dlm.objectives.llada import Llada, LladaSft
from dlm.objectives.mdlm import Mdlm
from dlm.objectives.sedd import Sedd
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
}

__all__ = [
  "OBJECTIVES",
  "Annealed",
  "Autoregressive",
  "Bd3lm",
  "D3pm",
  "DiffuLlama",
  "ExactCount",
  "Llada",
  "LladaSft",
  "Mdlm",
  "Sedd",
  "Shifted",
]
