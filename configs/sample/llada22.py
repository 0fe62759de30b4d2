r"""LLaDA2.2 (inclusionAI/LLaDA2.X): a block's text is replaced, inserted, deleted till it stands.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/llada22.py --prompt="..."

The defaults of the checkpoint's own code, with an exact cache that it does not have; with :served
those of SGLang's loop, which is sure to end. The forward that changes nothing is the commit. Its
experts are admitted by whole blocks: prompt and max_new_tokens together should fill the last one.
"""

from ml_collections import ConfigDict


def get_config(loop: str = "indel") -> ConfigDict:
  policies = dict(
    indel=dict(name="indel", threshold=0.5, edit=0.0, most=16, steps=32, limit=1000),
    served=dict(name="served_indel", threshold=0.5, edit=0.0, most=16),
  )
  return ConfigDict(
    dict(policy=policies[loop], cache=dict(name="block"), commit="free", stop="stop_block")
  )
