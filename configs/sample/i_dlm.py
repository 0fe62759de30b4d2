r"""I-DLM (arXiv 2604.11035): introspective strided decoding, four tokens a forward at most.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/i_dlm.py --prompt="..."

The authors' stride, temperature, top-k and top-p. Drafts are checked exactly: the text is that of
autoregressive sampling with the same seed (policy.rule=kept and sure are their lenient rules).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(name="introspective", stride=4),
      cache=dict(name="rolling"),
      temperature=1.0,
      top_k=50,
      top_p=0.95,
    )
  )
