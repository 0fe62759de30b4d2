"""EC-DLM (arXiv 2604.01622): experts choose tokens, as many as the mask ratio says.

    python experiments/train.py --config=configs/train/ec_dlm.py:SIZE-ARM --workdir=runs/ec_dlm

SIZE: cpu or gpu (ours, bytes of English text; the default is cpu-linear_reverse), or the paper's
  small   16 layers of 512, 512 experts of 384 beside 2 shared, 20 a token; OpenWebText, prepared
          beforehand, and the tokenizer of GPT-NeoX in data/gpt-neox; 30B tokens. 4.9B parameters,
          on 8 H200.
  large   16 layers of 2048, 64 experts of 1280 beside 2 shared, 8 a token; loss without 1 / r;
          Nemotron-CC in the paper, here data/text.jsonl. 8.8B parameters, on 32 H200.
ARM, all with equal FLOPs, on average over the noise levels:
  linear, linear_reverse, cosine, cosine_reverse   8 to 32 experts a token (2 to 14, cpu: 1 to 7)
  static                                           as many at every level
  token, capacity                                  tokens choose: dropless, and with capacity 1.25

The authors' decay of the learning rate is exponential, here linear; their times are drawn one by
one. Expected (theirs, small, validation perplexity): linear_reverse 36.5, static 37.1, linear 37.5.
Not run here; cpu: see experiments/studies/experts.py.
"""

from ml_collections import ConfigDict

SIZES = {
  "cpu": dict(
    model=dict(width=64, layers=4, heads=4, kv_heads=4, head_dim=16, mlp=128),
    experts=dict(experts=16, mlp=32, shared=64),
    # A place at every expert for every token: none is dropped, and on CPUs that is far faster than
    # the ragged product, which has each expert compute all pairs there.
    all_places=4.0,
    per_token=4,
    per_token_range=(1, 7),
    data=dict(sources=(("stdlib", 1.0),), tokenizer="byte", length=64),
    run=dict(steps=300, batch=64),
    optimizer=dict(lr=3e-3, warmup=20, decay=60, end_lr=3e-4),
    mesh=dict(),
  ),
  "gpu": dict(
    model=dict(width=512, layers=8, heads=8, kv_heads=8, head_dim=64, mlp=384, dtype="bfloat16"),
    experts=dict(experts=64, mlp=384, shared=768),
    per_token=8,
    per_token_range=(2, 14),
    data=dict(sources=(("stdlib", 1.0),), tokenizer="byte", length=512),
    run=dict(steps=1000, batch=64, log_every=20),
    optimizer=dict(lr=1e-3, warmup=50, decay=200, end_lr=1e-4),
    mesh=dict(),
  ),
  "small": dict(
    model=dict(width=512, layers=16, heads=16, kv_heads=16, head_dim=32, mlp=384, dtype="bfloat16"),
    experts=dict(experts=512, mlp=384, shared=768),
    per_token=20,
    per_token_range=(8, 32),
    data=dict(
      sources=(("tfds:openwebtext", 1.0),),
      tokenizer="saved:data/gpt-neox",
      length=512,
      document_mask=False,
    ),
    run=dict(steps=228_000, batch=256, log_every=100),
    optimizer=dict(lr=2e-4, warmup=2000, decay=1000, end_lr=2e-5),
    mesh=dict(data=1, expert=-1),
  ),
  "large": dict(
    model=dict(
      width=2048, layers=16, heads=16, kv_heads=16, head_dim=128, mlp=1280, dtype="bfloat16"
    ),
    experts=dict(experts=64, mlp=1280, shared=2560),
    per_token=8,
    per_token_range=(2, 14),
    data=dict(
      sources=(("jsonl:data/text.jsonl", 1.0),),
      tokenizer="saved:data/gpt-neox",
      length=2048,
      document_mask=False,
    ),
    run=dict(steps=678_000, batch=288, log_every=100),
    optimizer=dict(lr=2e-4, warmup=2000, decay=1000, end_lr=2e-5),
    mesh=dict(expert=8),
  ),
}
SCHEDULES = ("linear", "linear_reverse", "cosine", "cosine_reverse")


def routing(arm: str, size: dict) -> dict:
  if arm in SCHEDULES:
    return dict(choice="expert", schedule=arm, per_token_range=size["per_token_range"])
  return {
    "static": dict(choice="expert"),
    "token": dict(choice="token", balance_loss=0.01, capacity_factor=size.get("all_places", 0.0)),
    "capacity": dict(choice="token", balance_loss=0.01, capacity_factor=1.25),
  }[arm]


def get_config(name: str = "cpu-linear_reverse") -> ConfigDict:
  size_name, _, arm = name.partition("-")
  size = SIZES[size_name]
  experts = dict(
    per_token=size["per_token"], renormalise=True, match_shared=True, z_loss=1e-3, **size["experts"]
  )
  return ConfigDict(
    dict(
      seed=1234,
      mesh=size["mesh"],
      model=dict(qk_norm=True, tied=False, moe=experts | routing(arm, size), **size["model"]),
      objective=dict(name="ec_dlm", times="shared_offset", stable=size_name == "large"),
      data=size["data"],
      optimizer=dict(schedule="wsd", b2=0.95, weight_decay=0.1, **size["optimizer"]),
      checkpoint=dict(keep_last=1, keep_best=0),
      **size["run"],
    )
  )
