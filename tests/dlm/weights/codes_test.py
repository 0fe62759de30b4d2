"""Checkpoints that others quantised stand for the numbers that their own tools say.

codes.npz holds layers [32, 32] packed and unpacked by public code on a CPU, from random weights:
GPTQ by `QuantLinear` of AutoGPTQ (auto_gptq/nn_modules/qlinear/qlinear_cuda.py at 9f7d370; `pack`,
then its product with the identity in float32), groups of 16, in act-order or not, symmetric or not;
AWQ by `WQLinear_GEMM.from_linear` and `dequantize_gemm` of autoawq 0.2.9, groups of 16; FP8 by
`Fp8Quantize` and `Fp8Dequantize` of transformers 5.24, blocks of 16 x 16.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import weights
from dlm.models import ModelConfig, bind
from dlm.models.quantised import Format, as_dicts, as_kept, quantise, quantised
from dlm.weights import codes, files
from tests.dlm.weights import small

CASES = {
  "fp8": {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"},
  "awq4": {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "GEMM"},
  **{
    f"gptq{bits}{act}{sym}": {
      "quant_method": "gptq",
      "bits": bits,
      "group_size": 16,
      "sym": bool(sym),
    }
    for bits in (4, 8)
    for act in ("", "_act")
    for sym in ("", "_sym")
  },
}
MODEL = ModelConfig(
  vocab=40, width=32, layers=1, heads=4, kv_heads=4, head_dim=8, mlp=32, tied=False, rope_base=1e6
)
NAMES = {np.dtype("int32"): "I32", np.dtype("float16"): "F16", np.dtype("float32"): "F32"}


def recorded(case: str) -> dict[str, np.ndarray]:
  with np.load(pathlib.Path(__file__).with_name("codes.npz")) as held:
    return {name.split("/")[1]: held[name] for name in held if name.startswith(case + "/")}


def write_tensors(path: pathlib.Path, tensors: dict[str, tuple[str, np.ndarray]]) -> None:
  """A safetensors file by the format's own words: the package writes no 8-bit floats of numpy."""
  at, head = 0, {}
  for name, (dtype, x) in tensors.items():
    head[name] = {"dtype": dtype, "shape": x.shape, "data_offsets": [at, at + x.nbytes]}
    at += x.nbytes
  text = json.dumps(head).encode()
  data = b"".join(x.tobytes() for _, x in tensors.values())
  path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def as_stored(layer: str, parts: dict[str, np.ndarray]) -> dict[str, tuple[str, np.ndarray]]:
  if "weight_stored" in parts:
    return {
      layer + "weight": ("F8_E4M3", parts["weight_stored"]),
      layer + "weight_scale_inv": ("F32", parts["weight_scale_inv"]),
    }
  return {layer + n: (NAMES[x.dtype], x) for n, x in parts.items() if n != "weight"}


def directory(folder: pathlib.Path, parts: dict[str, np.ndarray], how: dict) -> pathlib.Path:
  """A model whose every linear layer is the recorded one."""
  plain = small.params_of(MODEL, np.float32)
  weights.export(folder, "mistral", MODEL, plain, facts=small.facts_of("mistral"))
  stored = files.read_header(folder / files.SINGLE)
  tensors = {}
  with files.Reader() as reader:
    for name, each in stored.items():
      if ".self_attn." in name or ".mlp." in name:
        tensors |= as_stored(name.removesuffix("weight"), parts)
      else:
        whole = tuple(slice(0, size) for size in each.shape)
        tensors[name] = "F32", reader.read(name, each, whole)
  write_tensors(folder / files.SINGLE, tensors)
  config = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps(config | {"quantization_config": how}))
  return folder


@pytest.mark.parametrize("case", CASES)
def test_numbers_are_those_of_the_tools(case, tmp_path):
  parts = recorded(case)
  source = weights.open_source(directory(tmp_path / "hf", parts, CASES[case]))
  assert "quantization_config" not in source.config
  params = weights.load(source)
  up_DxF, down_FxD = (params["layers"]["mlp"][name]["kernel"][0] for name in ("up", "down"))
  assert up_DxF.dtype == jnp.float32
  for kernel in (
    up_DxF,
    down_FxD,
    params["layers"]["attention"]["key"]["kernel"][0].reshape(32, 32),
  ):
    np.testing.assert_array_equal(kernel, parts["weight"].T)
  plain = small.params_of(MODEL, np.float32)
  np.testing.assert_array_equal(params["embed"], plain["embed"])


def test_our_own_codes_are_made_of_their_numbers(tmp_path):
  source = weights.open_source(directory(tmp_path / "hf", recorded("awq4"), CASES["awq4"]))
  kept = quantise("int8")
  small.same_bits(weights.load(source, kept=kept), quantised(weights.load(source), kept))


@pytest.mark.parametrize("case", ["awq4", "gptq4", "gptq4_sym", "gptq8"])
def test_codes_of_the_format_stay_as_they_are(case, tmp_path):
  """They stand for the numbers of the files to the bit, shaped as we would have made them."""
  source = directory(tmp_path / "hf", recorded(case), CASES[case])
  name = f"int{CASES[case]['bits']}g16z"
  params = weights.load(weights.open_source(source), kept=quantise(name))
  for path in (("mlp", "up"), ("attention", "key"), ("attention", "out")):
    kernel = params["layers"][path[0]][path[1]]["kernel"]
    assert kernel.format == Format.of(name)
    one = jax.tree.map(lambda x: x[0], kernel)
    np.testing.assert_array_equal(one.wide(jnp.float32), recorded(case)["weight"].T)
  shapes, _ = as_kept(name, bind(MODEL).abstract(), None)
  found = jax.tree.map(lambda x: (x.shape, x.dtype), as_dicts(params))
  assert found == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)


def test_biases_that_the_model_has_not_must_be_nought(tmp_path):
  """As AutoGPTQ stored them for every layer."""
  parts = recorded("gptq4") | {"bias": np.zeros(32, np.float16)}
  params = weights.load(weights.open_source(directory(tmp_path / "hf", parts, CASES["gptq4"])))
  np.testing.assert_array_equal(params["layers"]["mlp"]["up"]["kernel"][0], parts["weight"].T)
  parts["bias"][7] = 1
  source = weights.open_source(directory(tmp_path / "more", parts, CASES["gptq4"]))
  with pytest.raises(weights.WeightsError, match=r"\+ model.layers.0.mlp.down_proj.bias \[32\]"):
    weights.load(source)


def test_a_stored_scale_that_is_not_finite_is_named(tmp_path):
  parts = recorded("awq4")
  parts["scales"][1, 3] = np.inf
  source = weights.open_source(directory(tmp_path / "hf", parts, CASES["awq4"]))
  with pytest.raises(weights.WeightsError, match=r"parameter layers/.*/kernel/scale is not finite"):
    weights.load(source, kept=quantise("int4g16z"))


def test_groups_that_are_no_neighbours_are_rounded_anew(tmp_path):
  parts = recorded("gptq4_act")
  source = weights.open_source(directory(tmp_path / "hf", parts, CASES["gptq4_act"]))
  kept = quantise("int4g16z")
  own = weights.load(source, kept=kept)
  small.same_bits(own, quantised(weights.load(source), kept))
  one = jax.tree.map(lambda x: x[0], own["layers"]["mlp"]["up"]["kernel"])
  assert 0 < np.abs(one.wide(jnp.float32) - parts["weight"].T).max() < 0.05


@pytest.mark.parametrize("case", CASES)
def test_pieces_are_cut_anywhere(case, tmp_path):
  parts, file = recorded(case), tmp_path / "one.safetensors"
  write_tensors(file, as_stored("a.", parts))
  (layer,) = codes.as_weights(
    files.read_header(file), codes.of_config({codes.CONFIG: CASES[case]})
  ).values()
  with codes.Reader() as reader:
    for rows, columns in (
      (slice(0, 32), slice(3, 4)),
      (slice(5, 14), slice(9, 32)),
      (slice(7, 7), slice(0, 5)),
    ):
      found = reader.read("a.weight", layer, (rows, columns))
      np.testing.assert_array_equal(found, parts["weight"][rows, columns])


def test_zeros_of_the_second_format_are_whole(tmp_path):
  parts = recorded("gptq4_sym")
  parts["qzeros"] = parts["qzeros"] + 0x11111111
  how = CASES["gptq4_sym"] | {"checkpoint_format": "gptq_v2"}
  params = weights.load(weights.open_source(directory(tmp_path / "hf", parts, how)))
  np.testing.assert_array_equal(params["layers"]["mlp"]["up"]["kernel"][0], parts["weight"].T)


def test_last_blocks_may_be_cut_and_factors_powers_of_two(tmp_path):
  """As DeepSeek has them where a block does not divide a matrix."""
  file, float8 = tmp_path / "one.safetensors", recorded("fp8")["weight_stored"]
  powers = np.array([[126, 127], [128, 130]], np.uint8)
  write_tensors(file, {"a.weight": ("F8_E4M3", float8), "a.weight_scale_inv": ("F8_E8M0", powers)})
  how = codes.of_config({codes.CONFIG: CASES["fp8"] | {"weight_block_size": [24, 20]}})
  (layer,) = codes.as_weights(files.read_header(file), how).values()
  factors = np.repeat(np.repeat(2.0 ** (powers.astype(int) - 127), 24, 0), 20, 1)[:32, :32]
  want = float8.view(jnp.dtype("float8_e4m3fn")).astype(np.float32) * factors
  with codes.Reader() as reader:
    np.testing.assert_array_equal(
      reader.read("a.weight", layer, (slice(3, 31), slice(2, 32))), want[3:31, 2:]
    )


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"qzeros": None}, "mlp.down_proj.qzeros is missing"),
    ({"qzeros": np.zeros((2, 3), np.int32)}, r"qzeros is I32 [2, 3], not I32 [2, 4], as "),
    ({"scales": np.zeros((2, 32), np.int32)}, "scales is I32 [2, 32], not F32/F16/BF16/F8_E8M0"),
    ({"g_idx": np.full(32, 2, np.int32)}, "g_idx must name groups in 0..1"),
    ({"g_idx": np.zeros((32, 1), np.int32)}, "must be matrices"),
    ({"scales": np.full((2, 32), np.nan, np.float16)}, "kernel is not finite"),
    ({"qweight": np.zeros((8, 32), np.int32)}, "qzeros is I32 [2, 4], not I32 [4, 4]"),
  ],
)  # fmt: skip
def test_damage_is_named(tmp_path, change, message):
  parts = {name: x for name, x in (recorded("gptq4") | change).items() if x is not None}
  with pytest.raises(weights.WeightsError) as error:
    weights.load(weights.open_source(directory(tmp_path / "hf", parts, CASES["gptq4"])))
  assert message in str(error.value)
  assert "\n" not in str(error.value)


def test_a_tensor_that_the_method_does_not_know_is_named(tmp_path):
  source = weights.open_source(directory(tmp_path / "hf", recorded("awq4"), CASES["fp8"]))
  with pytest.raises(
    weights.WeightsError, match=r"is quantised: .* of method fp8 does not account"
  ):
    weights.load(source)
