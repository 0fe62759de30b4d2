"""What a run needs of a TPU pod, before one is rented: compiled here, nothing is run.

    python experiments/plan.py --config=configs/train/llada_8b.py --topology=v5p:4x4x4 \
      --config.batch=64 --try="mesh.fsdp=64" --try="mesh.data=4 mesh.fsdp=16" --out=plan.json

Each --try says what differs from --config, and is a row of the table; so is each --topology. Two
slices are --topology=2xv5p:4x4x4 and mesh.dcn=2, with a mesh within each. With
--sample=FILE.py the sampler of that config in place of the update; --sample_fields says what
differs from it: "weights=int4g128 cache.name=block". What --out holds already is not compiled
again: delete it after a change of the code. Wants libtpu, which `make plan` fetches, on PYTHONPATH.
Mistakes are told before anything compiles.
"""

import datetime
import importlib.metadata
import json
import pathlib

import jax
from absl import flags

from dlm import build, command, files, plan

CONFIG = flags.DEFINE_string("config", None, "The run: FILE.py or FILE.py:ARGUMENT.")
TOPOLOGY = flags.DEFINE_multi_string(
  "topology", None, "As v5p:4x4x4, v6e:16x16, v7x:4x4x4; 2xv5e:16x16 are two slices."
)
TRY = flags.DEFINE_multi_string("try", [""], 'Fields of the config, as "mesh.data=4 mesh.fsdp=16".')
SAMPLE = flags.DEFINE_string("sample", None, "A sampling config: plans the sampler, no update.")
SAMPLE_FIELDS = flags.DEFINE_string(
  "sample_fields", "", 'Fields of --sample, as "weights=int4g128 cache.name=block".'
)
OUT = flags.DEFINE_string("out", None, "A file for all of it as JSON.")


def main() -> None:
  # A cache of compiled programs cannot read those of devices that are not here.
  jax.config.update("jax_enable_compilation_cache", False)
  own = SAMPLE_FIELDS.value.split()
  if own and SAMPLE.value is None:
    raise ValueError(f"--sample_fields={SAMPLE_FIELDS.value} goes with --sample")
  sampling = SAMPLE.value and build.SamplingConfig.read(SAMPLE.value, own)
  runs = []
  for topology in TOPOLOGY.value:
    for each in TRY.value:
      fields = [*command.FIELDS.value, *each.split()]
      run = plan.training(build.RunConfig.read(CONFIG.value, fields), topology)
      asked = {"config": CONFIG.value, "fields": fields, "topology": topology}
      asked |= {"sample": SAMPLE.value} | ({"sample_fields": own} if own else {})
      runs.append((asked, run))
  versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
  out = OUT.value and pathlib.Path(OUT.value)
  if out:
    files.made_folder(out.parent)
    files.check_place(out)
  done = json.loads(out.read_text()) if out and out.exists() else []
  rows = []
  for asked, (training, chip) in runs:
    asked |= versions
    found = next((each for each in done if each["asked"] == asked), None)
    if found is None:
      found = {"asked": asked, "date": str(datetime.date.today())}
      try:
        made = plan.sampler(training, sampling, chip) if sampling else plan.update(training, chip)
        found["plan"] = made.plain()
      except jax.errors.JaxRuntimeError as error:  # as a rule it does not fit
        found["refused"] = str(error).splitlines()[0]
      done.append(found)
      if out:
        files.write_json(out, done)
    print(f"{asked['topology']} {plan.name(asked)}, {found['date']}")
    print(*plan.details(found), sep="\n", flush=True)
    rows.append(found)
  print("", *plan.table(rows), f"\n{versions}", sep="\n")


if __name__ == "__main__":
  command.run(main, required=(CONFIG, TOPOLOGY))
