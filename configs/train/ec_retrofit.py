"""Tokens chose experts; from here on experts choose tokens, weights as they are (arXiv 2604.01622).

    python experiments/train.py --config=configs/train/ec_retrofit.py --config.init_from=DIR \
      --workdir=runs/ec_retrofit

DIR: a Hugging Face directory of LLaDA-MoE, or a checkpoint folder of ours; model and tokenizer are
its own. Of LLaDA2.x: --config=configs/train/ec_retrofit.py:blocks, whose pools are its blocks.
A schedule: --config.model.moe.schedule=linear_reverse "--config.model.moe.per_token_range=(2, 14)".
Only the routers: --config.optimizer.trainable=router.

The choice changes at once, and what it costs is tuned away. Weights that sum to 1 should keep doing
so, others not: renormalise as the source has it, False for LLaDA-MoE, True for LLaDA2. No balance
loss: every expert has its share. Which tensors the authors train is not known. Expected (theirs,
fine-tuned by task: mean of HumanEval, HumanEval+, GSM8K, MedQA): tokens choose 52.6, experts 53.6,
2 to 14 a token 54.9. Not run here; small models: experiments/studies/experts.py.
"""

from ml_collections import ConfigDict

OBJECTIVES = {
  "full": dict(name="llada_sft"),
  "blocks": dict(name="llada2_sft", block=32, window=(0.3, 0.8)),
}


def get_config(name: str = "full") -> ConfigDict:
  objective = OBJECTIVES[name]
  return ConfigDict(
    dict(
      steps=2000,
      batch=64,
      microbatches=8,
      mesh=dict(data=1, fsdp=-1),
      model=dict(
        dtype="bfloat16",
        remat=True,
        moe=dict(
          choice="expert",
          renormalise=name == "blocks",
          pool=objective.get("block", 0),
          schedule="static",
          per_token_range=None,
          z_loss=0.0,
          balance_loss=0.0,
        ),
      ),
      objective=objective,
      data=dict(sources=(("stdlib", 1.0),), length=1024, mode="pad", pad="eos"),
      optimizer=dict(lr=1e-5, schedule="cosine", warmup=50, weight_decay=0.1),
      eval=dict(every=200),
      checkpoint=dict(every=500),
    )
  )
