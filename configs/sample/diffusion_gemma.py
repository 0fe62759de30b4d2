r"""DiffusionGemma: a block of random ids is drawn anew until it stands still.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/diffusion_gemma.py \
  --prompt="..."

DIR: a checkpoint trained as configs/train/uniform.py. The settings of google-deepmind/gemma
(gemma/diffusion/_chat_sampler.py): 48 forwards a block of 256, temperature from 0.8 to 0.4 (times
the one below), an entropy budget of 0.1 nats, stop at 0.005. Its self-conditioning is not here.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.policy = ConfigDict(
    {
      "name": "renoise",
      "steps": 48,
      "hot": 0.8,
      "cold": 0.4,
      "budget": 0.1,
      "still": 0.005,
    }
  )
  config.cache = ConfigDict({"name": "auto"})
  config.commit = "separate"
  config.block = 0
  config.align = "auto"
  config.slots = 0
  config.max_new_tokens = 0
  config.max_forwards = 0
  config.temperature = 1.0
  config.top_k = 0
  config.top_p = 1.0
  config.confidence = "plain"
  config.guidance = 0.0
  config.forbid_ends = False
  config.doubt_ends = False
  config.may_predict_mask = False
  config.scope = "auto"
  config.stop = "stop_block"
  config.seed = 0
  config.batch = 8
  config.parallel = "shard_map"
  config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "expert": 1})
  return config
