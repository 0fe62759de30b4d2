r"""DLLM-Searcher (arXiv 2602.07035): look-ups by tools that run, in two stages; :STAGE names one.

    python -m experiments.studies.agentic --workdir=runs/agentic --seeds=0
    python experiments/train.py --config=configs/train/agentic.py:vrpo --workdir=runs/agentic/vrpo

    sft    Agentic SFT: trajectories of a file, of which tools' responses are read and not learned.
           The first command writes the files and runs this stage
    vrpo   Agentic VRPO: two trajectories from each question, with a search that really runs in each
           turn; that with the right answer shall gain on the other
    grpo   the same trajectories in groups of 8, by policy gradients (TraceRL's "coupled" states)

A question asks for the code of a word's friend: a search for the word finds the friend, a search
for the friend the code. A turn is a block, its call forced to offsets 10 to 15 and written first.
Blocks of 16, beta 0.1 by length and 2 masks a row are as in the paper and its code, but for the
size; model, rates, rewards and questions are ours. The paper learns from pairs of a file: so does
:vrpo with --config.data.sources="(('pairs:FILE.jsonl', 1.0, (('silent', ('[', ']')),)),)"
--config.tools=None --config.rollout=None --config.rewards=None. Expected: BENCHMARKS.md, Tools.
"""

from ml_collections import ConfigDict

FOLDER = "runs/agentic"
BLOCK, LENGTH = 16, 96
OPENS, CLOSES = (10, ord("<")), (15, ord(">"))
ESTIMATOR = dict(name="block_elbo", block=BLOCK, draws=2)

OBJECTIVES = {
  "vrpo": dict(name="preference", estimator=ESTIMATOR, beta=0.1, by_length=True),
  "grpo": dict(
    name="policy_gradient",
    estimator=dict(name="block_masks", block=BLOCK, complement=True),
    limit=10.0,
    per="state",
  ),
}
REWARDS = {
  "vrpo": dict(group=2),
  "grpo": dict(group=8, advantages=dict(kind="centred")),
}


def get_config(stage: str = "vrpo") -> ConfigDict:
  data = dict(length=LENGTH, mode="pad", pad="none")
  if stage == "sft":
    silent = (("silent", ("[", "]")),)
    return ConfigDict(
      dict(
        steps=126,
        batch=32,
        log_every=50,
        model=dict(width=128, layers=2, heads=4, kv_heads=4, head_dim=32, mlp=384, qk_norm=True),
        objective=dict(name="sdar", block=BLOCK, fill=False),
        data=dict(
          sources=((f"jsonl:{FOLDER}/learned.jsonl", 1.0, silent),), tokenizer="byte", **data
        ),
        optimizer=dict(lr=4e-3, schedule="cosine", warmup=50, weight_decay=0.01, ema=0.99),
        checkpoint=dict(keep_last=1, keep_best=0),
      )
    )
  return ConfigDict(
    dict(
      steps=30,
      batch=32,
      log_every=5,
      init_from=f"{FOLDER}/sft",
      objective=OBJECTIVES[stage],
      rollout=dict(
        policy=dict(
          name="region",
          first=OPENS[0],
          last=CLOSES[0],
          bias=0.5,
          forced=(OPENS, CLOSES),
          inner=dict(name="fixed", k=1),
        ),
        temperature=1.0,
        max_new_tokens=BLOCK,
      ),
      tools=dict(
        of=("search",),
        corpus=f"{FOLDER}/corpus.jsonl",
        hits=1,
        turns=2,
        frame=("[", "]"),
        response_tokens=13,
        answer_tokens=4,
      ),
      rewards=dict(of=(("exact", 1.0),), **REWARDS[stage]),
      data=dict(sources=((f"jsonl:{FOLDER}/asked.jsonl", 1.0),), **data),
      optimizer=dict(lr=2e-4, schedule="constant", warmup=5),
      checkpoint=dict(every=10, keep_last=1, keep_best=0),
    )
  )
