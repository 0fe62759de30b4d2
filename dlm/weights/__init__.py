"""Checkpoints of other projects, in Hugging Face layout, in and out.

  source = open_source(directory)               config.json alone
  params = load(source, shardings=..., dtype=...)
  export(directory, family, model, params, facts=...)

`families` says what there is of each family, `names` which tensor becomes which parameter.
"""

from dlm.weights.configs import Source, is_huggingface, open_source
from dlm.weights.files import WeightsError
from dlm.weights.reading import load
from dlm.weights.writing import export, fill

__all__ = ["Source", "WeightsError", "export", "fill", "is_huggingface", "load", "open_source"]
