"""The quickstart's outputs, at its tiny size."""

import re

import pytest

from tests.colab import notebooks


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> str:
  return notebooks.execute("quickstart", str(tmp_path_factory.mktemp("home")))


def test_the_loss_falls(outputs):
  losses = [float(loss) for loss in re.findall(r"  loss (\d+\.\d+)", outputs)]
  assert len(losses) > 2
  assert losses[-1] < losses[0] - 1


def test_likelihood_is_told_with_its_error(outputs):
  nats, error = re.search(r"at most (\d+\.\d+) \+- (\d+\.\d+) nats per token", outputs).groups()
  assert float(nats) > 0.196  # the entropy of the text
  assert 0 < float(error) < float(nats)


def test_prompts_are_completed_and_holes_filled(outputs):
  assert len(re.findall(r"\[\d+ tokens, \d+ forwards, ", outputs)) == 2
  for last in "abcd":
    hole = rf"\[\[6\]\]{last}  ->  shf a b c d = .*?{last}$"  # what fills it may hold line breaks
    assert re.search(hole, outputs, re.M | re.S)


def test_policies_are_compared_and_drawn(outputs):
  table = re.findall(r"│ (reverse|shuffle) *│ (\w+) ", outputs)
  policies = ("confident", "random", "threshold")
  assert table == [(task, policy) for task in ("reverse", "shuffle") for policy in policies]
  assert re.findall(r"<Figure size .* with (\d) Axes", outputs) == ["1", "2"]
