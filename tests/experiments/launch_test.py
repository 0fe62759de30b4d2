"""What would be started where; and what the machines then do, their tools played by others."""

import os
import shlex
import subprocess
import sys

import pytest
import yaml

from tests.experiments import mains

FILES = mains.ROOT / "experiments" / "launch"
# Spaces, quotes, commas and a dollar: all that some shell on the way may take for its own.
SOURCES = """--config.data.sources=(("a 'b'", 1.0), ($1, 2))"""
WORDS = [
  "experiments/train.py",
  "--config=configs/train/tiny.py:",
  "--workdir",
  "/share/x",
  SOURCES,
]
ACCELERATORS = {"tpu_vm": "v5p-128", "gke": "v5p-128", "sky": "H100:8", "slurm": "h100:8"}
OWN = {
  "tpu_vm": ["--bucket=gs://b"],
  "gke": ["--image=registry/i"],
  "sky": ["--bucket=gs://b"],
  "slurm": [],
}


MAIN = "--command=experiments/train.py"


def launch(folder, on, *more):
  asked = {"name": "run", "accelerator": ACCELERATORS[on], "command": shlex.join(WORDS)}
  said = [f"--{key}={value}" for key, value in asked.items()]
  return mains.run(
    folder, "experiments/launch.py", f"--on={on}", *said, *OWN[on], "--dry_run", *more
  )


def commands(folder, on, *more):
  done = launch(folder, on, *more)
  assert done.returncode == 0, done.stderr
  return [shlex.split(line) for line in done.stdout.splitlines()]


def test_tpu_vms_fetch_the_last_commit(tmp_path):
  archive, copy, create = commands(tmp_path, "tpu_vm", "--spot", "--option=--zone=z")
  assert archive[:2] == ["git", "archive"] and archive[-1] == "HEAD"
  assert copy[-1] == "gs://b/code/run.tar.gz" and archive[2] == f"--output={copy[-2]}"
  assert create[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "run"]
  assert {"--runtime-version=v2-alpha-tpuv5", "--node-id=run", "--spot", "--zone=z"} < set(create)
  (said,) = (word for word in create if word.startswith("--metadata="))
  parting, said = said.removeprefix("--metadata=^").split("^", 1)
  fields = dict(each.split("=", 1) for each in said.split(parting))
  assert shlex.split(fields.pop("dlm-command")) == WORDS
  assert fields == {"dlm-bucket": "b", "dlm-name": "run"}
  (script,) = (word for word in create if "startup-script=" in word)
  assert (mains.ROOT / script.rpartition("=")[2]).is_file()
  *_, several = commands(tmp_path, "tpu_vm", "--machines=2")
  assert {"--node-count=2", "--node-prefix=run"} < set(several)


def test_what_is_not_committed_is_told(tmp_path):
  """It is not what the machines run, however recently it was changed here."""
  for words in (["init"], ["add", "a"], ["commit", "-m", "a"]):
    (tmp_path / "a").write_text("old")
    named = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *named, *words], cwd=tmp_path, check=True, capture_output=True)
  own = [sys.executable, "-c", "from experiments import launch; launch.tell_uncommitted()"]
  told = []
  for changed in ((), ("a", "b")):
    for name in changed:
      (tmp_path / name).write_text("new")
    path = {"PYTHONPATH": str(mains.ROOT)}
    done = subprocess.run(own, cwd=tmp_path, env=os.environ | path, capture_output=True, text=True)
    told.append(done.stderr)
  assert told == ["", "launch: the machines run the last commit, without the changes of a, b\n"]


def test_gke_starts_again_what_lost_a_process(tmp_path):
  ((*words,),) = commands(tmp_path, "gke", "--machines=2")
  assert words[:3] == ["xpk", "workload", "create"]
  assert {"--num-slices=2", "--max-restarts=20", "--restart-on-exit-codes=1"} < set(words)
  (said,) = (word for word in words if word.startswith("--command="))
  assert shlex.split(said.removeprefix("--command=")) == ["python", *WORDS, "--distributed"]


def play(folder, name, body):
  """A program of this name, which the scripts find first."""
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f"#!/bin/bash\n{body}\n")
  path.chmod(0o755)


def ran(folder, script, *arguments, **environment):
  place = {"PATH": f"{folder}:/usr/bin:/bin", **environment}
  return subprocess.run(
    ["bash", script, *arguments], cwd=folder, env=place, capture_output=True, text=True, check=False
  )


def test_sky_hands_each_machine_its_place(tmp_path):
  ((*words,),) = commands(tmp_path, "sky", "--spot", "--machines=2")
  assert words[:3] == ["sky", "jobs", "launch"] and words[-1] == "experiments/launch/sky.yaml"
  assert {"--gpus=H100:8", "--num-nodes=2", "--use-spot"} < set(words)
  said = dict(word.removeprefix("--env=").split("=", 1) for word in words if "--env=" in word)
  task = yaml.safe_load((FILES / "sky.yaml").read_text())
  assert said.keys() == task["envs"].keys() and said["EXTRA"] == "cuda"
  assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [143]
  play(tmp_path, ".venv/bin/python", 'printf "%s\\n" "$@"; exit 143')
  script = tmp_path / "run.sh"
  script.write_text(task["run"])
  place = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
  done = ran(tmp_path, script, SKYPILOT_NODE_IPS="10.0.0.1\n10.0.0.2", **said, **place)
  assert done.returncode == 143, done.stderr
  where = ["--coordinator=10.0.0.1:8476", "--processes=2", "--process=1"]
  assert done.stdout.splitlines() == [*WORDS, "--distributed", *where]


@pytest.mark.parametrize(
  ("code", "before", "again"),
  [(0, 0, False), (1, 0, True), (2, 0, False), (143, 0, True), (143, 20, False)],
)
def test_slurm_queues_a_stopped_run_again(tmp_path, code, before, again):
  ((*words,),) = commands(tmp_path, "slurm", "--machines=2", "--option=--partition=p")
  assert {"--nodes=2", "--gpus-per-node=h100:8", "--ntasks-per-node=8", "--partition=p"} < set(
    words
  )
  at = words.index("experiments/launch/slurm.sbatch")
  assert words[at + 1 :] == [*WORDS, "--distributed"]
  play(tmp_path, "srun", f'printf "%s\\n" "$@"; exit {code}')
  play(tmp_path, "scontrol", 'echo "$@"')
  place = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(before)}
  done = ran(tmp_path, FILES / "slurm.sbatch", *words[at + 1 :], **place)
  assert done.returncode == code, done.stderr
  said = done.stdout.splitlines()
  assert said[2 : 3 + len(WORDS)] == words[at + 1 :] and (said[-1] == "requeue 7") == again


@pytest.mark.parametrize("accelerator", ["v5p-8", "v5p-17920", "v6e-1", "v5litepod-256"])
def test_slices_that_there_are_can_be_asked_for(accelerator):
  launch = mains.load("experiments/launch.py")
  launch.check_slice(accelerator, known=launch.RUNTIMES)


@pytest.mark.parametrize(
  ("on", "more", "message"),
  [
    ("tpu_vm", ["--accelerator=v9-8"], "'v9-8' is no type of TPU; known: v4-N"),
    ("tpu_vm", ["--accelerator=tpu7x-8"], "'tpu7x-8' is no type of TPU; known: v4-N"),
    ("tpu_vm", ["--accelerator=v5p-129"], "or a multiple of 128 up to 17920"),
    ("tpu_vm", ["--accelerator=v5p-"], "'v5p-' is no slice: v5p-N has N of 8, 16, 32, 64, or"),
    ("gke", ["--accelerator=v6e-512"], "'v6e-512' is no slice: v6e-N has N of 1, 4, 8, 16,"),
    ("tpu_vm", ["--bucket=b"], "--bucket='b' must be like gs://NAME"),
    ("gke", ["--bucket=gs://b"], "--on=gke takes no --bucket"),
    ("sky", ["--name=Run_1"], "--name='Run_1' must be"),
    ("sky", ["--command=train.py --steps=1"], "--command='train.py --steps=1' must begin with"),
    ("gke", [f"{MAIN} --workdir=runs/x"], "--workdir=runs/x must lie below /share/"),
    ("sky", [f"{MAIN} --workdir runs/x"], "--workdir=runs/x must lie below /share/"),
    ("slurm", [f"{MAIN} --config=none.py:a"], "--config=none.py: there is no such file"),
    ("slurm", ["--accelerator=H100"], "--accelerator='H100' must be GPUs a machine"),
    ("slurm", ["--spot"], "--on=slurm takes no --spot"),
    ("slurm", ["--machines=0"], "--machines=0 must be at least 1"),
  ],
)
def test_mistakes_are_one_line_and_start_nothing(tmp_path, on, more, message):
  done = launch(tmp_path, on, *more)
  assert done.returncode == 2 and done.stdout == ""
  assert message in done.stderr and done.stderr.count("\n") == 1


def submitted(folder):
  """Without --dry_run, on a machine that has no tools but those that are played in `folder`."""
  argv = ["experiments/launch.py", "--on=slurm", "--name=x", "--accelerator=8"]
  argv.append("--command=experiments/train.py")
  out, err = folder / "out", folder / "err"
  started = mains.PROCESSES.Process(
    target=mains.call, args=(argv, out, err), kwargs={"PATH": str(folder)}
  )
  started.start()
  started.join(60)
  return started.exitcode, out.read_text().splitlines(), err.read_text()


def test_without_dry_run_the_tool_runs(tmp_path):
  code, _, error = submitted(tmp_path)
  assert code == 2 and error == "launch: sbatch: No such file or directory\n"
  play(tmp_path, "sbatch", 'echo "got $*"; exit 3')
  code, (said, got), _ = submitted(tmp_path)
  assert code == 3 and got == said.replace("sbatch", "got", 1)
