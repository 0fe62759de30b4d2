r"""Nemotron-Labs-Diffusion: one checkpoint, three ways to write (NVIDIA's model cards).

python experiments/sample.py --checkpoint=HF_DIR --config=configs/sample/nemotron.py --chat \
  --prompt="..."

Diffusion in blocks of 32: all that is surer than 0.9; the text before a block, read causally, gives
its first token. `nemotron.py:self_speculation`: each block is drafted at masks and checked
causally, so the text is the autoregressive one, in fewer forwards; with
--draft_adapter=HF_DIR/linear_spec_lora NVIDIA's adapter helps to draft.
`nemotron.py:autoregressive`: token by token. All greedy, 512 tokens, as published; temperature=1
draws, and the last two then write the same text, too.
"""

from ml_collections import ConfigDict

POLICIES = {
  "diffusion": dict(name="threshold", threshold=0.9),
  "self_speculation": dict(name="self_speculative"),
  "autoregressive": dict(name="introspective", stride=1),
}


def get_config(mode: str = "diffusion") -> ConfigDict:
  return ConfigDict(dict(policy=POLICIES[mode], max_new_tokens=512))
