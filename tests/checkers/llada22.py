"""LLaDA2.2's loops on recorded logits, of forward s whatever the block holds; its routing."""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from dlm import masks
from dlm.models import MoeConfig
from dlm.models.moe import pools
from dlm.models.moe.token_choice import token_choice
from dlm.objectives.llada22 import labels
from dlm.sampling import loop
from dlm.sampling.caching import NoCache
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policies import InDel, ServedInDel
from dlm.sampling.sampler import Sampler
from tests.checkers.decoding import Case
from tests.checkers.rnd1 import Recorded

start = jax.jit(loop.start, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def step(sampler, params, state, settings):
  """With the policy's `settings` traced: cases that differ in them alone share a program."""
  policy = copy.copy(sampler.policy)
  for name, value in settings.items():
    object.__setattr__(policy, name, value)
  return loop.step(dataclasses.replace(sampler, policy=policy), params, state)


def play(case: Case, policy, prompt: int, **settings) -> list[loop.LoopState]:
  """States after every forward, until the row is done. The block's first `prompt` ids are given."""
  logits_KxAxV = np.load(case.folder / "logits.npz")[case.arg("logits")]
  row, mask_id = np.array(case.line["prompt_ids"][0]), case.arg("mask_id")
  block = case.arg("block_size")
  canvas = make_canvas(
    [row], [np.arange(block) >= prompt], [0], slots=block, block=block, align="canvas",
    mask_id=mask_id, seed=0,
  )  # fmt: skip
  sampler = Sampler(
    Recorded(logits_KxAxV.shape[-1]),
    policy,
    NoCache(),
    masks.BlockCausal(block),
    block=block,
    max_forwards=10**6,
    mask_id=mask_id,
    may_predict_mask=True,
  )
  states = [start(sampler, canvas)]
  while not states[-1].canvas.done_B.all():
    params = jnp.asarray(logits_KxAxV[len(states) - 1])
    states.append(step(sampler, params, states[-1], settings))
  return states


def check(case: Case, states: list[loop.LoopState], steps: list[dict]) -> None:
  """A done row keeps its policy's state as it was when it ended."""
  assert len(states) - 1 == len(steps)
  for before, after, want in zip(states[:-1], states[1:], steps, strict=True):
    assert before.canvas.tokens_BxL[0].tolist() == want["block_in"]
    assert after.canvas.tokens_BxL[0].tolist() == want["block_out"]
    assert after.policy.original_BxA[0].tolist() == list(map(bool, want["original"]))
  assert states[-1].canvas.tokens_BxL[0].tolist() == case.expected["block"]


def joint_threshold_indel(case: Case) -> None:
  """After a clean-up they spend a forward on its keys, which here ride with the next block."""
  edits = case.arg("split_id"), case.arg("delete_id")
  policy = ServedInDel(*edits, most=case.arg("max_post_edit_steps"))
  case.arg("literal_mask_in_prompt")  # the prompt is closed, whatever it holds
  settings = dict(threshold=case.arg("threshold"), edit=case.arg("edit_threshold"))
  states = play(case, policy, case.arg("prompt_len"), **settings)
  steps = case.expected["steps"]
  over = [False, *(step["finished"] for step in steps[:-1])]  # before the forward
  decide = [step for step, is_over in zip(steps, over, strict=True) if not is_over]
  assert case.expected["forwards"] == len(steps) == len(decide) + sum(over)
  check(case, states, decide)
  for after, want in zip(states[1:], decide, strict=True):
    assert int(after.policy.spent_B[0]) == want["post_edit_steps"]


def reference_loop(case: Case) -> None:
  edits, limit = (case.arg("split_id"), case.arg("delete_id")), case.arg("max_steps_per_block")
  policy = InDel(*edits, limit=limit)
  prompt = sum(each != case.arg("mask_id") for each in case.line["prompt_ids"][0])
  settings = dict(
    threshold=case.arg("threshold"), edit=case.arg("editing_threshold"), steps=case.arg("steps"),
    most=case.arg("max_post_steps"),
  )  # fmt: skip
  states, steps = play(case, policy, prompt, **settings), case.expected["steps"]
  assert case.expected["forwards"] == len(steps)
  check(case, states, steps)
  for after, want in zip(states[1:], steps, strict=True):
    assert int(after.policy.spent_B[0]) == want["post_steps"]


def block_routing(case: Case) -> None:
  arrays, prefix = np.load(case.folder / "logits.npz"), case.arg("prefix")
  logits_TxE, bias_E = (jnp.asarray(arrays[prefix + name]) for name in ("logits", "bias"))
  moe = MoeConfig(
    case.arg("num_experts"), case.arg("top_k"), mlp=1, score="sigmoid", bias=True,
    renormalise=True, scale=case.arg("routed_scaling_factor"), pool=case.arg("block_size"),
    admitted=case.arg("expert_capacity"),
  )  # fmt: skip
  live_BxW = jnp.ones((1, len(logits_TxE)), bool)
  score_BxWxE = (jax.nn.sigmoid(logits_TxE) + bias_E[None])[None]
  pool_PxC = pools.admitted(moe, score_BxWxE, live_BxW)
  np.testing.assert_array_equal(np.sort(pool_PxC, axis=1), arrays[prefix + "pools"])
  chosen_TxK, weight_TxK = token_choice(moe, logits_TxE, bias_E, live_BxW)
  order_TxK = np.argsort(chosen_TxK, axis=1)
  chosen_TxK, weight_TxK = (
    np.take_along_axis(np.asarray(x), order_TxK, axis=1) for x in (chosen_TxK, weight_TxK)
  )
  np.testing.assert_array_equal(chosen_TxK, arrays[prefix + "expert_ids_sorted"])
  np.testing.assert_allclose(weight_TxK, arrays[prefix + "expert_weights"], rtol=1e-5)
  plain = dataclasses.replace(moe, pool=0, admitted=0)
  plain_TxK = np.sort(token_choice(plain, logits_TxE, bias_E)[0], axis=1)
  others = round(float((plain_TxK != chosen_TxK).any(1).mean()), 3)
  assert others == case.expected["tokens_with_other_experts_than_plain_top_k"]


def lcs_labels(case: Case) -> None:
  ids = {"INSERT": 97, "DELETE": 98}
  draft_1xm, text_1xm = (jnp.array([case.arg(name)]) for name in ("draft", "target"))
  label_1xm = labels(
    draft_1xm, text_1xm, jnp.array([draft_1xm.shape[1]]), mask_id=99, insert_id=ids["INSERT"],
    delete_id=ids["DELETE"],
  )  # fmt: skip
  assert label_1xm[0].tolist() == [ids.get(each, each) for each in case.expected["labels"]]


METHODS = {
  "llada22_lcs_labels_derived": lcs_labels,
  "llada22_block_routing": block_routing,
  "sglang_joint_threshold_indel": joint_threshold_indel,
  "llada22_reference_loop_retyped": reference_loop,
}
