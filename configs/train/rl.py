r"""Reinforcement learning of reversals, by the rule of one paper: :METHOD names it.

    python experiments/train.py --config=configs/train/quickstart.py --config.steps=200 \
      --workdir=runs/quickstart
    python experiments/train.py --config=configs/train/rl.py:espo --workdir=runs/rl_espo

    d1             2504.12216   one forward, the answer masked; clip 0.5; KL to the first model
    wd1            github.com/xiaohangt/wd1   d1's estimate, weighed by softmax; no ratio
    wd1_guided     the same: sampled and estimated with guidance, which its recipe leaves at 0
    coupled_grpo   2506.20639   DiffuCoder's coupled masks; leave one out
    espo           github.com/ML-GSAI/ESPO    the bound, a ratio of whole completions
    spg            github.com/facebookresearch/SPG   a bound from above for what was bad
    mdpo           2508.13148   what every forward predicts is judged; the telling ones are learned
    tracerl        2509.06949   the states in which tokens were written; models in blocks
    tracerl_value  the same: with values of states, learned beside the policy
    tracerl_random, tracerl_coupled   its code: states that are drawn; with the other tokens' own
    lightning      2603.13319   tokens per forward are rewarded, too; models in blocks

Masks, ratios, clips, divergences, advantages, filters and updates on the same rows are the papers';
learning rate, groups and problems are ours: theirs are for models of 7B and more. `batch` counts
answers, not prompts: 64 are 8 answers to each of 8. TraceRL's four
and lightning go on from a model that writes in blocks: --config.init_from=runs/lists_bd3lm, of
configs/train/lists_bd3lm.py, with its data.length. Metrics: reward/..., rollout/..., kl, clipped,
ratio. Expected: BENCHMARKS.md, Rewards; wd1_guided and TraceRL's drawn states have not been run to
their end, nor has tracerl_value.
"""

from ml_collections import ConfigDict

LISTS = (
  ("tasks", ("reverse",)),
  ("form", "grid"),
  ("items", (4, 4)),
  ("alphabet", "abcdefgh"),
)
EXACT = (("fields_right", 1.0),)
FAST = (("exact", 1.0, "zscore"), ("tokens_per_forward", 1.0, "zscore"))

TRACERL = (
  dict(limit=10.0, per="state", kl="k3", anchor="old", kl_weight=0.01, kl_per="state"),
  dict(of=(("exact", 1.0),), margin=5, advantages=dict(kind="zscore", right=(0.2, 0.8))),
)

METHODS = {
  "d1": (
    dict(estimator=dict(name="full_mask"), clip=(0.5, 0.5), kl="k3", kl_weight=0.04),
    dict(of=EXACT, updates=12),
  ),
  "wd1": (
    dict(estimator=dict(name="full_mask"), ratio="none", per="row"),
    dict(of=EXACT, updates=12, advantages=dict(kind="softmax")),
  ),
  "wd1_guided": (
    dict(estimator=dict(name="full_mask", guidance=0.5), ratio="none", per="row"),
    dict(of=EXACT, updates=12, advantages=dict(kind="softmax")),
  ),
  "coupled_grpo": (
    dict(estimator=dict(name="coupled_masks"), clip=(0.5, 0.5), kl="k3", kl_weight=0.01),
    dict(of=EXACT, updates=2, advantages=dict(kind="leave_one_out")),
  ),
  "espo": (
    dict(
      estimator=dict(name="coupled_elbo", draws=2),
      ratio="row",
      per="row",
      kl="k2",
      kl_weight=0.01,
      kl_per="slot",
    ),
    dict(of=EXACT, updates=8, advantages=dict(kind="leave_one_out")),
  ),
  "spg": (
    dict(estimator=dict(name="sandwich", size=4), ratio="none", per="length"),
    dict(of=EXACT, updates=4),
  ),
  "mdpo": (
    dict(name="mdpo"),
    dict(of=EXACT, updates=4, advantages=dict(kind="steps")),
  ),
  "tracerl": (dict(estimator=dict(name="trace", block=16), **TRACERL[0]), TRACERL[1]),
  "tracerl_value": (
    dict(estimator=dict(name="trace", block=16), critic=dict(gamma=1.0, lam=1.0), **TRACERL[0]),
    TRACERL[1],
  ),
  "tracerl_random": (dict(estimator=dict(name="block_masks", block=16), **TRACERL[0]), TRACERL[1]),
  "tracerl_coupled": (
    dict(estimator=dict(name="block_masks", block=16, complement=True), **TRACERL[0]),
    TRACERL[1],
  ),
  "lightning": (
    dict(
      estimator=dict(name="block_one_step", block=16),
      limit=10.0,
      per="sequence",
      kl="k3",
      kl_weight=0.01,
      nll=0.1,
    ),
    dict(of=FAST, margin=5, advantages=dict(kind="batch", spread=0.01, some_right=True)),
  ),
}
ROLLOUTS = {"mdpo": dict(policy=dict(name="fixed", k=1), temperature=0.4, max_forwards=8)}
IN_BLOCKS = ("tracerl", "tracerl_value", "tracerl_random", "tracerl_coupled", "lightning")


def get_config(method: str = "espo") -> ConfigDict:
  objective, rewards = METHODS[method]
  updates = rewards.get("updates", 1)
  steps = 240
  return ConfigDict(
    dict(
      steps=steps,
      batch=64,
      log_every=updates,
      init_from="runs/lists_bd3lm" if method in IN_BLOCKS else "runs/quickstart",
      objective={"name": "policy_gradient"} | objective,
      rollout=dict(
        policy=dict(name="threshold", threshold=0.9),
        block=16 if method in IN_BLOCKS else 8,
        temperature=1.0,
        guidance=objective.get("estimator", {}).get("guidance", 0.0),
        max_new_tokens=32 if method in IN_BLOCKS else 8,
      )
      | ROLLOUTS.get(method, {}),
      rewards=dict(group=8, **rewards),
      data=dict(
        sources=(("lists", 1.0, LISTS),),
        length=128 if method in IN_BLOCKS else 22,
        mode="pad",
        pad="none",
      ),
      optimizer=dict(lr=3e-4, schedule="constant", warmup=10),
      eval=dict(every=48, batches=4),
      checkpoint=dict(every=48, keep_last=1, keep_best=0),
    )
  )
