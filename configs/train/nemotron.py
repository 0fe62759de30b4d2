"""An autoregressive model learns to fill blocks and stays one: Nemotron-Labs-Diffusion's loss.

    python experiments/train.py --config=configs/train/nemotron.py --config.init_from=HF_DIR \
      --workdir=runs/nemotron

HF_DIR: any autoregressive model (theirs: Ministral 3). NVIDIA's recipe (Megatron-Bridge): blocks of
64, rows of 4096 tokens, 512 rows an update, 12,500 updates at 1e-5, falling to 1e-6 over the last
2500, Adam's second beta 0.95; 0.3 of the masks' loss plus that of the next tokens. Ours: the text,
here the standard library. Expected: no numbers of a loss are public; not run here.

configs/sample/nemotron.py samples what it made, in three modes. Adapters that help it to draft:
--config.model.lora.rank=16 --config.model.lora.alpha=32 --config.model.lora.gated=True
--config.objective.next_weight=0, from a model that this recipe made.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      steps=12_500,
      batch=512,
      microbatches=32,
      mesh=dict(data=1, fsdp=-1),
      model=dict(dtype="bfloat16", remat=True),
      objective=dict(name="nemotron", block=64, shift=0),
      data=dict(sources=(("stdlib", 1.0),), length=4096),
      optimizer=dict(lr=1e-5, schedule="wsd", decay=2500, end_lr=1e-6, b2=0.95, warmup=100),
      eval=dict(every=1000),
      checkpoint=dict(every=1000),
    )
  )
