"""A real server, asked by OpenAI's own client and by clients that get it wrong."""

import asyncio
import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

import openai
import pytest
from tornado import websocket

from dlm import build, train
from tests.experiments import mains
from tests.experiments.sample_test import TRAINING

KEYS = ("first key", "second")
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}a:{% endif %}"
SLOTS = 64


@contextlib.contextmanager
def running(folder, **environment):
  """A server process of a tiny model; its URL."""
  model = folder / "model"
  config = TRAINING | {"objective": {"name": "bd3lm", "block": 8}}
  train.train(build.everything(config), model)
  (model / "chat_template.jinja").write_text(TEMPLATE)
  out, err = folder / "out", folder / "err"
  argv = [
    "experiments/serve.py", f"--checkpoint={model}", "--name=tiny", "--port=0",
    f"--config.serving.sizes={(SLOTS,)}", "--config.serving.rows=2", "--config.serving.fill=16",
    "--config.serving.turns=1", "--config.serving.limits.waiting=4", "--config.sampling.stop=never",
  ]  # fmt: skip
  process = mains.PROCESSES.Process(target=mains.call, args=(argv, out, err), kwargs=environment)
  process.start()
  try:
    for _ in range(6000):
      if found := re.search(r"(http://\S+)/v1", out.read_text() if out.exists() else ""):
        break
      assert process.is_alive(), err.read_text()
      time.sleep(0.05)
    yield found[1], process, err
  finally:
    if process.is_alive():
      process.kill()
    process.join()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
  with running(tmp_path_factory.mktemp("serve"), DLM_API_KEYS=",".join(KEYS)) as found:
    yield found


@pytest.fixture(scope="module")
def url(server):
  return server[0]


@pytest.fixture(scope="module")
def client(url):
  with openai.OpenAI(base_url=f"{url}/v1", api_key=KEYS[0], max_retries=0, timeout=120) as made:
    yield made


def post(url, route, body, *, kind="application/json", key=KEYS[0]):
  """Status, headers and JSON of a raw request."""
  content = body if isinstance(body, bytes) else json.dumps(body).encode()
  headers = {"content-type": kind, "authorization": f"Bearer {key}"}
  request = urllib.request.Request(url + route, content, headers)
  try:
    with urllib.request.urlopen(request, timeout=120) as reply:
      return reply.status, reply.headers, json.load(reply)
  except urllib.error.HTTPError as error:
    return error.code, error.headers, json.load(error)


def metric(url, name):
  with urllib.request.urlopen(f"{url}/metrics", timeout=120) as reply:
    found = re.search(rf"^{re.escape(name)} (\S+)$", reply.read().decode(), re.MULTILINE)
  return float(found[1]) if found else 0.0


COMMON = {"model": "tiny", "max_tokens": 20, "seed": 5, "temperature": 1.0}


def test_a_completion_says_what_it_wrote_and_what_it_cost(client):
  done = client.completions.create(prompt="copy: a b c", logprobs=0, **COMMON)
  choice, own = done.choices[0], done.choices[0].model_extra["dlm"]
  assert (done.object, done.model, choice.finish_reason) == ("text_completion", "tiny", "length")
  assert done.usage.prompt_tokens == 11 and done.usage.completion_tokens == 20
  assert len(choice.logprobs.tokens) == 20 and max(choice.logprobs.token_logprobs) <= 0
  assert own["tokens_per_forward"] == round(20 / sum(own["forwards"].values()), 4)
  again = client.completions.create(prompt="copy: a b c", **COMMON)
  assert again.choices[0].text == choice.text, "its seed decides, not who else is there"


def test_a_stream_adds_up_to_the_whole_and_shows_its_drafts(client):
  whole = client.completions.create(prompt="copy: a b c", logprobs=0, **COMMON)
  parts = list(
    client.completions.create(
      prompt="copy: a b c",
      logprobs=0,
      stream=True,
      stream_options={"include_usage": True},
      extra_body={"draft": True},
      **COMMON,
    )
  )
  *parts, last = parts
  assert last.choices == [] and last.usage == whole.usage
  choices = [part.choices[0] for part in parts]
  assert "".join(choice.text for choice in choices) == whole.choices[0].text
  logprobs = [x for c in choices if c.logprobs for x in c.logprobs.token_logprobs]
  assert logprobs == whole.choices[0].logprobs.token_logprobs
  assert [choice.finish_reason for choice in choices[:-1]] == [None] * (len(choices) - 1)
  drafts = [choice.model_extra["draft"] for choice in choices if "draft" in choice.model_extra]
  opened = [[each["slot"] for each in draft] for draft in drafts]
  assert opened[0][-1] == 30 and all(b[0] >= a[0] for a, b in itertools.pairwise(opened))
  assert any(each["text"] is not None for draft in drafts for each in draft)


def test_samples_differ_and_a_stop_string_ends_the_text(client):
  two = client.completions.create(prompt="copy: a", n=2, **COMMON)
  texts = [choice.text for choice in two.choices]
  assert texts[0] != texts[1] and two.usage.prompt_tokens == 7
  stop = texts[0][5:7]
  cut = client.completions.create(prompt="copy: a", stop=[stop, "\0\0\0"], **COMMON)
  assert cut.choices[0].text == texts[0][: texts[0].index(stop)]
  assert cut.choices[0].finish_reason == "stop"


def test_a_message_goes_through_the_chat_template(client):
  said = [{"role": "user", "content": "hi"}]
  own = {"model": "tiny", "max_completion_tokens": 12, "seed": 1, "temperature": 1.0}
  whole = client.chat.completions.create(messages=said, logprobs=True, **own)
  choice = whole.choices[0]
  assert choice.message.role == "assistant" and whole.usage.prompt_tokens == len("user: hi\na:")
  assert len(choice.logprobs.content) == 12
  parts = list(client.chat.completions.create(messages=said, stream=True, **own))
  assert parts[0].choices[0].delta.role == "assistant"
  text = "".join(part.choices[0].delta.content or "" for part in parts)
  assert text == choice.message.content


def test_holes_are_where_a_field_says_so(client, url):
  ask = {"model": "tiny", "temperature": 0}
  filled = client.completions.create(prompt="f([[3]])", extra_body={"infill": True}, **ask)
  text = filled.choices[0].text
  assert text.startswith("f(") and text.endswith(")")
  (hole,) = filled.choices[0].model_extra["dlm"]["holes"]
  assert hole["text"] == text[2:-1] and hole["logprob"] <= 0 and hole["entropy"] is None
  behind = client.completions.create(prompt="f(", suffix=")", max_tokens=3, **ask)
  assert behind.choices[0].text == text
  # Without the field, and where ids are the mask's, a prompt is what it says.
  for prompt, tokens in (("f([[3]])", 8), ("<mask>", 6), ([259, 257, 102], 3)):
    done = client.completions.create(prompt=prompt, max_tokens=2, **ask)
    assert done.usage.prompt_tokens == tokens and done.usage.completion_tokens == 2


def test_holes_say_what_they_may(client):
  ask = {"model": "tiny", "temperature": 1, "seed": 3}
  body = {"infill": True, "holes": [{"choice": ["yes", "not"]}, {"tokens": ["1", "2"]}]}
  filled = client.completions.create(prompt="[[3]] [[2]][[3]", n=3, extra_body=body, **ask)
  for choice in filled.choices:
    assert re.fullmatch(r"(yes|not) [12]{2}\[\[3\]", choice.text)
    assert all(h["logprob"] <= 0 <= h["entropy"] for h in choice.model_extra["dlm"]["holes"])
  said = [{"role": "user", "content": "[[2]]"}, {"role": "assistant", "content": "<[[3]]>"}]
  body["holes"] = body["holes"][:1]
  parts = client.chat.completions.create(messages=said, stream=True, extra_body=body, **ask)
  told = "".join(part.choices[0].delta.content or "" for part in parts)
  assert told in ("<yes>", "<not>")


def test_an_answer_is_held_to_a_schema(client):
  pytest.importorskip("outlines_core")
  schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
  form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
  own = {"model": "tiny", "temperature": 1, "max_completion_tokens": 10}
  said = [{"role": "user", "content": "hi"}]
  done = client.chat.completions.create(messages=said, response_format=form, **own)
  assert json.loads(done.choices[0].message.content)["a"] in "xy"


TEXT = "/v1/completions"
CHAT = "/v1/chat/completions"
P = {"prompt": "a"}


@pytest.mark.parametrize(
  ("route", "body", "status", "says"),
  [
    (TEXT, b"{", 400, "JSON"),
    (TEXT, b"[]", 400, "object"),
    (TEXT, {}, 400, "prompt"),
    (TEXT, {"prompt": ""}, 400, "prompt"),
    (TEXT, {"prompt": [1, 999]}, 400, "prompt"),
    (TEXT, P | {"max_tokens": 0}, 400, "max_tokens"),
    (TEXT, P | {"max_tokens": True}, 400, "max_tokens"),
    (TEXT, P | {"max_tokens": SLOTS}, 400, "prompt"),
    (TEXT, P | {"n": 0}, 400, "n"),
    (TEXT, P | {"n": 1000}, 400, "n"),
    (TEXT, P | {"temperature": -1}, 400, "temperature"),
    (TEXT, b'{"prompt": "a", "temperature": NaN}', 400, "temperature"),
    (TEXT, P | {"top_p": 0}, 400, "top_p"),
    (TEXT, P | {"holes": [{"choice": ["abcd"]}], "max_tokens": 3}, 400, "choice"),
    (TEXT, P | {"seed": 2**40}, 400, "seed"),
    (TEXT, P | {"stop": [""]}, 400, "stop"),
    (TEXT, P | {"logprobs": 5}, 400, "logprobs"),
    (TEXT, P | {"logit_bias": {"1": 2}}, 400, "logit_bias"),
    (TEXT, P | {"response_format": {"type": "json_object"}}, 400, "response_format"),
    (TEXT, P | {"stream_options": {"include_usage": True}}, 400, "stream_options"),
    (TEXT, P | {"draft": True}, 400, "draft"),
    (TEXT, P | {"threshold": 2}, 400, "threshold"),
    (TEXT, P | {"block_length": 4}, 400, "block_length"),
    (TEXT, P | {"infill": True}, 400, "infill"),
    (TEXT, P | {"suffix": "b"}, 400, "suffix"),
    (TEXT, P | {"model": "gpt"}, 404, "model"),
    (CHAT, {"messages": []}, 400, "messages"),
    (CHAT, {"messages": [{"role": "user"}]}, 400, "messages"),
    (CHAT, {"messages": [{"role": "user", "content": "a" * 80}]}, 400, "messages"),
    ("/v1/embeddings", P, 404, "embeddings"),
    (TEXT, P | {"prompt": ["a"] * 8}, 429, "waiting"),
  ],
)
def test_what_is_wrong_is_named(url, route, body, status, says):
  found, headers, reply = post(url, route, body)
  error = reply["error"]
  assert found == status and says in (error["param"], *re.findall(r"\w+", error["message"]))
  assert set(error) == {"message", "type", "param", "code"} and headers["x-request-id"]
  assert status != 429 or int(headers["retry-after"]) >= 1


def test_what_is_not_let_in(url):
  assert post(url, TEXT, P, key="third")[0] == 401
  assert post(url, TEXT, P, kind="text/plain")[0] == 415
  assert post(url, TEXT, b" " * ((4 << 20) + 1))[0] == 413
  with pytest.raises(urllib.error.HTTPError, match="405"):
    urllib.request.urlopen(f"{url}/v1/completions", timeout=120)
  with pytest.raises(urllib.error.HTTPError, match="401"):
    urllib.request.urlopen(f"{url}/v1/models", timeout=120)


def test_who_goes_away_leaves_its_row(client, url):
  before = metric(url, 'dlm_ends_total{reason="cancelled"}')
  stream = client.completions.create(prompt="a", n=2, stream=True, **COMMON | {"max_tokens": 63})
  next(iter(stream))
  stream.close()
  host, _, port = url.removeprefix("http://").partition(":")
  with socket.create_connection((host, int(port))) as whole:  # and one that waits for all of it
    body = json.dumps({"prompt": "b", "max_tokens": 63}).encode()
    head = f"POST {TEXT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer second\r\ncontent-type: "
    whole.sendall(f"{head}application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
  for _ in range(1200):
    if metric(url, "dlm_running") + metric(url, "dlm_waiting") == 0:
      break
    time.sleep(0.05)
  assert metric(url, "dlm_running") == 0
  assert metric(url, 'dlm_ends_total{reason="cancelled"}') > before


async def in_browser(browser, folder, link, act, until):
  """A phone opens a link, acts once it can, and waits for an expression: the page's text, width."""
  process = subprocess.Popen(
    [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}",
     "--remote-debugging-port=0", "about:blank"],
    stderr=subprocess.DEVNULL,
  )  # fmt: skip
  try:
    door = folder / "DevToolsActivePort"
    while not door.exists() or len(door.read_text().split()) < 2:
      await asyncio.sleep(0.05)
    port, path = door.read_text().split()
    socket = await websocket.websocket_connect(f"ws://127.0.0.1:{port}{path}")
    number = itertools.count(1)

    async def do(method, **told):
      own = next(number)
      at = {name: told.pop(name) for name in ("sessionId",) if name in told}
      await socket.write_message(json.dumps({"id": own, "method": method, "params": told, **at}))
      while (reply := json.loads(await socket.read_message())).get("id") != own:
        pass
      return reply["result"]

    target = (await do("Target.createTarget", url=link))["targetId"]
    own = (await do("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]

    phone = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    await do("Emulation.setDeviceMetricsOverride", sessionId=own, **phone)

    async def value(expression):
      told = {"expression": expression, "returnByValue": True, "sessionId": own}
      return (await do("Runtime.evaluate", **told))["result"].get("value")

    for expression in (act, until):
      while not await value(expression):
        await asyncio.sleep(0.1)
    text = await value("document.body.innerText + document.documentElement.scrollWidth")
    socket.close()
    while await socket.read_message() is not None:
      pass
    return text
  finally:
    process.kill()
    process.wait()


def test_the_page_works_without_anything_else(url, tmp_path):
  page = urllib.request.urlopen(f"{url}/", timeout=120).read().decode()
  assert not re.search(r"(src|href)\s*=|@import|https?://", page), "it loads nothing"
  browser = shutil.which("chromium")
  if browser is None:
    pytest.skip("chromium is not here")
  link = f"{url}/#prompt=copy:%20a%20b&most=20&seed=5&temperature=1&key=first%20key"
  ended = "document.body.innerText.split('ended by').length == 3"
  again = f"{ended} && (document.dispatchEvent(new KeyboardEvent("
  again += "'keydown', {key: 'Enter', ctrlKey: true})), true)"
  text = asyncio.run(in_browser(browser, tmp_path, link, again, ended))
  assert text.count("ended by length") == 2 and text.count("copy: a b") == 2
  assert text.endswith("390"), "nothing is wider than a phone"


def test_nothing_was_compiled_while_serving(url, client):
  client.completions.create(prompt="z" * 40, **COMMON)
  assert metric(url, "dlm_compiles_while_serving") == 0
  with urllib.request.urlopen(f"{url}/ready", timeout=120) as reply:
    assert json.load(reply) == {"ready": True}


def test_it_lets_end_what_runs_when_it_is_asked_to_stop(server, client, url):
  """The last test of this server."""
  _, process, err = server
  stream = client.completions.create(prompt="a", stream=True, **COMMON | {"max_tokens": 63})
  parts = iter(stream)
  next(parts)
  os.kill(process.pid, signal.SIGTERM)
  for _ in range(1200):
    status, _, reply = post(url, TEXT, P)
    if status == 503:
      break
  assert (status, reply["error"]["code"]) == (503, "shutting_down")
  assert list(parts)[-1].choices[0].finish_reason == "length"
  process.join(60)
  assert process.exitcode == 0 and err.read_text() == ""
