"""Unmasking rules, by the name a config uses. One paper's rule is one small file."""

from dlm.sampling.policies.ancestral import Ancestral
from dlm.sampling.policies.cad import Cad
from dlm.sampling.policies.credit import Credit
from dlm.sampling.policies.deer import Deer
from dlm.sampling.policies.dream import Dream
from dlm.sampling.policies.dream_threshold import DreamThreshold
from dlm.sampling.policies.edit import Edit
from dlm.sampling.policies.entropy_bounded import EntropyBounded
from dlm.sampling.policies.ete import Ete
from dlm.sampling.policies.factor import Factor
from dlm.sampling.policies.fixed import Fixed
from dlm.sampling.policies.hierarchy import Hierarchy
from dlm.sampling.policies.introspective import Introspective
from dlm.sampling.policies.left_to_right import LeftToRight
from dlm.sampling.policies.parts import Parts
from dlm.sampling.policies.pipelined import Distilled, Pipelined
from dlm.sampling.policies.planned import Planned
from dlm.sampling.policies.prophet import Prophet
from dlm.sampling.policies.quota import Quota
from dlm.sampling.policies.region import Region
from dlm.sampling.policies.renoise import Renoise
from dlm.sampling.policies.saber import Saber
from dlm.sampling.policies.smooth import Smooth
from dlm.sampling.policies.threshold import Threshold
from dlm.sampling.policies.wino import Wino

POLICIES = {
  "fixed": Fixed,
  "threshold": Threshold,
  "hierarchy": Hierarchy,
  "credit": Credit,
  "smooth": Smooth,
  "factor": Factor,
  "left_to_right": LeftToRight,
  "ancestral": Ancestral,
  "planned": Planned,
  "cad": Cad,
  "prophet": Prophet,
  "saber": Saber,
  "dream": Dream,
  "dream_threshold": DreamThreshold,
  "entropy_bounded": EntropyBounded,
  "region": Region,
  "ete": Ete,
  "wino": Wino,
  "quota": Quota,
  "edit": Edit,
  "introspective": Introspective,
  "deer": Deer,
  "pipelined": Pipelined,
  "distilled": Distilled,
  "parts": Parts,
  "renoise": Renoise,
}
