"""Directories that are damaged, wrong or hostile: one exact message, before anything is read."""

import json
import os
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dlm import weights
from dlm.models.quantised import quantise
from dlm.weights import files
from tests.dlm.weights import small

EMBED = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
  directory = tmp_path_factory.mktemp("sound") / "out"
  small.write(directory, "qwen3", shard_bytes=8000)
  return directory


@pytest.fixture
def copy(sound, tmp_path):
  for path in sound.iterdir():
    (tmp_path / path.name).write_bytes(path.read_bytes())
  return tmp_path


def refused(directory) -> str:
  with pytest.raises(weights.WeightsError) as error:
    weights.load(weights.open_source(directory))
  return str(error.value)


def shard_of(directory, name: str):
  index = json.loads((directory / files.INDEX).read_text())
  return directory / index["weight_map"][name]


def edit(directory, **changes) -> None:
  """Tensors of their shards replaced, added (where the embedding lies) or, where None, left out."""
  for name, tensor in changes.items():
    index = json.loads((directory / files.INDEX).read_text())
    path = directory / index["weight_map"].setdefault(name, index["weight_map"][EMBED])
    tensors = load_file(path)
    tensors[name] = tensor
    if tensor is None:
      del tensors[name], index["weight_map"][name]
    save_file(tensors, path)
    (directory / files.INDEX).write_text(json.dumps(index))


def header(path, text: bytes, data: bytes = b"", length: int | None = None):
  length = len(text) if length is None else length
  path.write_bytes(struct.pack("<Q", length) + text + data)
  return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict:
  return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


# ---------------------------------------------------------------------------------------------
# Which tensors there are


def test_missing_shards_are_listed(copy):
  shards = sorted(path.name for path in copy.glob("*.safetensors"))
  (copy / shards[1]).unlink()
  assert f"lacks 1 of {len(shards)} shards: {shards[1]}" in refused(copy)


def test_no_tensors_at_all(copy):
  for path in copy.glob("model*"):
    path.unlink()
  assert "holds neither model.safetensors nor model.safetensors.index.json" in refused(copy)


def test_missing_extra_and_misshapen_tensors_are_listed_with_shapes(copy):
  edit(copy, **{
    "model.norm.weight": None,
    "model.layers.1.mlp.up_proj.weight": np.zeros((24, 15), np.float32),
    "model.layers.3.input_layernorm.weight": np.zeros(16, np.float32),
  })  # fmt: skip
  assert refused(copy).splitlines() == [
    f"{copy}: not the tensors of a qwen3 model with this config.json (- expected, + found):",
    "- model.layers.1.mlp.up_proj.weight [24, 16]",
    "+ model.layers.1.mlp.up_proj.weight [24, 15]",
    "+ model.layers.3.input_layernorm.weight [16]",
    "- model.norm.weight [16]",
  ]


def test_only_the_first_twenty_are_listed(copy):
  config = json.loads((copy / "config.json").read_text())
  (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 6}))
  lines = refused(copy).splitlines()
  assert len(lines) == 22 and lines[-1] == "... and 13 more"  # 3 more layers of 11 tensors


def test_a_head_may_be_missing_only_if_it_is_tied(copy):
  edit(copy, **{"lm_head.weight": None})
  assert refused(copy).endswith("\n- lm_head.weight [40, 16]")


@pytest.mark.parametrize("kind", [np.int8, np.float64])
def test_other_dtypes_are_refused(kind, copy):
  edit(copy, **{"model.norm.weight": np.zeros(16, kind)})
  name = {np.int8: "I8", np.float64: "F64"}[kind]
  assert refused(copy).endswith(f"\n+ model.norm.weight [16] of dtype {name}, not F32/BF16/F16")


def test_a_config_cannot_ask_for_millions_of_names(copy):
  config = json.loads((copy / "config.json").read_text())
  (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2**30}))
  assert "config.json describes 11811160067 tensors, the files hold 36" in refused(copy)


# ---------------------------------------------------------------------------------------------
# The index


@pytest.mark.parametrize("name", ["../up.safetensors", "/etc/passwd", "a/b", "..", "", 7, "a\\b"])
def test_an_index_may_not_point_elsewhere(name, copy):
  (copy / files.INDEX).write_text(json.dumps({"weight_map": {"x": name}}))
  assert f"'x' lies in {name!r}, no file name" in refused(copy)


def test_index_and_shards_must_agree(copy):
  index = json.loads((copy / files.INDEX).read_text())
  index["weight_map"]["ghost"] = index["weight_map"].pop("model.norm.weight")
  (copy / files.INDEX).write_text(json.dumps(index))
  shard = shard_of(copy, "ghost").name
  assert refused(copy).splitlines()[1:] == [
    f"- ghost, in {shard}",
    f"+ model.norm.weight, in {shard}",
  ]


def test_a_tensor_in_two_shards_is_refused(copy):
  where = json.loads((copy / files.INDEX).read_text())["weight_map"]
  path = shard_of(copy, EMBED)
  name = next(name for name, shard in where.items() if shard != path.name)
  save_file(load_file(path) | {name: np.zeros(16, np.float32)}, path)
  assert f"tensor {name!r} lies in {path} and in {shard_of(copy, name)}" in refused(copy)


# ---------------------------------------------------------------------------------------------
# Headers


def test_a_truncated_file_says_where_it_ends(copy):
  path = shard_of(copy, "model.norm.weight")
  data = path.read_bytes()
  path.write_bytes(data[:-1])
  assert f"{path} is truncated" in refused(copy)
  path.write_bytes(data + b"x")
  assert f"{path}: 1 bytes follow the last tensor" in refused(copy)
  path.write_bytes(data[:5])
  assert f"{path} is truncated: 5 bytes hold no header" in refused(copy)


BAD = {
  "longer than the file": (b"{}", 2**63, "a header of 9223372036854775808 bytes in a file of"),
  "no JSON": (b"{'a'}", None, "holds no valid JSON"),
  "no UTF-8": (b'{"\xff": 1}', None, "holds no valid JSON"),
  "too deep": (b"[" * 100_000, None, "holds no valid JSON"),
  "a huge number": (b'{"a": ' + b"9" * 5000 + b"}", None, "holds no valid JSON"),
  "no object": (b"[]", None, "a JSON list, not an object"),
  "a key twice": (b'{"a": 1, "a": 2}', None, "key 'a' stands there twice"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_header(name, tmp_path):
  text, length, message = BAD[name]
  with pytest.raises(weights.WeightsError, match=message):
    files.read_header(header(tmp_path / "x", text, length=length))


ENTRIES = {
  "no entry": (7, "needs dtype, shape and data_offsets alone"),
  "a field more": (entry() | {"x": 1}, "needs dtype, shape and data_offsets alone"),
  "unknown dtype": (entry(dtype="F4"), "dtype 'F4'; known: BOOL"),
  "no dtype": (entry(dtype=[]), "has dtype"),
  "negative size": (entry(shape=[-2]), r"shape \[-2\], not up to 8 sizes"),
  "a size that is true": (entry(shape=[True]), r"shape \[True\]"),
  "too many axes": (entry(shape=[1] * 9), "not up to 8 sizes"),
  "offsets": (entry(offsets=[0]), r"data_offsets \[0\]"),
  "backwards": (entry(offsets=[8, 0]), "does not fill"),
  "too large": (entry(shape=[2**40, 2**40]), "does not fill"),
  "huge but consistent": (entry(shape=[2**60], offsets=[0, 2**62]), "is truncated: its tensors"),
  "does not begin at 0": (entry(offsets=[4, 12]), "begins at 4, the one before ends at 0"),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_a_bad_entry(name, tmp_path):
  value, message = ENTRIES[name]
  path = header(tmp_path / "x", json.dumps({"a": value}).encode(), bytes(8))
  with pytest.raises(weights.WeightsError, match=message):
    files.read_header(path)


def test_overlapping_tensors_are_refused(tmp_path):
  both = {"a": entry(), "b": entry(offsets=(4, 12))}
  path = header(tmp_path / "x", json.dumps(both).encode(), bytes(12))
  with pytest.raises(weights.WeightsError, match="'b' begins at 4, the one before ends at 8"):
    files.read_header(path)


def test_a_hostile_header_cannot_exhaust_memory(tmp_path):
  """A sparse file of a terabyte whose header says it is nearly as long: nothing is allocated."""
  path = tmp_path / "x"
  with path.open("wb") as file:
    file.write(struct.pack("<Q", 2**39) + b'{"a": ')
    file.truncate(2**40)
  tracemalloc.start()
  try:
    with pytest.raises(weights.WeightsError, match="more than the 16777216 read"):
      files.read_header(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
  finally:
    tracemalloc.stop()
  os.truncate(path, 0)


def test_an_endless_config_is_not_read(tmp_path):
  with (tmp_path / "config.json").open("wb") as file:
    file.truncate(2**40)
  with pytest.raises(weights.WeightsError, match="more than the 16777216 we read"):
    weights.open_source(tmp_path)


@pytest.mark.parametrize(
  ("name", "dtype"),
  [("model.layers.0.mlp.up_proj.qweight", "I32"), ("model.layers.0.mlp.up_proj.weight", "F8_E4M3"),
   ("model.layers.0.mlp.up_proj.weight_scale_inv", "F32")],
)  # fmt: skip
def test_quantised_tensors_are_called_that(copy, name, dtype):
  """Whatever config.json says of them: one line, not a list of names that do not fit."""
  size = files.BYTES[dtype] * 4
  text = json.dumps({name: {"dtype": dtype, "shape": [2, 2], "data_offsets": [0, size]}})
  (copy / files.INDEX).unlink()
  header(copy / files.SINGLE, text.encode(), bytes(size))
  message = refused(copy)
  assert f"is quantised: tensor {name} of dtype {dtype}; config.json has no quant" in message
  assert "\n" not in message


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_refused_with_its_parameter(copy, dtype, value):
  rows = np.zeros((40, 16), np.float32)
  rows[39, 3] = value  # a spare row, or padding: nothing in a checkpoint may be so
  edit(copy, **{EMBED: rows.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)})
  assert refused(copy) == f"{copy}: parameter embed is not finite"


def test_a_number_that_is_not_finite_is_not_hidden_by_codes(copy):
  name = "model.layers.1.mlp.up_proj.weight"
  tensor = load_file(shard_of(copy, name))[name].astype(np.float32)
  tensor[1, 2] = np.nan
  edit(copy, **{name: tensor})
  with pytest.raises(weights.WeightsError, match="parameter layers/mlp/up/kernel is not finite"):
    weights.load(weights.open_source(copy), kept=quantise("int8"))


def test_nothing_that_is_not_finite_is_written(tmp_path):
  model = small.MODELS["qwen3"]
  params = small.params_of(model, np.float32)
  params["layers"]["mlp"]["up"]["kernel"][1, 2, 3] = np.nan
  with pytest.raises(weights.WeightsError, match="parameter layers/mlp/up/kernel is not finite"):
    weights.export(tmp_path / "out", "qwen3", model, params, facts=small.facts_of("qwen3"))
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [files.SINGLE, files.INDEX, None])
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(copy, name):
  path = shard_of(copy, EMBED) if name is None else copy / name
  path.unlink(missing_ok=True)
  os.mkfifo(path)
  assert refused(copy) == f"{path} is no regular file"
