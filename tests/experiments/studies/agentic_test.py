"""The study of trajectories: what is learned from its files is what an agent meets."""

import json

from dlm.tools import Corpus
from tests.experiments import mains

MAIN = mains.load("experiments/studies/agentic.py")


def test_a_trajectory_is_what_the_searches_find_in_blocks(tmp_path):
  """A name's own document comes first, though another holds it, too."""
  held_out = MAIN.write_files(tmp_path)
  corpus = Corpus(tmp_path / "corpus.jsonl", hits=1)
  asked = {json.loads(x)["prompt"] for x in (tmp_path / "asked.jsonl").read_text().splitlines()}
  assert len(asked) == MAIN.ASKED and not {each.question for each in held_out} & asked
  for fact in held_out[:20]:
    said = fact.trajectory
    first, found, second, code, answer = (
      said["completion"][at : at + MAIN.BLOCK] for at in range(0, 5 * MAIN.BLOCK, MAIN.BLOCK)
    )
    assert len(said["prompt"]) == MAIN.BLOCK and said["prompt"].strip() == fact.question.strip()
    assert (first[10:], second[10:]) == (f"<{fact.word}>", f"<{fact.friend}>")
    assert found[1:-1].strip() == corpus.search(fact.word)
    assert code[1:-1].strip() == corpus.search(fact.friend) and answer == fact.code
