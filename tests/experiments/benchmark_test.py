"""Every suite runs at its tiny size; what the suites claim of memory and programs is held here."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmark import measure
from experiments.benchmarks import compilation, correct, memory, results, sampling
from experiments.benchmarks.results import Spread, Table
from experiments.benchmarks.suites import SUITES
from kernels_pallas.token_stats import TokenStats
from tests.experiments import mains

ROOT = pathlib.Path(__file__).parents[2]
HEAD = {"suite", "size", "command", "date", "device", "versions", "load", "tables"}
RATIOS = {
  "training": ["share of peak", "speed-up"],
  "sampling": ["speed-up", "time"],
  "compile": ["times an addition", "share", "times the shallowest"],
  "memory": [
    "naive / ours",
    "B per row x vocabulary",
    "naive / ours",
    "plain / ours",
    "beside arguments / cache",
  ],
  "decoding": ["speed-up", "of its products", "speed-up", "speed-up"],
  "block": ["speed-up", "speed-up", "speed-up"],
  "weights": ["memory / parameters", "memory / parameters"],
  "kernels": ["speed-up"] * 4,
  "smollm": ["speed-up", "times one row"],
  "scoring": ["speed-up", "speed-up"],
  "ragged": ["speed-up", "ratio"],
  "serving": ["speed-up", "speed-up", "memory", "speed-up"],
  "alone": ["identical"],
  "correct": ["error / allowed"] * 4,
  "large_sampling": ["of roofline"],
  "large_training": ["share of peak"],
  "large_weights": ["memory / parameters"],
  "products": ["speed-up"],
  "codes": ["speed-up"] * 2,
  "rollouts": ["speed-up"],
  "moe": ["seconds a FLOP", "slope", "speed-up", "speed-up", "gather + scatter"],
}


def main(*arguments, cwd=ROOT, **environment):
  return subprocess.run(
    [sys.executable, "-m", "experiments.benchmark", *arguments],
    cwd=cwd,
    env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    capture_output=True,
    text=True,
  )


@pytest.mark.parametrize("suite", SUITES)
def test_suite_prints_the_ratio_first_and_writes_what_is_documented(suite, tmp_path, capsys):
  measure(suite, "tiny", tmp_path / "out", "the command")
  record = json.loads((tmp_path / "out" / f"{suite}.json").read_text())
  assert set(record) == HEAD
  assert (record["suite"], record["size"], record["command"]) == (suite, "tiny", "the command")
  assert {"python", "jax", "flax"} <= set(record["versions"])
  assert {"backend", "kind", "count", "host"} == set(record["device"])
  assert [next(iter(table["rows"][0])) for table in record["tables"]] == RATIOS[suite]
  printed = capsys.readouterr().out
  for table in record["tables"]:
    assert f"{table['title']}: {table['note']}\n{next(iter(table['rows'][0]))}" in printed
    for row in table["rows"]:
      spreads = [value for value in row.values() if isinstance(value, dict)]
      assert all(each["min"] <= each["median"] <= each["max"] for each in spreads)
      missing = any("not installed" in str(value) for value in row.values())
      assert suite in ("memory", "ragged") or spreads or missing, "counts have none"


@pytest.mark.parametrize(
  "spoilt,expected",
  [
    (lambda stats: stats, 0.0),
    (lambda stats: dataclasses.replace(stats, lse=stats.lse + 0.02), 2.0),
    (lambda stats: dataclasses.replace(stats, token=stats.token ^ 1), 16.0),
    (lambda stats: dataclasses.replace(stats, top1=stats.top1 * np.inf), np.inf),
  ],
)
def test_what_is_wrong_exceeds_what_is_allowed(spoilt, expected):
  ones = np.full(8, 10, np.float32)
  exact = TokenStats(np.arange(8, dtype=np.int32), ones, ones, ones)
  assert correct.error(spoilt(exact), exact) == pytest.approx(expected, rel=1e-4)
  row = {"error / allowed": {"max": expected}, "case": "c", "implementation": "gpu"}
  named = correct.wrong([{"title": "op", "rows": [row]}])
  assert named == ([f"op, c, gpu: {expected:.3g}"] if expected > 1 else [])


def test_a_part_that_fails_takes_no_other_with_it(tmp_path):
  check = mains.load("experiments/device_check.py")
  unknown = check.run("no_such_suite", "tiny", tmp_path, 60)
  assert "exit code" in unknown["ended"] and not unknown["wrong"]
  late = check.run("kernels", "tiny", tmp_path, 0.1)
  assert late["ended"] == "not done within 0 s"


def test_sampler_memory_does_not_grow_with_rows_times_vocabulary():
  size = memory.SIZES["tiny"]
  grid = [(batch, vocab) for batch in size.batches for vocab in size.vocabs]
  ours = {case: memory.temporary_bytes(*case) for case in grid}
  naive = {case: memory.temporary_bytes(*case, memory.NAIVE) for case in grid}
  assert memory.growth_per_logit(ours) < 0.01
  assert memory.growth_per_logit(naive) >= 4  # at least one float32 array of the logits
  (batch, vocab), logits = grid[-1], 4 * grid[-1][0] * memory.BLOCK * grid[-1][1]
  assert ours[batch, vocab] < logits / 4


def test_growth_per_logit_leaves_out_what_grows_with_one_of_them_alone():
  def bytes_of(batch, vocab):
    rows = batch * memory.BLOCK
    return 1000 + 70 * rows + 300 * vocab + 6 * rows * vocab

  grid = {(batch, vocab): bytes_of(batch, vocab) for batch in (1, 8, 32) for vocab in (10, 20, 70)}
  assert memory.growth_per_logit(grid) == 6


@pytest.mark.parametrize("program", [compilation.train_step, compilation.sampler])
def test_programs_do_not_grow_with_depth(program):
  shallow, deep = (compilation.compiled(program(layers)) for layers in (2, 3))
  assert (shallow.equations, shallow.lines) == (deep.equations, deep.lines)
  assert shallow.equations > 100 and shallow.lines > 100


def test_kernels_that_differ_by_name_alone_are_one():
  def program(times, slots):
    def run(x):
      for _ in range(times):
        x = jax.lax.fori_loop(0, 3, lambda i, x: jnp.exp(x) * x[::-1] + i, x)
      return x

    return lambda: jax.jit(run).trace(jnp.ones((8, slots)))

  once, thrice, other = (
    compilation.compiled(program(*each)).kernels for each in ((1, 8), (3, 8), (1, 9))
  )
  assert len(thrice) == 3 * len(once) and set(thrice) == set(once)
  assert not set(once) <= set(other)


def test_sampling_at_other_tokens_is_refused():
  size = sampling.TINY
  canvas = sampling._canvas(size, 2, 32)
  mask_id = size.model.vocab - 1
  with pytest.raises(RuntimeError, match="masks are left"):
    sampling.check_equal({"no cache": canvas}, mask_id)
  done = canvas.replace(tokens_BxL=jnp.zeros_like(canvas.tokens_BxL))
  other = canvas.replace(tokens_BxL=done.tokens_BxL.at[1, 5].set(3))
  sampling.check_equal({"no cache": done, "fused": done}, mask_id)
  with pytest.raises(RuntimeError, match="fused writes 1 other tokens"):
    sampling.check_equal({"no cache": done, "fused": other}, mask_id)


def test_calls_take_turns_and_ratios_are_of_one_round():
  order = []
  calls = {name: lambda name=name: order.append(name) or jnp.float32(len(order)) for name in "abc"}
  seconds, last = results.interleaved(calls, rounds=3)
  assert "".join(order) == "abccbaabc"
  assert {name: len(each) for name, each in seconds.items()} == {"a": 3, "b": 3, "c": 3}
  assert [int(last[name]) for name in "abc"] == [7, 8, 9]
  assert results.ratio([2.0, 30.0, 8.0], [1.0, 10.0, 2.0]) == Spread(3.0, 2.0, 4.0, 3)


def test_table_is_aligned():
  table = Table("t", "a / b", [{"ratio": Spread(1.0, 0.5, 2000.0, 3), "case": "x", "n": 12345}])
  assert str(table) == "t: a / b\nratio         case  n\n1 (0.5 - 2k)  x     12345"


def test_main_leaves_the_persistent_cache_alone(tmp_path):
  done = main(
    "--suite=kernels",
    "--size=tiny",
    f"--out={tmp_path / 'out'}",
    JAX_COMPILATION_CACHE_DIR=str(tmp_path / "cache"),
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
  )
  assert done.returncode == 0, done.stderr
  record = json.loads((tmp_path / "out" / "kernels.json").read_text())
  assert record["command"].startswith("python -m experiments.benchmark --suite=kernels")
  assert not list(tmp_path.glob("cache/*"))


def test_unknown_suite_lists_the_known_ones():
  done = main("--suite=speed")
  assert done.returncode != 0
  assert all(suite in done.stderr for suite in SUITES)
