import numpy as np
import pytest

from dlm.sampling import variety

RICH = np.random.default_rng(0).integers(2, 1000, 600)


def test_entropy_is_that_of_frequencies():
  assert variety.entropy(np.array([3, 3, 3])) == 0
  assert variety.entropy(np.arange(8)) == pytest.approx(np.log(8))
  assert variety.entropy(np.array([5, 5, 5, 9])) == pytest.approx(
    -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
  )


def test_only_the_last_tokens_of_a_long_text_are_judged():
  dull = np.full(256, 7)
  assert not variety.is_lost(dull), "no longer than the window"
  assert variety.is_lost(np.append(RICH, dull)) and not variety.is_lost(np.append(dull, RICH))
  assert variety.is_lost(RICH, least=6.0), "256 tokens hold at most 5.5 nats"


def test_repetition_is_cut_and_overrides_the_second_stop_id():
  text = np.concatenate([[0], RICH[:299], [0], np.full(276, 7)])
  assert variety.end(text, (0,)) == 321
  assert variety.end(text[:310], (0,)) == 301
  assert variety.end(text[:300], (0,)) is None, "one stop id begins a text"
  assert variety.end(np.array([0, 5, 0]), (0,)) is None, "short texts are not judged"


def test_a_finished_text_is_cut_where_writing_it_would_have_ended():
  text = np.concatenate([RICH[:320], np.full(256, 7), RICH[:256]])
  stops = [at for at in range(16, len(text) + 1, 16) if variety.end(text[:at], ()) is not None]
  assert variety.lost_from(text, 16, 1) == stops[0] - 256 < 320
  assert variety.lost_from(RICH, 16, 1) is None and variety.lost_from(text[:256], 16, 1) is None
  assert variety.lost_from(text, 16, stops[-1]) is None, "a prompt may repeat itself"
