"""Several samples of one prompt that lend each other their syntax: DiffTester (arXiv 2509.24975).

python experiments/difftester.py --checkpoint=DIR --config=configs/sample/difftester.py \
  --samples=5 --prompt="..."

Tests are expected between fences, "```python" and "```"; the prompt may open the first.
"""

import dataclasses
import functools

import jax
import numpy as np
from absl import flags

from dlm import build, command, generate
from dlm.difftester import languages, release, sampling
from dlm.generate import Request

CONFIG = flags.DEFINE_string("config", None, "How to sample: FILE.py or FILE.py:ARGUMENT.")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Of training, or a Hugging Face directory.")
STEP = flags.DEFINE_string("step", "best", "best, latest or a number.")
PROMPT = flags.DEFINE_string("prompt", None, "What all samples are of.")
SAMPLES = flags.DEFINE_integer("samples", 5, "How many.")
LANGUAGE = flags.DEFINE_string("language", "python", "Of the tests: python, java or cpp.")
THRESHOLD = flags.DEFINE_float("threshold", 0.02, "Least confidence of a token that is released.")
SHARE = flags.DEFINE_float("share", 0.2, "Above 0: confidences are shares of softmax(c / share).")
EVERY = flags.DEFINE_integer("every", 2, "Forwards between two comparisons.")


def main() -> None:
  parse = languages.parser_of(LANGUAGE.value)
  config = build.SamplingConfig.read(CONFIG.value, command.FIELDS.value)
  config = dataclasses.replace(config, batch=SAMPLES.value)
  trained = build.pretrained(CHECKPOINT.value, STEP.value)
  tokenizer, mesh = trained.tokenizer, config.mesh.make(jax.local_devices()[:1])
  generator, own = generate.generator(config, trained, mesh=mesh)
  requests = [
    Request.from_text(i, PROMPT.value, tokenizer, **own.room) for i in range(SAMPLES.value)
  ]
  agreed = functools.partial(
    release.agreed,
    spell=functools.cache(lambda token: tokenizer.decode([token])),
    parse=parse,
    language=LANGUAGE.value,
  )
  canvas = sampling.sample(
    generator.sampler,
    trained.on(mesh, own.weights)[0],
    generator.canvas(requests, own.seed),
    agreed,
    threshold=THRESHOLD.value,
    share=SHARE.value,
    every=EVERY.value,
  )
  forwards = int(np.asarray(canvas.forwards_Bx3).sum(-1).max())
  for request, row in zip(requests, np.asarray(canvas.tokens_BxL), strict=True):
    print(tokenizer.decode(row[: len(request.tokens)][request.open]))
  print(f"[{SAMPLES.value} samples, {forwards} forwards]")


if __name__ == "__main__":
  command.run(main, required=(CONFIG, CHECKPOINT, PROMPT))
