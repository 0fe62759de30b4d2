r"""DiffusionGemma: a canvas of random ids is drawn anew until it stands still.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/diffusion_gemma.py \
  --chat --prompt="..."

DIR: a Hugging Face directory of DiffusionGemma, or a checkpoint trained as
configs/train/diffusion_gemma.py or uniform.py. The settings of transformers 5.24: at most 48
forwards a canvas of 256, temperature from 0.8 towards 0.4 (times the one below), an entropy budget
of 0.1 nats, stop below 0.005 where the likeliest tokens are those of the forward before.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(name="renoise", steps=48, hot=0.8, cold=0.4, budget=0.1, still=0.005, stable=1),
      commit="separate",
      temperature=1.0,
      stop="stop_block",
    )
  )
