"""A chat model becomes a block diffusion model, Fast-dLLM v2's way (arXiv 2509.26328).

    python experiments/train.py --config=configs/train/fast_dllm_v2.py \
      --config.init_from=HF_DIR --workdir=runs/fast_dllm_v2

HF_DIR: Qwen2.5-1.5B-Instruct. The authors': blocks of 32, complementary masks (so 512 noisy rows an
update), shifted logits, 256 rows of 2048 tokens, 6000 updates (3.15B tokens) at 2e-5 after 500 of
warm-up; for 7B 2500 updates at 1e-5. They pack several padded chats into a row, here each has its
own; the text is the standard library: name your own chats as a JSONL file.
Expected: up to 2.5 times the tokens a second of the autoregressive model; not run here.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      steps=6000,
      batch=256,
      microbatches=16,
      mesh=dict(data=1, fsdp=-1),
      model=dict(dtype="bfloat16", remat=True),
      objective=dict(name="fast_dllm_v2", block=32),
      data=dict(sources=(("stdlib", 1.0),), length=2048, mode="pad", pad="none"),
      optimizer=dict(lr=2e-5, warmup=500),
      eval=dict(every=500),
      checkpoint=dict(every=500),
    )
  )
