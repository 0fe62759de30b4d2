"""Tiny Hugging Face directories, as their authors would ship them, tokenizer included."""

import json
import pathlib

import jax
import jax.numpy as jnp

from dlm import weights
from dlm.data import train_bpe
from dlm.facts import ModelFacts
from dlm.models import ModelConfig, MoeConfig, bind

TEMPLATE = (
  "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
  "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
DIT = {"kv_heads": 2, "mlp": 64, "rope_base": 1e4, "norm_eps": 1e-5, "dit": 6}
MOE = {
  "llada_moe": MoeConfig(experts=4, per_token=2, mlp=8, bias=True, bias_in_weight=True),
  "llada2_moe": MoeConfig(
    experts=8, per_token=2, mlp=8, shared=8, dense_layers=1, score="sigmoid", bias=True,
    renormalise=True, scale=2.5, groups=4, top_groups=2,
  ),
}  # fmt: skip
FACTS = {"mask_id": None, "eos_ids": [], "pad_id": None, "shift": 1, "attention": "causal"}


def tokenizer_files(directory: pathlib.Path, *specials: str) -> int:
  """tokenizer.json and its config, template included; returns the number of ids."""
  import tokenizers

  train_bpe(["the cat sat on the mat"], 300).save(directory)
  (directory / "dlm_tokenizer.json").unlink()  # which no author ships
  path = directory / "tokenizer.json"
  made = json.loads(path.read_text())
  made["added_tokens"] = []  # nor our specials
  ordinary = {s: i for s, i in made["model"]["vocab"].items() if not s.startswith("<|")}
  made["model"]["vocab"] = {s: i for i, s in enumerate(sorted(ordinary, key=ordinary.get))}
  path.write_text(json.dumps(made))
  made = tokenizers.Tokenizer.from_file(str(path))
  made.add_special_tokens([*SPECIALS, *specials])
  made.save(str(path))
  config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": TEMPLATE}
  (directory / "tokenizer_config.json").write_text(json.dumps(config))
  return made.get_vocab_size()


def write(
  directory: pathlib.Path,
  family: str = "qwen2",
  *,
  spare: int = 4,
  kv_heads: int = 1,
  dtype: str = "float32",
  mask: str | None = None,
  **facts,
) -> pathlib.Path:
  """A random model with `spare` rows of its embedding beyond the tokenizer's ids."""
  directory.mkdir()
  ids = tokenizer_files(directory, *([] if mask is None else [mask]))
  files = {path.name: path.read_bytes() for path in directory.iterdir()}
  for path in directory.iterdir():
    path.unlink()
  sizes = dict(
    vocab=ids + spare, width=16, layers=2, heads=2, kv_heads=kv_heads, head_dim=8, mlp=24,
    tied=False, rope_base=1e6, norm_eps=1e-6, dtype=dtype,
    qkv_bias=family in ("qwen2", "dream", "fast_dllm_v2"),
    qk_norm=family in ("qwen3", "sdar", *MOE), moe=MOE.get(family),
  )  # fmt: skip
  model = ModelConfig(**sizes | (DIT if family == "bd3lm" else {}))
  params = bind(model).init(jax.random.key(0))
  params = jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)), params)
  facts = FACTS | {"vocab": ids + spare, "length": 32, "block": None} | facts
  facts["eos_ids"] = [ids - 1 - (mask is not None)]
  if mask is not None:
    facts["mask_id"] = ids - 1
  if family == "bd3lm":
    facts["mask_id"] = ids + spare - 1
  weights.export(directory, family, model, params, facts=ModelFacts.from_json(facts))
  for name, content in files.items():
    (directory / name).write_bytes(content)
  return directory
