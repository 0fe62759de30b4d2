r"""DEER (arXiv 2512.15176): a diffusion model drafts, an autoregressive one verifies.

python experiments/sample.py --checkpoint=AR_DIR --drafter=DIFFUSION_DIR \
  --config=configs/sample/deer.py --prompt="..."

Exact: the text is that of the autoregressive model with the same seed, at any temperature. Both
checkpoints must have one vocabulary. 32 drafts are the paper's block; no code is public.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(name="deer", length=32),
      cache=dict(name="rolling"),
    )
  )
