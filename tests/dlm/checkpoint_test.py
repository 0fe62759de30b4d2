import gc
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct

from dlm import checkpoint, masks
from dlm.checkpoint import Checkpoints, Retention
from dlm.facts import ModelFacts

CONFIG = {"seed": 0, "steps": 4, "model": {"width": 32, "sizes": (1, 2)}}
FACTS = ModelFacts(259, (258,), None, 0, masks.Full(), vocab=260, length=8)


@struct.dataclass
class State:
  step: jax.Array
  params: dict
  opt_state: optax.OptState
  ema: dict | None


class Words:
  """A tokenizer, as far as the folder is concerned."""

  def save(self, directory):
    (pathlib.Path(directory) / "words.txt").write_text("a b c")


def state(scale=1.0, average=True):
  params = {"layers": {"w": scale * jnp.arange(600.0).reshape(3, 200)}, "embed": jnp.ones(4)}
  ema = jax.tree.map(lambda x: x / 2, params) if average else None
  return State(jnp.int32(3), params, optax.adam(1e-3).init(params), ema)


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def saved(tmp_path):
  with Checkpoints(tmp_path, Retention()) as checkpoints:
    checkpoints.save(3, state(), {"seed": 1, "step": 3}, loss=2.0)
  return tmp_path


def test_state_and_data_position_come_back(saved):
  with Checkpoints(saved, Retention()) as checkpoints:
    restored, meta = checkpoints.restore(state(0.0))
  same(restored, state())
  assert meta["step"] == 3 and meta["data"] == {"seed": 1, "step": 3}


def test_retention_keeps_the_newest_and_the_best(tmp_path):
  with Checkpoints(tmp_path, Retention(keep_last=2, keep_best=1)) as checkpoints:
    for step, loss in enumerate((3.0, 1.0, 2.0, 4.0, 5.0, None)):
      checkpoints.save(step, state(step), {}, loss)
    checkpoints.wait()
  kept = {int(path.name) for path in (tmp_path / checkpoint.STEPS).iterdir()}
  assert kept == {1, 4, 5}
  assert checkpoint.restore_params(tmp_path)[1] == 1
  assert checkpoint.restore_params(tmp_path, "latest")[1] == 5
  assert checkpoint.restore_params(tmp_path, 4)[1] == 4


def test_parameters_alone_are_the_average_where_there_is_one(tmp_path, saved):
  params, _ = checkpoint.restore_params(saved)
  same(params, state().ema)
  with Checkpoints(tmp_path / "raw", Retention(keep_best=0)) as checkpoints:
    checkpoints.save(3, state(average=False), {})
  params, step = checkpoint.restore_params(tmp_path / "raw", dtype=jnp.bfloat16)
  same(params, jax.tree.map(lambda x: x.astype(jnp.bfloat16), state().params))
  assert step == 3


def test_donation_right_after_a_save_is_safe(tmp_path):
  now = state()
  with Checkpoints(tmp_path, Retention()) as checkpoints:
    checkpoints.save(3, now, {})
    jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)(now)
  same(checkpoint.restore_params(tmp_path)[0], state().ema)


def test_step_that_is_not_there_is_named(saved):
  with pytest.raises(ValueError, match=r"holds no step 7; it holds 3"):
    checkpoint.restore_params(saved, 7)
  with pytest.raises(ValueError, match="holds no checkpoint"):
    checkpoint.restore_params(saved / "nowhere")


def test_empty_step_folders_are_ignored(saved):
  empty = saved / checkpoint.STEPS / "900"
  empty.mkdir()
  assert checkpoint.restore_params(saved, "latest")[1] == 3
  with Checkpoints(saved, Retention()) as checkpoints:
    assert checkpoints.latest() == 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax's reads
@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_damaged_file_is_detected(tmp_path, damage):
  noise = {
    "w": jax.random.normal(jax.random.key(0), (64, 200))
  }  # does not compress: fills the file
  noisy = State(jnp.int32(3), noise, optax.identity().init(noise), None)
  with Checkpoints(tmp_path, Retention()) as checkpoints:
    checkpoints.save(3, noisy, {})
  arrays = tmp_path / checkpoint.STEPS / "3" / "state"
  largest = max(arrays.rglob("d/*"), key=lambda path: path.stat().st_size)
  content = bytearray(largest.read_bytes())
  if damage == "flip":
    content[len(content) // 2] ^= 4
  largest.write_bytes(content if damage == "flip" else content[: len(content) // 2])
  with pytest.raises(ValueError, match=r"checkpoints/3 cannot be restored: "):
    checkpoint.restore_params(tmp_path)
  with (
    Checkpoints(tmp_path, Retention()) as checkpoints,
    pytest.raises(ValueError, match=r"checkpoints/3 cannot be restored: "),
  ):
    checkpoints.restore(noisy)
  gc.collect()


def test_wrong_leaf_is_named(saved, monkeypatch):
  good = checkpoint.checksums
  monkeypatch.setattr(checkpoint, "checksums", lambda t: good(t) | {"ema/embed": 0})
  with pytest.raises(ValueError, match="checksum of ema/embed is not the one"):
    checkpoint.restore_params(saved)


def test_folder_is_self_contained_and_accepts_the_same_config(tmp_path):
  folder = tmp_path / "run"
  checkpoint.write_folder(folder, CONFIG, FACTS, Words())
  assert {p.name for p in folder.iterdir()} == {"config.json", "facts.json", "words.txt"}
  assert [p.name for p in tmp_path.iterdir()] == ["run"]
  checkpoint.write_folder(folder, CONFIG | {"steps": 9}, FACTS, Words())
  assert checkpoint.read_json(folder, "config.json")["steps"] == 9
  assert checkpoint.read_facts(folder) == FACTS


def test_folder_of_another_config_is_refused_with_the_differences(tmp_path):
  checkpoint.write_folder(tmp_path / "run", CONFIG, FACTS, Words())
  other = {"seed": 1, "steps": 9, "model": {"width": 64, "sizes": (1, 2), "depth": 2}}
  message = r"\(model.depth: 'absent' -> 2; model.width: 32 -> 64; seed: 0 -> 1\)"
  with pytest.raises(ValueError, match=message):
    checkpoint.write_folder(tmp_path / "run", other, FACTS, Words())
  assert json.loads((tmp_path / "run" / "config.json").read_text())["steps"] == 4


def test_folder_of_something_else_is_refused(tmp_path):
  (tmp_path / "thesis.tex").write_text("")
  with pytest.raises(ValueError, match=r"no checkpoint folder: it holds no config.json"):
    checkpoint.write_folder(tmp_path, CONFIG, FACTS, Words())


def test_parameters_alone_are_saved_and_come_back(tmp_path):
  params = {"embed": jnp.arange(6.0).reshape(2, 3), "norm": {"scale": jnp.ones(3, jnp.bfloat16)}}
  checkpoint.save_params(tmp_path, 0, params, {"from": "elsewhere"})
  found, step = checkpoint.restore_params(tmp_path)
  assert step == 0
  jax.tree.map(np.testing.assert_array_equal, found, params)
  assert found["norm"]["scale"].dtype == jnp.bfloat16
