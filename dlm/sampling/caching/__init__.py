"""What the sampler keeps of earlier forwards, by the name a config uses."""

from dlm.sampling.caching.block import ExactBlock
from dlm.sampling.caching.none import NoCache

PLANS = {"none": NoCache, "block": ExactBlock}
