import json

import pytest

from dlm import masks
from dlm.facts import ModelFacts

SDAR = ModelFacts(3, (1, 2), 0, 0, masks.BlockCausal(4), vocab=10, length=16, block=4)


@pytest.mark.parametrize(
  "facts",
  [
    SDAR,
    ModelFacts(None, (), None, 1, masks.Causal(), vocab=10, length=16),
    ModelFacts(3, (1,), 0, 1, masks.Causal(), vocab=10, length=16, block=2),
    ModelFacts(3, (1,), 0, 0, masks.Full(), vocab=10, length=16, insert_id=4, delete_id=1),
    ModelFacts(3, (1,), 0, 0, masks.PromptBlocks(4), vocab=10, length=16, block=4),
    ModelFacts(3, (1,), 0, 0, masks.CausalContext(4), vocab=10, length=16, block=4),
  ],
)
def test_json_reads_back_as_the_same_facts(facts):
  assert ModelFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts


def test_a_folder_of_before_says_the_same():
  """As folders were written before facts had a class; older ones still left pad_id out."""
  old = {"mask_id": 3, "eos_ids": [1, 2], "pad_id": 0, "shift": 0, "attention": "block_causal"}
  old |= {"block": 4, "vocab": 10, "length": 16}
  assert ModelFacts.from_json(old) == SDAR
  del old["pad_id"]
  assert ModelFacts.from_json(old).pad_id is None


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"shift": 2}, "shift=2 must be 0 or 1"),
    ({"attention": "sliding"}, "attention='sliding' is unknown; known: full, causal"),
    ({"attention": ["full"]}, r"attention=\['full'\] is unknown"),
    ({"block": 0}, "block=0 must be a whole number, at least 1"),
    ({"block": None}, "block=None must be a whole number"),
    ({"eos_ids": 1}, "eos_ids=1 must be a list"),
    ({"eos_ids": [1, 10]}, r"eos_ids=\(1, 10\) must lie below vocab=10"),
    ({"mask_id": "3"}, "mask_id='3' must be a whole number"),
    ({"insert_id": -1}, "insert_id=-1 must be a whole number, at least 0"),
    ({"length": True}, "length=True must be a whole number"),
  ],
)
def test_what_cannot_be_facts_is_told_by_field_and_value(change, message):
  with pytest.raises(ValueError, match=message):
    ModelFacts.from_json(SDAR.to_json() | change)


def test_missing_fields_are_named():
  with pytest.raises(ValueError, match=r"field attention, block, eos_ids, .* is missing"):
    ModelFacts.from_json({})
