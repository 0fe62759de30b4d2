"""Speed and memory of the parts on this machine: `python -m experiments.benchmark --suite=all`.

Prints a table per topic, ratio first, and writes DIR/<suite>.json. Baseline and ours run in the
same process, in turns: on a shared machine only their ratios mean something. BENCHMARKS.md keeps
the figures worth keeping.
"""

import os
import pathlib
import shlex
import sys
from typing import Any

import jax
from absl import app, flags, logging

from dlm import files
from experiments.benchmarks import kernels, results
from experiments.benchmarks.suites import SIZES, SUITES

SUITE = flags.DEFINE_enum("suite", "all", ["all", *SUITES], "What to measure.")
SIZE = flags.DEFINE_enum("size", "default", SIZES, "tiny: seconds, to see that it runs.")
OP = flags.DEFINE_enum("op", None, [*kernels.OPS], "The kernels suite's: this one alone.")
SOAK = flags.DEFINE_float("soak", 0.0, "Minutes of a soak, the serving suite's, alone.", 0.0)
OUT = flags.DEFINE_string("out", "runs/bench", "Folder for the JSON files.")


def measure(suite: str, size: str, out: pathlib.Path, command: str, **options: Any) -> None:
  """Runs one suite, prints its tables and writes its file, table by table if they come so."""
  before = os.getloadavg()
  tables = []
  for table in SUITES[suite](size, **options):
    print(f"{table}\n", flush=True)
    tables.append(table)
    load = {"before": before, "after": os.getloadavg()}
    head = {"suite": suite, "size": size, "command": command, **results.facts(), "load": load}
    results.write(out / f"{suite}.json", head, tables)


def main(_) -> None:
  logging.set_verbosity(logging.ERROR)  # orbax tells its life at INFO
  jax.config.update("jax_enable_compilation_cache", False)  # compile times are measured here
  command = shlex.join(["python", "-m", "experiments.benchmark", *sys.argv[1:]])
  options = {"soak": SOAK.value} if SOAK.value else {}
  if options and SUITE.value != "serving":
    raise app.UsageError("--soak is for --suite=serving")
  if OP.value is not None:
    if SUITE.value != "kernels":
      raise app.UsageError("--op is for --suite=kernels")
    options = {"op": OP.value}
  out = files.made_folder(OUT.value)
  for suite in SUITES if SUITE.value == "all" else [SUITE.value]:
    measure(suite, SIZE.value, out, command, **options)


if __name__ == "__main__":
  app.run(main)
