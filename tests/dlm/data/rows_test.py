"""Rows: pure, equal on any number of hosts, and consistent in all four fields."""

import sys

import numpy as np
import pytest

from dlm.data import ByteTokenizer, Example, MixturePart, Rows, TokenCorpus, open_rows, tokenize
from dlm.data.sources import Documents

TOKENIZER = ByteTokenizer()
DOCUMENTS = [
  ("", "first document"),
  ("ask", "answer"),
  ("", "x"),
  ("a long prompt here", "and a long completion there"),
  ("", "another plain text of some length, so that rows are cut"),
]
MIXTURE = (
  ("stdlib", 0.5, {"include": ("topics",)}),
  ("lists", 0.5, (("mode", "pad"), ("per_row", 2), ("items", (2, 3)))),
)


def corpus(documents=DOCUMENTS) -> TokenCorpus:
  return tokenize(Documents("mine", tuple(Example(p, c) for p, c in documents)), TOKENIZER)


def made(length=16, batch=4, seed=0, documents=DOCUMENTS, rows_of=None, **part) -> Rows:
  parts = [MixturePart(corpus(documents), **part)]
  return Rows(parts, TOKENIZER, length=length, batch=batch, seed=seed, **(rows_of or {}))


def texts(batch) -> list[str]:
  return [TOKENIZER.decode(row) for row in batch.tokens_BxL]


def assert_equal(a, b):
  for x, y in zip(a, b, strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def open_mixture():
  def opened(**more):
    fixed = {"length": 48, "batch": 8, "seed": 1}
    return open_rows(MIXTURE, TOKENIZER, **(fixed | more))

  return opened


def test_a_resumed_run_sees_the_same_rows(open_mixture):
  first, resumed = open_mixture(), open_mixture()
  first[0], first[1]
  assert_equal(first[1234], resumed[1234])
  assert (first[1].tokens_BxL != first[2].tokens_BxL).any()
  assert (first[1].tokens_BxL != open_mixture(seed=2)[1].tokens_BxL).any()


@pytest.mark.parametrize("hosts", [2, 4])
def test_the_global_batch_does_not_depend_on_the_number_of_hosts(open_mixture, hosts):
  alone = open_mixture()[5]
  shares = [open_mixture(process_index=h, process_count=hosts)[5] for h in range(hosts)]
  assert_equal(alone, [np.concatenate(field) for field in zip(*shares, strict=True)])


def test_a_mixture_follows_its_weights(open_mixture):
  rows = open_mixture()
  share = np.mean([(~rows[step].noisable_BxL).any(1).mean() for step in range(60)])
  assert 0.4 < share < 0.6


@pytest.mark.parametrize(
  "part",
  [
    {},
    {"document_mask": False},
    {"mode": "pad"},
    {"mode": "pad", "pad": "none"},
    {"mode": "pad", "pad": "none", "per_row": 3},
  ],
)
def test_invariants(part):
  rows = made(length=32, **part)
  for step in range(6):
    batch = rows[step]
    assert [x.dtype for x in batch] == [np.int32, bool, np.int32, np.int32]
    assert {x.shape for x in batch} == {(4, 32)}
    assert not batch.noisable_BxL[batch.segment_BxL == 0].any()
    assert (batch.tokens_BxL != TOKENIZER.mask_id).all()
    for segment, position in zip(batch.segment_BxL, batch.position_BxL, strict=True):
      starts = np.flatnonzero(np.diff(segment, prepend=-1))
      since = np.arange(32) - starts[np.searchsorted(starts, np.arange(32), side="right") - 1]
      np.testing.assert_array_equal(position, since)
      live = segment[segment > 0]
      assert (np.diff(live) >= 0).all() and set(live) == set(range(1, live.max() + 1))


def test_pack_is_the_documents_end_to_end():
  rows = made(length=16, batch=1, rows_of={"shuffle": False})
  stream = np.concatenate([rows[step].tokens_BxL[0] for step in range(rows.epoch_rows[0])])
  np.testing.assert_array_equal(stream, corpus().tokens_T[: stream.size])
  first = rows[0]
  np.testing.assert_array_equal(first.segment_BxL[0], [1] * 15 + [2])  # "first document" + EOS
  assert first.noisable_BxL[0].tolist() == [True] * 15 + [False]  # then a prompt begins


def test_pack_sees_every_token_once_an_epoch():
  """10 rows of 12 from a ring of 125 tokens, all different."""
  ring = TokenCorpus(
    "ring", np.arange(125, dtype=np.uint16), np.array([0, 100, 125]), np.zeros(2, np.int32), dict
  )
  rows = Rows([MixturePart(ring)], TOKENIZER, length=12, batch=10, seed=0)
  seen = [rows[epoch].tokens_BxL for epoch in range(3)]
  for epoch in seen:
    assert np.unique(epoch).size == 120
  assert len({epoch[:, 0].tobytes() for epoch in seen}) == 3  # cut elsewhere, in another order
  seam = next(row for epoch in seen for row in epoch if row[0] > row[-1])
  assert seam.size == 12
  for epoch in range(3):
    batch = rows[epoch]
    ends = (batch.tokens_BxL[:, :-1] == 99) | (batch.tokens_BxL[:, :-1] == 124)
    np.testing.assert_array_equal(np.diff(batch.segment_BxL) == 1, ends)


def test_pad_teaches_the_end_and_never_the_prompt():
  """LLaDA's fine-tuning rows: EOS to the end, learned."""
  rows = made(length=12, batch=1, documents=[("ask", "answer")], mode="pad")
  batch = rows[0]
  np.testing.assert_array_equal(batch.tokens_BxL[0, 9:], [TOKENIZER.eos_id] * 3)
  np.testing.assert_array_equal(batch.noisable_BxL[0], [False] * 3 + [True] * 9)
  np.testing.assert_array_equal(batch.segment_BxL[0], [1] * 12)


def test_plain_padding_belongs_to_nobody():
  rows = made(length=12, batch=1, documents=[("ask", "answer")], mode="pad", pad="none")
  batch = rows[0]
  assert batch.tokens_BxL[0, 9:].tolist() == [TOKENIZER.eos_id] + [TOKENIZER.pad_id] * 2
  assert batch.segment_BxL[0].tolist() == [1] * 10 + [0] * 2
  assert batch.noisable_BxL[0].tolist() == [False] * 3 + [True] * 7 + [False] * 2


def test_several_examples_a_row_stand_in_slots_of_their_own():
  documents = [("q", "a"), ("w", "b")]
  rows = made(
    length=11, batch=1, documents=documents, mode="pad", per_row=2, rows_of={"shuffle": False}
  )
  batch = rows[0]
  assert texts(batch) == ["qawb"]
  assert batch.segment_BxL[0].tolist() == [1] * 5 + [2] * 5 + [0]
  assert batch.position_BxL[0].tolist() == [*range(5), *range(5), 0]


def test_every_example_once_an_epoch():
  documents = [("", f"{i:02}") for i in range(20)]
  rows = made(length=8, batch=5, documents=documents, mode="pad")
  epochs = [[t for step in range(e, e + 4) for t in texts(rows[step])] for e in (0, 4)]
  assert sorted(epochs[0]) == sorted(epochs[1]) == [text for _, text in documents]
  assert epochs[0] != epochs[1]


def test_too_long_examples_are_cut_or_dropped_and_counted():
  documents = [("", "fits"), ("", "does not fit at all"), ("prompt as long as a row", "x")]
  cut = made(length=8, batch=6, documents=documents, mode="pad")
  report = {"name": "mine", "documents": 3, "dropped": 1, "truncated": 1, "columns": 8}
  assert cut.report == (report,)
  assert set(texts(cut[0])) == {"fits", "does not"}
  dropped = made(length=8, batch=6, documents=documents, mode="pad", too_long="drop")
  assert dropped.report[0]["dropped"] == 2 and dropped.report[0]["truncated"] == 0
  assert set(texts(dropped[0])) == {"fits"}


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"length": 1}, "length=1 must be at least 2"),
    ({"batch": 3, "rows_of": {"process_count": 2}}, "batch=3 must be positive and divide"),
    ({"rows_of": {"process_index": 1}}, "process_index=1 must be within"),
    ({"length": 4096}, "tokens do not fill one row of length=4096"),
    ({"mode": "cut"}, "unknown mode='cut'; known: pack, pad"),
    ({"mode": "pad", "pad": "bos"}, "unknown pad='bos'; known: eos, none"),
    ({"mode": "pad", "too_long": "keep"}, "unknown too_long='keep'"),
    ({"mode": "pad", "per_row": 9}, "per_row=9 must be within 1..8"),
    ({"mode": "pad", "length": 2, "documents": [("", "abc")], "too_long": "drop"}, "no example"),
    ({"weight": 0.0}, "weight=0.0 must be positive"),
  ],
)
def test_mistakes_are_told_before_work_starts(options, message):
  with pytest.raises(ValueError, match=message):
    made(**options)


def test_generated_items_must_fit_and_cannot_be_packed():
  with pytest.raises(ValueError, match="use mode='pad'"):
    open_rows((("lists", 1),), TOKENIZER, length=32, batch=2, seed=0)
  with pytest.raises(ValueError, match="more than 16 columns"):
    open_rows((("lists", 1),), TOKENIZER, length=16, batch=2, seed=0, mode="pad")
  with pytest.raises(ValueError, match="needs stored documents"):
    open_rows((("lists", 1),), TOKENIZER, length=64, batch=2, seed=0, mode="pad", too_long="drop")


def test_open_rows_lists_what_it_knows():
  with pytest.raises(ValueError, match=r"known: stdlib, lists, .*tokens:DIR"):
    open_rows((("nothing", 1),), TOKENIZER, length=8, batch=1, seed=0)
  with pytest.raises(ValueError, match="unknown options"):
    open_rows((("stdlib", 1),), TOKENIZER, length=8, batch=1, seed=0, padding="eos")
  with pytest.raises(IndexError, match="must not be negative"):
    made()[-1]


def test_text_that_encodes_to_the_mask_is_refused():
  class Sloppy(ByteTokenizer):
    mask_id = ord("#")

  with pytest.raises(ValueError, match="mask_id=35 occurs in a text"):
    tokenize(Documents("mine", (Example("", "a # b"),)), Sloppy())


def test_data_needs_no_accelerator_library():
  import subprocess

  code = (
    "import sys, dlm.data; bad = {'jax', 'tokenizers', 'tensorflow_datasets'} & set(sys.modules)"
    "; sys.exit(str(bad) if bad else 0)"
  )
  subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=True)


def test_examples_that_do_not_fit_are_told_loudly_where_they_are_many():
  long = [("", "x" * 40)] * 3 + [("p" * 20, "answer")]
  rows = made(documents=[*long, *[("", "fits")] * 36], mode="pad")
  assert rows.notes() == [
    "WARNING: 10% of mine: of 40 examples 1 are left out and 3 are cut, which do not fit 16 tokens"
  ]
  rows = made(documents=[("", "x" * 40), *[("", "fits")] * 99], mode="pad", too_long="drop")
  assert rows.notes() == [
    "mine: of 100 examples 1 are left out and 0 are cut, which do not fit 16 tokens"
  ]
  assert made(documents=[("", "fits")], mode="pad").notes() == made().notes() == []


@pytest.mark.parametrize(
  ("sources", "message"),
  [
    ("stdlib", "sources='stdlib' must be a list of"),
    ((), "rows need at least one source"),
    (("stdlib", 1.0), r"sources\[0\]='stdlib' must be \(NAME, WEIGHT\)"),
    ((("stdlib",),), r"sources\[0\]=\('stdlib',\) must be"),
    ((("stdlib", "1"),), r"sources\[0\]=\('stdlib', '1'\) must be"),
    ((("lists", 1.0), (("lists",), 1.0)), r"sources\[1\]=.* must be"),
    ((("lists", 1.0, (("mode", "pad"),), 3),), r"sources\[0\]=.* must be"),
    ((("lists", 1.0, ("mode", "pad")),), r"sources\[0\]=.* must be"),
    ((("lists", 1.0, ((("mode",), "pad"),)),), r"sources\[0\]=.* must be"),
    ((("lists", float("nan"), (("mode", "pad"),)),), "weight=nan must be positive and finite"),
    ((("lists", float("inf"), (("mode", "pad"),)),), "weight=inf must be positive and finite"),
    ((("lists", 1.0, (("mode", "pad"), ("per_row", "2"))),), "per_row='2' must be of type int"),
    ((("lists", 1.0, (("document_mask", 1),)),), "document_mask=1 must be of type bool"),
  ],
)
def test_malformed_sources_are_named(sources, message):
  with pytest.raises(ValueError, match=message):
    open_rows(sources, TOKENIZER, length=64, batch=4, seed=0)
