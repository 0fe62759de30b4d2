r"""DiffusionGemma: a block of random ids is drawn anew until it stands still.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/diffusion_gemma.py \
  --prompt="..."

DIR: a checkpoint trained as configs/train/uniform.py. The settings of google-deepmind/gemma
(gemma/diffusion/_chat_sampler.py): 48 forwards a block of 256, temperature from 0.8 to 0.4 (times
the one below), an entropy budget of 0.1 nats, stop at 0.005. Its self-conditioning is not here.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(name="renoise", steps=48, hot=0.8, cold=0.4, budget=0.1, still=0.005),
      commit="separate",
      temperature=1.0,
      stop="stop_block",
    )
  )
