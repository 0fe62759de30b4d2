"""Roll-outs of all groups of an update together, against a generator called once a group.

Both write the same tokens, by the same sampler and noise: blocks with an exact cache. A call of the
generator lasts as long as its longest answer, and computes the prompt in every row of it; in
roll-outs the next row takes the place of one that has ended, and a prompt is computed once.

Answers end by chance, at each token alike, or not at all: "mean / longest" says how long an answer
is on average, and the longest of its group. Where none ends all that is left to save is the prompt
and what a larger matmul does faster.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import jax
import numpy as np

from dlm import masks, parallel
from dlm.data import ByteTokenizer
from dlm.generate import Generator, Request
from dlm.models import ModelConfig, bind, from_preset
from dlm.rollout import RollOut
from dlm.sampling import caching, policies, relay
from dlm.sampling.sampler import Sampler
from dlm.types import Batch, Canvas, Params
from experiments.benchmarks.results import Table, interleaved, rate, ratio

TOKENIZER = ByteTokenizer()
VOCAB = TOKENIZER.vocab_size


@dataclasses.dataclass(frozen=True)
class Size:
  models: dict[str, ModelConfig]
  groups: int  # of an update
  group: tuple[int, ...]  # answers to a prompt
  ends: tuple[int, ...]  # of the ids how many end an answer
  prompt: int
  new: int
  block: int
  positions: int  # `Sampler.positions`, as `dlm.build` has it
  rounds: int


TINY = Size(
  {"tiny": ModelConfig(VOCAB, width=32, layers=1, heads=2, kv_heads=1, head_dim=16, mlp=32)},
  groups=2, group=(2,), ends=(16,), prompt=8, new=8, block=4, positions=8, rounds=1,
)  # fmt: skip
CPU = Size(
  {name: from_preset(name, vocab=VOCAB) for name in ("3m", "10m")},
  groups=8, group=(4, 8), ends=(0, 16), prompt=32, new=32, block=8, positions=64, rounds=5,
)  # fmt: skip
ACCELERATOR = Size(
  {name: from_preset(name, vocab=VOCAB) for name in ("100m", "300m")},
  groups=32, group=(4, 8), ends=(0, 2), prompt=256, new=256, block=32, positions=1024, rounds=5,
)  # fmt: skip


class SameNoise(Generator):
  """Its rows have the noise of a roll-out's, where request i's samples are the i-th group."""

  def __init__(self, roll: RollOut, key: jax.Array, *args, **kwargs):
    super().__init__(*args, **kwargs)
    self.key, self.group = key, roll.group

  def canvas(self, requests: Sequence[Request], seed: int) -> Canvas:
    row_B = np.array([each.id * self.group + each.sample for each in requests])
    key_B = jax.vmap(jax.random.fold_in, (None, 0))(self.key, row_B)
    return super().canvas(requests, seed).replace(key_B=key_B)


def run(size: str) -> list[Table]:
  chosen = TINY if size == "tiny" else CPU if jax.default_backend() == "cpu" else ACCELERATOR
  rows = []
  for name, config in chosen.models.items():
    model = bind(config)
    params = jax.jit(model.init)(jax.random.key(0))
    for group, ends in itertools.product(chosen.group, chosen.ends):
      rows.append({**_measured(chosen, model, params, group, ends), "model": name})
  note = f"seconds of a call of the generator for each of {chosen.groups} groups / seconds"
  return [Table("roll-outs", note, rows)]


def _measured(size: Size, model, params: Params, group: int, ends: int) -> dict:
  sampler = Sampler(
    denoise=model,
    policy=policies.Quota(size.block, size.block),
    plan=caching.ExactBlock(),
    sees=masks.BlockCausal(size.block),
    block=size.block,
    max_forwards=1_000_000,
    mask_id=TOKENIZER.mask_id,
    eos_ids=tuple(range(ends)),
    temperature=1.0,
    positions=size.positions,
  )
  mesh, slots = parallel.make_mesh(devices=jax.local_devices()[:1]), size.prompt + size.new
  prompts = np.random.default_rng(0).integers(ends, 256, (size.groups, size.prompt), np.int32)
  position = np.broadcast_to(np.arange(slots, dtype=np.int32), (size.groups, slots))
  tokens = np.pad(prompts, ((0, 0), (0, size.new)))
  batch = Batch(tokens, position >= size.prompt, np.ones_like(position), position)
  key = jax.random.key(1)
  roll = RollOut(
    relay.of_one_width(sampler),  # as `dlm.rollout.of` has it
    mesh, "shard_map", room=size.new, by_prompt=False, pad_id=0, group=group,
  )  # fmt: skip
  generator = SameNoise(roll, key, sampler, TOKENIZER, mesh, batch=group)
  asked = [
    Request.from_ids(i, "", ids, TOKENIZER.mask_id, slots=slots).samples(group)
    for i, ids in enumerate(prompts)
  ]
  ways = {
    "apart": lambda: [
      len(c.tokens) + (c.reason == "stop_id") for each in asked for c in generator(params, each)
    ],
    "together": lambda: roll(params, batch, key)[0].noisable_BxL.sum(-1),
  }
  for way in ways.values():
    jax.block_until_ready(way())  # compiles
  seconds, made = interleaved(ways, size.rounds)
  lengths = np.asarray(made["apart"])
  if (lengths != np.asarray(made["together"])).any():
    raise RuntimeError(
      f"roll-outs wrote {np.asarray(made['together']).tolist()} tokens, not {lengths.tolist()}"
    )
  longest = lengths.reshape(size.groups, group).max(1)
  return {
    "speed-up": ratio(seconds["apart"], seconds["together"]),
    "answers": group,
    "mean / longest": float(lengths.mean() / longest.mean()),
    "tokens": int(lengths.sum()),
    "tokens/s together": rate(lengths.sum(), seconds["together"]),
  }
