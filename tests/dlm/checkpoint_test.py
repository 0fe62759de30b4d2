import gc
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import struct

from dlm import checkpoint
from dlm.checkpoint import DAMAGED, STEPS, CheckpointError, Checkpoints, Retention


@struct.dataclass
class State:
  step: jax.Array
  params: dict
  opt_state: optax.OptState
  ema: dict | None


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
  kept = {int(path.name) for path in (tmp_path / STEPS).iterdir()}
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
  empty = saved / STEPS / "900"
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
  arrays = tmp_path / STEPS / "3" / "state"
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


def test_parameters_alone_are_saved_and_come_back(tmp_path):
  params = {"embed": jnp.arange(6.0).reshape(2, 3), "norm": {"scale": jnp.ones(3, jnp.bfloat16)}}
  checkpoint.save_params(tmp_path, 0, params, {"from": "elsewhere"})
  found, step = checkpoint.restore_params(tmp_path)
  assert step == 0
  jax.tree.map(np.testing.assert_array_equal, found, params)
  assert found["norm"]["scale"].dtype == jnp.bfloat16


# -------------------------------------------------------------------------------------------------
# What is damaged


@pytest.fixture(scope="module")
def three(tmp_path_factory):
  """Steps 1, 2 and 3, the losses 3, 1, 2."""
  folder = tmp_path_factory.mktemp("run")
  with Checkpoints(folder, Retention(keep_last=3)) as checkpoints:
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0)):
      checkpoints.save(step, state(step), {}, loss)
  return folder


@pytest.fixture
def damaged(three, tmp_path):
  shutil.copytree(three, tmp_path / "run")
  return tmp_path / "run"


def overwrite(step, *files):
  for file in files:
    (step / file).write_text('{"loss"')


DAMAGE = {
  "meta": lambda step: overwrite(step, checkpoint.META),
  "no checksums": lambda step: (step / checkpoint.META).write_text('{"step": 3}'),
  "another step": lambda step: shutil.copy(step.parent / "2" / checkpoint.META, step / "meta"),
  "tree": lambda step: overwrite(step, "state/_METADATA"),
  "no state": lambda step: shutil.rmtree(step / "state"),
  "a folder": lambda step: (shutil.rmtree(step), step.mkdir(), (step / "mine").write_text("")),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax's reads
@pytest.mark.parametrize("kind", DAMAGE)
def test_run_goes_back_past_a_damaged_step_says_so_and_keeps_it(damaged, capsys, kind):
  step = damaged / STEPS / "3"
  DAMAGE[kind](step)
  before = {path.relative_to(step) for path in step.rglob("*")}
  with pytest.raises(CheckpointError, match=f"checkpoint {step} cannot be restored: "):
    checkpoint.restore_params(damaged, "latest")
  with Checkpoints(damaged, Retention(keep_last=3)) as checkpoints:
    restored, _ = checkpoints.restore(state(0.0))
    checkpoints.save(3, state(7.0), {})
  same(restored, state(2.0))
  (line,) = [each for each in capsys.readouterr().err.splitlines() if str(step) in each]
  kept = damaged / DAMAGED / "3"
  assert line.startswith(f"checkpoint {step} cannot be restored: ")
  assert line.endswith(f"; the run goes back to step 2; 3 is kept as {kept}")
  assert {path.relative_to(kept) for path in kept.rglob("*")} == before
  same(checkpoint.restore_params(damaged, "latest")[0], state(7.0).ema)
  gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_run_of_which_no_step_can_be_read_is_left_as_it_is(damaged):
  for step in (damaged / STEPS).iterdir():
    overwrite(step, checkpoint.META)
  with (
    Checkpoints(damaged, Retention(keep_last=3)) as checkpoints,
    pytest.raises(CheckpointError, match=r"checkpoints/3 cannot be restored: "),
  ):
    checkpoints.restore(state(0.0))
  assert not (damaged / DAMAGED).exists()
  gc.collect()


@pytest.mark.parametrize("content", ['{"loss"', "[1.0]", '{"loss": "1.0"}', "{}"])
def test_loss_that_cannot_be_read_is_named_and_best_is_not_guessed(damaged, capsys, content):
  losses = damaged / STEPS / "2" / checkpoint.LOSS
  losses.write_text(content)
  with pytest.raises(CheckpointError, match=f"{losses}"):
    checkpoint.restore_params(damaged)
  assert checkpoint.restore_params(damaged, "latest")[1] == 3
  with Checkpoints(damaged, Retention(keep_last=3)) as checkpoints:
    assert checkpoints.latest() == 3
  assert str(losses) in capsys.readouterr().err
  assert (damaged / DAMAGED / "metrics" / "metrics").read_text() == content
  assert checkpoint.restore_params(damaged)[1] == 3


def test_strays_among_the_steps_are_no_steps(damaged, capsys):
  steps = damaged / STEPS
  for name in ("notes.txt", ".DS_Store", "900"):
    (steps / name).write_text("mine")
  (steps / "backup").mkdir()
  assert checkpoint.restore_params(damaged, "latest")[1] == 3
  with Checkpoints(damaged, Retention(keep_last=3)) as checkpoints:
    same(checkpoints.restore(state(0.0))[0], state(3.0))
  assert f"{steps / '900'} is no checkpoint; 900 is kept as" in capsys.readouterr().err
  assert (damaged / DAMAGED / "900").read_text() == "mine"
  assert (steps / "notes.txt").read_text() == "mine"


# -------------------------------------------------------------------------------------------------
# What is not finite


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("leaf", ["params/layers/w", "opt_state/0/nu/embed", "ema/embed"])
def test_state_that_is_not_finite_is_not_saved(tmp_path, leaf, value):
  def spoil(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return x.at[(0,) * x.ndim].set(value) if name == leaf else x

  bad = jax.tree_util.tree_map_with_path(spoil, state())
  told = pytest.raises(FloatingPointError, match=f"{leaf} is not finite at step 7")
  with Checkpoints(tmp_path, Retention()) as checkpoints, told:
    checkpoints.save(7, bad, {})
  assert os.listdir(tmp_path / STEPS) == []


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_parameters_that_are_not_finite_are_neither_saved_nor_read(tmp_path, monkeypatch, dtype):
  bad = {"embed": jnp.ones(3, dtype), "norm": {"scale": jnp.ones(3, dtype).at[1].set(jnp.nan)}}
  with pytest.raises(CheckpointError, match="parameter norm/scale is not finite"):
    checkpoint.save_params(tmp_path, 0, bad, {})
  assert not (tmp_path / STEPS).exists()
  with monkeypatch.context() as older:
    older.setattr(checkpoint, "not_finite", lambda tree: None)
    checkpoint.save_params(tmp_path, 0, bad, {})
  message = "checkpoints/0 cannot be restored: params/norm/scale is not finite"
  with pytest.raises(CheckpointError, match=message):
    checkpoint.restore_params(tmp_path)


def test_parameters_are_read_a_few_at_a_time(tmp_path, monkeypatch):
  """Each is in memory twice while it is read."""
  params = {"a": jnp.ones((8, 32)), "b": jnp.ones((64, 32)), "c": jnp.ones((16, 32))}
  checkpoint.save_params(tmp_path, 0, params, {})
  limits, handler = [], ocp.PyTreeCheckpointHandler

  def limited(**options):
    limits.append(options.get("restore_concurrent_gb"))
    return handler(**options)

  monkeypatch.setattr(ocp, "PyTreeCheckpointHandler", limited)
  monkeypatch.setattr(checkpoint, "READ", 1000)
  restored, _ = checkpoint.restore_params(tmp_path)  # orbax refuses a leaf beyond the limit
  assert limits[-1] == pytest.approx((64 * 32 * 4 + 1) / 1e9)
  jax.tree.map(np.testing.assert_array_equal, restored, params)


def test_full_disk_is_one_sentence_that_names_the_folder(tmp_path, monkeypatch):
  def full(*_, **__):
    raise ValueError("RESOURCE_EXHAUSTED: No space left on device\n  at tensorstore.cc:3")

  with Checkpoints(tmp_path, Retention()) as checkpoints:
    monkeypatch.setattr(checkpoints._manager, "save", full)
    with pytest.raises(CheckpointError) as told:
      checkpoints.save(3, state(), {})
  assert str(told.value) == (
    f"checkpoint in {tmp_path / STEPS} cannot be written: "
    "RESOURCE_EXHAUSTED: No space left on device"
  )
