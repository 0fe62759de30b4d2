"""TensorFlow Datasets builder of the standard library's text, without TensorFlow.

Prepared by `experiments/prepare_data.py --source=stdlib --tfds_dir=DIR`, read by the source
`tfds:stdlib_text:CONFIG` with the option `data_dir=DIR`. A builder class must live in an importable
module, and its file format must be array_record: the default needs TensorFlow.
"""

from dlm.data.install import require
from dlm.data.sources import stdlib

tfds = require("tensorflow_datasets")

# Config name -> what it holds.
INCLUDE = {
  "topics": ("topics",),
  "prose": ("topics", "docstrings"),
  "all": stdlib.KINDS,
}


class StdlibText(tfds.core.GeneratorBasedBuilder):
  """The documents of `dlm.data.sources.stdlib`, one a record."""

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in INCLUDE]  # noqa: RUF012

  def _info(self):
    features = tfds.features.FeaturesDict(
      {"name": tfds.features.Text(), "text": tfds.features.Text()}
    )
    return self.dataset_info_from_configs(features=features, description=stdlib.__doc__)

  def _split_generators(self, dl_manager):
    del dl_manager  # nothing is downloaded
    return {split: self._generate_examples(split) for split in ("train", "test")}

  def _generate_examples(self, split: str):
    for name, text, where in stdlib.documents(INCLUDE[self.builder_config.name]):
      if where == split:
        yield name, {"name": name, "text": text}


def prepare(data_dir: str, config: str) -> str:
  """Writes one config below `data_dir`; the folder that holds it."""
  if config not in INCLUDE:
    raise ValueError(f"unknown {config=}; known: {', '.join(INCLUDE)}")
  builder = StdlibText(config=config, data_dir=data_dir, file_format="array_record")
  builder.download_and_prepare()
  return str(builder.data_dir)
