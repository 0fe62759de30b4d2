"""Prompts in, completions out, and a run that goes on after a fall."""

import dataclasses
import gzip
import json

import jax
import pytest

from dlm import masks, parallel
from dlm.completions import Output, Prompt, check_out, describe, digest, read_prompts, record
from dlm.data import ByteTokenizer
from dlm.generate import Completion, Generator, Request
from dlm.sampling.caching import NoCache
from dlm.sampling.policies import Fixed
from dlm.sampling.sampler import Sampler
from tests.dlm.sampling.table import Lookup, random_table

DONE = Completion(
  id=3,
  sample=1,
  prompt="ab",
  text="cd",
  spans=["cd"],
  tokens=[99, 100],
  logprobs=[-0.5, None],
  when=[-1, -1, 1, 2],
  row=[97, 98, 99, 100],
  forwards={"full": 1, "window": 2, "commit": 0},
  queries=12,
  computed=12.0,
  remasked=1,
  tpf=2 / 3,
  reason="stop_id",
  seconds=0.5,
)


# -------------------------------------------------------------------------------------------------
# Lines


def test_prompts_are_strings_or_tables(tmp_path):
  file = tmp_path / "in.jsonl"
  file.write_bytes(
    b'{"prompt": "a", "answer": 3}\n\n"b\\nc"\r\n{"prompt": ""}\n' + '"\u2028\x85é"'.encode()
  )
  assert read_prompts(file) == list(map(Prompt, ["a", "b\nc", "", "\u2028\x85é"]))


def test_a_line_says_whether_it_is_to_be_filled_in(tmp_path):
  file = tmp_path / "in.jsonl"
  file.write_text(
    '{"prompt": "a[[1]]", "infill": true}\n"[[1]]"\n{"prompt": "", "infill": false}\n'
  )
  said = [prompt.infill for prompt in read_prompts(file)]
  assert said == [True, False, False]
  assert [prompt.infill for prompt in read_prompts(file, infill=True)] == [True, True, False]


def test_prompts_of_several_files_with_marks_and_packed(tmp_path):
  (tmp_path / "1.jsonl").write_bytes(b'\xef\xbb\xbf"a"\n"b"')
  (tmp_path / "2.jsonl.gz").write_bytes(gzip.compress(b'"c"\n'))
  for paths in (f"{tmp_path}/*.jsonl*", f"{tmp_path}/1.jsonl,{tmp_path}/2.jsonl.gz"):
    assert [prompt.text for prompt in read_prompts(paths)] == ["a", "b", "c"]
  with pytest.raises(ValueError, match=f"there is no file {tmp_path}/3"):
    read_prompts(f"{tmp_path}/3*")


@pytest.mark.parametrize(
  ("line", "message"),
  [
    (b'{"prompt": "a"', r"in.jsonl, line 3: not JSON \(Expecting"),
    (b'"\xff"', r"in.jsonl, line 3: not JSON \('utf-8' codec"),
    (b"plain words", "in.jsonl, line 3: not JSON"),
    (b'{"text": "a"}', 'in.jsonl, line 3: needs a string or {"prompt": "..."}'),
    (b'{"prompt": 3}', 'in.jsonl, line 3: needs a string or {"prompt": "..."}'),
    (b'["a"]', 'in.jsonl, line 3: needs a string or {"prompt": "..."}'),
    (b'{"prompt": "a", "infill": 1}', "in.jsonl, line 3: infill=1 must be true or false"),
  ],
)
def test_bad_line_is_named_by_its_number(tmp_path, line, message):
  (tmp_path / "in.jsonl").write_bytes(b'"a"\n\n' + line + b'\n"b"\n')
  with pytest.raises(ValueError, match=message):
    read_prompts(tmp_path / "in.jsonl")


def test_file_without_prompts_is_refused(tmp_path):
  (tmp_path / "in.jsonl").write_text("\n \n")
  with pytest.raises(ValueError, match=r"in.jsonl holds no prompt"):
    read_prompts(tmp_path / "in.jsonl")


def test_record_says_what_it_cost():
  assert record(DONE, trace=False) == {
    "id": 3,
    "sample": 1,
    "prompt": "ab",
    "text": "cd",
    "spans": ["cd"],
    "tokens": [99, 100],
    "forwards": {"full": 1, "window": 2, "commit": 0, "all": 3},
    "query_positions": 12,
    "remasked": 1,
    "tokens_per_forward": 0.6667,
    "tokens_per_second": 4.0,
    "finished": True,
    "reason": "stop_id",
  }
  traced = record(DONE, trace=True)
  assert (traced["row"], traced["when"]) == ([97, 98, 99, 100], [-1, -1, 1, 2])
  assert traced["logprobs"] == [-0.5, None]
  assert describe([DONE]) == "cd\n[2 tokens, 3 forwards, 0.67 tokens a forward, 4 tokens/s]"


# -------------------------------------------------------------------------------------------------
# Files

TOKENIZER = ByteTokenizer()
JOB = {"config": {"temperature": 1.0}, "prompts": 5}


@pytest.fixture(scope="module")
def sampling():
  """A generator of two rows a batch, its parameters, and five requests."""
  sampler = Sampler(
    Lookup(), Fixed(k=2, order="random"), NoCache(), masks.Full(), block=4, max_forwards=9,
    mask_id=TOKENIZER.mask_id, temperature=1.0,
  )  # fmt: skip
  mesh = parallel.make_mesh(data=1, devices=jax.devices()[:1])
  requests = [
    Request.from_text(i, text, TOKENIZER, slots=8) for i, text in enumerate(["a", "", "bc", "", ""])
  ]
  return Generator(sampler, TOKENIZER, mesh, batch=2), random_table(0, 8, 260), requests


def traced(completions):
  return [record(each, trace=True) for each in completions]


def fill(path, sampling, job=JOB, fall_after=None, **options):
  """Fills `path`, or is interrupted after so many of its three batches."""
  generator, params, requests = sampling

  def run(params, requests, *, seed, on_batch):
    stop = None if fall_after is None else 2 * fall_after
    generator(params, requests[:stop], seed=seed, on_batch=on_batch)
    if fall_after is not None:
      raise KeyboardInterrupt

  with Output(path, job) as output:
    output.fill(run, params, requests, seed=1, records=traced, **options)


def lines(path):
  """Records without their timings."""
  read = [json.loads(line) for line in path.read_text().splitlines()]
  return [{k: v for k, v in each.items() if k != "tokens_per_second"} for each in read]


@pytest.fixture(scope="module")
def unbroken(sampling, tmp_path_factory):
  path = tmp_path_factory.mktemp("whole") / "out.jsonl"
  fill(path, sampling)
  assert [entry.name for entry in path.parent.iterdir()] == ["out.jsonl"]
  return lines(path)


def test_every_prompt_gets_its_line_in_order(unbroken, sampling):
  generator, params, requests = sampling
  assert [each["id"] for each in unbroken] == [0, 1, 2, 3, 4]
  want = [record(c, trace=True) for c in generator(params, requests, seed=1)]
  assert unbroken == [{k: v for k, v in w.items() if k != "tokens_per_second"} for w in want]


@pytest.mark.parametrize(("batches", "done"), [(0, 0), (1, 2), (2, 4), (3, 5)])
def test_interrupted_run_goes_on_to_the_file_of_an_unbroken_one(
  unbroken, sampling, tmp_path, capsys, batches, done
):
  path = tmp_path / "out.jsonl"
  with pytest.raises(KeyboardInterrupt):
    fill(path, sampling, fall_after=batches)
  assert not path.exists()
  capsys.readouterr()
  fill(path, sampling)
  assert lines(path) == unbroken
  assert [entry.name for entry in tmp_path.iterdir()] == ["out.jsonl"]
  said = capsys.readouterr().out
  assert (f"resumed after {done} of 5 prompts" in said) == (done > 0)
  assert ("5/5 prompts" in said) == (done < 5)


@pytest.mark.parametrize("kept", [0, 5, 75, -30])
def test_line_cut_off_by_a_crash_is_done_again(unbroken, sampling, tmp_path, kept):
  """In the line that names the job, just behind it, or in the last record."""
  path, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
  with pytest.raises(KeyboardInterrupt):
    fill(path, sampling, fall_after=2)
  part.write_bytes(part.read_bytes()[:kept])
  fill(path, sampling)
  assert lines(path) == unbroken


def test_part_of_another_job_is_refused_and_kept(sampling, tmp_path):
  path, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
  with pytest.raises(KeyboardInterrupt):
    fill(path, sampling, fall_after=1)
  before = part.read_bytes()
  other = JOB | {"config": {"temperature": 0.5}}
  with pytest.raises(ValueError, match=r"out.jsonl.part belongs to another job"):
    fill(path, sampling, job=other)
  assert part.read_bytes() == before and not path.exists()
  with Output(path, dict(reversed(JOB.items()))) as output:
    assert output.done == 2  # the order of fields is no difference


def test_part_without_its_job_keeps_its_rows(unbroken, sampling, tmp_path, capsys):
  """As a kill left it behind in versions before this test: all the rows, and not whose."""
  path, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
  rows = "".join(json.dumps(each) + "\n" for each in unbroken)
  part.write_text(rows)
  fill(path, sampling)
  kept = tmp_path / "out.jsonl.part-2"
  assert f"{part} does not say which job it is of; it is kept as {kept}" in capsys.readouterr().out
  assert kept.read_text() == rows and lines(path) == unbroken
  assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.jsonl", kept.name]


def test_file_of_somebody_else_under_the_name_of_the_part_is_kept(sampling, tmp_path):
  (tmp_path / "out.jsonl.part").write_text("no line of ours")
  fill(tmp_path / "out.jsonl", sampling)
  assert (tmp_path / "out.jsonl.part-2").read_text() == "no line of ours"


def test_second_sampler_of_one_file_is_refused(unbroken, sampling, tmp_path):
  path = tmp_path / "out.jsonl"
  message = r"out.jsonl.part is being written by another process"
  with Output(path, JOB), pytest.raises(ValueError, match=message):
    Output(path, JOB)
  fill(path, sampling)
  assert lines(path) == unbroken


def test_file_that_exists_is_replaced_by_a_whole_one(unbroken, sampling, tmp_path, capsys):
  path = tmp_path / "out.jsonl"
  path.write_text("before\n")
  with pytest.raises(KeyboardInterrupt):
    fill(path, sampling, fall_after=2)
  assert path.read_text() == "before\n"
  assert "the new file takes its place when it is complete" in capsys.readouterr().out
  fill(path, sampling)
  assert lines(path) == unbroken


def test_killed_between_the_last_line_and_the_new_name(unbroken, sampling, tmp_path):
  """Each state that the end of a run passes through leads to the same file."""
  path, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
  with pytest.raises(KeyboardInterrupt):
    fill(path, sampling, fall_after=3)
  (tmp_path / ".out.jsonl.part").write_bytes(part.read_bytes()[100:200])  # the file, half written
  fill(path, sampling)
  assert lines(path) == unbroken
  assert [entry.name for entry in tmp_path.iterdir()] == ["out.jsonl"]


def test_requests_of_other_ids_or_open_slots_are_another_job(sampling):
  _, _, requests = sampling
  other = [*requests[:-1], dataclasses.replace(requests[-1], open=~requests[-1].open)]
  same = [dataclasses.replace(each, tokens=each.tokens.copy()) for each in requests]
  assert digest(same) == digest(requests) != digest(other)
  assert len({digest(requests[:n]) for n in range(6)}) == 6


def test_place_that_cannot_be_written_is_refused_at_once(tmp_path):
  with pytest.raises(ValueError, match="none is not a folder"):
    Output(tmp_path / "none" / "out.jsonl", JOB)
  with pytest.raises(ValueError, match="is a folder"):
    Output(tmp_path, JOB)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["a.jsonl", "link.jsonl", "../folder/b.jsonl"])
def test_prompts_are_not_written_over(tmp_path, out):
  folder = tmp_path / "folder"
  folder.mkdir()
  for name in ("a", "b"):
    (folder / f"{name}.jsonl").write_text('{"prompt": "kept"}')
  (folder / "link.jsonl").symlink_to(folder / "a.jsonl")
  with pytest.raises(ValueError, match=f"{out} cannot be written: it is read"):
    check_out(f"{folder}/{out}", None, f"{folder}/*.jsonl")
  check_out(f"{folder}/c.jsonl", f"{folder}/a.jsonl", f"{folder}/b.jsonl")
  check_out(None, f"{folder}/none.jsonl")


def test_lines_that_are_left_out_are_told_and_counted_by_a_resumed_run(
  unbroken, sampling, tmp_path, capsys
):
  """The part holds them too: what is done is never asked again."""
  path = tmp_path / "out.jsonl"
  odd = {"leave_out": lambda line: "odd" if line["id"] % 2 else ""}
  with pytest.raises(KeyboardInterrupt):
    fill(path, sampling, fall_after=2, **odd)
  fill(path, sampling, **odd)
  assert lines(path) == unbroken[::2]
  said = capsys.readouterr().out
  assert "resumed after 4 of 5 prompts" in said and said.endswith("left out 2 of 5: odd\n")


def test_lines_are_what_records_says(sampling, tmp_path):
  generator, params, requests = sampling
  path = tmp_path / "out.jsonl"
  with Output(path, JOB) as output:
    output.fill(
      generator, params, requests[:1], seed=1, records=lambda done: [{"n": c.id} for c in done]
    )
  assert path.read_text() == '{"n": 0}\n'
