"""The command from a checkpoint to completions, and all that may be wrong with its arguments."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from dlm import build, train
from tests.experiments import mains

TRAINING = {
  "seed": 0,
  "steps": 2,
  "batch": 8,
  "model": {"width": 16, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 8, "mlp": 16},
  "data": {"sources": (("lists", 1.0, (("mode", "pad"),)),), "length": 32},
  "optimizer": {"lr": 1e-2},
  "checkpoint": {"keep_best": 0},
}
CONFIG = "--config=configs/sample/default.py"


def trained(folder, objective, **model):
  config = TRAINING | {"objective": objective, "model": TRAINING["model"] | model}
  train.train(build.everything(config), folder)
  return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A checkpoint of a block-diffusion model, for all but a few tests."""
  runs = tmp_path_factory.mktemp("runs")
  return trained(runs / "bd3lm", {"name": "bd3lm", "block": 8})


def sample(tmp_path, folder, *arguments, config=CONFIG):
  return mains.run(tmp_path, "experiments/sample.py", config, f"--checkpoint={folder}", *arguments)


def lines(path):
  """Records without their timings."""
  read = [json.loads(line) for line in path.read_text().splitlines()]
  return [{k: v for k, v in each.items() if k != "tokens_per_second"} for each in read]


def test_prompts_of_the_command_line_go_to_the_screen(tmp_path, folder):
  done = sample(
    tmp_path, folder, "--infill", "--prompt=ab", "--prompt=f([[3]])", "--config.stop=never"
  )
  assert done.returncode == 0 and done.stderr == ""
  costs = [line for line in done.stdout.split("\n") if "tokens a forward" in line]
  assert [cost.split()[:2] for cost in costs] == [["[30", "tokens,"], ["[3", "tokens,"]]
  assert "f(" in done.stdout


def test_file_of_prompts_becomes_a_file_of_completions(tmp_path, folder):
  prompts, out, again = (tmp_path / name for name in ("in.jsonl", "out.jsonl", "again.jsonl"))
  prompts.write_text(
    '{"prompt": "copy: a"}\n{"prompt": "x[[2]]y", "infill": true}\n"b"\n"inv([[1]])"\n'
  )
  config = ("--config.temperature=1", "--config.max_new_tokens=9")
  common = (f"--prompts={prompts}", "--trace", *config)
  done = sample(tmp_path, folder, f"--out={out}", *common)
  assert (done.returncode, done.stderr) == (0, "") and "4/4 prompts" in done.stdout
  first, hole, short, matrix = lines(out)
  assert [each["id"] for each in lines(out)] == [0, 1, 2, 3]
  assert first["prompt"] == "copy: a" and first["when"][:7] == [-1] * 7
  assert len(first["row"]) == 7 + 9 and len(short["row"]) == 1 + 9
  assert hole["text"][0] == "x" and hole["text"][-1] == "y" and len(hole["row"]) == 4
  assert matrix["when"][:10] == [-1] * 10 and len(matrix["row"]) == 10 + 9, "text is no hole"
  for each in (first, hole, short, matrix):
    kinds = {k: v for k, v in each["forwards"].items() if k != "all"}
    assert each["forwards"]["all"] == sum(kinds.values()) == max(each["when"])
    assert each["tokens_per_forward"] == round(len(each["tokens"]) / sum(kinds.values()), 4)

  other = ("--config.batch=2", "--config.parallel=pmap", "--config.cache.name=none")
  assert sample(tmp_path, folder, f"--out={again}", *common, *other).returncode == 0
  for a, b in zip(lines(out), lines(again), strict=True):
    assert (a["row"], a["when"]) == (b["row"], b["when"]), "batches and caches change no token"
    assert b["forwards"]["full"] == b["forwards"]["all"] == a["forwards"]["all"]


def test_samples_stop_strings_and_prompts_that_do_not_fit(tmp_path, folder):
  prompts, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  prompts.write_text(f'"a"\n"{"x" * 40}"\n"b"\n')
  common = (
    f"--prompts={prompts}",
    f"--out={out}",
    "--trace",
    "--config.temperature=1",
    "--config.forbid_ends",
  )
  refused = sample(tmp_path, folder, *common, "--samples=3")
  assert refused.returncode == 2 and "prompt 1: 40 tokens" in refused.stderr
  done = sample(tmp_path, folder, *common, "--samples=3", "--skip_bad")
  assert done.returncode == 0 and "6/6 prompts" in done.stdout
  assert done.stderr.startswith("skipped: prompt 1: 40 tokens") and done.stderr.count("\n") == 1
  whole = lines(out)
  names = [(each["id"], each["sample"]) for each in whole]
  assert names == [(i, sample) for i in (0, 2) for sample in range(3)]
  assert len({each["text"] for each in whole}) == 6
  for each in whole:
    assert each["reason"] == "length" and each["finished"]
    assert len(each["logprobs"]) == len(each["tokens"]) and all(p <= 0 for p in each["logprobs"])

  stop = next(char for char in whole[0]["text"] if char.isascii() and char.isalnum())
  out.unlink()
  done = sample(tmp_path, folder, *common, "--samples=3", "--skip_bad", f"--stop={stop}")
  assert done.returncode == 0
  for each, uncut in zip(lines(out), whole, strict=True):
    assert each["text"] == uncut["text"].partition(stop)[0]
    assert (each["reason"] == "stop_string") == (stop in uncut["text"])
    assert each["forwards"]["all"] <= uncut["forwards"]["all"]
  spent = [sum(each["forwards"]["all"] for each in found) for found in (lines(out), whole)]
  assert spent[0] < spent[1], "a row ends with the block that holds the string"


def test_file_that_another_job_began_is_left_alone(tmp_path, folder):
  out, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
  part.write_text('{"job": "another"}\n')
  done = sample(tmp_path, folder, f"--out={out}")
  assert done.returncode == 2 and done.stderr.count("\n") == 1
  assert "out.jsonl.part belongs to another job" in done.stderr
  assert part.read_text() == '{"job": "another"}\n' and not out.exists()


def test_live_without_a_terminal_shows_the_first_and_the_last_canvas(tmp_path, folder):
  done = sample(tmp_path, folder, "--live", "--infill", "--prompt=ab[[4]]")
  assert (done.returncode, done.stderr) == (0, "")
  assert done.stdout.startswith("0 tokens, 0 forwards\nab░░░░\n")
  assert done.stdout.count("forwards\n") == 2


def test_live_shows_prompts_beyond_the_batch_in_turn(tmp_path, folder):
  asked = [f"--prompt={letter}[[2]]" for letter in "abc"]
  done = sample(tmp_path, folder, "--live", "--infill", "--config.batch=2", *asked)
  assert (done.returncode, done.stderr) == (0, "")
  assert [done.stdout.count(f"{letter}░░\n") for letter in "abc"] == [1, 1, 1]
  assert done.stdout.count("forwards\n") == 2 * 3


@pytest.mark.parametrize(
  ("objective", "model", "cached"),
  [
    ({"name": "mdlm"}, {"time_conditioned": True}, False),
    ({"name": "ar"}, {}, True),
  ],
  ids=["mdlm", "ar"],
)
def test_models_of_other_kinds_are_sampled(tmp_path, objective, model, cached):
  folder, out = trained(tmp_path / "run", objective, **model), tmp_path / "out.jsonl"
  done = sample(tmp_path, folder, "--prompt=ab", f"--out={out}", "--config.stop=never")
  assert (done.returncode, done.stderr) == (0, "")
  (line,) = lines(out)
  assert line["finished"] and len(line["tokens"]) == 30
  assert (line["forwards"]["window"] > 0) == cached


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--config.polcy.name=fixed"], "config.polcy is unknown; known: align, "),
    (["--config.policy.nme=fixed"], "config.policy.nme is unknown; known: band, decay, name, st"),
    (["--config.policy.name=best"], "policy.name='best' is unknown; known: ancestral, cad, "),
    (["--config.policy.name=fixed"], "set one of k=0 and steps=0"),
    (["--config.policy.k=3"], "policy.k is unknown; known: band, decay, name, st"),
    (["--config.policy.threshold=2"], "threshold=2.0 must lie in [0, 1]"),
    (["--config.cache.name=all"], "cache.name='all' is unknown; known: ahead, auto, block, dkv"),
    (["--config.block=12", "--config.cache.name=block"], "block=12 to be a multiple of"),
    (["--config.align=prompt", "--config.cache.name=block"], "use 'canvas', or cache 'none'"),
    (["--config.align=left"], "align='left' is unknown; known: auto, canvas, prompt"),
    (["--config.commit=later"], "commit='later' is not one of fused, separate"),
    (["--config.temperature=-1"], "temperature=-1.0 must not be negative"),
    (["--config.batch=0"], "batch=0 must be at least 1"),
    (["--config.mesh.data=3"], "must multiply to the number of devices, 1"),
    (["--prompt=" + "x" * 32], "prompt 0: 32 tokens and 1 new ones exceed the canvas of 32 slots"),
    (
      ["--infill", "--prompt=ok", "--prompt=x[[0]]"],
      "[[0]] at character 1 must ask for at least one token",
    ),
    (["--skip_bad", "--prompt=" + "x" * 32], "--skip_bad leaves no prompt"),
    (["--stop="], "a stop string must not be empty"),
    (["--infill", "--chat"], "--chat answers and --infill fills in: give one of them"),
    (["--config.seed=4294967296"], "seed=4294967296 must be a whole number from 0 to 2^32 - 1"),
    (["--prompts={tmp}/none.jsonl"], "none.jsonl"),
    (["--prompts={tmp}/bad.jsonl"], "bad.jsonl, line 2: needs a string or"),
    (["--out={tmp}/none/out.jsonl"], "none is not a folder"),
    (["--prompts={tmp}/bad.jsonl", "--out={tmp}/bad.jsonl"], "bad.jsonl cannot be written: it is"),
    (["--live", "--out={tmp}/out.jsonl"], "--live shows and --out writes"),
    (["--trace"], "--trace is written: give --out"),
    (['--chat_args={{"x": 1}}'], '--chat_args={"x": 1} goes with --chat'),
    (["--step=7", "--out={tmp}/out.jsonl"], "holds no step 7; it holds 2"),
    (["--step=newest"], "holds no step 'newest'; it holds 2"),
    (["--checkpoint={tmp}"], "is no checkpoint folder: it holds no config.json"),
    (["--config=configs/sample/none.py"], "configs/sample/none.py"),
  ],
  ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else "",
)
def test_mistake_is_one_line_exit_code_2_and_nothing_written(tmp_path, folder, arguments, message):
  (tmp_path / "bad.jsonl").write_text('"a"\n{"text": "b"}\n')
  before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
  done = sample(tmp_path, folder, *(each.format(tmp=tmp_path) for each in arguments))
  assert (done.returncode, done.stdout) == (2, "")
  assert message in done.stderr and done.stderr.count("\n") == 1
  assert [entry.name for entry in tmp_path.iterdir()] == ["bad.jsonl"]
  assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_missing_flags_are_named(tmp_path):
  for arguments, name in (([], "config"), ([CONFIG], "checkpoint")):
    done = mains.run(tmp_path, "experiments/sample.py", *arguments)
    assert (done.returncode, done.stderr) == (2, f"sample: --{name} is missing\n")


@pytest.mark.parametrize("damage", ["flipped", "cut", "config", "facts"])
def test_damaged_checkpoint_is_told_in_one_line(tmp_path, folder, damage):
  broken, out = tmp_path / "broken", tmp_path / "out.jsonl"
  shutil.copytree(folder, broken)
  if damage in ("config", "facts"):
    (broken / f"{damage}.json").write_text('{"seed": ')
  else:
    # Orbax spreads arrays over its data files as it likes: every one of them is damaged.
    for path in [p for p in (broken / "checkpoints").rglob("*") if p.is_file() and "/d/" in str(p)]:
      data = np.frombuffer(path.read_bytes(), np.uint8).copy()
      data[::99] ^= 0x40
      path.write_bytes(data.tobytes() if damage == "flipped" else data.tobytes()[: len(data) // 2])
  done = sample(tmp_path, broken, f"--out={out}")
  assert done.returncode == 2 and done.stderr.count("\n") == 1
  told = "not JSON" if damage in ("config", "facts") else "cannot be r"
  assert told in done.stderr and str(broken) in done.stderr
  assert sorted(entry.name for entry in tmp_path.iterdir()) == ["broken"]


def test_command_in_a_process_of_its_own(tmp_path, folder):
  """As a user types it: the other tests fork from a process with the imports behind it."""
  done = subprocess.run(
    [sys.executable, "experiments/sample.py", CONFIG, f"--checkpoint={folder}", "--prompt=a"],
    cwd=mains.ROOT,
    env=os.environ | {"PYTHONPATH": str(mains.ROOT)},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  assert "tokens a forward" in done.stdout and done.stderr == ""
