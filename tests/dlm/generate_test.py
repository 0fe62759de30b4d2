"""From text to canvas and back: what a request becomes, and what its completion says."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks, parallel
from dlm.data import ByteTokenizer
from dlm.generate import Generator, Request
from dlm.models import ModelConfig, bind
from dlm.sampling import variety
from dlm.sampling.caching import Ahead, ExactBlock, NoCache
from dlm.sampling.clock import BlockMaskRatio, MaskRatio
from dlm.sampling.policies import Fixed, LeftToRight, Pipelined, Region, Threshold
from dlm.sampling.sampler import Sampler
from dlm.types import LogitHead, ModelOutput
from tests.dlm.sampling.table import Lookup

BYTES = ByteTokenizer()
MASK, EOS = BYTES.mask_id, BYTES.eos_id
MODEL = bind(ModelConfig(vocab=260, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp=16))


def request(text, id=0, slots=16, new=0, infill=False):
  return Request.from_text(id, text, BYTES, slots=slots, max_new_tokens=new, infill=infill)


def generator(denoise, policy, *, sees=masks.Full(), plan=NoCache(), **fields):  # noqa: B008
  own = ("align", "batch", "row_tile", "stops", "driver")
  options = {name: fields.pop(name) for name in own if name in fields}
  fields = {"block": 4, "max_forwards": 32, "mask_id": MASK, "eos_ids": (EOS,)} | fields
  sampler = Sampler(denoise, policy, plan, sees, **fields)
  mesh = parallel.make_mesh(data=1, devices=jax.devices()[:1])
  return Generator(sampler, BYTES, mesh, **options)


# -------------------------------------------------------------------------------------------------
# Requests


def test_prompt_is_followed_by_open_slots():
  whole, some, none = request("abc"), request("abc", new=5), request("")
  assert whole.tokens.tolist() == [97, 98, 99] + [MASK] * 13
  assert whole.open.tolist() == [False] * 3 + [True] * 13
  assert some.tokens.tolist() == [97, 98, 99] + [MASK] * 5
  assert none.open.all() and len(none.tokens) == 16
  assert (whole.id, whole.prompt) == (0, "abc")


def test_markup_opens_spans_where_it_is_asked_for_and_nothing_else():
  marked = request("a[[2]]b[[1]]", new=5, infill=True)
  assert marked.tokens.tolist() == [97, MASK, MASK, 98, MASK]
  assert marked.open.tolist() == [False, True, True, False, True]
  literal = request("[[[2]]", new=1, infill=True)  # one more bracket: text
  assert BYTES.decode(literal.tokens[:-1]) == "[[2]]" and literal.open.sum() == 1


@pytest.mark.parametrize("text", ["inv([[1]]) =", "[[[2]]", "x[[0]]"])
def test_brackets_of_a_prompt_are_text(text):
  """A matrix of one number is no hole: users did not write their prompts for us."""
  prompt = request(text, new=3)
  assert BYTES.decode(prompt.tokens[:-3]) == text
  assert prompt.open.tolist() == [False] * len(text) + [True] * 3


def test_the_token_that_begins_texts_stands_before_the_prompt():
  begun = Request.from_text(0, "a[[2]]", BYTES, slots=16, bos=True, infill=True)
  assert begun.tokens.tolist() == [BYTES.bos_id, 97, MASK, MASK]
  assert begun.open.tolist() == [False, False, True, True]
  empty = Request.from_text(0, "", BYTES, slots=4, bos=True)
  assert empty.tokens.tolist() == [BYTES.bos_id, MASK, MASK, MASK]


def test_characters_count_as_their_bytes():
  assert len(request("é", new=1).tokens) == 3


@pytest.mark.parametrize(
  ("text", "new", "message"),
  [
    ("a" * 16, 0, "prompt 3: 16 tokens and 1 new ones exceed the canvas of 16 slots"),
    ("a" * 20, 0, "prompt 3: 20 tokens and 1 new ones exceed the canvas of 16 slots"),
    ("a" * 10, 7, r"prompt 3: 10 tokens and 7 new ones exceed the canvas of 16 .*config\.slots"),
    ("ab[[15]]", 0, r"prompt 3: 17 tokens exceed the canvas of 16 slots \(config\.slots; 0: "),
    ("ab[[0]]", 0, r"\[\[0\]\] at character 2 must ask for at least one token"),
  ],
)
def test_what_does_not_fit_is_refused(text, new, message):
  with pytest.raises(ValueError, match=message):
    request(text, id=3, new=new, infill=True)


# -------------------------------------------------------------------------------------------------
# Completions


def says(text, slots=16):
  """Parameters of a table that writes `text`, byte by slot; "$" is the stop token."""
  ids = [EOS if byte == ord("$") else byte for byte in text.encode()]
  assert len(ids) == slots
  own = jnp.full((slots, 260), -5.0).at[jnp.arange(slots), jnp.array(ids)].set(5.0)
  return {"own": own, "left": jnp.zeros((260, 260)), "right": jnp.zeros((260, 260))}


def test_completion_of_a_prompt_ends_before_the_first_stop_token():
  run = generator(Lookup(), LeftToRight(2), align="prompt")
  asked = [request("xyz"), request("ab", id=1, new=4), request("c", id=2)]
  done, other, third = run(says("0123456$89abcde$"), asked)
  assert (done.id, done.prompt) == (0, "xyz")
  assert done.text == "3456" and done.tokens == list(b"3456")
  # Blocks are cut from the prompt's end: 3456, then $8, two a forward.
  assert done.when == [-1] * 3 + [1, 1, 2, 2, 3, 3] + [-1] * 7
  assert done.row == [*b"xyz", *b"3456", EOS, ord("8"), *[MASK] * 7]
  assert done.spans == ["34568"], "spans are whole, stop tokens dropped"
  assert done.forwards == {"full": 3, "window": 0, "commit": 0}
  assert done.queries == 3 * 16 and done.tpf == 4 / 3 and done.finished
  assert other.text == "2345" and other.finished and other.queries == 2 * 6
  assert 0 < done.seconds == third.seconds, "of one batch, as their canvases are of one size"


def test_a_text_that_only_repeats_itself_ends_before():
  slots, letters = 640, "".join(map(chr, range(37, 127))) * 4
  text = letters[:320] + "x" * 320
  run = functools.partial(
    generator, Lookup(), LeftToRight(64), block=64, align="canvas", max_forwards=32
  )
  requests = [request("ab", slots=slots), request("", id=1, slots=slots)]
  plain, cut = (run(least_entropy=least)(says(text, slots), requests) for least in (0.0, 4.0))
  for whole, ended in zip(plain, cut, strict=True):
    assert len(whole.tokens) > len(ended.tokens) > 0
    # Judged at each block's end: of the tokens up to 448 half repeat, of those up to 512 more.
    assert ended.tokens == whole.tokens[: len(ended.tokens)]
    assert ended.row == whole.row and ended.finished
  ends = [variety.end(np.array(plain[1].row[:at]), ()) for at in range(64, slots + 1, 64)]
  assert len(cut[1].tokens) == next(end for end in ends if end is not None)
  prompt = request("x" * 600, slots=slots)
  (kept,) = run(least_entropy=4.0)(says("y" * 600 + letters[:40], slots), [prompt])
  assert len(kept.tokens) == 0, "what follows is judged with what it follows"


def test_infilled_text_comes_whole():
  run = generator(Lookup(), LeftToRight(2), align="canvas")
  (done,) = run(says("0123456789abcdef"), [request("a[[2]]b[[3]]é[[1]]c", infill=True)])
  assert done.text == "a12b456é9c" and done.spans == ["12", "456", "9"]
  assert done.tokens == list(b"124569") and done.finished and done.tpf == 6 / 4


@pytest.mark.parametrize(
  ("text", "written", "finished"),
  [
    ("0123456789abcdef", "89a", False),
    ("012345678$abcdef", "8", True),  # what follows the stop token need not be written
    ("0123456789a$cdef", "89a", True),
  ],
)
def test_row_cut_off_by_max_forwards_is_not_finished(text, written, finished):
  run = generator(Lookup(), LeftToRight(1), max_forwards=3 + (text[11] == "$"), align="prompt")
  (done,) = run(says(text), [request("x" * 8)])
  assert (done.text, done.finished) == (written, finished)


def test_stop_token_behind_masks_does_not_finish_a_row():
  """The surest slot is the last of its block; the row is cut off before the others are written."""
  params = says("xxxx345$xxxxxxxx")
  params["own"] = params["own"].at[7, EOS].set(50.0)
  (done,) = generator(Lookup(), Fixed(k=1), max_forwards=1)(params, [request("x" * 4)])
  assert done.row[4:8] == [MASK, MASK, MASK, EOS]
  assert done.text == "" and not done.finished


# -------------------------------------------------------------------------------------------------
# Batches


TEXTS = ["0", "hello", "a[[3]]b[[2]]", "0123456789ab", "xy", "[[2]]z", "q"]


def exact(completions):
  """All but times: log-probabilities are equal only where they are to the bit."""
  return [dataclasses.replace(c, seconds=0.0) for c in completions]


def plain(completions):
  """What rounding does not touch where decisions have a margin."""
  return [dataclasses.replace(c, logprobs=[]) for c in exact(completions)]


@pytest.fixture(scope="module")
def params():
  params = jax.jit(MODEL.init)(jax.random.key(0))
  return params | {"final_norm": {"scale": 3 * params["final_norm"]["scale"]}}


@pytest.fixture(scope="module")
def requests():
  return [request(text, id, infill=True) for id, text in enumerate(TEXTS)]


SAMPLED = {"temperature": 1.0, "sees": masks.BlockCausal(4), "plan": ExactBlock()}


@pytest.fixture(scope="module")
def by_three():
  return generator(MODEL, Threshold(0.3), batch=3, **SAMPLED)


def test_results_do_not_depend_on_batches_or_order(params, requests, by_three):
  batches = []
  done = plain(by_three(params, requests, seed=5, on_batch=batches.append))
  # Canvases of 16, 8, 16, 4 and 16 slots; told in order, as far as all before are there.
  assert list(by_three.batches(requests)) == [[0, 1, 3], [2], [4, 6], [5]]
  assert [[c.id for c in batch] for batch in batches] == [[0, 1], [2, 3], [4], [5, 6]]
  assert plain(c for batch in batches for c in batch) == done
  assert len({c.forwards["full"] + c.forwards["window"] for c in done}) > 2

  turned = plain(by_three(params, requests[::-1], seed=5))
  assert turned[::-1] == done
  # Alone, batch and canvas are as small as they can be.
  single = generator(MODEL, Threshold(0.3), batch=1, **SAMPLED)
  assert plain(single(params, [requests[4]], seed=5)) == [done[4]]
  assert plain(single(params, [requests[5]], seed=5)) == [done[5]]
  assert plain(by_three(params, requests, seed=6)) != done


def test_an_empty_prompt_among_long_ones_is_as_it_is_alone(params):
  """All its slots tie, so rounding decides: its shapes must be its own, whoever is asked too."""
  run = generator(MODEL, Fixed(k=1), batch=2, sees=masks.BlockCausal(4), plan=ExactBlock())
  rows = [request("", new=4), request("0123456789", 1, new=5), request("", 2, new=4)]
  together = exact(run(params, rows))
  assert [len(done.row) for done in together] == [4, 15, 4]
  for row, done in zip(rows, together, strict=True):
    assert exact(run(params, [row])) == [done]


@pytest.mark.parametrize("tile", [1, 2])
def test_a_row_tile_makes_rows_equal_to_the_bit_in_batches_of_any_size_and_order(
  params, requests, tile
):
  by_tile = functools.partial(generator, MODEL, Threshold(0.3), row_tile=tile, **SAMPLED)
  run = by_tile(batch=5)
  assert (run.rows, run.batch, by_tile(batch=1).batch) == (tile, -(-5 // tile) * tile, tile)
  done = exact(run(params, requests, seed=5))
  assert all(c.logprobs and None not in c.logprobs for c in done)
  assert exact(run(params, requests[::-1], seed=5))[::-1] == done
  for i, request in enumerate(requests):
    assert exact(run(params, [request], seed=5)) == [done[i]]


def test_equal_prompts_with_different_ids_or_samples_are_different_draws(params, by_three):
  rows = [*request("a", 0).samples(3), request("a", 1)]
  done = by_three(params, rows)
  assert [(c.id, c.sample) for c in done] == [(0, 0), (0, 1), (0, 2), (1, 0)]
  assert len({tuple(c.tokens) for c in done}) == 4
  assert exact(by_three(params, [request("a", 0)])) == exact(done[:1]), "the first is the prompt's"


def test_logprobs_are_those_of_the_candidate_at_the_forward_that_wrote_it():
  params = says("0123456$89abcdef")
  (done,) = generator(Lookup(), LeftToRight(2))(params, [request("ab")])
  # One logit is 5, 258 are -5, and the mask's is forbidden.
  assert done.logprobs == pytest.approx([-np.log1p(258 * np.exp(-10.0))] * 5, rel=1e-4)


def test_a_token_that_the_forward_did_not_choose_has_no_logprob():
  policy = Region(LeftToRight(1), first=1, last=1, forced=((1, ord("!")),))
  (done,) = generator(Lookup(), policy)(says("0123456789abcdef"), [request("abcd", new=4)])
  assert done.text == "4!67" and [each is None for each in done.logprobs] == [0, 1, 0, 0]


@pytest.mark.parametrize(
  ("stops", "text", "reason"),
  [
    (["67"], "2345", "stop_string"),
    (["9", "56", "8"], "234", "stop_string"),
    (["23"], "", "stop_string"),
    (["ab"], "23456789", "stop_id"),  # the prompt may hold one, and what follows a stop id
    ([], "23456789", "stop_id"),
  ],
)
def test_a_stop_string_cuts_the_text_where_it_begins(stops, text, reason):
  run = generator(Lookup(), LeftToRight(2), stops=stops)
  (done,) = run(says("0123456789$abcde"), [request("ab")])
  assert (done.text, done.reason, done.finished) == (text, reason, True)
  assert bytes(done.tokens).decode() == text and len(done.logprobs) == len(text)
  assert done.tpf == len(text) / done.forwards["full"]


def test_a_stop_string_behind_masks_does_not_finish_a_row():
  run = generator(Lookup(), LeftToRight(1), max_forwards=3, stops=["89"])
  (done,) = run(says("0123456789$abcde"), [request("x" * 6)])
  assert (done.text, done.reason) == ("678", "max_forwards")


def test_characters_of_several_bytes_are_cut_whole():
  text = "aéb€stop0123"
  run = generator(Lookup(), LeftToRight(3), stops=["stop"], align="prompt")
  (done,) = run(says(text, len(text.encode())), [request("a", slots=len(text.encode()))])
  assert done.text == "éb€" and bytes(done.tokens).decode() == "éb€"


def test_texts_that_are_filled_in_have_no_stop_strings():
  run = generator(Lookup(), LeftToRight(2), stops=["b"])
  (done,) = run(says("0123456789abcdef"), [request("a[[2]]b", infill=True)])
  assert (done.text, done.reason) == ("a12b", "length")


def test_an_empty_stop_string_is_refused():
  with pytest.raises(ValueError, match="a stop string must not be empty"):
    generator(Lookup(), LeftToRight(2), stops=["a", ""])


def test_canvas_is_filled_up_with_rows_that_are_done(requests, by_three):
  canvas = by_three.canvas(requests[4:6], seed=0)
  assert canvas.tokens_BxL.shape == (3, 16) and canvas.done_B.tolist() == [False, False, True]
  assert by_three.canvas(requests[5:6], seed=0).tokens_BxL.shape == (3, 4)
  assert by_three.canvas([request("abcd", new=1)], seed=0).tokens_BxL.shape == (3, 8)


def test_last_canvas_of_a_stream_is_that_of_the_run(params, requests, by_three):
  rows = [requests[i] for i in next(by_three.batches(requests))]
  canvases = list(by_three.stream(params, rows, seed=5))
  assert (canvases[0].when_BxL == -1).all() and canvases[-1].done_B.all()
  for row, done in enumerate(by_three(params, rows, seed=5)):
    n = len(done.row)
    assert canvases[-1].tokens_BxL[row, :n].tolist() == done.row
    assert canvases[-1].when_BxL[row, :n].tolist() == done.when
    assert sum(canvases[-1].forwards_Bx3[row].tolist()) == sum(done.forwards.values())
  for before, after in itertools.pairwise(canvases):
    kept = before.when_BxL >= 0
    assert (after.tokens_BxL[kept] == before.tokens_BxL[kept]).all(), "nothing is taken back"


class Counting(Lookup):
  """How often it was traced."""

  traced = 0

  def __call__(self, *args, **kwargs):
    Counting.traced += 1
    return super().__call__(*args, **kwargs)


def test_both_drivers_compile_once_and_agree_on_one_device():
  params, rows = says("0123456$89abcdef"), [request("ab"), request("c", id=1), request("", id=2)]
  Counting.traced = 0
  done = [
    plain(generator(Counting(), LeftToRight(2), batch=1, driver=driver)(params, rows))
    for driver in ("shard_map", "pmap")
  ]
  assert done[0] == done[1]
  assert Counting.traced == 2


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True])
def test_seeds_that_jax_would_wrap_round_are_refused(by_three, seed):
  with pytest.raises(ValueError, match=rf"seed={seed} must be a whole number from 0 to 2\^32 - 1"):
    by_three.canvas([request("a")], seed=seed)
  by_three.canvas([request("a")], seed=2**32 - 1)


def test_bad_settings_are_refused():
  with pytest.raises(ValueError, match="batch=0 must be at least 1"):
    generator(Lookup(), LeftToRight(1), batch=0)
  with pytest.raises(ValueError, match="unknown driver 'vmap'; known: shard_map, pmap"):
    generator(Lookup(), LeftToRight(1), driver="vmap")
  with pytest.raises(ValueError, match="align='prompt' cuts others"):
    generator(MODEL, LeftToRight(1), align="prompt", **SAMPLED)
  ahead = {"plan": Ahead(), "sees": masks.PromptBlocks(4)}
  with pytest.raises(ValueError, match="align='canvas' cuts others; use 'prompt'"):
    generator(MODEL, Pipelined(4), align="canvas", **ahead)


# -------------------------------------------------------------------------------------------------
# Time


@dataclasses.dataclass(frozen=True)
class TellsTheTime(Lookup):
  """Predicts 100 times the noise level that it is told at a slot."""

  def __call__(self, params, tokens_BxW, *, time_BxW, ask_BxA, **_):
    time_BxA = jnp.take_along_axis(time_BxW, ask_BxA, axis=1)
    hidden_BxAxV = jax.nn.one_hot(jnp.round(100 * time_BxA).astype(jnp.int32), 260)
    return ModelOutput(LogitHead(hidden_BxAxV, jnp.eye(260)), None, {})


@pytest.mark.parametrize(
  ("clock", "levels"),
  [
    (MaskRatio(), [100, 83, 67, 50, 33, 17]),  # of the row's six open slots
    (MaskRatio(prompt=True), [75, 62, 50, 38, 25, 12]),  # of its eight slots
    (BlockMaskRatio(4), [50, 25, 100, 75, 50, 25]),  # of each block's four slots
    (BlockMaskRatio(2), [100, 50, 100, 50, 100, 50]),
  ],
)
def test_clock_tells_the_share_that_is_still_masked(clock, levels):
  run = generator(TellsTheTime(), LeftToRight(1), clock=clock)
  (done,) = run({}, [request("xy", new=6)])
  assert done.tokens == levels


def test_model_that_needs_the_time_is_refused_without_a_clock(params):
  timed = bind(dataclasses.replace(MODEL.config, time_conditioned=True))
  with pytest.raises(ValueError, match="needs time_BxW"):
    generator(timed, LeftToRight(1))(params, [request("xy")])


def test_noise_depends_on_seed_and_id_alone(requests, by_three):
  canvas, turned = (by_three.canvas(rows, seed=1) for rows in (requests[:3], requests[2::-1]))
  data, turned_data = (np.asarray(jax.random.key_data(c.key_B)) for c in (canvas, turned))
  np.testing.assert_array_equal(data, turned_data[::-1])
  assert len(np.unique(data, axis=0)) == 3
