r"""Any policy and any cache by name, on the defaults of `dlm.build.SamplingConfig`.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/default.py \
  --config.policy.name=factor --config.policy.factor=1.2 --prompt="..."

The other files of this folder set what one paper sets. In all of them the command line may set any
field: those of SamplingConfig (dlm/build/sampling.py says what each means), those of the policy
(dlm/sampling/policies) and of the cache (dlm/sampling/caching). A policy that is named on the
command line starts from its own defaults, whatever the file sets for another one. Policies that
wrap another (prophet, region, credit, smooth, parts) take it as --config.policy.inner.name and so
on. A field that does not exist is answered with those that do.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict()
