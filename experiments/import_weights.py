"""Weights of a Hugging Face directory or a GGUF file into a checkpoint folder, or out of one.

    python experiments/import_weights.py --source=HF_DIR --workdir=DIR [--quantise=int4g128]
    python experiments/import_weights.py --source=DIR --export=HF_DIR
    python experiments/import_weights.py --source=RUN --export_adapter=PEFT_DIR

sample and evaluate take either as --checkpoint, train as --config.init_from; HF_DIR is then read
anew each time. --adapt makes an autoregressive checkpoint the start of a diffusion model: full
attention, and a mask token whose row is the mean of the others. --adapter=PEFT_DIR merges an
adapter into the weights of --source; the adapters of a run that trained them (model.lora) are
merged too, or written as PEFT_DIR, which sample and evaluate take as --adapter.

--quantise keeps kernels in 8 or 4 bits (int8, int4g128, dgq128: all that --config.weights knows):
each is rounded as soon as it is read, and the folder is read so by sample, evaluate and serve.

--dtype=bfloat16 takes half the memory of float32: parameters are kept in it, and what is written
computes in it from then on (--config.model.dtype of a run that starts from it says otherwise).

Needs memory for the parameters once, on the devices of --mesh (data=1,fsdp=4; default: one device).
With --distributed these are the devices of all processes (default: each holds all parameters).
"""

import time
from collections.abc import Callable

import jax
from absl import flags

from dlm import build, command, parallel
from dlm.metrics import si
from dlm.models.config import DTYPES

SOURCE = flags.DEFINE_string(
  "source", None, "A Hugging Face directory, FILE.gguf, package:NAME or a folder."
)
WORKDIR = flags.DEFINE_string("workdir", None, "The checkpoint folder to make.")
EXPORT = flags.DEFINE_string("export", None, "The Hugging Face directory to make.")
EXPORT_ADAPTER = flags.DEFINE_string("export_adapter", None, "The PEFT directory to make.")
ADAPTER = flags.DEFINE_string("adapter", None, "In PEFT's layout: is merged into the weights.")
FAMILY = flags.DEFINE_string("family", "", "Layout of what is exported; empty: as it came in.")
DTYPE = flags.DEFINE_enum(
  "dtype", None, DTYPES, "Of parameters and of what they compute; default: as stored."
)
MESH = flags.DEFINE_list("mesh", None, "Devices to hold them: data=1,fsdp=4.")
STEP = flags.DEFINE_string("step", "best", "Of a checkpoint folder: best, latest or a number.")
QUANTISE = flags.DEFINE_string("quantise", "", "How --workdir keeps kernels: int8, int4g128, ...")
ADAPT = flags.DEFINE_bool("adapt", False, "Autoregressive to diffusion.")


def mesh() -> jax.sharding.Mesh | None:
  if MESH.value is None:
    return None if jax.process_count() == 1 else parallel.make_mesh(dcn=-1)
  sizes = dict(each.partition("=")[::2] for each in MESH.value)
  if not all(size.lstrip("-").isdigit() for size in sizes.values()):
    raise ValueError(f"--mesh={','.join(MESH.value)} must look like data=1,fsdp=4")
  return build.SamplingConfig.of({"mesh": {n: int(size) for n, size in sizes.items()}}).mesh.make()


def progress() -> Callable[[int, int], None]:
  """Says how far it is, once a second."""
  began = said = time.monotonic()

  def report(done: int, total: int) -> None:
    nonlocal said
    now = time.monotonic()
    if done == total or now - said >= 1:
      said = now
      print(f"read {done / 1e9:.2f} of {total / 1e9:.2f} GB, {now - began:.0f} s", flush=True)

  return report


def main() -> None:
  targets = [x for x in (WORKDIR.value, EXPORT.value, EXPORT_ADAPTER.value) if x is not None]
  if len(targets) != 1:
    raise ValueError("give one of --workdir, --export and --export_adapter")
  if QUANTISE.value and WORKDIR.value is None:
    raise ValueError(f"--quantise={QUANTISE.value} is for --workdir: exports hold numbers")
  made = build.pretrained(SOURCE.value, STEP.value, ADAPTER.value)
  made = made.adapted() if ADAPT.value else made
  if EXPORT_ADAPTER.value is not None:
    count = build.write_adapter(EXPORT_ADAPTER.value, made, FAMILY.value, DTYPE.value)
    print(f"{si(float(count))} parameters in {EXPORT_ADAPTER.value}")
    return
  where = mesh()
  shardings = None if where is None else parallel.shard_params(made.model.abstract(), where)
  reading = {"shardings": shardings, "dtype": DTYPE.value, "progress": progress()}
  if WORKDIR.value is not None:
    build.write_checkpoint(WORKDIR.value, made, **reading, weights=QUANTISE.value)
  elif note := build.write_huggingface(EXPORT.value, made, FAMILY.value, **reading):
    print(note)
  count = float(made.model.config.n_params())
  print(f"{si(count)} parameters in {targets[0]}")


if __name__ == "__main__":
  command.run(main, required=(SOURCE,), distributed=True)
