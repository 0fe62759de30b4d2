"""One page of one evaluation or of several: checkpoints, policies or settings side by side.

A record is what `experiments/evaluate.py --suite` writes as results.json.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from dlm.evaluation import parallelism
from dlm.evaluation.parallelism import ORACLE, CurvePoint
from dlm.evaluation.report import Cost, Report, Trace

Record = Mapping[str, Any]
SHOWN = 6  # settings whose writing is shown


def check(record: Any, where: str) -> Record:
  """ValueError where it is none."""
  needed = {"name", "checkpoint", "problems", "tasks", "facts", "vocab", "curves", "runs"}
  missing = needed - record.keys() if isinstance(record, dict) else needed
  if missing:
    raise ValueError(
      f"{where} is no results.json of experiments/evaluate.py --suite: it lacks {min(missing)!r}"
    )
  return record


def page_of(records: Sequence[Record]) -> Report:
  """A curve a record (a policy, where there is one record alone), its costs and its setup.

  Raises:
    ValueError: two records have one name, or were asked other problems.
  """
  first = records[0]
  names = [record["name"] for record in records]
  if twice := [name for i, name in enumerate(names) if name in names[:i]]:
    raise ValueError(f"two evaluations are called {twice[0]!r}: name them, as NAME=FILE")
  for record in records[1:]:
    for part in ("tasks", "problems"):
      if record[part] != first[part]:
        raise ValueError(
          f"{record['name']!r} was asked other problems than {first['name']!r}: {part} "
          f"{record[part]} and {first[part]}"
        )

  def label(record: Record, policy: str) -> str:
    return policy if len(records) == 1 else record["name"]

  points, costs, traces = [], [], []
  for record in records:
    for row in record["curves"]:
      fields = {field.name: row[field.name] for field in dataclasses.fields(CurvePoint)}
      named = {"policy": label(record, row["policy"]), "setting": _short(row["setting"])}
      point = CurvePoint(**fields | named)
      points += [point] if point.setting != ORACLE else []
    for run in record["runs"]:
      policy = label(record, run["policy"])
      costs.append(_cost(policy, run))
      named = {"policy": policy, "setting": _short(run["setting"])}
      traces += [Trace(**each | _lists(each) | named) for each in run["traces"]]
  means = parallelism.mean_over_tasks(points) if len({p.task for p in points}) > 1 else []
  what = first["checkpoint"] if len(records) == 1 else f"{len(records)} evaluations"
  asked = first["problems"]
  return Report(
    title=f"{first['name']}: {', '.join(first['tasks'])}"
    if len(records) == 1
    else " and ".join(names),
    sentence=(
      f"{what}: {len({p.task for p in points})} tasks, {asked['size']} problems of each or all "
      f"there are, seed {asked['seed']}, {asked['shots']} worked examples, "
      f"{'as messages' if asked['chat'] else 'as texts to continue'}."
    ),
    vocab=first["vocab"],
    facts=tuple(
      (name if len(records) == 1 else f"{record['name']}: {name}", str(value))
      for record in records
      for name, value in [*record["facts"], *_compression(record, first)]
    ),
    curves=(*means, *points),
    costs=tuple(costs),
    traces=tuple(traces[:SHOWN]),
  )


def _short(setting: str) -> str:
  return setting.removeprefix("policy.")


def _lists(trace: Record) -> dict[str, tuple]:
  return {name: tuple(trace[name]) for name in ("tokens", "when")}


def _cost(policy: str, run: Record) -> Cost:
  found = run["cost"]
  return Cost(
    policy,
    _short(run["setting"]),
    sum(result["n"] for result in run["tasks"].values()),
    found["average_throughput"],
    found["average_latency"],
    found["latency_quantiles"]["p95"],
    found["joules_per_token"],
    found["joules_per_right_answer"],
    found["average_energy_consumption"],
    found["average_memory_utilisation"],
    found["peak_compute_utilisation"],
  )


def _compression(record: Record, first: Record) -> list[tuple[str, str]]:
  """EfficientLLM's model compression rate: how much smaller, times the share of accuracy kept."""

  def accuracy(record: Record) -> float:
    results = record["runs"][0]["tasks"].values()
    return sum(result["accuracy"] for result in results) / len(results)

  if record is first or not accuracy(first):
    return []
  smaller = first["parameter_bytes"] / record["parameter_bytes"]
  kept = accuracy(record) / accuracy(first)
  told = f"{smaller * kept:.3g} ({smaller:.3g} times smaller, {kept:.3g} of its accuracy)"
  return [(f"compression against {first['name']}", told)]
