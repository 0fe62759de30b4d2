"""Checkpoints of other projects, in Hugging Face layout, in and out; GGUF files and codes in.

  source = open_source(located(directory))      config.json, or the header of a file, alone
  params = load(source, shardings=..., dtype=...)
  export(directory, family, model, params, facts=...)

`peft` reads and writes adapters; `codes` reads what others quantised.
`families` says what there is of each family, `names` which tensor becomes which parameter.
"""

from dlm.weights.configs import Source, is_huggingface, open_source
from dlm.weights.files import WeightsError
from dlm.weights.gguf import is_gguf, located
from dlm.weights.reading import load
from dlm.weights.writing import export, fill

__all__ = [
  "Source",
  "WeightsError",
  "export",
  "fill",
  "is_gguf",
  "is_huggingface",
  "load",
  "located",
  "open_source",
]
