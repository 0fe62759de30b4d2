"""Experts that choose tokens against tokens that choose experts: EC-DLM's claims on small models.

    python -m experiments.studies.experts --workdir=runs/experts

Trains every arm of configs/train/ec_dlm.py named in ARMS at equal FLOPs, a seed's rows and noise
levels the same for all; then a model whose tokens choose without renormalised weights, as
LLaDA-MoE's, changes sides and is tuned in each of WAYS. Held-out loss is the exact-count bound on
the same rows with the same masks. The claims beside ours are of arXiv 2604.01622. Writes
experts.json. The same command goes on where it was stopped, and trains nothing twice.
"""

import dataclasses
import functools
import itertools
import pathlib
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from dlm import build, checkpoint, command, files, metrics, train
from dlm.models.bind import Model
from dlm.types import Batch, Params
from experiments.benchmarks import results
from experiments.studies import experts_tables as tables
from experiments.studies.experts_tables import ARMS, SOURCE, WAYS, ArmRun, Tuned

WORKDIR = flags.DEFINE_string("workdir", "runs/experts", "Where everything goes.")
CONFIG = flags.DEFINE_string("config", "configs/train/ec_dlm.py", "Its get_config knows SIZE-ARM.")
SIZE = flags.DEFINE_string("size", "cpu", "SIZE of the config; a GPU has time for gpu.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of every arm; claims take 2.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 0, "Updates of a run; 0: as the config says.")
TUNE = flags.DEFINE_integer("tune", 0, "Updates after the change of sides; 0: a tenth of a run.")
BATCHES = flags.DEFINE_integer("batches", 16, "Held-out batches.", lower_bound=1)
ONLY = flags.DEFINE_multi_enum("only", None, [*ARMS, *WAYS], "Arms and ways, in place of all.")

# Of a model table's experts, what differs from the source's.
ROUTING: dict[str, dict[str, Any]] = {
  "tokens": {},
  "kept": {"choice": "expert", "balance_loss": 0.0},
  "renormalised": {"choice": "expert", "balance_loss": 0.0, "renormalise": True},
  "routers": {"choice": "expert", "balance_loss": 0.0},
}


def config_of(arm: str, seed: int) -> build.RunConfig:
  steps = STEPS.value
  short = [f"steps={steps}", f"optimizer.warmup={steps // 15}"]
  short += [f"optimizer.decay={max(steps // 5, 1)}"]
  fields = [f"seed={seed}", *(short if steps else []), *command.FIELDS.value]
  return build.RunConfig.read(f"{CONFIG.value}:{SIZE.value}-{arm}", fields)


def source_config() -> build.RunConfig:
  config = build.plain(config_of("token", 1))
  config["model"]["moe"] |= {"renormalise": False, "match_shared": False}
  return build.RunConfig.of(config)


def tuning_config(way: str, seed: int, source: pathlib.Path) -> build.RunConfig:
  """The source's recipe once more, for a tenth of its updates: warm-up, then down to nothing."""
  config = build.plain(config_of("token", 1 + seed))
  steps = TUNE.value or max(config["steps"] // 10, 1)
  config |= {"init_from": str(source), "steps": steps, "log_every": 1}
  config["model"] = {"moe": ROUTING[way]}
  config["optimizer"] |= {
    "schedule": "cosine",
    "warmup": steps // 10,
    "decay": 0,
    "end_lr": 0.0,
    "lr": config["optimizer"]["lr"] / 3,
    "trainable": "router" if way == "routers" else "all",
  }
  return build.RunConfig.of(config)


def trained(name: str, folder: pathlib.Path, config: build.RunConfig) -> build.Training:
  """Trains, or goes on, or finds it done; ends the program where it is told to stop."""
  print(f"\n{name}: {folder}", flush=True)
  training = build.everything(config)
  state = train.train(training, folder)
  if int(state.step) < training.run.steps:
    sys.exit(0)
  return training


@functools.cache
def evaluation(model: Model) -> train.Step:
  """One program a model: rows and masks are those of seed 0, whatever the run's."""
  training = build.everything(config_of("token", 0))
  exact = build.estimator(training.run.objective, training.tokenizer)
  return train.Step(dataclasses.replace(training, model=model, objective=exact))


def held_out(model: Model, params: Params) -> tuple[float, list[float]]:
  """Nats per token, and the mean cross-entropy of a masked token by quarter of the noise level."""
  step = evaluation(model)
  total = count = 0.0
  sums = {"ce": np.zeros(tables.QUARTERS), "masked": np.zeros(tables.QUARTERS)}
  for index in range(BATCHES.value):
    batch = Batch(*map(jnp.asarray, step.training.eval_rows[index]))
    loss = jax.device_get(step.evaluate(params, batch, jnp.int32(index)))
    total, count = total + float(loss.total), count + float(loss.count)
    for name, quarters in sums.items():
      quarters += tables.by_quarter(loss.metrics, name)
  return total / count, list(sums["ce"] / np.maximum(sums["masked"], 1))


def run_of(arm: str, seed: int, training: build.Training, folder: pathlib.Path) -> ArmRun:
  params, _ = checkpoint.restore_params(folder, "latest")
  records = [record for record in metrics.records(folder) if "loss" in record]
  loss, quarters = held_out(training.model, params)
  late = records[len(records) // 2 :]
  return ArmRun(
    arm=arm,
    seed=seed,
    loss=loss,
    quarters=quarters,
    efficiency=tables.learning_efficiency(records),
    curve=[(record["step"], record["loss"]) for record in records],
    seconds=statistics.median(r["seconds/step"] for r in records if "seconds/step" in r),
    gflops=train.Step(training).flops() / 1e9,
    router={
      name: statistics.mean(record[f"router/{name}"] for record in late) for name in tables.ROUTER
    },
  )


def arms(workdir: pathlib.Path, chosen: Sequence[str], seeds: int) -> list[ArmRun]:
  found = []
  for seed, arm in itertools.product(range(1, seeds + 1), chosen):
    folder = workdir / f"{arm}-{seed}"
    training = trained(ARMS[arm], folder, config_of(arm, seed))
    found.append(run_of(arm, seed, training, folder))
    print(found[-1], flush=True)
  return found


def retrofit(workdir: pathlib.Path, chosen: Sequence[str], seeds: int) -> list[Tuned]:
  """The loss of the source, of its weights once they are routed otherwise, and after tuning."""
  source = workdir / SOURCE
  training = trained("tokens choose, to be changed", source, source_config())
  params, _ = checkpoint.restore_params(source, "latest")
  before, _ = held_out(training.model, params)
  found = []
  for seed, way in itertools.product(range(1, seeds + 1), chosen):
    folder = workdir / f"tuned-{way}-{seed}"
    training = trained(WAYS[way], folder, tuning_config(way, seed, source))
    tuned, _ = checkpoint.restore_params(folder, "latest")
    at_once, after = held_out(training.model, params)[0], held_out(training.model, tuned)[0]
    found.append(Tuned(way, seed, before, at_once, after))
    print(found[-1], flush=True)
  return found


def main() -> None:
  began = time.perf_counter()
  workdir = pathlib.Path(WORKDIR.value)
  only = ONLY.value or [*ARMS, *WAYS]
  runs = arms(workdir, [arm for arm in ARMS if arm in only], SEEDS.value)
  ways = [way for way in WAYS if way in only]
  tuned = retrofit(workdir, ways, SEEDS.value) if ways else []
  head = {
    "command": shlex.join(["python", "-m", "experiments.studies.experts", *sys.argv[1:]]),
    **results.facts(),
    "seconds_of_this_call": time.perf_counter() - began,
    "cpu_seconds_of_this_call": time.process_time(),
  }
  claims = tables.claims(runs, jax.default_backend())
  record = head | {
    "claims": claims,
    "runs": [dataclasses.asdict(run) for run in runs],
    "retrofit": [dataclasses.asdict(each) for each in tuned],
  }
  files.write_json(workdir / "experts.json", record, indent=1)
  for table in (*tables.of_runs(runs), *tables.of_retrofit(tuned)):
    print(f"\n{table}")
  print("\n" + "\n".join(map(tables.sentence, claims)))
  wall, cpu = head["seconds_of_this_call"], head["cpu_seconds_of_this_call"]
  print(f"\n{workdir / 'experts.json'}, after {wall:.0f} s, {cpu:.0f} s of CPU")


if __name__ == "__main__":
  command.run(main)
