r"""What the forwards of a model cost at least on a chip, and what each operator is bound by.

python experiments/roofline.py --checkpoint=DIR --chip=h100 --rows=16 --slots=2048 --out=DIR

Operations and bytes are counted from the model's shape (`dlm/roofline.py`), nothing is run. The
active block, the checkpoint's or --block, is the last of the slots. With --out a page shows where
each operator lies under the roof.

python experiments/roofline.py --checkpoint=DIR --measure --config=configs/sample/default.py

runs what it speaks of on this device, whose peak and bandwidth small probes tell: each kind of
forward alone, and the sampler of --config over --rows prompts of half a canvas. Printed are
least and measured times, and predicted and measured tokens a second.
"""

import html

from absl import flags

from dlm import build, command, files, roofline
from dlm.evaluation import charts
from dlm.evaluation.report import COLOURS, here
from dlm.models.apart import apart
from experiments.benchmarks import forwards

CHECKPOINT = flags.DEFINE_string(
  "checkpoint", None, "Of training, a Hugging Face directory, FILE.gguf or package:NAME."
)
CHIP = flags.DEFINE_enum("chip", "h100", sorted(roofline.CHIPS), "By its makers' figures.")
ROWS = flags.DEFINE_integer("rows", 1, "Requests in a forward.", lower_bound=1)
SLOTS = flags.DEFINE_integer("slots", 1024, "Of each row's canvas.", lower_bound=2)
BLOCK = flags.DEFINE_integer("block", 0, "Slots; 0: the checkpoint's block.", lower_bound=0)
WEIGHTS = flags.DEFINE_integer("weights", 16, "Bits of a weight.", lower_bound=1)
ACTIVATIONS = flags.DEFINE_integer("activations", 16, "Bits of an activation.", lower_bound=1)
CACHE = flags.DEFINE_integer("cache", 16, "Bits of a cached key or value.", lower_bound=1)
MEASURE = flags.DEFINE_bool("measure", False, "On this device, in the checkpoint's own bits.")
CONFIG = flags.DEFINE_string(
  "config",
  "configs/sample/default.py",
  "How to sample, with --measure: FILE.py or FILE.py:ARGUMENT.",
)
ROUNDS = flags.DEFINE_integer("rounds", 5, "Of measuring; the best counts.", lower_bound=1)
OUT = flags.DEFINE_string("out", None, "A folder for roofline.html and roofline.svg.")


def picture(
  model: build.Pretrained,
  kinds: dict[str, roofline.Forward],
  bits: roofline.Bits,
  chip: roofline.Chip,
  took: list[forwards.Took],
) -> str:
  """A panel a kind of forward: its operators on the roof, and the whole forward as measured."""
  config, ridge = model.model.config, chip.peak(bits) / chip.bandwidth
  found = {
    name: [
      each
      for each in [*roofline.layer(config, kind, bits), roofline.head(config, kind, bits)]
      if each.bytes
    ]
    for name, kind in kinds.items()
  }
  at = [each.operations / each.bytes for operators in found.values() for each in operators]
  low, high = min(*at, ridge) / 2, max(*at, ridge) * 4
  top = chip.peak(bits)
  panels = []
  for name, operators in found.items():
    roof = [(x, min(top, x * chip.bandwidth) / 1e9) for x in (low, ridge, high)]
    total = roofline.seconds(config, kinds[name], bits, chip)
    lines = [charts.Line("roof", "#000", roof, dots=False)]
    points, told = [], []
    for each in operators:
      least = chip.seconds(each, bits) * (1 if each.name == "lm_head" else config.layers)
      points.append(
        (each.operations / each.bytes, each.operations / chip.seconds(each, bits) / 1e9)
      )
      told.append(f"{each.name}: {100 * least / total:.0f} % of the least time")
    lines.append(charts.Line("operators, at best", COLOURS[0], points, told, joined=False))
    work = roofline.operations(config, kinds[name])
    moved = sum(e.bytes * (1 if e.name == "lm_head" else config.layers) for e in operators)
    for one in took:
      if one.name == name:
        point = (work / moved, work / one.measured / 1e9)
        told = [f"{name}: {1e3 * one.measured:.2f} ms, at least {1e3 * one.predicted:.2f} ms"]
        lines.append(charts.Line("forward, measured", COLOURS[1], [point], told, joined=False))
    floor = min(y for line in lines for _, y in line.points) / 2
    panels.append(
      charts.Panel(
        f"{name}, {kinds[name].rows} x {kinds[name].queries} slots",
        charts.Axis("operations per byte", low, high, base=10),
        charts.Axis("GFLOP/s", floor, top / 1e9 * 2, base=10),
        lines,
      )
    )
  return charts.svg(panels, columns=2)


def measured(
  trained: build.Pretrained, kinds: dict[str, roofline.Forward], block: int
) -> tuple[roofline.Chip, roofline.Bits, list[forwards.Took], list[str]]:
  """This device as a chip, what the forwards took on it, and lines to read."""
  config = build.SamplingConfig.read(
    CONFIG.value,
    [*command.FIELDS.value, f"slots={SLOTS.value}", f"block={block}", "stop=never"],
  )
  params = apart(trained.params()[0])  # as the sampler holds them
  bits = forwards.bits_of(trained.model.config, params)
  chip = forwards.here(trained.model.config.dtype, ROUNDS.value)
  took = forwards.timed(trained, params, kinds, bits, chip, ROUNDS.value)
  lines = [
    f"here: {chip.peak(bits) / 1e9:.0f} GFLOP/s of a matmul, {chip.bandwidth / 1e9:.1f} GB/s read "
    f"at best; {bits}"
  ]
  lines += [
    f"{each.name:10}{1e3 * each.measured:10.2f} ms, at least {1e3 * each.predicted:.2f} ms: "
    f"{100 * each.reached:.0f} % of the roofline's speed"
    for each in took
  ]
  done = forwards.sampled(trained, params, config, ROWS.value, bits, chip, ROUNDS.value)
  alone = {each.name: each.measured for each in took}
  own = {"full": alone["refresh"], "window": alone["denoise"], "commit": alone["commit"]}
  share = sum(count * own[name] for name, count in done.forwards.items()) / done.seconds
  lines += [
    f"sampler   {done.tokens / done.seconds:10.1f} tokens/s, at most "
    f"{done.tokens / done.predicted:.1f}: {100 * done.reached:.0f} % of the roofline's speed",
    f"          {', '.join(f'{count} {name}' for name, count in done.forwards.items())} forwards a "
    f"row; as long as those alone take {100 * share:.0f} % of its time",
  ]
  return chip, bits, took, lines


def page(title: str, drawn: str, lines: list[str]) -> str:
  facts = "; ".join(f"{name} {html.escape(value)}" for name, value in here())
  return (
    "<!doctype html><meta charset='utf-8'><title>Roofline</title><style>"
    "body{font:15px/1.5 system-ui;margin:2em auto;max-width:900px;padding:0 1em}</style>"
    f"<h1>{html.escape(title)}</h1>{drawn}<pre>{html.escape(chr(10).join(lines))}</pre>"
    "<p>An operator takes the longer of its operations at the peak and its bytes at the bandwidth; "
    "a forward takes all of them, one after the other. Left of the roof's edge memory binds, right "
    f"of it arithmetic.</p><p>{facts}</p>"
  )


def main() -> None:
  trained = build.pretrained(CHECKPOINT.value)
  block = BLOCK.value or trained.facts.block
  if not block:
    raise ValueError("--block is missing: the checkpoint's blocks are whole rows")
  bits = roofline.Bits(WEIGHTS.value, ACTIVATIONS.value, CACHE.value)
  out = OUT.value and files.made_folder(OUT.value)
  kinds = roofline.forwards(ROWS.value, SLOTS.value, block)
  chip, took, lines = roofline.CHIPS[CHIP.value], [], []
  if MEASURE.value:
    chip, bits, took, lines = measured(trained, kinds, block)
  lines += roofline.table(trained.model.config, kinds, bits, chip)
  print(*lines, sep="\n")
  if out:
    drawn = picture(trained, kinds, bits, chip, took)
    title = f"{CHECKPOINT.value} on {'this device' if MEASURE.value else chip.name}"
    files.write(out / "roofline.svg", drawn)
    files.write(out / "roofline.html", page(title, drawn, lines))
    print(out / "roofline.html")


if __name__ == "__main__":
  command.run(main, required=(CHECKPOINT,))
