r"""As many tokens a forward as an entropy budget allows: EB-Sampler (arXiv 2505.24857), and SDAR's.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/entropy_bounded.py \
  --prompt="..."

SDAR's JetEngine (arXiv 2510.06303): --config.policy.rule=total --config.policy.budget=0.35, with
--config.block=4 and --config.temperature=1.0.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(name="entropy_bounded", budget=0.1, rule="excess", order="entropy"),
      block=32,
      max_new_tokens=256,
      stop="never",
    )
  )
