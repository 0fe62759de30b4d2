r"""Does this machine compute what it should, and how fast: one command for a new accelerator.

python -m experiments.device_check --out=runs/device_check

Needs jax, flax, optax, orbax, numpy and safetensors, and no file but the repository. Its parts are
suites of `experiments.benchmark`, each in a process of its own, so that one that fails, or runs out
of its minutes, takes no other with it: kernels against the reference (correct), a sampler in blocks
of an 8B model, an update of a 1B model, and the kernels' speed. Prints their tables as they come.

DIR/device_check.json says how each part ended, DIR/SUITE.json holds its tables, also of a part that
did not come to its end. Exits with 1 if a part failed or a kernel is wrong.
"""

import json
import pathlib
import subprocess
import sys
import time

from absl import flags

from dlm import command, files
from experiments.benchmarks import correct
from experiments.benchmarks.suites import SIZES

# Of the whole, by what each is worth; what a part leaves over is the next one's.
SHARES = {"correct": 0.3, "large_sampling": 0.2, "large_training": 0.2, "kernels": 0.3}

OUT = flags.DEFINE_string("out", "runs/device_check", "Folder for the JSON files.")
SIZE = flags.DEFINE_enum("size", "default", SIZES, "tiny: seconds, to see that it runs.")
MINUTES = flags.DEFINE_float("minutes", 12.0, "Of all parts together.", lower_bound=0.1)


def run(suite: str, size: str, out: pathlib.Path, seconds: float) -> dict:
  """How the part ended: "ok", or else what to read. Its tables are printed and in `out`."""
  (out / f"{suite}.json").unlink(missing_ok=True)  # of an earlier run
  began = time.monotonic()
  line = [sys.executable, "-m", "experiments.benchmark", f"--suite={suite}", f"--size={size}"]
  try:
    done = subprocess.run(
      [*line, f"--out={out}"], timeout=seconds, stderr=subprocess.PIPE, text=True, check=False
    )
    said = done.stderr.strip().splitlines() or ["no reason was given"]
    ended = "ok" if done.returncode == 0 else f"exit code {done.returncode}: {said[-1]}"
  except subprocess.TimeoutExpired:
    ended = f"not done within {seconds:.0f} s"
  wrong = []
  if suite == "correct" and (out / "correct.json").exists():
    wrong = correct.wrong(json.loads((out / "correct.json").read_text())["tables"])
  return {"ended": ended, "seconds": time.monotonic() - began, "wrong": wrong}


def main() -> None:
  out = files.made_folder(OUT.value)
  parts, left = {}, 60 * MINUTES.value
  for suite, share in SHARES.items():
    rest = sum(each for name, each in SHARES.items() if name not in parts)
    print(f"# {suite}, at most {left * share / rest:.0f} s\n", flush=True)
    parts[suite] = run(suite, SIZE.value, out, left * share / rest)
    left -= parts[suite]["seconds"]
    files.write_json(out / "device_check.json", {"size": SIZE.value, "parts": parts}, indent=1)
  for suite, part in parts.items():
    print(f"{suite:16}{part['seconds']:6.0f} s  {part['ended']}")
    for each in part["wrong"]:
      print(f"{'':16}wrong: {each}")
  if any(part["ended"] != "ok" or part["wrong"] for part in parts.values()):
    sys.exit(1)


if __name__ == "__main__":
  command.run(main)
