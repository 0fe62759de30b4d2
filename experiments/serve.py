r"""Serves a checkpoint as OpenAI's API, with a page that shows the denoising.

python experiments/serve.py --checkpoint=DIR --config=configs/serve/default.py --port=8000

curl localhost:8000/v1/completions -H 'content-type: application/json' \
  -d '{"model": "NAME", "prompt": "def f(", "max_tokens": 64, "stream": true}'

NAME is --name, or the checkpoint's last part. Beside OpenAI's fields a body may say "threshold",
"priority" ("online" or "offline"), "infill" (`[[8]]` in its prompt, or in its last message, the
assistant's, is eight tokens to be found), "holes" (what each of them may be: {"choice": [...]},
{"regex": "..."}, {"tokens": [...]} or null) and, beside "stream", "draft": what may still change is
told as it is written. Keys that are let in
stand in the environment variable DLM_API_KEYS, separated by commas. All is compiled before the
server says that it is ready; SIGTERM lets what runs end.
"""

import asyncio
import pathlib

from absl import flags

from dlm import build, command
from dlm.completions import template_of
from dlm.data.install import require
from dlm.serving.config import ServeConfig
from dlm.serving.engine import engine
from dlm.serving.metrics import Metrics
from dlm.serving.protocol import Reader
from dlm.serving.runner import Runner

CONFIG = flags.DEFINE_string("config", "configs/serve/default.py", "FILE.py or FILE.py:ARGUMENT.")
CHECKPOINT = flags.DEFINE_string(
  "checkpoint", None, "Of training, a Hugging Face directory, FILE.gguf or package:NAME."
)
ADAPTER = flags.DEFINE_string("adapter", None, "Of the checkpoint, in PEFT's layout.")
STEP = flags.DEFINE_string("step", "best", "best, latest or a number.")
HOST = flags.DEFINE_string("host", "127.0.0.1", "The address to listen at; 0.0.0.0: at all.")
PORT = flags.DEFINE_integer("port", 8000, "0: any that is free.", 0, 65535)
NAME = flags.DEFINE_string("name", None, "Of the model; default: the checkpoint's last part.")


def main() -> None:
  require("uvicorn", "serve")
  from dlm.serving import app  # needs starlette and uvicorn, which --help does not

  config = ServeConfig.read(CONFIG.value, command.FIELDS.value)
  trained = build.pretrained(CHECKPOINT.value, STEP.value, ADAPTER.value)
  sockets = app.bound(HOST.value, PORT.value)
  print("compiling all programs: until that is done, requests are refused", flush=True)
  served = engine(config.sampling, trained, config.serving)
  reader = Reader(
    model=NAME.value or pathlib.PurePath(CHECKPOINT.value).name,
    tokenizer=trained.tokenizer,
    template=lambda: template_of(trained),
    slots=max(config.serving.sizes) - served.sampler.policy.spare,
    new=config.sampling.max_new_tokens,
    bos=config.sampling.bos,
    words=served.words,
    start_within=config.start_within,
    end_within=config.end_within,
  )
  metrics = Metrics(served)
  server = app.Server(reader, Runner(served, metrics.tick), metrics, config.doors)

  def ready(port: int) -> None:
    where = f"http://{HOST.value}:{port}"
    print(f"{reader.model} at {where}/v1, a page at {where}", flush=True)

  asyncio.run(app.serve(server, sockets, ready))


if __name__ == "__main__":
  command.run(main, required=(CHECKPOINT,))
