r"""DiffTester (arXiv 2509.24975): several unit tests for one function, which share their syntax.

python experiments/difftester.py --checkpoint=DIR --config=configs/sample/difftester.py \
  --samples=5 --language=python --prompt="..."

The authors' settings for Python: 128 tokens in 64 forwards, temperature 1.0 (Dream) or 1.5
(DiffuCoder), --threshold=0.02 of a share at 0.2. Java and C++: --config.max_new_tokens=192
--config.block=192 --config.policy.k=3.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(name="fixed", k=2, order="confidence"),
      cache=dict(name="none"),
      block=128,
      align="prompt",
      max_new_tokens=128,
      temperature=1.0,
      stop="fill",
    )
  )
