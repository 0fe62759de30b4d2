"""What is kept of earlier forwards, by the name in a config; behind each its paper and arXiv id."""

from dlm.sampling.caching.block import Ahead, ExactBlock, SubBlock, Text
from dlm.sampling.caching.delayed import PD, Decode, Greedy
from dlm.sampling.caching.interval import Interval
from dlm.sampling.caching.matured import Matured
from dlm.sampling.caching.none import NoCache
from dlm.sampling.caching.prefix import Dual, Prefix
from dlm.sampling.caching.rolling import Rolling
from dlm.sampling.caching.sparse import HeadSparse, Sparse
from dlm.sampling.caching.vicinity import Vicinity

PLANS = {
  "none": NoCache,
  "block": ExactBlock,  # BD3-LM, 2503.09573
  "sub_block": SubBlock,  # Fast-dLLM v2, 2509.26328
  "text": Text,  # DiffusionGemma, google-deepmind/gemma
  "ahead": Ahead,  # D2F, 2508.09192
  "rolling": Rolling,  # I-DLM, 2604.11035
  "prefix": Prefix,  # Fast-dLLM, prefix, 2505.22618
  "dual": Dual,  # Fast-dLLM, dual, 2505.22618
  "vicinity": Vicinity,  # dInfer, 2510.08666
  "interval": Interval,  # dLLM-Cache, simplified, 2506.06295
  "matured": Matured,  # d3LLM, 2601.07568
  "sparse": Sparse,  # Sparse-dLLM, 2508.02558
  "head_sparse": HeadSparse,  # dLLM-Serve, 2512.17077
  "dkv_decode": Decode,  # dKV-Cache-Decode, 2505.15781
  "dkv_pd": PD,  # dKV-Cache-PD, 2505.15781
  "dkv_greedy": Greedy,  # dKV-Cache-Greedy, 2505.15781
}
