r"""Samples from a checkpoint: one prompt, or a file of them.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/default.py --prompt="def f("
python experiments/sample.py --checkpoint=DIR --config=... --prompts=IN.jsonl --out=OUT.jsonl

`[[8]]` in a prompt leaves eight tokens open: $'def f(x):\n    [[8]]\n    return y' is filled in;
`[[[8]]` is the literal text. IN.jsonl holds {"prompt": "..."} a line. The same command takes up an
interrupted OUT.jsonl.
"""

import jax
from absl import flags
from ml_collections import config_flags

from dlm import build, checkpoint, command, live, parallel
from dlm.completions import Output, describe, read_prompts
from dlm.generate import Generator, Request

CONFIG = config_flags.DEFINE_config_file("config", None, "How to sample.", lock_config=True)
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A folder that training made.")
STEP = flags.DEFINE_string("step", "best", "best, latest or a number.")
PROMPT = flags.DEFINE_multi_string("prompt", [], "May be given several times.")
PROMPTS = flags.DEFINE_string("prompts", None, "A JSONL file of prompts.")
OUT = flags.DEFINE_string("out", None, "A JSONL file of completions; default: the screen.")
TRACE = flags.DEFINE_bool("trace", False, "Also write which forward wrote each token.")
LIVE = flags.DEFINE_bool("live", False, "Show the denoising in the terminal.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several processes: a TPU pod.")


def main() -> None:
  if DISTRIBUTED.value:
    jax.distributed.initialize()
  with command.mistakes():
    folder = CHECKPOINT.value
    trained = build.plain(checkpoint.read_json(folder, "config.json"))
    tokenizer = build.saved_tokenizer(folder)
    model = build.model(trained, tokenizer)
    sampler, own = build.sampling(CONFIG.value, model, checkpoint.read_json(folder, "facts.json"))
    texts = [*PROMPT.value, *(read_prompts(PROMPTS.value) if PROMPTS.value else [])] or [""]
    room = {"slots": own.slots, "max_new_tokens": own.max_new_tokens}
    requests = [Request.from_text(i, text, tokenizer, **room) for i, text in enumerate(texts)]
    # On a pod every process samples its share of the prompts on its own devices, to its own file.
    process, processes = jax.process_index(), jax.process_count()
    requests = requests[process::processes]
    mesh = build.mesh(build.plain(CONFIG.value), jax.local_devices())
    if LIVE.value and OUT.value:
      raise ValueError("--live shows and --out writes: give one of them")
    generator = Generator(
      sampler, tokenizer, mesh, align=own.align, batch=own.batch, driver=own.parallel
    )
    params, step = checkpoint.restore_params(
      folder,
      int(STEP.value) if STEP.value.isdigit() else STEP.value,
      shardings=parallel.shard_params(model.abstract(), mesh),
    )
    job = [trained, step, build.plain(CONFIG.value), texts, TRACE.value]
    out = OUT.value if processes == 1 or not OUT.value else f"{OUT.value}.{process}-of-{processes}"
    output = Output(out, job) if out else None
  if LIVE.value:
    shown = requests[: generator.batch]
    canvases = generator.stream(params, shown, seed=own.seed)
    live.show(canvases, len(shown), tokenizer, sampler.mask_id)
  elif output is None:
    generator(params, requests, seed=own.seed, on_batch=lambda done: print(describe(done)))
  else:
    output.fill(generator, params, requests, seed=own.seed, trace=TRACE.value)


if __name__ == "__main__":
  command.run(main, required=(CONFIG, CHECKPOINT))
