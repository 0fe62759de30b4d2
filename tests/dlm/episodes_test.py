"""Roll-outs with tools: rows, what is estimated of them, and a run that learns from them."""

import dataclasses
import json
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import build, checkpoint, episodes, rollout, train, workdir
from dlm.agent import Agent
from dlm.metrics import records
from dlm.objectives.estimators import ESTIMATORS
from dlm.train import Step
from dlm.types import Batch
from tests.dlm import rollout_test

BLOCK, LENGTH = 8, 48
FORCED = ((1, ord("<")), (7, ord(">")))
CONFIG = {
  "steps": 4,
  "batch": 4,
  "log_every": 1,
  "objective": {"name": "policy_gradient", "estimator": {"name": "trace", "block": BLOCK}},
  "rollout": {
    "policy": {
      "name": "region", "first": 1, "last": 7, "forced": FORCED,
      "inner": {"name": "fixed", "k": 1},
    },
    "temperature": 1.0, "max_new_tokens": BLOCK, "may_predict_mask": True, "stop": "never",
  },
  "tools": {
    "of": (f"{__name__}:echo",), "turns": 2, "frame": ("[", "]"), "response_tokens": 5,
    "answer_tokens": 4,
  },
  "rewards": {"of": ((f"{__name__}:weighs", 1.0),), "group": 2},
  "optimizer": {"lr": 1e-2},
  "checkpoint": {"every": 2, "keep_best": 0},
}  # fmt: skip
MODEL = dict(width=32, layers=1, heads=2, kv_heads=1, head_dim=16, mlp=48)


def echo(text: str) -> str:
  return text.upper()


def refuses(text: str) -> str:
  raise OSError(f"no network for {text!r}")


NEVER = threading.Event()


def hangs(text: str) -> str:
  return str(NEVER.wait())


def weighs(written):
  """What texts of an untrained model differ in."""
  return sum(map(ord, written.whole)) / 1000


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """A model in blocks whose predictions depend on what it reads, and questions."""
  folder = tmp_path_factory.mktemp("runs") / "base"
  path = folder.with_name("asked.jsonl")
  lines = ({"prompt": f"{i}?", "completion": f"{i}."} for i in range(40))
  path.write_text("".join(json.dumps(each) + "\n" for each in lines))
  CONFIG["data"] = {
    "sources": ((f"jsonl:{path}", 1.0),), "length": LENGTH, "mode": "pad", "pad": "none",
  }  # fmt: skip
  return untrained(folder, {"name": "bd3lm", "block": BLOCK})


def untrained(folder, objective):
  config = {name: CONFIG[name] for name in ("steps", "batch", "data", "optimizer", "checkpoint")}
  run = build.everything(config | {"objective": objective, "model": MODEL, "batch": 8})
  folder.mkdir()
  workdir.fill(folder, run.config(), run.facts, run.tokenizer)
  params = jax.jit(run.model.init)(jax.random.key(0))
  checkpoint.save_params(folder, 0, jax.tree.map(lambda x: 3 * x, params), {"from": "nowhere"})
  return folder


def training(origin, **changes):
  return rollout_test.training(origin, CONFIG, **changes)


def letters(ids):
  """A letter for each byte; special tokens are letters, too."""
  return bytes(np.minimum(ids, 255).astype(np.uint8)).decode("latin-1")


def rolled(run, key=0):
  given = Batch(*map(jnp.asarray, run.rows[0]))
  params = Step(run).init().params
  rows, told = episodes.of(run)(params, given, jax.random.key(key))
  return rows, told, params, given


def test_a_row_is_a_trajectory_in_which_responses_were_given(base):
  run = training(base)
  rows, told, _, given = rolled(run)
  texts = [letters(ids) for ids in rows.tokens_BxL]
  prompts = [p for p in rollout.judge(run).given(given)[0] for _ in range(2)]
  for text, prompt, when, learned in zip(
    texts, prompts, np.asarray(rows.extra["when"]), np.asarray(rows.noisable_BxL), strict=True
  ):
    assert text[:BLOCK] == prompt.rjust(BLOCK, "\n")
    for turn in (1, 3):  # blocks: the question, a turn, its response, a turn, its response, answer
      at = turn * BLOCK
      assert (text[at + 1], text[at + 7]) == ("<", ">")
      own = np.arange(at, at + BLOCK)
      np.testing.assert_array_equal(when[own] < 0, [False, True, *[False] * 5, True])
      assert text[at + BLOCK] == "[" and text[at + 2 * BLOCK - 1] == "]"
      assert (when[at + BLOCK : at + 2 * BLOCK] == -1).all()
    np.testing.assert_array_equal(learned, when >= 0)
    assert (when[5 * BLOCK :] >= 0).sum() == 4 and learned.sum() == 2 * 6 + 4
    # Forwards are counted over the turns, each of which has its own.
    assert when[1 * BLOCK] < when[3 * BLOCK :].max() and when[3 * BLOCK] < when[5 * BLOCK]
  (written, *_) = rollout.judge(run).written(rows, given)
  assert written.tokens == 16 and len(written.text.encode("utf-8", "replace")) <= 3 * 4
  assert written.text in written.whole and "[" in written.whole
  assert told["rollout/calls"] == 2 and told["rollout/calls_failed"] == 0
  assert told["rollout/tokens"] == 16 and told["rollout/too_long"] == 0


@dataclasses.dataclass(frozen=True)
class Watched:
  """An agent that keeps its episodes."""

  agent: Agent
  done: list = dataclasses.field(default_factory=list)

  def fits(self, asked):
    return self.agent.fits(asked)

  def __call__(self, *arguments, **named):
    self.done.extend(self.agent(*arguments, **named))
    return self.done


def test_what_is_estimated_is_what_the_sampler_saw(base):
  """The log-probability of every token as it was drawn: responses tell what follows them alone."""
  run = training(base)
  given, params = Batch(*map(jnp.asarray, run.rows[0])), Step(run).init().params
  roll = episodes.of(run)
  watched = Watched(roll.agent)
  rows, _ = dataclasses.replace(roll, agent=watched)(params, given, jax.random.key(0))
  rows = rows.replace(extra=rows.extra | {"advantage_B": jnp.zeros(4)})
  got, _ = run.objective.estimate(run.model, params, run.objective.copies({}, rows))
  want = np.zeros(rows.tokens_BxL.shape)
  for i, episode in enumerate(watched.done):
    want[i, : len(episode.row)] = np.nan_to_num(episode.row.logp)
  assert want.min() < -1
  np.testing.assert_allclose(got, want, atol=2e-3)


@pytest.mark.parametrize(
  ("name", "fields", "hidden"),
  [("block_masks", {}, 99), ("block_one_step", {}, 99), ("block_elbo", {"end_id": 98}, 98)],
)
def test_a_response_beside_its_call_in_one_block_is_not_seen_by_it(name, fields, hidden):
  """Masks or the end stand in its place, the clean copy holds it. What was forced stays."""
  learned = jnp.array([[0, 1, 0, 1, 0, 0, 0, 1, 0, 0]], bool)
  batch = Batch(
    tokens_BxL=jnp.arange(10, 20)[None],
    noisable_BxL=learned,
    segment_BxL=jnp.ones((1, 10), jnp.int32),
    position_BxL=jnp.arange(10)[None],
    extra={
      "when": jnp.where(learned, 1, -1),
      "response": jnp.isin(jnp.arange(10), jnp.array([2, 4, 9]))[None],
    },
  )
  estimator, mask_id = ESTIMATORS[name](block=5, **fields), 99
  noisy = estimator.noisy(estimator.draw(jax.random.key(0), batch), batch, mask_id)
  inputs = np.asarray(noisy.inputs_BxW)
  given = np.flatnonzero(~learned[0])
  np.testing.assert_array_equal(given, [0, 2, 4, 5, 6, 8, 9])
  np.testing.assert_array_equal(
    inputs[:, given], [[10, 12, hidden, 15, 16, 18, hidden]] * len(inputs)
  )
  np.testing.assert_array_equal(inputs[:, 10:], [range(10, 20)] * len(inputs))
  assert (noisy.weight_BxL[:, given] == 0).all()


def test_a_resumed_run_is_the_unbroken_one(base, tmp_path):
  whole = train.train(training(base), tmp_path / "whole")
  shutil.copytree(tmp_path / "whole", tmp_path / "run")
  shutil.rmtree(tmp_path / "run" / checkpoint.STEPS / "4")
  resumed = train.train(training(base), tmp_path / "run")
  jax.tree.map(np.testing.assert_array_equal, resumed, whole)
  told = [each for each in records(tmp_path / "whole") if "loss" in each]
  assert len({each["grad_norm"] for each in told}) == 4
  assert all(each["rollout/calls"] == 2 and "rollout/entropy" in each for each in told)


@pytest.mark.parametrize("tool", ["refuses", "hangs"])
def test_a_tool_that_fails_costs_its_rows_and_not_the_run(base, tool):
  run = training(base, **{"tools.of": (f"{__name__}:{tool}",), "tools.seconds": 0.2})
  rows, told, *_ = rolled(run)
  assert told["rollout/calls_failed"] == 1 and np.asarray(rows.noisable_BxL).any(-1).all()
  assert "[error" in letters(rows.tokens_BxL[0])


def test_a_prompt_that_leaves_no_room_writes_nothing(base):
  run = training(base)
  tokens, _, _, positions = (np.array(x) for x in run.rows[0])
  long = np.arange(LENGTH)[None] >= np.array([[LENGTH - 8], [3]])
  given = Batch(*map(jnp.asarray, (tokens, long, np.ones_like(tokens), positions)))
  rows, told = episodes.of(run)(Step(run).init().params, given, jax.random.key(0))
  np.testing.assert_array_equal(np.asarray(rows.noisable_BxL).any(-1), [False, False, True, True])
  assert told["rollout/too_long"] == 0.5
  texts = rollout.judge(run).written(rows, given)
  assert [each.whole == "" for each in texts] == [True, True, False, False]


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"tools.of": ("find",)}, "tools.of: 'find' is unknown; known: search, open, or package"),
    ({"tools.of": ("nowhere:x",)}, "tools.of: 'nowhere:x' cannot be imported"),
    ({"tools.of": ("search",)}, "tools.corpus='': a JSONL file of documents, which search need"),
    ({"tools.of": ("search",), "tools.corpus": "nowhere.jsonl"}, "there is no file nowhere.jsonl"),
    ({"tools.corpus": "x.jsonl"}, "tools.corpus='x.jsonl': .*, which no tool looks into"),
    ({"tools.turns": 0}, "tools.turns=0 must be at least 1"),
    ({"tools.response_tokens": 16}, "leave nothing of data.length=48 for a prompt"),
    ({"rollout": None}, "learns from what the model writes: it needs `rollout`"),
    ({"rollout.policy": {"name": "fixed", "k": 1}}, "the policy must force the tokens around"),
    ({"rollout.max_new_tokens": 7}, "max_new_tokens=7 must hold the call, which ends at 7"),
    ({"rollout.align": "prompt", "rollout.cache": "none"}, "rollout.align='prompt' does not go"),
    (
      {"objective.estimator": {"name": "full_mask"}},
      "objective.estimator='full_mask' is of models with attention Full",
    ),
    (
      {"objective.estimator": {"name": "trace", "block": BLOCK, "align": "answer"}},
      "'trace' is of models with attention AnswerBlocks",
    ),
  ],
)  # fmt: skip
def test_mistakes_are_named_before_work_starts(base, fields, message):
  with pytest.raises(ValueError, match=message):
    training(base, **fields)


def test_an_estimator_that_would_see_a_response_beside_its_call_is_refused(base, tmp_path):
  full = untrained(tmp_path / "full", {"name": "exact_count"})
  with pytest.raises(ValueError, match="'full_mask' does not go with tools: it would see"):
    training(full, **{"objective.estimator": {"name": "full_mask"}})
