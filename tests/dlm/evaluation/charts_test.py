"""Panels of lines as SVG: where points lie, which ticks, what is named."""

import re
import xml.etree.ElementTree

import pytest

from dlm.evaluation import charts
from dlm.evaluation.charts import Axis, Line, Panel


def test_ticks():
  assert Axis("x", 0.5, 8, base=2).ticks() == [0.5, 1, 2, 4, 8]
  assert Axis("x", 0.03, 2000, base=10).ticks() == [0.1, 1, 10, 100, 1000]
  assert Axis("y", 0, 1).ticks() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])


def test_places():
  linear, log = Axis("y", 0, 4), Axis("x", 1, 16, base=2)
  assert (linear.place(1), log.place(2), log.place(16)) == (0.25, 0.25, 1)
  assert (linear.place(9), log.place(0.1)) == (1, 0), "beyond: on the edge"
  with pytest.raises(ValueError, match="Axis: x from 0 to 1, base=2"):
    Axis("x", 0, 1, base=2)


def test_panels_are_well_formed_and_name_each_line_once():
  lines = [
    Line("a < b", "#000", [(1, 0), (8, 1)], told=["slow & sure", "fast"]),
    Line("bound", "#f00", [(1, 0), (8, 0)], dash="4 2", dots=False),
  ]
  panels = [Panel(name, Axis("speed", 1, 8, 2), Axis("loss", 0, 1), lines) for name in ("p", "q")]
  drawn = charts.svg(panels, columns=1)
  xml.etree.ElementTree.fromstring(drawn)
  assert drawn.count(">a &lt; b</text>") == 1 and drawn.count("<title>slow &amp; sure") == 2
  assert drawn.count("<circle") == 4 and drawn.count("<polyline") == 4
  left, bottom = charts.LEFT, charts.HEIGHT - charts.BOTTOM
  x, y = map(float, re.search(r'points="([\d.]+),([\d.]+)', drawn).groups())
  assert (x, y) == (left, bottom)
