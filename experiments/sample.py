r"""Samples from a checkpoint or a Hugging Face directory: one prompt, or a file of them.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/default.py --prompt="def f("
python experiments/sample.py --checkpoint=DIR --config=... --prompts=IN.jsonl --out=OUT.jsonl

With --infill `[[8]]` in a prompt leaves eight tokens open: $'def f(x):\n    [[8]]\n    return y' is
filled in; `[[[8]]` is the literal text. IN.jsonl holds {"prompt": "..."} a line, and may say
"infill": true. The same command takes up an interrupted OUT.jsonl. With --chat a prompt is what a
user says, put through the checkpoint's chat template; a line may hold {"messages": [{"role": "...",
"content": "..."}, ...]}. --drafter=DIR names the diffusion checkpoint that drafts for an
autoregressive one (configs/sample/deer.py). --stop=STRING ends completions where it begins.
"""

import functools
import sys
from collections.abc import Callable, Iterable

import jax
from absl import flags

from dlm import build, command, live, parallel
from dlm.checksums import checksums
from dlm.completions import Output, Prompt, describe, digest, read_prompts
from dlm.data import chat
from dlm.generate import Generator, Request

CONFIG = flags.DEFINE_string("config", None, "How to sample: FILE.py or FILE.py:ARGUMENT.")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Of training, or a Hugging Face directory.")
DRAFTER = flags.DEFINE_string("drafter", None, "A second checkpoint, that drafts (policy deer).")
STEP = flags.DEFINE_string("step", "best", "best, latest or a number.")
PROMPT = flags.DEFINE_multi_string("prompt", [], "May be given several times.")
PROMPTS = flags.DEFINE_string("prompts", None, "A JSONL file of prompts.")
INFILL = flags.DEFINE_bool("infill", False, "[[8]] in a prompt: eight tokens to be found.")
CHAT = flags.DEFINE_bool("chat", False, "A prompt is a message, not a text to continue.")
OUT = flags.DEFINE_string("out", None, "A JSONL file of completions; default: the screen.")
TRACE = flags.DEFINE_bool(
  "trace", False, "Also write which forward wrote each token, and its log-probability there."
)
SAMPLES = flags.DEFINE_integer("samples", 1, "Of each prompt.", lower_bound=1)
STOP = flags.DEFINE_multi_string("stop", [], "Ends a completion; may be given several times.")
SKIP_BAD = flags.DEFINE_bool("skip_bad", False, "Leave out prompts that do not fit, and say so.")
LIVE = flags.DEFINE_bool("live", False, "Show the denoising in the terminal.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several processes: a TPU pod.")


def asked(trained: build.Pretrained, own: build.SamplingConfig) -> list[Request]:
  """Prompts or conversations as rows to sample; with --skip_bad only those that fit."""
  tokenizer, room = trained.tokenizer, {"slots": own.slots, "max_new_tokens": own.max_new_tokens}
  if CHAT.value and INFILL.value:
    raise ValueError("--chat answers and --infill fills in: give one of them")
  if not CHAT.value:
    prompts = [Prompt(text, INFILL.value) for text in PROMPT.value]
    prompts += read_prompts(PROMPTS.value, INFILL.value) if PROMPTS.value else []
    begun = functools.partial(Request.from_text, tokenizer=tokenizer, bos=own.bos, **room)
    return made(
      functools.partial(begun, i, prompt.text, infill=prompt.infill)
      for i, prompt in enumerate(prompts or [Prompt("")])
    )
  talks = [chat.from_user(text) for text in PROMPT.value]
  talks += chat.read_conversations(PROMPTS.value) if PROMPTS.value else []
  if not talks:
    raise ValueError("--chat needs something said: --prompt or --prompts")
  ids = chat.open_template(trained.directory).encode(talks, tokenizer)
  return made(
    functools.partial(
      Request.from_ids, i, str(talk[-1]["content"]), ids[i], tokenizer.mask_id, **room
    )
    for i, talk in enumerate(talks)
  )


def made(requests: Iterable[Callable[[], Request]]) -> list[Request]:
  """Each as often as --samples says."""
  found, skipped = [], []
  for request in requests:
    try:
      found += request().samples(SAMPLES.value)
    except ValueError as error:
      if not SKIP_BAD.value:
        raise
      skipped.append(f"skipped: {error}")
  if not found:
    raise ValueError(f"--skip_bad leaves no prompt; {skipped[0]}")
  print(*skipped, sep="\n", end="\n" if skipped else "", file=sys.stderr)
  return found


def main() -> None:
  if DISTRIBUTED.value:
    jax.distributed.initialize()
  with command.mistakes():
    which = int(STEP.value) if STEP.value.isdigit() else STEP.value
    trained = build.pretrained(CHECKPOINT.value, which)
    model, tokenizer = trained.model, trained.tokenizer
    drafter = build.pretrained(DRAFTER.value) if DRAFTER.value else None
    config = build.SamplingConfig.read(CONFIG.value, command.FIELDS.value)
    sampler, own = build.sampling(
      config, model, trained.facts, drafter and (drafter.model, drafter.facts)
    )
    requests = asked(trained, own)
    # On a pod every process samples its share of the prompts on its own devices, to its own file.
    process, processes = jax.process_index(), jax.process_count()
    requests = requests[process::processes]
    mesh = own.mesh.make(jax.local_devices())
    if LIVE.value and OUT.value:
      raise ValueError("--live shows and --out writes: give one of them")
    generator = Generator(
      sampler,
      tokenizer,
      mesh,
      align=own.align,
      batch=own.batch,
      row_tile=own.row_tile,
      stops=STOP.value,
      driver=own.parallel,
    )
    params, step = trained.params(parallel.shard_params(model.abstract(), mesh))
    if drafter:
      params = params, drafter.params(parallel.shard_params(drafter.model.abstract(), mesh))[0]
    settings = [build.plain(config), digest(requests), TRACE.value, STOP.value]
    job = [trained.config, step, settings, checksums(params)]
    out = OUT.value if processes == 1 or not OUT.value else f"{OUT.value}.{process}-of-{processes}"
    output = Output(out, job) if out else None
  if LIVE.value:
    for batch in generator.batches(requests):
      canvases = generator.stream(params, [requests[i] for i in batch], seed=own.seed)
      live.show(canvases, len(batch), tokenizer, sampler.mask_id)
  elif output is None:
    generator(params, requests, seed=own.seed, on_batch=lambda done: print(describe(done)))
  else:
    with command.mistakes((OSError,)), output:
      output.fill(generator, params, requests, seed=own.seed, trace=TRACE.value)


if __name__ == "__main__":
  command.run(main, required=(CONFIG, CHECKPOINT))
