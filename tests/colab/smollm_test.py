"""The notebook about SmolLM2, on the real weights: one short answer."""

import re

import pytest

from tests.colab import notebooks


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> str:
  return notebooks.execute("smollm", str(tmp_path_factory.mktemp("home")))


def test_the_adapter_stands_beside_the_model(outputs):
  assert "30 layers of width 576" in outputs
  assert "gated=True" in outputs


def test_drafting_writes_the_same_text(outputs):
  rows = re.findall(r"T (\d)  stride (\d)  (\d\.\d\d) tokens a forward .*same text: (\w+)", outputs)
  assert [row[:2] for row in rows] == [("0", "1"), ("0", "3")]
  assert [row[3] for row in rows] == ["True"] * 2
  assert float(rows[0][2]) <= 1


def test_costs_of_a_forward_are_told(outputs):
  assert re.findall(r"^ ?(\d+) tokens: \d+\.\d ms$", outputs, re.M) == ["1", "8"]
