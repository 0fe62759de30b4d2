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
  "first_hitting": dict(name="fixed", k=1, order="random"),
  "ancestral": dict(name="ancestral", steps=5000, schedule="linear"),
}


def get_config(setting: str = "first_hitting") -> ConfigDict:
  return ConfigDict(
    dict(
      policy=SETTINGS[setting],
      align="canvas",
      temperature=1.0,
      top_p=0.9,
      top_p_rule="within",
      confidence="shaped",
      stop="stop_block",
      context=1024,
      bos=True,
      least_entropy=4.0,
    )
  )
