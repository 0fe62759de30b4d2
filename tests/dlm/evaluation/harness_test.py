"""Against the real lm-evaluation-harness, where it is installed: pip install 'dlm[eval]'."""

import json
import math

import numpy as np
import pytest

lm_eval = pytest.importorskip("lm_eval")

from dlm import build  # noqa: E402
from dlm.evaluation import harness  # noqa: E402
from dlm.evaluation.respond import Responder  # noqa: E402
from tests.dlm.evaluation import checkpoints  # noqa: E402

OURS = ["local_choice", "local_sums", "local_text"]
CONFIG = {"policy": {"name": "fixed", "k": 1}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return checkpoints.write(tmp_path_factory.mktemp("runs") / "run", "block")


def responder(folder, **options):
  config = build.SamplingConfig.of(CONFIG)
  return Responder(build.pretrained(folder), config, draws=8, **options)


@pytest.fixture(scope="module")
def found(folder):
  return harness.run(responder(folder, batch=8), harness.tasks(OURS), size=3)


def test_our_tasks_of_each_kind(found):
  results, model = found
  scores = harness.record(results, model)
  assert [*scores["results"]] == OURS and scores["lm_eval_version"] == "0.4.13"
  assert {"acc,none", "acc_norm,none"} <= {*scores["results"]["local_choice"]}
  assert scores["results"]["local_text"]["bits_per_byte,none"] > 0
  info = scores["model"]
  assert (info["scored"], info["answers"], info["truncated"]) == (
    3 * 4 + 3 * 2,
    3,
    0,
  )  # each text takes two windows
  assert info["estimator"] == "exact_count" and info["largest_standard_error"] > 0
  # What the harness reports of a text is what was scored of it.
  texts = [each for each in model.scores if each["task"] == "local_text"]
  characters = sum(len(each["doc"]["text"]) for each in scores["samples"]["local_text"])
  nats = -sum(each["log_likelihood"] for each in texts)
  got = scores["results"]["local_text"]["bits_per_byte,none"]
  assert got == pytest.approx(nats / characters / math.log(2))
  json.dumps(scores, allow_nan=False)
  assert "acc_norm" in harness.told(scores["results"]["local_choice"])
  assert harness.summary(info).endswith("; 0 prompts cut to max_length=128")
  assert harness.summary(info).startswith("18 likelihoods by exact_count, 8 draws at most, in ")


def test_a_batch_of_one_and_of_eight_agree(folder, found):
  """Through the registered name, as others call it."""
  results, _ = found
  other = lm_eval.simple_evaluate(
    "dlm", f"checkpoint={folder},draws=8", tasks=OURS, limit=3, batch_size=1,
    task_manager=harness.tasks(OURS)[0], bootstrap_iters=0,
  )  # fmt: skip
  for task in OURS:
    for mine, theirs in zip(results["samples"][task], other["samples"][task], strict=True):
      if task == "local_sums":
        assert mine["resps"] == theirs["resps"]
      else:
        logp = [np.ravel(each["resps"])[0] for each in (mine, theirs)]
        assert float(logp[0]) == pytest.approx(float(logp[1]), rel=1e-4)
  assert other["config"]["checkpoint"] == str(folder)


def test_a_folder_of_ones_own_and_what_is_missing(folder, tmp_path):
  task = {"dataset_path": "json", "output_type": "multiple_choice", "test_split": "test",
          "doc_to_text": "{{q}}", "doc_to_choice": ["a", "b"], "doc_to_target": 0}  # fmt: skip
  data = tmp_path / "rows.json"
  for name, path in (("mine", data), ("lost", tmp_path / "lost.json")):
    own = {"task": name, "dataset_kwargs": {"data_files": {"test": str(path)}}}
    (tmp_path / f"{name}.yaml").write_text(json.dumps(task | own))
  (tmp_path / "hub.yaml").write_text(json.dumps(task | {"task": "hub", "dataset_path": "no/such"}))
  data.write_text(json.dumps({"q": "Is it?"}) + "\n")
  asked = responder(folder, batch=8)
  results, _ = harness.run(asked, harness.tasks(["mine"], [str(tmp_path)]))
  assert results["n-samples"]["mine"]["effective"] == 1
  for name, said in (("lost", "lost.json"), ("hub", "hub: no/such")):
    with pytest.raises(ValueError, match=f"(?s)data is missing, .*{said}.*HF_DATASETS_OFFLINE=0"):
      harness.run(asked, harness.tasks([name], [str(tmp_path)]))


def test_unknown_tasks_list_the_known(tmp_path):
  with pytest.raises(ValueError, match="unknown task 'local_sum'; known: local_choice, local_sums"):
    harness.tasks(["local_sum"])
  with pytest.raises(ValueError, match="is no folder of YAML tasks"):
    harness.tasks(OURS, [str(tmp_path / "no")])
  with pytest.raises(ValueError, match="JAX_PLATFORMS chooses the device"):
    harness.Dlm(str(tmp_path), device="cuda")
