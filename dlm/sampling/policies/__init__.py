"""Unmasking rules, by the name a config uses. One paper's rule is one small file."""

from dlm.sampling.policies.ancestral import Ancestral
from dlm.sampling.policies.factor import Factor
from dlm.sampling.policies.fixed import Fixed
from dlm.sampling.policies.left_to_right import LeftToRight
from dlm.sampling.policies.threshold import Threshold

POLICIES = {
  "fixed": Fixed,
  "threshold": Threshold,
  "factor": Factor,
  "left_to_right": LeftToRight,
  "ancestral": Ancestral,
}
