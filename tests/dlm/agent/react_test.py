"""P-ReAct's turns: when tools start, what the model reads next, and where it ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks, parallel
from dlm.agent import Agent
from dlm.data import ByteTokenizer
from dlm.generate import Generator, Request
from dlm.sampling.caching import NoCache
from dlm.sampling.policies import Fixed, Region
from dlm.sampling.sampler import Sampler
from dlm.tools import Tools
from tests.dlm.sampling.table import Lookup

TOKENIZER = ByteTokenizer()
SLOTS, TURN, ANSWER = 64, 8, 4
VOCAB = TOKENIZER.vocab_size
OPENS, CLOSES = map(ord, "<>")
FRAMED = Region(Fixed(k=1), first=3, last=7, bias=2.0, forced=((3, OPENS), (7, CLOSES)))


def spelling(text: str):
  """A model that writes at each slot the letter that stands there."""
  ids = np.frombuffer(text.ljust(SLOTS, ".").encode(), np.uint8)
  nothing_VxV = jnp.zeros((VOCAB, VOCAB))
  return {"own": 5.0 * jax.nn.one_hot(ids, VOCAB), "left": nothing_VxV, "right": nothing_VxV}


def writer(policy, align="prompt", eos_id=TOKENIZER.eos_id):
  sampler = Sampler(
    Lookup(width=VOCAB), policy, NoCache(), masks.Full(), block=TURN, max_forwards=40,
    mask_id=TOKENIZER.mask_id, eos_ids=(eos_id,),
  )  # fmt: skip
  mesh = parallel.make_mesh(devices=jax.local_devices()[:1])
  return Generator(sampler, TOKENIZER, mesh, align=align, batch=2)


WRITER = writer(FRAMED)
ANSWERER = writer(Fixed(k=1))


def agent(search, writer=WRITER, answerer=ANSWERER, **given):
  settings = {"slots": SLOTS, "turn_tokens": TURN, "answer_tokens": ANSWER, "frame": ("[", "]")}
  return Agent(writer, answerer, Tools({"search": search}), **{**settings, "longest": 6, **given})


def questions(*texts):
  room = {"slots": SLOTS, "max_new_tokens": TURN}
  return [Request.from_text(i, text, TOKENIZER, **room) for i, text in enumerate(texts)]


@pytest.mark.parametrize("ahead", [True, False])
def test_a_tool_starts_when_its_call_is_written_and_is_read_by_the_model(ahead):
  (episode,) = agent(str.upper, ahead=ahead)(
    spelling("ab" + "012 red " + "[RED]" + "WXYZ"), questions("ab")
  )
  (turn,) = episode.turns
  assert (turn.text, turn.call, turn.response) == ("012<red>", "red", "RED")
  # Two forced tokens take a forward, the call's three letters three, the thoughts' three the rest.
  assert (turn.called, turn.forwards) == (4 if ahead else 7, 7)
  assert episode.answer == "WXYZ" and TOKENIZER.decode(episode.tokens) == "012<red>WXYZ"


def test_a_call_without_a_text_ends_the_turns():
  model = spelling("ab" + "012 red " + "[RED]" + "345    !" + "WXYZ")
  (episode,) = agent(str.upper, turns=2, longest=3)(model, questions("ab"))
  assert [turn.call for turn in episode.turns] == ["red"] and episode.answer == "WXYZ"
  assert TOKENIZER.decode(episode.tokens) == "012<red>345<   >WXYZ"


def test_rows_of_a_batch_each_have_their_own_turns():
  model = spelling("a0123456789abcdefghijklmnopqrstuvw")
  alone = [agent(str.upper, turns=2)(model, [each])[0] for each in questions("x", "xyz", "")]
  assert [each.turns[0].response for each in alone] == ["456", "678", "345"]
  together = agent(str.upper, turns=2)(model, questions("x", "xyz", ""))
  assert [(e.answer, [t.call for t in e.turns]) for e in together] == [
    (e.answer, [t.call for t in e.turns]) for e in alone
  ]


def test_a_long_response_is_cut_and_a_failing_tool_is_told():
  def search(query):
    raise OSError("no network")

  model = spelling("ab" + "012 red " + "[error:]" + "WXYZ")
  (episode,) = agent(search)(model, questions("ab"))
  assert episode.turns[0].response == "error: no network" and episode.answer == "WXYZ"


def test_turns_begin_where_blocks_of_the_canvas_begin():
  made = writer(FRAMED, "canvas"), writer(Fixed(k=1), "canvas")
  model = spelling("." * 8 + "012 red " + "." * 8 + "WXYZ")  # [RED] is filled up within its frame
  (episode,) = agent(str.upper, *made)(model, questions("ab"))
  assert episode.turns[0].call == "red" and episode.answer == "WXYZ"


def test_a_row_tells_what_the_model_wrote_of_it():
  """Not what was forced; of a frame the stop id that it begins with, if the model ended there."""
  made = (writer(policy, eos_id=ord("!")) for policy in (FRAMED, Fixed(k=1)))
  asks = agent(str.upper, *made, frame=("![", "]"), turn_tokens=9)
  (episode,) = asks(spelling("ab" + "012 red !" + "[RED]" + "WX!"), questions("ab"))
  row = episode.row
  assert TOKENIZER.decode(row.ids[:19]) == "ab012<red>![RED]WX!" and episode.answer == "WX"
  assert (episode.stop, episode.answered) == (18, (16, 18))
  given = [0, 1, 5, 9, *range(11, 16)]  # the question, forced tokens, the response
  assert np.flatnonzero(row.when[:19] < 0).tolist() == given
  # The call was written first, and the answer in forwards that follow all of the turn's.
  assert row.when[[6, 7, 8]].max() < row.when[2:5].min()
  assert row.when[2:11].max() < row.when[16:19].min() and np.isfinite(row.logp[row.when >= 0]).all()
  assert episode.forwards == row.when.max()


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"turns": 0}, "turns=0 must be at least 1"),
    ({"turn_tokens": 7}, "max_new_tokens=7 must hold the call, which ends at 7"),
    ({"writer": ANSWERER}, "must force the tokens around a call"),
  ],
)
def test_an_agent_that_cannot_be_is_refused(given, message):
  with pytest.raises(ValueError, match=message):
    agent(str.upper, **given)


def test_an_episode_that_may_not_fit_is_refused_before_it_begins():
  with pytest.raises(ValueError, match=r"prompt 0: 2 tokens, 4 turns of at most 16, .* exceed"):
    agent(str.upper, turns=4)({}, questions("ab"))
