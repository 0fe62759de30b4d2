"""Roll-outs of all groups of an update together, against a generator called once a group.

Both write as many tokens, after the same prompts, by the same loop: blocks with an exact cache. A
group of one prompt fills a small batch alone; roll-outs put the groups of an update side by side.
"""

import dataclasses

import jax
import numpy as np

from dlm import masks, parallel
from dlm.data import ByteTokenizer
from dlm.generate import Generator, Request
from dlm.models import ModelConfig, bind, from_preset
from dlm.rollout import RollOut
from dlm.sampling import caching, policies
from dlm.sampling.sampler import Sampler
from dlm.types import Batch, Params
from experiments.benchmarks.results import Table, interleaved, rate, ratio

TOKENIZER = ByteTokenizer()
VOCAB = TOKENIZER.vocab_size


@dataclasses.dataclass(frozen=True)
class Size:
  model: ModelConfig
  groups: tuple[int, ...]  # of an update
  group: int  # answers to a prompt
  prompt: int
  new: int
  block: int
  rounds: int


TINY = Size(
  ModelConfig(VOCAB, width=32, layers=1, heads=2, kv_heads=1, head_dim=16, mlp=32),
  groups=(2,), group=2, prompt=8, new=8, block=4, rounds=1,
)  # fmt: skip
CPU = Size(
  from_preset("10m", vocab=VOCAB),
  groups=(4, 16), group=4, prompt=32, new=32, block=8, rounds=5,
)  # fmt: skip
ACCELERATOR = Size(
  from_preset("300m", vocab=VOCAB),
  groups=(8, 32), group=8, prompt=256, new=256, block=32, rounds=5,
)  # fmt: skip


def run(size: str) -> list[Table]:
  chosen = TINY if size == "tiny" else CPU if jax.default_backend() == "cpu" else ACCELERATOR
  model = bind(chosen.model)
  params = jax.jit(model.init)(jax.random.key(0))
  rows = [_measured(chosen, model, params, groups) for groups in chosen.groups]
  note = f"seconds of a call of the generator for each group of {chosen.group} / seconds"
  return [Table("roll-outs", note, rows)]


def _measured(size: Size, model, params: Params, groups: int) -> dict:
  sampler = Sampler(
    denoise=model,
    policy=policies.Quota(size.block, size.block),
    plan=caching.ExactBlock(),
    sees=masks.BlockCausal(size.block),
    block=size.block,
    max_forwards=1_000_000,
    mask_id=TOKENIZER.mask_id,
    temperature=1.0,
  )
  mesh, slots = parallel.make_mesh(devices=jax.local_devices()[:1]), size.prompt + size.new
  prompts = np.random.default_rng(0).integers(0, 256, (groups, size.prompt), np.int32)
  position = np.broadcast_to(np.arange(slots, dtype=np.int32), (groups, slots))
  tokens = np.pad(prompts, ((0, 0), (0, size.new)))
  batch = Batch(tokens, position >= size.prompt, np.ones_like(position), position)
  roll = RollOut(
    sampler, mesh, "shard_map", room=size.new, by_prompt=False, pad_id=0, group=size.group
  )
  generator = Generator(sampler, TOKENIZER, mesh, batch=size.group)
  asked = [
    Request.from_ids(i, "", ids, TOKENIZER.mask_id, slots=slots).samples(size.group)
    for i, ids in enumerate(prompts)
  ]
  ways = {
    "apart": lambda: [len(c.tokens) for each in asked for c in generator(params, each)],
    "together": lambda: roll(params, batch, jax.random.key(1))[0].noisable_BxL,
  }
  for way in ways.values():
    jax.block_until_ready(way())  # compiles
  seconds, made = interleaved(ways, size.rounds)
  count = groups * size.group * size.new
  for name, found in made.items():
    if int(np.sum(found)) != count:
      raise RuntimeError(f"roll-outs {name} wrote {int(np.sum(found))} tokens, not {count}")
  return {
    "speed-up": ratio(seconds["apart"], seconds["together"]),
    "groups": groups,
    "tokens": count,
    "tokens/s together": rate(count, seconds["together"]),
  }
