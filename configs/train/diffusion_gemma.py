"""DiffusionGemma is fine-tuned by adapters: noise of random ids, self-conditioning, next tokens.

    python experiments/train.py --config=configs/train/diffusion_gemma.py \
      --config.init_from=HF_DIR --workdir=runs/diffusion_gemma

HF_DIR: google/diffusiongemma-26B-A4B-it. The authors' sudoku recipe (google-deepmind/gemma,
configs/sft_sudoku.py): LoRA of rank 8, learning rate 1.5e-4 to 1.5e-5 by a cosine, a prompt and a
canvas of 256 tokens each. Ours: steps, batch, adapters on attention and on the MLP beside the
experts, and the text, rows of prompt and answer that --config.data.sources names.
Expected: no numbers of a loss are public; not run here, for want of weights and memory.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      steps=2000,
      batch=32,
      microbatches=8,
      mesh=dict(data=1, fsdp=-1),
      model=dict(dtype="bfloat16", remat=True, lora=dict(rank=8, alpha=16.0)),
      objective=dict(name="diffusion_gemma", block=256, shift=0),
      data=dict(sources=(("jsonl:runs/answers.jsonl", 1.0),), length=512, mode="pad", pad="none"),
      optimizer=dict(lr=1.5e-4, schedule="cosine", warmup=50, end_lr=1.5e-5),
      eval=dict(every=200),
      sample=dict(config="configs/sample/diffusion_gemma.py"),
      checkpoint=dict(every=200),
    )
  )
