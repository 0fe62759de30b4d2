"""Our checkpoints in lm-evaluation-harness (github.com/EleutherAI/lm-evaluation-harness), 0.4.13.

Importing this file registers the model "dlm":

  import dlm.evaluation.harness
  lm_eval.simple_evaluate("dlm", "checkpoint=DIR,draws=128", tasks=[...])

`experiments/evaluate.py --harness=TASKS` does all of it. Nothing is downloaded unless both
HF_HUB_OFFLINE and HF_DATASETS_OFFLINE are set to 0 before; what lies in the cache of `datasets` is
used. Three small tasks of our own need no other file: local_choice, local_sums, local_text.
"""

import dataclasses
import difflib
import json
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

# Read when the packages below are imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import datasets
import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.tasks import TaskManager

from dlm import build
from dlm.completions import template_of
from dlm.evaluation.answer_likelihood import AnswerScore
from dlm.evaluation.respond import Responder

OURS = pathlib.Path(__file__).with_name("harness_tasks")
NAMED = 12  # of the tasks that are known, in a message


@register_model("dlm")
class Dlm(LM):
  """A checkpoint of ours, or of others that we read.

  Args:
    checkpoint: a folder, a Hugging Face directory, FILE.gguf or package:NAME.
    config: FILE.py that says how to sample; None: our defaults.
    adapter, step: see `dlm.build.pretrained`.
    batch_size: rows of a forward; None or "auto": those of the config.
    estimator, draws, max_length, seed: see `Responder`.
    device, max_batch_size: the harness's own, and not for JAX: leave them out.
  """

  def __init__(
    self,
    checkpoint: str,
    config: str | None = None,
    adapter: str | None = None,
    step: str | int = "best",
    batch_size: int | str | None = None,
    estimator: str = "auto",
    draws: int = 128,
    max_length: int = 0,
    seed: int = 0,
    device: str | None = None,
    max_batch_size: int | None = None,
  ):
    if device is not None or max_batch_size is not None:
      raise ValueError(
        f"{device=}, {max_batch_size=}: JAX_PLATFORMS chooses the device, batch_size the rows"
      )
    own = build.SamplingConfig() if config is None else build.SamplingConfig.read(config, [])
    trained = build.pretrained(checkpoint, step, adapter)
    rows = 0 if batch_size in (None, "auto") else int(batch_size)
    options = {"estimator": estimator, "draws": draws, "max_length": max_length, "seed": seed}
    self._begin(Responder(trained, own, batch=rows, **options))

  @classmethod
  def of(cls, responder: Responder) -> Self:
    made = cls.__new__(cls)
    made._begin(responder)
    return made

  def _begin(self, responder: Responder) -> None:
    super().__init__()
    self.responder = responder
    self.scores: list[dict[str, Any]] = []  # of every likelihood: its standard error, too

  def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
    found = self.responder.log_likelihoods([request.args for request in requests])
    self._keep(requests, found)
    return [(score.log_likelihood, score.greedy) for score in found]

  def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
    found = self.responder.rolling([request.args[0] for request in requests])
    self._keep(requests, found)
    return [score.log_likelihood for score in found]

  def _keep(self, requests: list[Instance], scores: list[AnswerScore]) -> None:
    for request, score in zip(requests, scores, strict=True):
      where = {"task": request.task_name, "doc": request.doc_id, "choice": request.idx}
      self.scores.append(where | dataclasses.asdict(score))

  def generate_until(self, requests: list[Instance]) -> list[str]:
    return self.responder.write([request.args for request in requests])

  def apply_chat_template(
    self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
  ) -> str:
    return self.responder.chat(chat_history, answer=add_generation_prompt)

  def chat_template(self, chat_template: bool | str = False) -> str | None:
    return template_of(self.responder.trained).text if chat_template else None

  @property
  def tokenizer_name(self) -> str:
    return self.responder.trained.tokenizer.fingerprint

  def get_model_info(self) -> dict[str, Any]:
    """What results["config"] says of us."""
    mine, scorer = self.responder, self.responder.scorer
    errors = [each["standard_error"] for each in self.scores]
    known = [error for error in errors if error is not None]
    return {
      "checkpoint": str(mine.trained.directory),
      "step": mine.step,
      "estimator": None if scorer is None else scorer.estimator,
      "draws": None if scorer is None else scorer.draws,
      "max_length": mine.max_length,
      "sampling": build.plain(mine.config),
      "largest_standard_error": max(known, default=None),
      **dataclasses.asdict(mine.counts),
    }


def tasks(names: Sequence[str], include: Sequence[str] = ()) -> tuple[TaskManager, list[str]]:
  """What finds tasks of these names: ours, those of the folders `include`, the harness's.

  The harness's thousands are only looked through for a name that is none of the others.

  Raises:
    ValueError: a folder is none, or a name is unknown; it lists known ones.
  """
  for folder in include:
    if not pathlib.Path(folder).is_dir():
      raise ValueError(f"--include_path={folder} is no folder of YAML tasks")
  places = [str(OURS), *include]
  manager = TaskManager(include_path=places, include_defaults=False)
  near = manager.all_tasks
  if any(not manager.match_tasks([name]) for name in names):
    manager = TaskManager(include_path=places)
  for name in names:
    if not manager.match_tasks([name]):
      like = difflib.get_close_matches(name, manager.all_tasks, NAMED)
      others = f"; of the harness's {len(manager.all_tasks) - len(near)}: {', '.join(like)}"
      raise ValueError(
        f"--harness: unknown task {name!r}; known: {', '.join(near)}{others if like else ''}"
      )
  return manager, manager.match_tasks(list(names))


def run(
  responder: Responder,
  found: tuple[TaskManager, list[str]],
  *,
  shots: int | None = None,
  size: int | None = None,
  chat: bool = False,
  seed: int = 0,
) -> tuple[dict[str, Any], Dlm]:
  """`simple_evaluate` on these tasks: its results, and the model that answered.

  Args:
    found: by `tasks`.
    shots: None: each task's own. size: problems of each task; None: all.

  Raises:
    ValueError: the data of a task is not here: which, and how to get it.
  """
  manager, names = found
  logging.getLogger("lm_eval").setLevel(logging.ERROR)
  model = Dlm.of(responder)
  try:
    results = lm_eval.simple_evaluate(
      model, tasks=names, task_manager=manager, num_fewshot=shots, limit=size,
      apply_chat_template=chat, fewshot_random_seed=seed, bootstrap_iters=1000, log_samples=True,
    )  # fmt: skip
  except (datasets.exceptions.DatasetsError, FileNotFoundError, ConnectionError) as error:
    raise ValueError(_missing(manager, names, error)) from error
  return results, model


def _missing(manager: TaskManager, names: Sequence[str], error: Exception) -> str:
  """What a task's data is called, and how to get it."""
  said = []
  for name in names:
    config: Mapping[str, Any] = getattr(manager.task_index.get(name), "cfg", None) or {}
    path, part = config.get("dataset_path"), config.get("dataset_name")
    if path is not None:
      said.append(f"{name}: {path}{f' ({part})' if part else ''}")
  cache = datasets.config.HF_DATASETS_CACHE
  return (
    f"--harness: data is missing, of {'; '.join(said) or ', '.join(names)}: {error!s:.300}. It is "
    f"looked for in {cache}; HF_HUB_OFFLINE=0 HF_DATASETS_OFFLINE=0 before the command "
    "lets it be downloaded there"
  )


def told(metrics: Mapping[str, Any]) -> str:
  """A task's metrics with their standard errors, for the screen."""
  shown = []
  for name, value in metrics.items():
    metric, comma, kind = name.partition(",")
    if not comma or metric.endswith("_stderr"):
      continue
    error = metrics.get(f"{metric}_stderr,{kind}")
    spread = f" +- {error:.3f}" if isinstance(error, float) else ""
    number = f"{value:.4g}" if isinstance(value, float) else value
    shown.append(f"{metric}{'' if kind == 'none' else f' ({kind})'} {number}{spread}")
  return ", ".join(shown)


def summary(info: Mapping[str, Any]) -> str:
  """How all of it came about, for the screen; `info`: of `Dlm.get_model_info`."""
  error = info["largest_standard_error"]
  likelihoods = (
    f"{info['scored']} likelihoods by {info['estimator']}, {info['draws']} draws at most, in "
    f"{info['scoring_forwards']} forwards, standard errors "
    f"{'unknown' if error is None else f'up to {error:.3g} nats'}; "
  )
  answers = (
    f"{info['answers']} answers, {info['tokens']} tokens in {info['forwards']} forwards; "
    if info["answers"]
    else ""
  )
  return (
    f"{likelihoods if info['scored'] else ''}{answers}"
    f"{info['truncated']} prompts cut to max_length={info['max_length']}"
  )


def record(results: Mapping[str, Any], model: Dlm) -> dict[str, Any]:
  """For a JSON file: results, how they came about, and every likelihood with its error."""
  kept = ("results", "groups", "n-shot", "n-samples", "versions", "lm_eval_version", "samples")
  found = {name: results[name] for name in kept if name in results}
  plain = json.loads(json.dumps(found, default=str))
  return {"model": model.get_model_info(), **plain, "likelihoods": model.scores}
