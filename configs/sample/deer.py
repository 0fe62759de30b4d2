r"""DEER (arXiv 2512.15176): a diffusion model drafts, an autoregressive one verifies.

python experiments/sample.py --checkpoint=AR_DIR --drafter=DIFFUSION_DIR \
  --config=configs/sample/deer.py --prompt="..."

Exact: the text is that of the autoregressive model with the same seed, at any temperature. Both
checkpoints must have one vocabulary. 32 drafts are the paper's block; no code is public.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.policy = ConfigDict(
    {
      "name": "deer",
      "length": 32,
    }
  )
  config.cache = ConfigDict({"name": "rolling"})
  config.commit = "fused"
  config.block = 0
  config.align = "auto"
  config.slots = 0
  config.max_new_tokens = 0
  config.max_forwards = 0
  config.temperature = 0.0
  config.top_k = 0
  config.top_p = 1.0
  config.confidence = "plain"
  config.guidance = 0.0
  config.forbid_ends = False
  config.doubt_ends = False
  config.may_predict_mask = False
  config.scope = "auto"
  config.stop = "stop"
  config.seed = 0
  config.batch = 8
  config.parallel = "shard_map"
  config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "expert": 1})
  return config
