"""Experts that choose tokens, from the command line."""

import json

import pytest

from tests.experiments import mains

TINY = (
  "--config.steps=3",
  "--config.batch=4",
  "--config.log_every=1",
  "--config.data.length=32",
  "--config.optimizer.warmup=1",
  "--config.eval.batches=1",
)
SMALL = (
  "--config.model.width=16",
  "--config.model.layers=1",
  "--config.model.heads=2",
  "--config.model.kv_heads=2",
  "--config.model.head_dim=8",
  "--config.model.moe.mlp=8",
  "--config.model.moe.shared=8",
  "--config.optimizer.decay=1",
)


def trained(folder, config, *arguments):
  run = folder / config.replace(":", "-")
  done = mains.run(
    folder, "experiments/train.py", f"--config=configs/train/{config}", f"--workdir={run}", *TINY,
    *arguments,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  return run, [record for record in records if "loss" in record]


@pytest.fixture(scope="module")
def tokens_chose(tmp_path_factory):
  return trained(tmp_path_factory.mktemp("token"), "ec_dlm.py:cpu-capacity", *SMALL)


def test_ec_dlm_trains_with_either_choice(tokens_chose, tmp_path):
  for _, records in (tokens_chose, trained(tmp_path, "ec_dlm.py", *SMALL)):
    assert [record["step"] for record in records] == [1, 2, 3]
  assert records[-1]["router/load_worst"] == pytest.approx(1)
  assert tokens_chose[1][-1]["router/load_worst"] > 1


def test_experts_take_over_and_only_routers_are_tuned(tokens_chose, tmp_path):
  _, records = trained(
    tmp_path,
    "ec_retrofit.py",
    f"--config.init_from={tokens_chose[0]}",
    "--config.microbatches=1",
    "--config.eval.every=0",
    "--config.checkpoint.keep_best=0",
    "--config.model.moe.renormalise=True",
    "--config.model.moe.schedule=linear_reverse",
    "--config.model.moe.per_token_range=(1, 7)",
    "--config.optimizer.trainable=router",
  )
  assert records[-1]["router/load_worst"] == pytest.approx(1)
  assert records[-1]["router/unchosen"] > 0
