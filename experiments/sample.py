r"""Samples from a checkpoint, a Hugging Face directory or a GGUF file: one prompt, or many.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/default.py --prompt="def f("
python experiments/sample.py --checkpoint=DIR --config=... --prompts=IN.jsonl --out=OUT.jsonl

With --infill `[[8]]` in a prompt leaves eight tokens open: $'def f(x):\n    [[8]]\n    return y' is
filled in; `[[[8]]` is the literal text. IN.jsonl holds {"prompt": "..."} a line, and may say
"infill": true; a row that ends makes room at once for the next of them (`dlm.serving.offline`).
The same command takes up an interrupted OUT.jsonl. With --chat a prompt is what a
user says, put through the checkpoint's chat template; a line may hold {"messages": [{"role": "...",
"content": "..."}, ...], "tools": [...]}, and --chat_args='{"enable_thinking": false}' tells the
template more. --drafter=DIR names the checkpoint that drafts for an autoregressive one: a diffusion
model (configs/sample/deer.py), or a drafter of that one alone (dflash.py). --stop=STRING ends
completions where it begins. --adapter=PEFT_DIR is merged into the checkpoint, or acts on its mask
tokens if it is gated; --draft_adapter=PEFT_DIR acts while the checkpoint drafts for itself
(nemotron.py).
"""

from absl import flags

from dlm import build, command, live, parallel, waiting
from dlm.checksums import checksums
from dlm.completions import Output, asked, check_out, describe, digest, join, record, share_of
from dlm.generate import generator
from dlm.serving.offline import Offline

CONFIG = flags.DEFINE_string("config", None, "How to sample: FILE.py or FILE.py:ARGUMENT.")
CHECKPOINT = flags.DEFINE_string(
  "checkpoint", None, "Of training, a Hugging Face directory, FILE.gguf or package:NAME."
)
DRAFTER = flags.DEFINE_string("drafter", None, "A second checkpoint, that drafts.")
ADAPTER = flags.DEFINE_string("adapter", None, "Of the checkpoint, in PEFT's layout.")
DRAFT_ADAPTER = flags.DEFINE_string("draft_adapter", None, "Likewise; it acts on drafts alone.")
STEP = flags.DEFINE_string("step", "best", "best, latest or a number.")
PROMPT = flags.DEFINE_multi_string("prompt", [], "May be given several times.")
PROMPTS = flags.DEFINE_string("prompts", None, "A JSONL file of prompts.")
INFILL = flags.DEFINE_bool("infill", False, "[[8]] in a prompt: eight tokens to be found.")
CHAT = flags.DEFINE_bool("chat", False, "A prompt is a message, not a text to continue.")
CHAT_ARGS = flags.DEFINE_string("chat_args", "{}", "Variables of the chat template, as JSON.")
OUT = flags.DEFINE_string("out", None, "A JSONL file of completions; default: the screen.")
TRACE = flags.DEFINE_bool(
  "trace", False, "Also write which forward wrote each token, and its log-probability there."
)
SAMPLES = flags.DEFINE_integer("samples", 1, "Of each prompt.", lower_bound=1)
STOP = flags.DEFINE_multi_string("stop", [], "Ends a completion; may be given several times.")
SKIP_BAD = flags.DEFINE_bool("skip_bad", False, "Leave out prompts that do not fit, and say so.")
LIVE = flags.DEFINE_bool("live", False, "Show the denoising in the terminal.")


def main() -> None:
  if LIVE.value and OUT.value:
    raise ValueError("--live shows and --out writes: give one of them")
  if TRACE.value and not OUT.value:
    raise ValueError("--trace is written: give --out")
  check_out(OUT.value, PROMPTS.value)
  config = build.SamplingConfig.read(CONFIG.value, command.FIELDS.value)
  trained = build.pretrained(
    CHECKPOINT.value, STEP.value, ADAPTER.value, draft_adapter=DRAFT_ADAPTER.value
  )
  drafter = None
  if DRAFTER.value:
    drafter = build.pretrained(DRAFTER.value, words=trained.tokenizer)
  sample, own = generator(config, trained, drafter=drafter, stops=STOP.value)
  requests = asked(
    trained,
    own,
    PROMPT.value,
    PROMPTS.value,
    infill=INFILL.value,
    talk=CHAT.value,
    told=CHAT_ARGS.value,
    samples=SAMPLES.value,
    skip_bad=SKIP_BAD.value,
  )
  # Every process samples its share of the prompts on its own devices.
  every, requests = requests, [*parallel.share(requests)]
  if LIVE.value and len(requests) < len(every):
    raise ValueError("--live shows the canvas of a single process")
  params, step = trained.on(sample.mesh, own.weights)
  if drafter is not None:
    params = params, drafter.on(sample.mesh)[0]
  if LIVE.value:
    for batch in sample.batches(requests):
      canvases = sample.stream(params, [requests[i] for i in batch], seed=own.seed)
      live.show(canvases, len(batch), trained.tokenizer, sample.sampler.mask_id)
    return
  write = Offline(sample) if PROMPTS.value else sample
  work = f"{len(requests)} rows of {sum(int(each.open.sum()) for each in requests)} new tokens"
  with waiting.told(f"compiling, then sampling {work}"):
    if OUT.value:
      settings = [build.plain(config), digest(requests), TRACE.value, STOP.value]
      job = [trained.config, step, settings, checksums(params)]
      with Output(share_of(OUT.value), job) as output:
        output.fill(
          write,
          params,
          requests,
          seed=own.seed,
          records=lambda done: [record(each, TRACE.value) for each in done],
        )
      join(OUT.value)
    elif len(requests) == len(every):
      write(params, requests, seed=own.seed, on_batch=lambda done: print(describe(done)))
    else:
      done = write(params, requests, seed=own.seed) if requests else []
      print("\n".join(parallel.joined([describe([each]) for each in done])))


if __name__ == "__main__":
  command.run(main, required=(CONFIG, CHECKPOINT), distributed=True)
