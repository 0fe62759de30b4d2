r"""I-DLM (arXiv 2604.11035): introspective strided decoding, four tokens a forward at most.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/i_dlm.py --prompt="..."

The authors' stride, temperature, top-k and top-p. Drafts are checked exactly: the text is that of
autoregressive sampling with the same seed (policy.rule=kept and sure are their lenient rules).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.policy = ConfigDict(
    {
      "name": "introspective",
      "stride": 4,
    }
  )
  config.cache = ConfigDict({"name": "rolling"})
  config.commit = "fused"
  config.block = 0
  config.align = "auto"
  config.slots = 0
  config.max_new_tokens = 0
  config.max_forwards = 0
  config.temperature = 1.0
  config.top_k = 50
  config.top_p = 0.95
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
