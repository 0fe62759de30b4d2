"""Training objectives, one paper's recipe a file: see `Objective` for what each of them is.

`corrupt(key, batch, step)` is `corrupt_with(draw(key, batch), batch, step)`: tests replay recorded
noise through the second half. Noise is drawn for the global batch from a key of this step alone.
"""

from dlm.objectives.ar import Autoregressive
from dlm.objectives.bd3lm import Bd3lm
from dlm.objectives.d2f import D2f
from dlm.objectives.d3llm import D3llm
from dlm.objectives.d3pm import D3pm
from dlm.objectives.dflash import DFlash
from dlm.objectives.diffullama import Annealed, DiffuLlama, Shifted
from dlm.objectives.diffusion_gemma import DiffusionGemma
from dlm.objectives.dllm import Dllm
from dlm.objectives.dparallel import DParallel
from dlm.objectives.dream import DreamSft
from dlm.objectives.dreamon import DreamOn
from dlm.objectives.dscd import Dscd
from dlm.objectives.duo import Duo
from dlm.objectives.duo_dcd import DuoDcd
from dlm.objectives.ec_dlm import EcDlm
from dlm.objectives.efficient_dlm import EfficientDlm
from dlm.objectives.exact_count import ExactCount
from dlm.objectives.fast_dllm_v2 import FastDllmV2
from dlm.objectives.genmd4 import GenMd4
from dlm.objectives.hackable import Hackable
from dlm.objectives.i_dlm import IDlm
from dlm.objectives.llada import Llada, LladaSft
from dlm.objectives.llada2 import Llada2Sft
from dlm.objectives.llada22 import Llada22
from dlm.objectives.md4 import Md4
from dlm.objectives.mdlm import Mdlm
from dlm.objectives.mdpo import Mdpo
from dlm.objectives.nemotron import Nemotron
from dlm.objectives.objective import Objective
from dlm.objectives.opdlm import Opdlm
from dlm.objectives.policy_gradient import PolicyGradient
from dlm.objectives.preference import Preference
from dlm.objectives.sdar import Sdar
from dlm.objectives.sdtt import Sdtt
from dlm.objectives.sedd import Sedd
from dlm.objectives.stable_diffcoder import StableDiffcoder
from dlm.objectives.told import Told
from dlm.objectives.uniform import Uniform
from dlm.objectives.wedlm import WeDlm

OBJECTIVES: dict[str, type[Objective]] = {
  "ar": Autoregressive,  # next-token prediction
  "mdlm": Mdlm,  # MDLM, 2406.07524
  "md4": Md4,  # MD4, 2406.04329
  "genmd4": GenMd4,  # GenMD4, 2406.04329
  "d3pm": D3pm,  # D3PM, 2107.03006
  "sedd": Sedd,  # SEDD, 2310.16834
  "exact_count": ExactCount,  # LLaDA's likelihood, 2502.09992 Eq. 6
  "llada": Llada,  # LLaDA pre-training, 2502.09992
  "llada_sft": LladaSft,  # LLaDA fine-tuning, 2502.09992
  "bd3lm": Bd3lm,  # BD3-LM, 2503.09573
  "diffullama": DiffuLlama,  # DiffuLLaMA, 2410.17891
  "dream_sft": DreamSft,  # Dream, 2508.15487
  "dreamon": DreamOn,  # DreamOn, 2602.01326
  "sdar": Sdar,  # SDAR, 2510.06303
  "fast_dllm_v2": FastDllmV2,  # Fast-dLLM v2, 2509.26328
  "efficient_dlm": EfficientDlm,  # Efficient-DLM, 2512.14067
  "llada2_sft": Llada2Sft,  # LLaDA2.0 fine-tuning, 2512.15745
  "llada22": Llada22,  # LLaDA2.2, inclusionAI/LLaDA2.X
  "dflash": DFlash,  # DFlash, 2602.06036
  "i_dlm": IDlm,  # I-DLM, 2604.11035
  "wedlm": WeDlm,  # WeDLM, 2512.22737
  "stable_diffcoder": StableDiffcoder,  # Stable-DiffCoder, 2601.15892
  "d2f": D2f,  # D2F, 2508.09192
  "ec_dlm": EcDlm,  # EC-DLM, 2604.01622
  "dllm": Dllm,  # dllm's trainers, github.com/ZHZisZZ/dllm
  "hackable": Hackable,  # hackable_diffusion's losses, github.com/google/hackable_diffusion
  "nemotron": Nemotron,  # Nemotron-Labs-Diffusion, by NeMo Automodel
  "opdlm": Opdlm,  # OPDLM, 2606.06712
  "policy_gradient": PolicyGradient,  # d1, ESPO, TraceRL, ...: configs/train/rl.py
  "mdpo": Mdpo,  # MDPO, 2508.13148
  "preference": Preference,  # VRPO, 2505.19223
  "dparallel": DParallel,  # github.com/czg1225/dParallel
  "d3llm": D3llm,  # d3LLM, 2601.07568
  "dscd": Dscd,  # CD4LM, 2601.02236
  "sdtt": Sdtt,  # github.com/jdeschena/sdtt
  "duo": Duo,  # Duo, 2506.10892
  "duo_dcd": DuoDcd,  # Duo's distillation, 2506.10892
  "diffusion_gemma": DiffusionGemma,  # google-deepmind/gemma
  "uniform": Uniform,  # NeMo Automodel's, for DiffusionGemma
}

__all__ = [
  "OBJECTIVES",
  "Annealed",
  "Autoregressive",
  "Bd3lm",
  "D2f",
  "D3llm",
  "D3pm",
  "DFlash",
  "DParallel",
  "DiffuLlama",
  "DiffusionGemma",
  "Dllm",
  "DreamOn",
  "DreamSft",
  "Dscd",
  "Duo",
  "DuoDcd",
  "EcDlm",
  "EfficientDlm",
  "ExactCount",
  "FastDllmV2",
  "GenMd4",
  "Hackable",
  "IDlm",
  "Llada",
  "Llada2Sft",
  "Llada22",
  "LladaSft",
  "Md4",
  "Mdlm",
  "Mdpo",
  "Nemotron",
  "Objective",
  "Opdlm",
  "PolicyGradient",
  "Preference",
  "Sdar",
  "Sdtt",
  "Sedd",
  "Shifted",
  "StableDiffcoder",
  "Told",
  "Uniform",
  "WeDlm",
]
