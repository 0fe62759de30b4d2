r"""DiffTester (arXiv 2509.24975): several unit tests for one function, which share their syntax.

python experiments/difftester.py --checkpoint=DIR --config=configs/sample/difftester.py \
  --samples=5 --language=python --prompt="..."

The authors' settings for Python: 128 tokens in 64 forwards, temperature 1.0 (Dream) or 1.5
(DiffuCoder), --threshold=0.02 of a share at 0.2. Java and C++: --config.max_new_tokens=192
--config.block=192 --config.policy.k=3.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.policy = ConfigDict(
    {
      "name": "fixed",
      "k": 2,
      "order": "confidence",
    }
  )
  config.cache = ConfigDict({"name": "none"})
  config.commit = "fused"
  config.block = 128
  config.align = "prompt"
  config.slots = 0
  config.max_new_tokens = 128
  config.max_forwards = 0
  config.temperature = 1.0
  config.top_k = 0
  config.top_p = 1.0
  config.guidance = 0.0
  config.forbid_ends = False
  config.doubt_ends = False
  config.may_predict_mask = False
  config.scope = "auto"
  config.stop = "fill"
  config.seed = 0
  config.batch = 8
  config.parallel = "shard_map"
  config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "expert": 1})
  return config
