r"""What the forwards of a model cost at least on a chip, and what each operator is bound by.

python experiments/roofline.py --checkpoint=DIR --chip=h100 --rows=16 --slots=2048

Operations and bytes are counted from the model's shape (`dlm/roofline.py`), nothing is run. The
active block, the checkpoint's or --block, is the last of the slots.
"""

from absl import flags

from dlm import build, command, roofline

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


def main() -> None:
  trained = build.pretrained(CHECKPOINT.value)
  block = BLOCK.value or trained.facts.block
  if not block:
    raise ValueError("--block is missing: the checkpoint's blocks are whole rows")
  bits = roofline.Bits(WEIGHTS.value, ACTIVATIONS.value, CACHE.value)
  kinds = roofline.forwards(ROWS.value, SLOTS.value, block)
  chip = roofline.CHIPS[CHIP.value]
  print(*roofline.table(trained.model.config, kinds, bits, chip), sep="\n")


if __name__ == "__main__":
  command.run(main, required=(CHECKPOINT,))
