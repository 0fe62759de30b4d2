"""Unmasking rules by the name a config uses; behind each its paper and arXiv id."""

from dlm.sampling.policies.ancestral import Ancestral
from dlm.sampling.policies.cad import Cad
from dlm.sampling.policies.certainty_prior import CertaintyPrior
from dlm.sampling.policies.credit import Credit
from dlm.sampling.policies.deer import Deer
from dlm.sampling.policies.dflash import DFlash
from dlm.sampling.policies.dream import Dream
from dlm.sampling.policies.dream_threshold import DreamThreshold
from dlm.sampling.policies.dreamon import DreamOn
from dlm.sampling.policies.duo import Duo
from dlm.sampling.policies.edit import Edit
from dlm.sampling.policies.entropy_bounded import EntropyBounded
from dlm.sampling.policies.ete import Ete
from dlm.sampling.policies.factor import Factor
from dlm.sampling.policies.fixed import Fixed
from dlm.sampling.policies.hierarchy import Hierarchy
from dlm.sampling.policies.indel import InDel, ServedInDel
from dlm.sampling.policies.introspective import Introspective
from dlm.sampling.policies.left_to_right import LeftToRight
from dlm.sampling.policies.parts import Parts
from dlm.sampling.policies.pipelined import Distilled, Pipelined
from dlm.sampling.policies.planned import Planned
from dlm.sampling.policies.prophet import Prophet
from dlm.sampling.policies.quota import Quota
from dlm.sampling.policies.region import Region
from dlm.sampling.policies.renoise import Renoise
from dlm.sampling.policies.rnd1 import Rnd1
from dlm.sampling.policies.running_confidence import RunningConfidence
from dlm.sampling.policies.saber import Saber
from dlm.sampling.policies.self_speculative import SelfSpeculative
from dlm.sampling.policies.smooth import Smooth
from dlm.sampling.policies.threshold import Threshold
from dlm.sampling.policies.wedlm import WeDlm
from dlm.sampling.policies.wino import Wino

POLICIES = {
  "fixed": Fixed,  # LLaDA, 2502.09992
  "threshold": Threshold,  # Fast-dLLM, 2505.22618
  "hierarchy": Hierarchy,  # dInfer, hierarchy, 2510.08666
  "credit": Credit,  # dInfer, credit, 2510.08666
  "smooth": Smooth,  # dInfer, smoothing, 2510.08666
  "factor": Factor,  # Fast-dLLM, factor, 2505.22618
  "left_to_right": LeftToRight,  # SDAR, sequential, 2510.06303
  "ancestral": Ancestral,  # MDLM, 2406.07524
  "planned": Planned,  # dKV-Cache-Greedy, 2505.15781
  "cad": Cad,  # CD4LM, 2601.02236
  "prophet": Prophet,  # Prophet, 2508.19982
  "saber": Saber,  # Saber, 2510.18165
  "dream": Dream,  # Dream, 2508.15487
  "dream_threshold": DreamThreshold,  # Fast-dLLM for Dream, 2505.22618
  "dreamon": DreamOn,  # DreamOn, 2602.01326
  "entropy_bounded": EntropyBounded,  # EB-Sampler, 2505.24857
  "rnd1": Rnd1,  # RND1, RadicalNumerics/RND1
  "region": Region,  # P-ReAct, 2602.07035
  "ete": Ete,  # ETE, 2511.21103
  "certainty_prior": CertaintyPrior,  # d2Cache, decoding, 2509.23094
  "wino": Wino,  # WINO, 2507.18578
  "running_confidence": RunningConfidence,  # MDPO, 2508.13148
  "quota": Quota,  # SDAR, 2510.06303
  "edit": Edit,  # LLaDA2.1, 2602.08676
  "indel": InDel,  # LLaDA2.2, inclusionAI/LLaDA2.X
  "served_indel": ServedInDel,  # SGLang for LLaDA2.2, sgl-project/sglang
  "wedlm": WeDlm,  # WeDLM, 2512.22737
  "introspective": Introspective,  # I-DLM, 2604.11035
  "deer": Deer,  # DEER, 2512.15176
  "dflash": DFlash,  # DFlash, 2602.06036
  "self_speculative": SelfSpeculative,  # Nemotron-Labs-Diffusion, nvidia/Nemotron-Labs-Diffusion-8B
  "pipelined": Pipelined,  # D2F, 2508.09192
  "distilled": Distilled,  # d3LLM, 2601.07568
  "parts": Parts,  # Fast-dLLM v2, 2509.26328
  "duo": Duo,  # Duo, 2506.10892
  "renoise": Renoise,  # DiffusionGemma, transformers 5.24
}
