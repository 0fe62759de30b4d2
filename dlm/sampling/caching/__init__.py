"""What the sampler keeps of earlier forwards, by the name a config uses."""

from dlm.sampling.caching.block import Ahead, ExactBlock, SubBlock
from dlm.sampling.caching.delayed import PD, Decode, Greedy
from dlm.sampling.caching.interval import Interval
from dlm.sampling.caching.matured import Matured
from dlm.sampling.caching.none import NoCache
from dlm.sampling.caching.prefix import Dual, Prefix
from dlm.sampling.caching.rolling import Rolling
from dlm.sampling.caching.vicinity import Vicinity

PLANS = {
  "none": NoCache,
  "block": ExactBlock,
  "sub_block": SubBlock,
  "ahead": Ahead,
  "rolling": Rolling,
  "prefix": Prefix,
  "dual": Dual,
  "vicinity": Vicinity,
  "interval": Interval,
  "matured": Matured,
  "dkv_decode": Decode,
  "dkv_pd": PD,
  "dkv_greedy": Greedy,
}
