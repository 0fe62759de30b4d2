"""Weights in and out by the command, and the other commands on what it makes."""

import json
import shutil

import jax
import numpy as np
import pytest

from dlm import build
from tests.dlm.build import directories
from tests.experiments import mains

GGUF = mains.ROOT / "tests/conformance/llama/model_q4_1.gguf"
SAMPLE = "--config=configs/sample/default.py"
TINY = "--config=configs/train/tiny.py"


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
  """With all that authors lay beside their weights."""
  folder = directories.write(tmp_path_factory.mktemp("hf") / "qwen")
  config = json.loads((folder / "config.json").read_text())
  published = {"max_position_embeddings": 48, "max_window_layers": 2, "bos_token_id": 0}
  (folder / "config.json").write_text(json.dumps(config | published))
  (folder / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>"}')
  (folder / "added_tokens.json").write_text("{}")
  (folder / "chat_template.jinja").write_text(directories.TEMPLATE)
  (folder / "generation_config.json").write_text('{"temperature": 0.7}')
  (folder / "additional_chat_templates").mkdir()
  (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
  return folder


@pytest.fixture(scope="module")
def dream(tmp_path_factory):
  path = tmp_path_factory.mktemp("hf") / "dream"
  return directories.write(path, "dream", mask="<|mask|>", attention="full")


BESIDE = (
  "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
  "generation_config.json", "additional_chat_templates/tool_use.jinja",
)  # fmt: skip


def importing(tmp_path, *arguments):
  return mains.run(tmp_path, "experiments/import_weights.py", *arguments)


def sampled(tmp_path, folder, *arguments):
  out = tmp_path / "out.jsonl"
  given = (f"--checkpoint={folder}", f"--out={out}", "--config.stop=never", "--trace", *arguments)
  done = mains.run(tmp_path, "experiments/sample.py", SAMPLE, *given)
  assert (done.returncode, done.stderr) == (0, "")
  lines = [json.loads(line) for line in out.read_text().splitlines()]
  out.unlink()
  return lines


def same_files(a, b, *names):
  return all((a / name).read_bytes() == (b / name).read_bytes() for name in names)


def test_in_and_out_again_bit_for_bit(tmp_path, qwen):
  """The folder samples what the directory samples, and the directory comes back."""
  folder, back = tmp_path / "ours", tmp_path / "back"
  done = importing(tmp_path, f"--source={qwen}", f"--workdir={folder}")
  assert (done.returncode, done.stderr) == (0, "")
  assert "read 0.00 of 0.00 GB" in done.stdout and f"parameters in {folder}" in done.stdout
  assert same_files(folder, qwen, *BESIDE)

  done = importing(tmp_path, f"--source={folder}", f"--export={back}")
  assert (done.returncode, done.stderr) == (0, "")
  assert "AutoTokenizer of transformers 5 cuts text as Qwen2" in done.stdout
  assert same_files(back, qwen, "model.safetensors", *BESIDE)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "ours"]

  ar = ("--config.policy.name=left_to_right", "--prompt=the cat")
  (one,), (two,), (three,) = (sampled(tmp_path, each, *ar) for each in (qwen, folder, back))
  assert one["row"] == two["row"] == three["row"] and one["forwards"]["window"] > 0


def test_kernels_are_packed_once(tmp_path, qwen):
  """The folder says how it keeps them, and is read as the directory is with that format."""
  folder = tmp_path / "w8"
  done = importing(tmp_path, f"--source={qwen}", f"--workdir={folder}", "--quantise=int8")
  assert (done.returncode, done.stderr) == (0, "")
  want, _ = build.pretrained(qwen).params(weights="int8")
  jax.tree.map(np.testing.assert_array_equal, build.pretrained(folder).params()[0], want)
  done = importing(tmp_path, f"--source={folder}", f"--export={tmp_path / 'hf'}", "--quantise=int8")
  assert done.returncode == 2 and "--quantise=int8 is for --workdir" in done.stderr


def test_a_gguf_file_goes_wherever_a_directory_goes(tmp_path):
  """Sampled, also in a chat, measured and trained on; imported and written out it samples alike."""
  file, folder, back = GGUF, tmp_path / "ours", tmp_path / "back"
  for arguments in ((f"--source={file}", f"--workdir={folder}"),
                    (f"--source={folder}", f"--export={back}")):  # fmt: skip
    done = importing(tmp_path, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
  ar = ("--config.policy.name=left_to_right", "--config.slots=32", "--chat", "--prompt=the cat")
  (one,), (two,), (three,) = (sampled(tmp_path, each, *ar) for each in (file, folder, back))
  assert one["row"] == two["row"] == three["row"] and one["forwards"]["window"] > 0
  assert one["row"][0] == 1 and one["row"][-1] != 320  # <|im_start|>; and no mask is left
  names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
  assert same_files(folder, back, *names)

  done = mains.run(tmp_path, "experiments/evaluate.py", f"--checkpoint={file}", TINY, "--batches=1")
  assert (done.returncode, done.stderr) == (0, "") and "estimator Autoregressive(" in done.stdout
  done = mains.run(
    tmp_path,
    "experiments/train.py",
    "--config=configs/train/adapt.py",
    f"--workdir={tmp_path / 'run'}",
    f"--config.init_from={file}",
    "--config.steps=2",
    "--config.objective.anneal=2",
    "--config.model.dtype=float32",
    "--config.optimizer.warmup=1",
    "--config.batch=8",
    "--config.data.length=32",
    "--config.eval.batches=1",
  )
  assert (done.returncode, done.stderr) == (0, "")
  facts = json.loads((tmp_path / "run" / "facts.json").read_text())
  assert (facts["mask_id"], facts["vocab"], facts["attention"]) == (320, 321, "full")


def test_adapted_checkpoint_is_measured_sampled_and_trained_on(tmp_path, qwen):
  folder, run = tmp_path / "ours", tmp_path / "run"
  done = importing(
    tmp_path, f"--source={qwen}", f"--workdir={folder}", "--adapt", "--dtype=bfloat16"
  )
  assert (done.returncode, done.stderr) == (0, "")
  facts = json.loads((folder / "facts.json").read_text())
  assert (facts["attention"], facts["shift"]) == ("full", 1)
  assert json.loads((folder / "config.json").read_text())["model"]["dtype"] == "bfloat16"

  done = mains.run(
    tmp_path, "experiments/evaluate.py", f"--checkpoint={folder}", TINY, "--batches=2"
  )
  assert (done.returncode, done.stderr) == (0, "")
  assert "step 0, test split, estimator Shifted(objective=ExactCount(" in done.stdout
  assert sampled(tmp_path, folder, "--prompt=the cat")[0]["finished"]

  done = mains.run(
    tmp_path,
    "experiments/train.py",
    "--config=configs/train/adapt.py",
    f"--workdir={run}",
    f"--config.init_from={folder}",
    "--config.steps=2",
    "--config.objective.anneal=2",
    "--config.model.dtype=float32",
    "--config.optimizer.warmup=1",
    "--config.batch=8",
    "--config.data.length=32",
    "--config.eval.batches=1",
  )
  assert (done.returncode, done.stderr) == (0, "")
  assert json.loads((run / "facts.json").read_text())["shift"] == 1
  exported = tmp_path / "exported"
  done = importing(tmp_path, f"--source={run}", f"--export={exported}")
  assert (done.returncode, done.stderr) == (0, "")
  assert same_files(exported, qwen, *BESIDE)  # what was known of the source went through both
  config, theirs = (json.loads((each / "config.json").read_text()) for each in (exported, qwen))
  assert config["is_causal"] is False and config["max_position_embeddings"] == 48
  changed = {"is_causal", "mask_token_id", "pad_token_id", "eos_token_id", "vocab_size"}
  assert {key: config[key] for key in theirs.keys() - changed} == {
    key: theirs[key] for key in theirs.keys() - changed
  }
  other = tmp_path / "other"
  done = importing(tmp_path, f"--source={run}", f"--export={other}", "--family=a2d-qwen2")
  assert (done.returncode, done.stderr) == (0, "")
  config = json.loads((other / "config.json").read_text())
  assert (config["model_type"], config["max_position_embeddings"]) == ("a2d-qwen2", 48)
  assert config["hidden_act"] == "silu" and same_files(other, qwen, *BESIDE)
  asked = ("--prompt=the cat", "--config.slots=32")  # the run's own rows are shorter than its model
  rows = [sampled(tmp_path, each, *asked)[0]["row"] for each in (run, exported)]
  assert rows[0] == rows[1]


def test_chat_of_a_directory_is_its_template_continued(tmp_path, dream):
  talk = [{"role": "user", "content": "the cat<|im_end|>"}, {"role": "assistant", "content": "s"}]
  (tmp_path / "in.jsonl").write_text(json.dumps({"messages": talk}) + '\n"a"\n')
  chat = ("--chat", "--config.slots=64", "--config.max_new_tokens=4", '--chat_args={"x": 1}')
  first, second, third = sampled(
    tmp_path, dream, *chat, "--prompt=hi", f"--prompts={tmp_path / 'in.jsonl'}"
  )
  from dlm.data import BpeTokenizer

  tokenizer = BpeTokenizer.from_file(dream)
  end = tokenizer.specials()["<|im_end|>"]
  given = np.array(second["row"])[np.array(second["when"]) < 0]
  assert tokenizer.decode(given).startswith("user\nthe cat<|im_end|>\nassistant\ns\nassistant\n")
  assert (given == end).sum() == 2
  assert [each["prompt"] for each in (first, second, third)] == ["hi", "s", "a"]
  assert len(first["tokens"]) == 4


def damaged(qwen, where, change):
  shutil.copytree(qwen, where)
  if change == "shape":
    config = json.loads((where / "config.json").read_text())
    (where / "config.json").write_text(json.dumps(config | {"intermediate_size": 32}))
  elif change == "cut":
    data = (where / "model.safetensors").read_bytes()
    (where / "model.safetensors").write_bytes(data[: len(data) // 2])
  elif change == "tokenizer":
    (where / "tokenizer.json").write_text("{}")
  elif change == "type":
    config = json.loads((where / "config.json").read_text())
    (where / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
  return where


@pytest.mark.parametrize(
  ("change", "arguments", "message"),
  [
    ("shape", [], "- model.layers.0.mlp.down_proj.weight [16, 32]"),
    ("cut", [], "is truncated"),
    ("tokenizer", [], "tokenizer.json cannot be read"),
    ("type", [], "unknown model_type 'gpt2'; known: "),
    ("none", ["--mesh=data"], "--mesh=data must look like data=1,fsdp=4"),
    ("none", ["--mesh=rows=2"], "mesh.rows is unknown; known: data, dcn, expert, fsdp, seq"),
    ("none", ["--mesh=data=3"], "must multiply to the number of devices, 1"),
    ("none", ["--export={tmp}/hf"], "give one of --workdir, --export and --export_adapter"),
    ("none", ["--workdir={tmp}/full"], "full exists and is not empty: nothing is written over"),
    ("none", ["--workdir=", "--source={tmp}/nowhere"], "nowhere is no checkpoint folder"),
    ("none", ["--quantise=int3"], "weights='int3' must be int8, int4, int8gN"),
    ("none", ["--dtype=int8"], "should be one of <float32|bfloat16>"),
  ],
)
def test_mistake_is_one_line_exit_code_2_and_nothing_left(
  tmp_path, qwen, change, arguments, message
):
  source = damaged(qwen, tmp_path / "source", change)
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "mine").write_text("")
  given = [f"--source={source}", f"--workdir={tmp_path / 'ours'}"]
  done = importing(tmp_path, *given, *(each.format(tmp=tmp_path) for each in arguments))
  assert (done.returncode, done.stdout) == (2, "")
  assert message in done.stderr and done.stderr.count("\n") == 1
  assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "source"]
  assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]


@pytest.mark.parametrize(
  ("family", "message"),
  [
    ("gpt2", "family='gpt2' is unknown; known: "),
    ("llada", "has no tensor for|cannot say"),
  ],
)
def test_export_to_a_family_that_cannot_hold_it(tmp_path, qwen, family, message):
  done = importing(tmp_path, f"--source={qwen}", f"--export={tmp_path / 'x'}", f"--family={family}")
  assert done.returncode == 2 and done.stderr.count("\n") == 1
  assert any(each in done.stderr for each in message.split("|"))
  assert list(tmp_path.iterdir()) == []


def test_chat_without_a_template_or_anything_said(tmp_path, dream):
  plain = tmp_path / "plain"
  shutil.copytree(dream, plain)
  (plain / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
  for arguments, message in (
    ([f"--checkpoint={plain}", "--prompt=a"], "has no chat template"),
    ([f"--checkpoint={dream}"], "--chat needs something said: --prompt or --prompts"),
    ([f"--checkpoint={dream}", "--prompt=a", "--chat_args=[1]"], "--chat_args=[1] must be an obj"),
    ([f"--checkpoint={dream}", "--prompt=a", "--chat_args={"], "--chat_args: not JSON"),
  ):
    done = mains.run(tmp_path, "experiments/sample.py", SAMPLE, "--chat", *arguments)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and message in done.stderr


def test_published_weights_have_no_data_of_their_own(tmp_path, dream):
  done = mains.run(tmp_path, "experiments/evaluate.py", f"--checkpoint={dream}")
  assert done.returncode == 2 and done.stderr.count("\n") == 1
  assert "was trained on no data known here: give --config" in done.stderr
