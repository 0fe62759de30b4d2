"""Writes a teacher's targets beforehand: its likeliest ids of each token, and their probabilities.

  python experiments/write_targets.py --config=configs/train/dscd.py --out=runs/dscd_targets \
    --keep=16 --batches=400
  python experiments/train.py --config=configs/train/dscd.py --workdir=runs/dscd_offline \
    --config.data.sources="(('targets:runs/dscd_targets', 1.0),)"

The config is that of the run, with its teacher, which that run then needs no more. Rows and their
noise are those that the run would draw. The same command goes on where one was interrupted.
"""

from absl import flags

from dlm import build, command, targets

CONFIG = flags.DEFINE_string("config", None, "The run: FILE.py or FILE.py:ARGUMENT.")
OUT = flags.DEFINE_string("out", None, "Folder of the ArrayRecord files.")
KEEP = flags.DEFINE_integer("keep", 16, "Ids of each target; all others count as one.")
BATCHES = flags.DEFINE_integer("batches", None, "Of the train split; default: one for each update.")
TEST_BATCHES = flags.DEFINE_integer("test_batches", None, "Held out; default: eval.batches.")


def main() -> None:
  training = build.everything(build.RunConfig.read(CONFIG.value, command.FIELDS.value))
  run = training.run
  counts = targets.write_targets(
    OUT.value,
    training,
    keep=KEEP.value,
    batches=run.steps if BATCHES.value is None else BATCHES.value,
    test_batches=run.eval.batches if TEST_BATCHES.value is None else TEST_BATCHES.value,
  )
  print(f"{OUT.value}: {counts['written']} files written, {counts['there']} were there")


if __name__ == "__main__":
  command.run(main, required=(CONFIG, OUT))
