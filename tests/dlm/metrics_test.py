import json

import pytest

from dlm import metrics


def records(directory):
  return [json.loads(line) for line in (directory / metrics.JSONL).read_text().splitlines()]


def test_records_go_to_json_lines_and_to_event_files(tmp_path):
  with metrics.Metrics(tmp_path, step=0, steps=2) as record:
    record.scalars(1, {"loss": 2.0, "grad_norm": float("inf")})
    record.texts(2, "samples", ["def f():"])
  assert records(tmp_path) == [
    {"step": 1, "loss": 2.0, "grad_norm": None},
    {"step": 2, "samples": ["def f():"]},
  ]
  (events,) = tmp_path.glob("events.out.tfevents.*")
  assert b"def f():" in events.read_bytes()


def test_resume_drops_later_records_and_a_torn_line(tmp_path):
  lines = ['{"step": 1, "loss": 3.0}\n', '{"step": 2, "loss": 2.0}\n', '{"step": 3, "lo']
  (tmp_path / metrics.JSONL).write_text("".join(lines))
  with metrics.Metrics(tmp_path, step=1, steps=4) as record:
    record.scalars(2, {"loss": 2.5})
  assert records(tmp_path) == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.5}]


@pytest.mark.parametrize(
  ("line", "told"),
  [
    ('{"step": 2, "samples": ["é'.encode()[:-1] + b"\n", "1 damaged lines are left out"),
    (b"[1, 2]\n", "1 damaged lines are left out"),
    (b"7\n{}\n", "2 damaged lines are left out"),
    (b'{"step": "2"}\n\0\0\n', "2 damaged lines are left out"),
    (b"[" * 100_000 + b"\n", "1 damaged lines are left out"),
    (b'{"step": 2, "samples": ["\xc3', ""),
    (b'{"step": 2, "loss": 1.0}', ""),
  ],
)
def test_damaged_line_does_not_keep_a_run_from_going_on(tmp_path, capsys, line, told):
  text = {"step": 1, "samples": ["a\u2028b\u2029c\x85d"]}
  whole = json.dumps(text, ensure_ascii=False).encode() + b"\n"
  (tmp_path / metrics.JSONL).write_bytes(whole + line)
  with metrics.Metrics(tmp_path, step=4, steps=4) as record:
    record.texts(5, "samples", ["\u2028"])
  assert list(metrics.records(tmp_path)) == [text, {"step": 5, "samples": ["\u2028"]}]
  said = capsys.readouterr().out
  assert told in said and bool(told) == ("damaged" in said)


def test_plain_line_shows_loss_speed_and_time_left(tmp_path, capsys):
  values = {"loss": 2.0, "tokens/s": 1234.0, "flop/s": 5.6e12, "seconds/step": 0.5}
  with metrics.Metrics(tmp_path, step=0, steps=30) as record:
    record.show(10, values)
  assert capsys.readouterr().out == (
    "step 10/30  loss 2.0000  tokens/s 1.23k  flop/s 5.6T  eta 10 s\n"
  )


def test_bar_shows_the_same_numbers(capsys):
  bar = metrics._Bar(0, 30)
  bar.show(10, {"loss": 2.0, "tokens/s": 1234.0})
  bar.say("saved [step]")
  bar.close()
  shown = capsys.readouterr().out
  assert "10/30" in shown and "loss 2.0000  tokens/s 1.23k" in shown and "saved [step]" in shown
