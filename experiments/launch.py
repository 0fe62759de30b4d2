"""Starts a main of ours on machines of a cloud or a cluster, by the tools that schedule them there.

  python experiments/launch.py --on=tpu_vm --name=NAME --accelerator=v5p-128 --bucket=gs://BUCKET \\
    --option=--zone=ZONE --command="experiments/train.py --config=FILE --workdir=/share/runs/NAME"

--dry_run prints the commands and runs none. --on: `tpu_vm` is a queued resource of TPU VMs
(gcloud), `gke` a JobSet on GKE (xpk), `sky` a managed job (SkyPilot), `slurm` a batch job (sbatch).
--option goes to that tool as it is. What each machine then does is in `experiments/launch`.

The bucket, on GKE an attached storage, is the folder /share on all machines: work folders, data and
the cache of compiled programs lie there. What tpu_vm runs is the last commit; sky takes the working
folder, and slurm runs in it. A process that is asked to stop saves, and it is started again.
"""

import dataclasses
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection

from absl import flags

from dlm import command

FILES = pathlib.Path("experiments/launch")
SHARE = "/share/"
CACHE = f"{SHARE}cache/jax"
KEPT = ("workdir", "out", "export", "export_adapter")  # flags of mains that say what is written
RUNTIMES = {  # of TPU VMs, by the beginning of their type
  "v4-": "tpu-ubuntu2204-base",
  "v5litepod-": "v2-alpha-tpuv5-lite",
  "v5p-": "v2-alpha-tpuv5",
  "v6e-": "v2-alpha-tpuv6e",
}
FLAT = (1, 4, 8, 16, 32, 64, 128, 256)  # chips of a slice in two dimensions
DEEP = (8, 16, 32, 64)  # cores, two a chip, of one in three; larger ones are cubes of 64 chips
CUBE = 128
SIZES = {  # by the beginning of a type; a number: DEEP, or cubes up to so many cores
  "v4-": 8192,
  "v5litepod-": FLAT,
  "v5p-": 17920,
  "v6e-": FLAT,
  "tpu7x-": 18432,
}


@dataclasses.dataclass(frozen=True)
class Job:
  """What the flags say."""

  on: str
  name: str
  command: tuple[str, ...]
  accelerator: str
  machines: int
  spot: bool
  bucket: str | None
  image: str | None
  options: tuple[str, ...]

  def __post_init__(self):
    if not re.fullmatch("[a-z]([a-z0-9-]{0,38}[a-z0-9])?", self.name):
      raise ValueError(f"--name={self.name!r} must be at most 40 of a-z, 0-9 and - within")
    if not self.command or not pathlib.Path(self.command[0]).is_file():
      raise ValueError(f"--command={shlex.join(self.command)!r} must begin with the file of a main")
    if self.machines < 1:
      raise ValueError(f"--machines={self.machines} must be at least 1")
    for field, takers in NEEDS.items():
      if (getattr(self, field) is None) == (self.on in takers):
        what = "needs" if self.on in takers else "takes no"
        raise ValueError(f"--on={self.on} {what} --{field}")
    if self.on in ("tpu_vm", "gke"):
      check_slice(self.accelerator, known=RUNTIMES if self.on == "tpu_vm" else SIZES)
    if self.bucket is not None and not re.fullmatch(r"\w+://[^/]+", self.bucket):
      raise ValueError(f"--bucket={self.bucket!r} must be like gs://NAME")
    for flag in KEPT if self.on != "slurm" else ():  # whose nodes see one folder
      path = self.said(flag)
      if path is not None and not path.startswith(SHARE):
        raise ValueError(
          f"--command: --{flag}={path} must lie below {SHARE}: what a machine keeps itself is lost "
          "with it"
        )
    config = (self.said("config") or "").partition(":")[0]
    ours = config and not config.startswith(SHARE) and self.on != "gke"  # whose image has its own
    if ours and not pathlib.Path(config).is_file():
      raise ValueError(f"--command: --config={config}: there is no such file")

  def said(self, flag: str) -> str | None:
    """What the command says of a flag, as --flag=VALUE or --flag VALUE."""
    for i, word in enumerate(self.command):
      name, equals, value = word.partition("=")
      if name == f"--{flag}":
        return value if equals else " ".join(self.command[i + 1 : i + 2])
    return None

  @property
  def distributed(self) -> tuple[str, ...]:
    return (*self.command, "--distributed")


def check_slice(accelerator: str, known: Collection[str]) -> None:
  """ValueError where TPUs have no such type, of those whose beginnings are `known`, or size."""
  start, size = re.fullmatch(r"(.*?)(\d*)", accelerator).groups()
  if start not in known:
    names = ", ".join(f"{each}N" for each in known)
    raise ValueError(f"--accelerator={accelerator!r} is no type of TPU; known: {names}")
  sizes, cubes, more = SIZES[start], (), ""
  if isinstance(sizes, int):
    cubes, more = range(CUBE, sizes + 1, CUBE), f", or a multiple of {CUBE} up to {sizes}"
    sizes = DEEP
  if size not in map(str, (*sizes, *cubes)):
    told = ", ".join(map(str, sizes)) + more
    raise ValueError(f"--accelerator={accelerator!r} is no slice: {start}N has N of {told}")


Commands = list[list[str]]


def tell_uncommitted() -> None:
  """Says what `git archive` leaves out: files that were changed or added since the last commit."""
  git = ["git", "status", "--porcelain", "--untracked-files=all", "--", ":/"]
  found = subprocess.run(git, check=False, capture_output=True, text=True).stdout.splitlines()
  if found:
    names = ", ".join(line[3:] for line in found[:5]) + (", ..." if len(found) > 5 else "")
    print(
      f"launch: the machines run the last commit, without the changes of {names}", file=sys.stderr
    )


def tpu_vm(job: Job) -> Commands:
  """The last commit to the bucket; then slices that fetch it from there when they start."""
  (runtime,) = (name for start, name in RUNTIMES.items() if job.accelerator.startswith(start))
  tell_uncommitted()
  code = str(pathlib.Path(tempfile.gettempdir()) / f"{job.name}.tar.gz")
  said = {
    "dlm-bucket": job.bucket.removeprefix("gs://"),
    "dlm-name": job.name,
    "dlm-command": shlex.join(job.command),
  }
  nodes = [f"--node-id={job.name}"]
  if job.machines > 1:
    nodes = [f"--node-count={job.machines}", f"--node-prefix={job.name}"]
  return [
    ["git", "archive", f"--output={code}", "HEAD"],
    ["gcloud", "storage", "cp", code, f"{job.bucket}/code/{job.name}.tar.gz"],
    [
      *("gcloud", "compute", "tpus", "queued-resources", "create", job.name, *nodes),
      f"--accelerator-type={job.accelerator}",
      f"--runtime-version={runtime}",
      "--scopes=cloud-platform",
      # Between two ^ stands what parts the fields: a command has commas.
      "--metadata=^;;;^" + ";;;".join(f"{key}={value}" for key, value in said.items()),
      f"--metadata-from-file=startup-script={FILES / 'tpu_vm.sh'}",
      *(["--spot"] if job.spot else []),
      *job.options,
    ],
  ]


def gke(job: Job) -> Commands:
  return [
    [
      *("xpk", "workload", "create", f"--workload={job.name}", f"--tpu-type={job.accelerator}"),
      f"--num-slices={job.machines}",
      f"--docker-image={job.image}",
      f"--command=python {shlex.join(job.distributed)}",
      f"--env=JAX_COMPILATION_CACHE_DIR={CACHE}",
      "--max-restarts=20",
      "--restart-on-exit-codes=1",  # another process is gone; 143, stopped and saved, it knows
      "--termination-grace-period-seconds=120",
      *(["--spot"] if job.spot else []),
      *job.options,
    ]
  ]


def sky(job: Job) -> Commands:
  extra = "tpu" if job.accelerator.startswith("tpu-") else "cuda"
  said = {"COMMAND": shlex.join(job.command), "BUCKET": job.bucket, "EXTRA": extra}
  return [
    [
      *("sky", "jobs", "launch", f"--name={job.name}", f"--gpus={job.accelerator}"),
      f"--num-nodes={job.machines}",
      *(f"--env={key}={value}" for key, value in said.items()),
      *(["--use-spot"] if job.spot else []),
      *job.options,
      str(FILES / "sky.yaml"),
    ]
  ]


def slurm(job: Job) -> Commands:
  """One process a GPU: `--accelerator=8` or `h100:8`, of each machine."""
  if not re.fullmatch(r"(\w+:)?[1-9]\d*", job.accelerator):
    raise ValueError(f"--accelerator={job.accelerator!r} must be GPUs a machine, as 8 or h100:8")
  if job.spot:
    raise ValueError("--on=slurm takes no --spot: name a partition by --option")
  return [
    [
      *("sbatch", f"--job-name={job.name}", f"--nodes={job.machines}"),
      f"--gpus-per-node={job.accelerator}",
      f"--ntasks-per-node={job.accelerator.rpartition(':')[2]}",
      *job.options,
      str(FILES / "slurm.sbatch"),
      *job.distributed,
    ]
  ]


PLACES: dict[str, Callable[[Job], Commands]] = {
  "tpu_vm": tpu_vm,
  "gke": gke,
  "sky": sky,
  "slurm": slurm,
}
NEEDS = {"bucket": ("tpu_vm", "sky"), "image": ("gke",)}

ON = flags.DEFINE_enum("on", None, list(PLACES), "what schedules the machines")
NAME = flags.DEFINE_string("name", None, "of the job")
COMMAND = flags.DEFINE_string("command", None, "a main and its flags, without --distributed")
ACCELERATOR = flags.DEFINE_string(
  "accelerator", None, "tpu_vm and gke: v5p-128, ...; sky: H100:8, tpu-v6e-8, ...; slurm: h100:8, 8"
)
MACHINES = flags.DEFINE_integer("machines", 1, "slices of TPUs, or machines with GPUs")
SPOT = flags.DEFINE_bool("spot", False, "machines that may be taken away")
BUCKET = flags.DEFINE_string("bucket", None, "gs://NAME, seen as /share: tpu_vm and sky")
IMAGE = flags.DEFINE_string("image", None, "made by experiments/launch/Dockerfile: gke")
OPTION = flags.DEFINE_multi_string("option", [], "a flag of the tool: --option=--zone=ZONE")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "print the commands, run none")


def main() -> None:
  job = Job(
    ON.value,
    NAME.value,
    tuple(shlex.split(COMMAND.value)),
    ACCELERATOR.value,
    MACHINES.value,
    SPOT.value,
    BUCKET.value,
    IMAGE.value,
    tuple(OPTION.value),
  )
  for each in PLACES[job.on](job):
    print(shlex.join(each), flush=True)
    if not DRY_RUN.value:
      code = subprocess.run(each, check=False).returncode
      if code:
        sys.exit(code)


if __name__ == "__main__":
  command.run(main, required=(ON, NAME, COMMAND, ACCELERATOR))
