r"""Several evaluations on one page: checkpoints, policies or settings that answered one suite.

python experiments/evaluate.py --checkpoint=A --suite=quick --out=runs/a
python experiments/evaluate.py --checkpoint=B --suite=quick --out=runs/b
python experiments/compare.py runs/a/results.json better=runs/b/results.json --out=runs/a_and_b

A name before a file names its curve; else it is what evaluate's --name said. Writes report.html and
results.json, and prints the table: accuracy at tokens per forward.
"""

import dataclasses
import pathlib
import sys

from absl import flags

from dlm import command, files
from dlm.evaluation import joined, parallelism, report

OUT = flags.DEFINE_string("out", None, "The folder of report.html and results.json.")
RECORDS = flags.DEFINE_multi_string("record", [], "[NAME=]FILE of an evaluation; bare words, too.")


def read(spec: str) -> joined.Record:
  name, equals, path = spec.rpartition("=")
  path = pathlib.Path(path)
  record = joined.check(files.parse_json(path.read_text(encoding="utf-8"), str(path)), str(path))
  return {**record, "name": name} if equals else record


def join(records: list[joined.Record], folder: pathlib.Path) -> None:
  """Writes the page and the numbers of several evaluations, and prints their table."""
  page = joined.page_of(records)
  print(parallelism.table(page.curves))
  report.write_report(folder / "report.html", page)
  table = [dataclasses.asdict(point) | {"interval": point.interval()} for point in page.curves]
  costs = [dataclasses.asdict(cost) for cost in page.costs]
  files.write_json(folder / "results.json", {"curves": table, "costs": costs, "facts": page.facts})
  print(folder / "report.html")


def main() -> None:
  if len(RECORDS.value) < 2:
    raise ValueError("compare wants two results.json or more, of experiments/evaluate.py --suite")
  join([read(spec) for spec in RECORDS.value], pathlib.Path(OUT.value))


if __name__ == "__main__":
  # Bare words are records: `compare.py a.json b.json`.
  sys.argv[1:] = [word if word.startswith("-") else f"--record={word}" for word in sys.argv[1:]]
  command.run(main, required=(OUT,))
