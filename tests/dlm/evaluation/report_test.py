"""The page carries the report whole, reaches for nothing outside itself, and is written whole."""

import dataclasses
import json
import math
import os
import random
import re
import shutil
import struct
import subprocess

import pytest

from dlm.evaluation import parallelism, report
from dlm.evaluation.report import (
  Determined,
  Filled,
  Filling,
  Infill,
  LossPoint,
  Report,
  Shuffled,
  Trace,
)

HOLE = "it was the age of wisdom"
SETTINGS = {
  "left to right": [(k, f"k={k}") for k in (1, 2, 4, 8)],
  "confidence, fixed k": [(k, f"k={k}") for k in (1, 2, 4, 8)],
  "confidence threshold": [(1, "1.0"), (2.9, "0.95"), (4.1, "0.9"), (6.3, "0.7"), (8.2, "0.5")],
  "factor": [(1.4, "f=0.2"), (3.4, "f=0.5"), (5.2, "f=1"), (7.4, "f=2")],
}
TASKS = {  # accuracy one at a time, points lost per further token
  "copy": (99, 0.4),
  "reverse": (97, 0.8),
  "sort": (91, 1.4),
  "shuffle": (98, 9.0),
  "infill": (62, 2.0),
}
LOSS = {"left to right": 4, "confidence, fixed k": 2.2, "confidence threshold": 0.7, "factor": 0.9}


def curves() -> tuple[parallelism.CurvePoint, ...]:
  """What a small model might reach: shuffle falls fast, the deterministic tasks slowly."""
  points = []
  for policy, settings in SETTINGS.items():
    for task, (top, slope) in TASKS.items():
      for speed, setting in settings:
        slowed = 1 + (speed - 1) * (0.35 if task == "shuffle" and "thr" in policy else 1)
        fall = slope * LOSS[policy] * (slowed - 1)
        accuracy = max(top - fall - 0.15 * len(policy) / 10, 1.0)
        points.append(
          parallelism.CurvePoint(
            policy=policy,
            setting=setting,
            task=task,
            accuracy=accuracy,
            tpf=slowed * 0.94,
            tpf_mean=slowed * 0.97,
            nfe=26 / slowed,
            tokens_per_s=1450 * slowed**0.93,
            n=200,
          )
        )
  return (*parallelism.mean_over_tasks(points), *points)


def trace(sample, prompt, text, policy, setting, speed, seed, correct=None) -> Trace:
  """Blocks of 16 filled in random order, about `speed` tokens a forward."""
  rng = random.Random(seed)
  when, now = [-1] * len(prompt), 0
  for start in range(0, len(text), 16):
    places = list(range(len(text[start : start + 16])))
    if speed > 1:
      rng.shuffle(places)
    block = [0] * len(places)
    while places:
      now += 1
      for _ in range(
        min(len(places), max(1, round(rng.expovariate(1 / speed))) if speed > 1 else 1)
      ):
        block[places.pop(0)] = now
    when += block
  return Trace(sample, policy, setting, tuple(prompt + text), tuple(when), now, correct)


def plausible() -> Report:
  losses = [
    LossPoint(
      s, "train", 0.62 + 4.9 * math.exp(-s / 190) + 0.6 * math.exp(-s / 900) + 0.05 * math.sin(s)
    )
    for s in range(0, 3001, 4)
  ]
  losses += [
    LossPoint(s, "eval", 0.66 + 4.9 * math.exp(-s / 190) + 0.6 * math.exp(-s / 900))
    for s in range(0, 3001, 250)
  ]
  prose = "the wind had fallen and the boats\nlay still beside the wall, each with its lamp unlit."
  both = [("confidence threshold", "0.9", 4.1), ("left to right", "k=1", 1)]
  traces = []
  for i, (policy, setting, speed) in enumerate(both):
    traces += [
      trace("held-out text", "It was late; ", prose, policy, setting, speed, i),
      trace(
        "reverse 6", "reverse K R A Z T B\n", "B T Z A R K", policy, setting, speed, i + 9, True
      ),
      trace(
        "shuffle 6", "shuffle K R A Z T B\n", "Z K B B R A", policy, setting, speed, i + 5, i > 0
      ),
    ]
  infills = [
    Infill(
      "A Tale of Two Cities",
      "It was the best of times, it was the worst of times, ",
      HOLE,
      ", it was the age of foolishness, it was the epoch of belief",
      (
        Filled("left to right", "k=1", "it was the age of wishes", 0.96),
        Filled("confidence threshold", "0.9", HOLE, 3.9),
        Filled("confidence, fixed k", "k=8", "it was tha aae of wistmm", 7.4),
      ),
    )
  ]
  return Report(
    title="Four ways to unmask",
    sentence="A block-diffusion model of 3.2 M parameters, trained for 3,000 steps (6.1 minutes) "
    "on English text and list problems, byte by byte, on one NVIDIA H100; every number is on "
    "held-out prompts.",
    vocab=260,
    facts=(
      ("model", "6 layers, width 256, 3.2 M parameters, blocks of 16, bytes"),
      ("training", "3,000 steps of 128 rows of 128 bytes; 49 M bytes; 6.1 minutes"),
      ("device", "1 NVIDIA H100, bfloat16"),
      ("versions", "dlm 0.1.0, jax 0.10.2, flax 0.12.8, Python 3.11"),
      ("decoding", "batch 64, temperature 0, float32 logits, compile time excluded"),
    ),
    losses=tuple(losses),
    curves=curves(),
    shuffle=tuple(
      Shuffled(n, k, measured)
      for n, measures in [(4, {1: 97.5, 2: 38.0, 4: 8.5}), (6, {1: 96.0, 2: 29.5, 4: 11.5, 6: 1.0})]
      for k, measured in measures.items()
    ),
    determined=(Determined("copy", 4, 99.0), Determined("reverse", 4, 96.5)),
    traces=tuple(traces),
    fillings=(
      Filling('always "e"', "baseline", 12.5, 0.0, None, 200),
      Filling("left to right", "k=1", 61.0, 34.5, 0.96, 200),
    ),
    infills=tuple(infills),
    notes=("Accuracy of infilling is the share of characters restored exactly.",),
  )


def embedded(page: str) -> dict:
  (text,) = re.findall(r'<script type="application/json" id="report">(.*?)</script>', page, re.S)
  return json.loads(text)


def test_page_holds_the_report_and_what_follows_from_it():
  given = plausible()
  data = embedded(report.page(given))
  assert data == json.loads(json.dumps(report.payload(given)))
  assert data["sentence"] == given.sentence
  assert [row["text"] for row in data["infills"][0]["filled"]] == [
    f.text for f in given.infills[0].filled
  ]
  assert [round(row["exact"]) for row in data["infills"][0]["filled"]] == [88, 100, 83]
  assert data["policies"] == list(SETTINGS)
  assert [t["name"] for t in data["tasks"]] == ["mean", *TASKS]
  (row,) = [row for row in data["shuffle"] if (row["items"], row["together"]) == (4, 2)]
  assert row["ideal"] == pytest.approx(39.8866, abs=1e-3)
  assert row["bits"] == pytest.approx(1.381043, abs=1e-6)


def test_headline_is_the_reference_and_the_fastest_within_two_points():
  data = report.payload(plausible())
  for task in data["tasks"]:
    points = [p for p in plausible().curves if p.task == task["name"]]
    assert data["curves"][task["base"]]["setting"] == parallelism.one_at_a_time(points).setting
    assert data["curves"][task["fast"]]["tpf"] == parallelism.best_within(points).tpf
    assert task["aup"] == parallelism.aup_by_policy(points)


NASTY = "</script><!--<script>alert('x')\" & \\ \u2028 \U0001f680 é \x00 %REPORT% ${R}"


def test_nasty_text_stays_text():
  given = dataclasses.replace(
    plausible(),
    title=NASTY,
    traces=(Trace(NASTY, NASTY, NASTY, (NASTY, "\n"), (-1, 1), forwards=1),),
  )
  page = report.page(given)
  assert page.count("</script>") == report.page(plausible()).count("</script>") == 2
  assert "alert('x')\"" not in page and "<!--" not in page
  data = embedded(page)
  assert data["title"] == data["traces"][0]["tokens"][0] == NASTY


def test_page_reaches_for_nothing():
  page = report.page(plausible())
  assert not re.search(r"https?://|//[a-z]+\.|@import|url\(|<link|<img|<iframe|\bsrc=", page)
  assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|import)\s*\(", page)
  assert "default-src 'none'" in page
  assert len(page.encode()) < 250_000


def test_long_curves_are_thinned_and_keep_their_ends():
  losses = tuple(LossPoint(step, "train", 1 + 1 / (step + 1)) for step in range(20_001))
  kept = report.payload(dataclasses.replace(plausible(), losses=losses))["losses"]
  assert len(kept) <= report.LOSS_POINTS + 1
  assert (kept[0]["step"], kept[-1]["step"]) == (0, 20_000)


def test_empty_report_is_a_page():
  data = embedded(report.page(Report(title="t", sentence="s", vocab=2)))
  assert data["tasks"] == data["traces"] == data["policies"] == []


def test_template_is_sound():
  text = report.TEMPLATE.read_text(encoding="utf-8")
  assert text.count(report.PLACEHOLDER) == 1
  ids = set(re.findall(r'id="([\w-]+)"', text))
  asked = set(re.findall(r'(?:\$|put|show|chart|choice)\("([\w-]+)"', text))
  assert len(asked) > 15 and asked <= ids
  used = {f"--{name}" for name in re.findall(r"var\(--([a-z]+\d?)\)", text)}
  assert used - {"--heat"} <= set(re.findall(r"(--[a-z]+\d?):", text))
  # The picture's colours and dashes are the light page's.
  light = text[text.index(":root") : text.index("@media")]
  assert re.findall(r"--p\d: (#\w+)", light) == list(report.COLOURS)
  (dashes,) = re.findall(r"const DASHES = (\[.*\]);", text)
  assert json.loads(dashes) == [" ".join(map(str, dash)) for dash in report.DASHES]


@pytest.mark.skipif(shutil.which("node") is None, reason="node checks the script's syntax")
def test_script_parses(tmp_path):
  script = tmp_path / "page.js"
  text = report.TEMPLATE.read_text(encoding="utf-8")
  script.write_text(text.split("<script>")[1].split("</script>")[0], encoding="utf-8")
  subprocess.run(["node", "--check", str(script)], check=True)


def test_write_is_whole_or_not_at_all(tmp_path, monkeypatch):
  path = tmp_path / "runs" / "demo" / "report.html"
  report.write_report(path, plausible())
  before = path.read_text(encoding="utf-8")
  assert embedded(before)["title"] == plausible().title

  def fail(*_):
    raise OSError("disk")

  with monkeypatch.context() as patch:
    patch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk"):
      report.write_report(path, dataclasses.replace(plausible(), title="new"))
  with pytest.raises(ValueError, match="JSON"):
    bad = dataclasses.replace(plausible(), losses=(LossPoint(0, "train", math.nan),))
    report.write_report(path, bad)
  assert path.read_text(encoding="utf-8") == before
  assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("when", [(0,), (3,), (1, 1)])
def test_trace_checks_its_forwards(when):
  with pytest.raises(ValueError, match="when"):
    Trace("s", "p", "", ("a",), when, forwards=2)


def test_picture(tmp_path):
  path, given = tmp_path / "picture.png", plausible()
  odd = Trace("odd", "p", "", ("$", "\n", "", "語", "ab", "\U0001f680"), (-1, 1, 1, 2, 2, 2), 2)
  for shown, trace in [(("mean", "shuffle"), given.traces[0]), (("copy",), odd)]:
    report.picture(path, given, shown=shown, trace=trace)
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and len(content) < 300_000
    assert struct.unpack(">II", content[16:24]) == (900 + 540 * len(shown), 645)
  with pytest.raises(ValueError, match="task='sums' has no curves; known: mean, copy"):
    report.picture(path, given, shown=("sums",), trace=odd)
