r"""BD3-LM's sampler (arXiv 2503.09573): one token a forward anywhere in the block, nucleus 0.9.

python experiments/sample.py --checkpoint=HF_DIR --config=configs/sample/bd3lm.py \
  --config.slots=4096 --out=OUT.jsonl

For kuleshov-group/bd3lm-owt-block_size{4,8,16}; put GPT-2's tokenizer.json into the folder. With
--config=configs/sample/bd3lm.py:ancestral their other sampler: 5000 steps a block, of which those
that write nothing cost nothing. A token sees at most 1024 slots. A text ends with its end token, or
where its last 256 tokens say too little; with stop=never the latter alone (the authors draw samples
of one length again when it happens).
"""

from ml_collections import ConfigDict

SETTINGS = {
  "first_hitting": {"name": "fixed", "k": 1, "order": "random"},
  "ancestral": {"name": "ancestral", "steps": 5000, "schedule": "linear"},
}


def get_config(setting: str = "first_hitting") -> ConfigDict:
  config = ConfigDict()
  config.policy = ConfigDict(SETTINGS[setting])
  config.cache = ConfigDict({"name": "auto"})
  config.commit = "fused"
  config.block = 0
  config.align = "canvas"
  config.slots = 0
  config.max_new_tokens = 0
  config.max_forwards = 0
  config.temperature = 1.0
  config.top_k = 0
  config.top_p = 0.9
  config.top_p_rule = "within"
  config.confidence = "shaped"
  config.guidance = 0.0
  config.forbid_ends = False
  config.doubt_ends = False
  config.may_predict_mask = False
  config.scope = "auto"
  config.stop = "stop_block"
  config.context = 1024
  config.bos = True
  config.least_entropy = 4.0
  config.seed = 0
  config.batch = 8
  config.parallel = "shard_map"
  config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "expert": 1})
  return config
