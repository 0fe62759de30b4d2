r"""d3LLM's distillation (2601.07568): the demo's model learns the order in which it writes.

Prompts, the teacher's answers, one token a forward, with the order they were written in; the run:

    python -c "import json; from dlm.data import open_source; s = open_source('lists',
      tasks=('copy', 'reverse', 'shuffle'), form='grid', items=(4, 4), alphabet='abcdefgh'); print(
      *(json.dumps({'prompt': s[i].prompt}) for i in range(6000)), sep='\n')" \
      > runs/prompts.jsonl
    python experiments/sample.py --checkpoint=runs/demo/model --step=latest \
      --config=configs/sample/default.py --config.policy.name=fixed --config.policy.k=1 \
      --config.slots=24 --config.max_new_tokens=8 --config.batch=128 --trace \
      --prompts=runs/prompts.jsonl --out=runs/traces.jsonl
    python experiments/train.py --config=configs/train/d3llm.py --workdir=runs/d3llm

:random hides tokens at random instead. The paper's are the noise, the entropy and their schedule;
its blocks grow from 16 to 32 of 256 tokens, here from 4 to 8 of 8. Expected: BENCHMARKS.md,
Distillation.
"""

from ml_collections import ConfigDict

STEPS = 300


def get_config(order: str = "trace") -> ConfigDict:
  return ConfigDict(
    dict(
      steps=STEPS,
      batch=96,
      log_every=50,
      init_from="runs/demo/model",
      objective=dict(name="d3llm", sizes=(4, 4, 6, 6, 8, 8), updates=STEPS, order=order),
      data=dict(sources=(("traces:runs/traces.jsonl", 1.0),), length=24, mode="pad", pad="none"),
      optimizer=dict(lr=1e-3, schedule="cosine", warmup=20, weight_decay=0.01),
      eval=dict(every=150, batches=4),
      checkpoint=dict(keep_last=1),
    )
  )
