r"""Prophet (arXiv 2508.19982): all at once, as soon as the answer is sure.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/prophet.py --prompt="..."

The README's GSM8K setting: 256 tokens, 256 forwards, blocks of 32, an answer of five tokens behind
slot 203. It was measured with "The answer is" written into slots 200 to 202: with --infill a prompt
can say so, "question[[200]]The answer is[[53]]".
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.policy = ConfigDict(
    {
      "name": "prophet",
      "steps": 256,
      "answer_start": 203,
      "answer_length": 5,
      "early": 7.5,
      "mid": 5.0,
      "late": 2.5,
      "inner": {"name": "fixed", "steps": 32, "order": "confidence"},
    }
  )
  config.cache = ConfigDict({"name": "none"})
  config.commit = "fused"
  config.block = 32
  config.align = "prompt"
  config.slots = 0
  config.max_new_tokens = 256
  config.max_forwards = 0
  config.temperature = 0.0
  config.top_k = 0
  config.top_p = 1.0
  config.guidance = 0.0
  config.forbid_ends = False
  config.doubt_ends = False
  config.may_predict_mask = False
  config.scope = "auto"
  config.stop = "never"
  config.seed = 0
  config.batch = 8
  config.parallel = "shard_map"
  config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "expert": 1})
  return config
