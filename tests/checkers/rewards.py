"""Rewards and advantages of the authors' codes, on the host."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from dlm.rewards import REWARDS
from dlm.rewards.advantages import Advantages, total
from dlm.rewards.judge import RewardConfig
from dlm.rewards.puzzles import countdown_score, sudoku_score
from dlm.rewards.written import Written
from dlm.rollout import RollOut
from dlm.sampling.canvas import untouched
from dlm.types import Batch
from tests.checkers.objectives import Case, close, same


def reward_countdown(case: Case):
  assert case.arg("source")
  ours = [countdown_score(x["text"], x["numbers"], x["target"]) for x in case.arg("items")]
  close(ours, case.expected["scores"])


def reward_sudoku(case: Case):
  assert case.arg("source")
  ours = [sudoku_score(x["text"], x["puzzle"], x["solution"]) for x in case.arg("items")]
  close(ours, case.expected["scores"])


def reward_format(case: Case):
  names = {
    "xmlcount": "xml_count_from_answer" if case.arg("source") == "spg" else "xml_count",
    "soft": "format_soft",
    "strict": "format_strict",
    "integer": "tagged_integer",
    "correct": "tagged_answer",
  }
  rows = [Written("", x["text"], x["answer"]) for x in case.arg("items")]
  assert set(names) == set(case.expected)
  for theirs, name in names.items():
    close([REWARDS[name](row) for row in rows], case.expected[theirs])


def _advantages(case: Case, kind: str, scale: bool):
  weights = tuple(map(float, case.inputs["reward_weights"]))
  reward = total(case.inputs["rewards_per_func"], weights)
  close(reward, case.outputs["rewards"])
  group = np.arange(len(reward)) // case.arg("num_generations")
  close(Advantages(kind, scale)(reward, group), case.outputs["advantages"], atol=1e-6)


def d1_advantages(case: Case):
  _advantages(case, "centred", False)


def loo_advantages(case: Case):
  _advantages(case, "leave_one_out", case.arg("scale_rewards"))


def _rows(lengths, forwards):
  return [
    Written("", "", when=(*range(forward), *[forward - 1] * (length - forward)))
    for length, forward in zip(lengths, forwards, strict=True)
  ]


def _kept(judged, group: int):
  return [[int(i) // group, int(i) % group] for i in np.flatnonzero(judged.kept)]


def lightning_rewards(case: Case):
  """Where accuracy is not normalised they count it as 1 or -1."""
  given, prompts = dict(case.arg("reward")), case.arg("prompts")
  norm = {"z_score": "zscore", "minmax": "minmax", "none": "none"}[given.pop("tpf_norm_mode")]
  signed, weight = not given.pop("acc_norm"), given.pop("tpf_coefficient")
  weight = 1.0 if norm == "zscore" else weight
  spread, some_right = given.pop("filter_tpf_threshold"), given.pop("filter_all_wrong")
  assert not given
  group, room = len(prompts[0]["correct"]), case.arg("max_token")
  config = RewardConfig(
    (("exact", 1.0, "none" if signed else "zscore"), ("tokens_per_forward", weight, norm)),
    group=group, margin=5, advantages=Advantages("none", spread=spread, some_right=some_right),
  )  # fmt: skip
  rows = [row for each in prompts for row in _rows(each["lengths"], each["num_forwards"])]
  right = np.concatenate([each["correct"] for each in prompts]).astype(float)
  speed = [row.tokens_per_forward for row in rows]
  judged = config.judged(np.stack([right, speed], axis=1), rows, room)
  same(judged.right.reshape(-1, group), case.expected["correct_after_length_rule"])
  reward = judged.reward + (judged.right - 1 if signed else 0)
  close(reward.reshape(-1, group), case.expected["all_rewards"])
  same(_kept(judged, group), case.expected["kept"])
  close(reward[judged.kept], case.expected["kept_rewards"])


def tracerl_rewards(case: Case):
  prompts, room = case.arg("prompts"), case.arg("max_token")
  group = len(prompts[0]["correct"])
  config = RewardConfig(
    (("exact", 1.0),), group=group, margin=5, advantages=Advantages("zscore", right=(0.2, 0.8))
  )
  rows = [row for each in prompts for row in _rows(each["lengths"], [1] * group)]
  right = np.concatenate([each["correct"] for each in prompts]).astype(float)
  judged = config.judged(right[:, None], rows, room)
  close(judged.advantage.reshape(-1, group), case.expected["rewards"])
  same(_kept(judged, group), case.expected["kept"])


def lightning_advantages(case: Case):
  assert case.arg("prompt_len") >= 0 and case.arg("group") >= 1
  kind = {"batch": "batch", "prompt_group": "group", "prompt_group_center": "centred"}
  ours = Advantages(kind[case.arg("mode")])(case.inputs["rewards"], case.inputs["sample_idx"])
  assert len(case.inputs["resp_idx"]) == len(ours)
  close(np.where(case.inputs["p_mask"], ours[:, None], 0), case.outputs["advantages"], atol=1e-6)


def _ended(ids, first: int, stop: int, pad_id: int | None = None):
  """A finished canvas as a row: what is learned of it."""
  sampler = types.SimpleNamespace(block=ids.shape[1], mask_id=-1, eos_ids=(stop,))
  roll = RollOut(sampler, None, None, ids.shape[1], False, -1)
  slot = np.arange(ids.shape[1])[None] + np.zeros(ids.shape, int)
  length = np.full(len(ids), ids.shape[1])
  if pad_id is not None:
    length = ids.shape[1] - (ids[:, ::-1] != pad_id).argmax(1)

  @jax.jit
  def rows(ids, opened, length):
    canvas = untouched(
      tokens_BxL=ids, open_BxL=opened, start_B=jnp.zeros_like(length), length_B=length,
      key_B=jnp.zeros_like(length),
    )  # fmt: skip
    return roll.rows(Batch(ids, opened, jnp.ones_like(ids), ids), canvas)

  return rows(ids, slot >= first, length)


def d1_completion_mask(case: Case):
  rows = _ended(case.inputs["completion_ids"], 0, case.arg("eos_id"))
  same(rows.noisable_BxL, case.outputs["completion_mask"])


def lightning_masks(case: Case):
  """Their labels go on behind the end, up to the padding: so far goes the answer."""
  assert case.arg("post_num") == 0
  ids, first = case.inputs["input_ids"], case.arg("prompt_len")
  rows = _ended(ids, first, case.arg("eos_id"), case.arg("pad_id"))
  same(rows.noisable_BxL, case.outputs["p_mask"])
  answer = (rows.segment_BxL > 0) & (np.arange(ids.shape[1])[None] >= first)
  same(np.where(answer, ids, -100), case.outputs["labels"])


METHODS = {
  "d1_advantages": d1_advantages,
  "d1_completion_mask": d1_completion_mask,
  "lightning_advantages": lightning_advantages,
  "lightning_masks": lightning_masks,
  "lightning_rewards": lightning_rewards,
  "loo_advantages": loo_advantages,
  "reward_countdown": reward_countdown,
  "reward_format": reward_format,
  "reward_sudoku": reward_sudoku,
  "tracerl_rewards": tracerl_rewards,
}
