"""What no table of a config can check alone: parts of a training run that must go together."""

import dataclasses
from typing import TYPE_CHECKING

import jax

from dlm import parallel
from dlm.build.models import check_drafter
from dlm.build.sampling import SamplingConfig, sampling
from dlm.objectives import Shifted
from dlm.optimizer import learning_rate
from dlm.rewards import reward
from dlm.sampling.policies.region import call_of, region_of

if TYPE_CHECKING:
  from dlm.build.run import RunConfig
  from dlm.build.training import Training


def agree(training: "Training") -> None:
  """ValueError, in one line, where parts of a run do not go together."""
  run = training.run
  shards = parallel.batch_shards(training.mesh)
  if run.batch % (shards * run.microbatches):
    raise ValueError(
      f"batch={run.batch} must divide by {shards} shards x microbatches={run.microbatches}"
    )
  if run.microbatches > 1 and not training.objective.summable:
    raise ValueError(
      f"microbatches={run.microbatches} must be 1: objective.name={run.objective.name!r} takes "
      "means over all that a device computes at once"
    )
  if run.parallel == "pmap" and training.mesh.size != training.mesh.shape["data"]:
    raise ValueError(f"parallel='pmap' splits the batch only; mesh={dict(training.mesh.shape)}")
  _on_sequence(training)
  _on_drafter(training)
  block = None if training.objective.drafts else training.objective.block
  if block and run.data.length % block:
    raise ValueError(f"objective.block={block} must divide data.length={run.data.length}")
  moe, attention = training.model.config.moe, training.facts.attention_name
  apart = attention == "block_causal" and moe is not None and moe.pool and block % moe.pool == 0
  if moe is not None and moe.pooled and attention != "full" and not apart:
    # The clean copy of a block, or a later token, would take a place in a pool of masked tokens.
    raise ValueError(
      f"model.moe.choice={moe.choice!r} with attention {attention!r} lets experts depend on tokens "
      f"that others must not see, unless model.moe.pool={moe.pool} divides objective.block={block}"
    )
  partly = training.model.config.lora is not None or run.optimizer.trainable != "all"
  if partly and training.objective.init(training.model.config.width):
    raise ValueError(
      f"objective.name={run.objective.name!r} learns parameters of its own: neither model.lora nor "
      f"optimizer.trainable={run.optimizer.trainable!r} trains them"
    )
  if training.objective.candidates and not run.eval.every:
    raise ValueError("objective.search needs eval.every: it is evaluation that searches")
  if training.model.config.lora is not None:
    _on_adapters(training)
  if run.optimizer.trainable == "router" and training.model.config.moe is None:
    raise ValueError("optimizer.trainable='router' needs model.moe: there is no router else")
  if training.rows is not None and training.rows.paired:
    _on_pairs(training)
  else:
    _on_rollout(training)
    _on_rewards(training)
    _on_tools(training)
  learning_rate(run.optimizer, run.steps)


def _on_sequence(training: "Training") -> None:
  """ValueError where rows are split and cannot be, or what is asked for needs them whole."""
  run, parts = training.run, training.mesh.shape["sequence"]
  if parts == 1:
    return
  if run.data.length % parts:
    raise ValueError(f"data.length={run.data.length} must divide by mesh.sequence={parts}")
  moe = training.model.config.moe
  choice = "expert" if moe is not None and moe.choice == "expert" else None
  whole = {  # and why
    "model.moe.choice": (choice, "experts choose among whole rows"),
    "model.moe.admitted": (0 if moe is None else moe.admitted, "pools are cut from whole rows"),
    "model.drafter": (training.model.config.drafter, "its keys are those of another model"),
    "rollout": (run.rollout, "sampling takes whole rows"),
    "sample.every": (run.sample.every, "sampling takes whole rows"),
  }
  for field, (value, why) in whole.items():
    if value:
      raise ValueError(f"{field}={value!r} does not go with mesh.sequence={parts}: {why}")


def _on_drafter(training: "Training") -> None:
  """ValueError where the run trains no drafter of its teacher, or a drafter as a model."""
  run, drafter = training.run, training.model.config.drafter
  if training.objective.drafts != (drafter is not None):
    raise ValueError(
      f"objective.name={run.objective.name!r} does not go with model.drafter={drafter}: 'dflash' "
      "trains a drafter, and no other does"
    )
  if drafter is None:
    return
  check_drafter(training.model.config, training.teacher.model.config)
  if training.objective.block > run.data.length:
    raise ValueError(
      f"objective.block={training.objective.block} exceeds data.length={run.data.length}"
    )
  if 0 < drafter.window < training.objective.block:
    raise ValueError(
      f"model.drafter.window={drafter.window} must be at least objective.block="
      f"{training.objective.block}: a block sees itself (0: all is seen)"
    )


def _on_adapters(training: "Training") -> None:
  """Of a run that trains `model.lora` alone, and saves no other parameters."""
  run, moe = training.run, training.model.config.moe
  if training.source is None:
    raise ValueError("model.lora needs init_from: adapters learn beside a trained model")
  if training.model.config.lora.drafts:
    raise ValueError(
      "model.lora.drafts=True is of adapters that are read; to train some that only draft set "
      "model.lora.gated=True, and objective.next_weight=0 with objective 'nemotron'"
    )
  if run.optimizer.trainable != "all":
    raise ValueError(
      f"optimizer.trainable={run.optimizer.trainable!r} does not go with model.lora: its adapters "
      "alone are trained"
    )
  if run.optimizer.ema is not None:
    raise ValueError(
      f"optimizer.ema={run.optimizer.ema} does not go with model.lora: no average is kept of "
      "adapters; leave it None"
    )
  if moe is not None and moe.bias_rate:
    raise ValueError(
      f"model.moe.bias_rate={moe.bias_rate} does not go with model.lora, which leaves routers as "
      "they are; set it to 0"
    )


def _on_rollout(training: "Training") -> None:
  """What the model writes by itself takes the run's own mesh, seed, rows and length."""
  run = training.run
  learned, told = training.objective, (training.rows, training.eval_rows)
  if run.rollout is None:
    if learned.traced and (learned.rewarded or not all(rows.traced for rows in told)):
      raise ValueError(
        f"objective.name={run.objective.name!r} learns from what the model writes: it needs "
        "`rollout`" + ("" if learned.rewarded else ", or data.sources of traces:FILE alone")
      )
    return
  unsaid = SamplingConfig()
  for name in ("slots", "seed", "batch", "row_tile", "parallel", "mesh", "bos", "implementation"):
    if getattr(run.rollout, name) != getattr(unsaid, name):
      value = getattr(run.rollout, name)
      raise ValueError(f"rollout.{name}={value!r} is not for roll-outs: leave it out")
  for rows in (training.rows, training.eval_rows):
    if not rows.alone:
      raise ValueError("rollout needs one prompt a row: data.mode='pad', per_row=1 in every source")
  sampling(run.rollout, training.model, training.facts)


def _on_rewards(training: "Training") -> None:
  """Who is rewarded learns on from a model that the estimate of log p is about."""
  run, trained, found = training.run, training.objective, training.run.rewards
  if trained.rewarded != (found is not None):
    raise ValueError(
      f"objective.name={run.objective.name!r} "
      + ("needs `rewards`" if trained.rewarded else "learns nothing from `rewards`: leave it out")
    )
  if found is None:
    return
  for name in found.names:
    reward(name)
  if trained.paired and found.group != 2:
    raise ValueError(
      f"rewards.group={found.group} must be 2: objective.name={run.objective.name!r} learns from "
      "pairs"
    )
  if trained.stepwise != (found.advantages.kind == "steps"):
    raise ValueError(
      f"rewards.advantages.kind={found.advantages.kind!r} does not go with objective.name="
      f"{run.objective.name!r}: 'steps' goes with 'mdpo', and with no other"
    )
  if trained.stepwise:
    _on_steps(training)
  if found.group == 1 and found.advantages.kind not in ("none", "batch"):
    raise ValueError(
      f"rewards.group=1 leaves nothing to compare with: advantages.kind={found.advantages.kind!r}"
    )
  shards = parallel.batch_shards(training.mesh)
  groups = shards * (run.microbatches if trained.paired else 1)  # what is compared stays together
  if run.batch % (found.group * groups):
    raise ValueError(
      f"batch={run.batch} must divide by {shards} shards x rewards.group={found.group}"
      + (f" x microbatches={run.microbatches}" if trained.paired else "")
    )
  for field, value in (("steps", run.steps), ("checkpoint.every", run.checkpoint.every)):
    if value % found.updates:
      raise ValueError(
        f"{field}={value} must divide by rewards.updates={found.updates}: rows that are learned "
        "from are not saved"
      )
  if run.checkpoint.keep_best:
    raise ValueError(
      f"checkpoint.keep_best={run.checkpoint.keep_best} goes by the loss, which does not tell what "
      "is rewarded: set it to 0"
    )
  _on_estimate(training)


def _on_tools(training: "Training") -> None:
  """Trajectories with what tools answered fit into rows, and are estimated without a look ahead."""
  run, tools = training.run, training.run.tools
  if tools is None:
    return
  if run.rollout is None or run.rewards is None:
    raise ValueError("tools are called in roll-outs that are rewarded: they need both tables")
  if not training.objective.interleaved:
    raise ValueError(
      f"{_named(run)} does not go with tools: it would see what a tool answered while it estimates "
      "the call; block_elbo, trace, block_masks, block_one_step and block_exact do not, of models "
      "in blocks, with align='canvas'"
    )
  if jax.process_count() > 1 or run.parallel != "shard_map":
    raise ValueError(
      f"tools go with one process and parallel='shard_map', not {jax.process_count()} and "
      f"{run.parallel!r}"
    )
  sampler, own = sampling(run.rollout, training.model, training.facts)
  if own.align != "canvas":
    raise ValueError(
      f"rollout.align={own.align!r} does not go with tools: blocks are the canvas's in every turn"
    )
  call_of(sampler.policy, run.rollout.max_new_tokens)
  answers = dataclasses.replace(run.rollout, policy=tools.answer)
  answering = sampling(answers, training.model, training.facts)[0].policy
  if (region := region_of(answering)) is not None and region.framed is None:
    raise ValueError("tools.answer.forced must frame the answer, or be empty: two places")
  turn = run.rollout.max_new_tokens + tools.response_tokens
  if tools.turns * turn + tools.answer_tokens >= run.data.length:
    raise ValueError(
      f"tools: {tools.turns} turns of {run.rollout.max_new_tokens} tokens with responses of "
      f"{tools.response_tokens}, and an answer of {tools.answer_tokens}, leave nothing of "
      f"data.length={run.data.length} for a prompt"
    )


def _on_steps(training: "Training") -> None:
  """Who learns the steps of roll-outs, so many of so many."""
  run, trained = training.run, training.objective
  bare = trained.objective if isinstance(trained, Shifted) else trained
  most, count = run.rollout.max_forwards, run.rewards.updates
  if not 1 <= count <= most:
    raise ValueError(
      f"rewards.updates={count} are the forwards that are learned from, 1 to "
      f"rollout.max_forwards={most}, all of them: name both"
    )
  if run.rollout.temperature != bare.temperature:
    raise ValueError(
      f"objective.temperature={bare.temperature} must be rollout.temperature="
      f"{run.rollout.temperature}"
    )
  if run.rollout.guidance or training.model.config.reads_noise:
    raise ValueError(
      f"objective.name={run.objective.name!r} asks the model alone: rollout.guidance="
      f"{run.rollout.guidance} must be 0, and the model is told no noise level"
    )


def _on_estimate(training: "Training") -> None:
  """The model that a run goes on from is one that its estimate of log p is about."""
  run, trained = training.run, training.objective
  if training.source is None:
    raise ValueError(f"objective.name={run.objective.name!r} needs init_from: a model that writes")
  facts = training.source.facts
  if facts.attention != trained.attention:
    raise ValueError(
      f"{_named(run)} is of models with attention {trained.attention}, not "
      f"{facts.attention} as in init_from={run.init_from!r}; for models that write in blocks there "
      "are trace, block_masks, block_one_step, block_elbo and block_exact, with their block and "
      "align, and for autoregressive ones autoregressive"
    )
  if facts.shift != trained.shift:
    raise ValueError(
      f"objective.shift={trained.shift} is not the shift={facts.shift} of "
      f"init_from={run.init_from!r}"
    )


def _named(run: "RunConfig") -> str:
  """What estimates: of an objective that does so in one way, itself."""
  if "estimator" in run.objective.fields:
    return f"objective.estimator={run.objective.fields['estimator'].name!r}"
  return f"objective.name={run.objective.name!r}"


def _on_pairs(training: "Training") -> None:
  """Pairs of a file are learned from as they are, by who learns from pairs."""
  run, trained = training.run, training.objective
  if not trained.paired:
    raise ValueError(
      f"objective.name={run.objective.name!r} does not learn from data.sources of pairs: that does "
      "'preference'"
    )
  for name in ("rollout", "rewards", "tools"):
    if getattr(run, name) is not None:
      raise ValueError(f"{name} does not go with data.sources of pairs, whose answers are there")
  if run.objective.fields["estimator"].kind.traced:
    raise ValueError(
      f"objective.estimator={run.objective.fields['estimator'].name!r} needs to know which forward "
      "wrote each token, which data.sources of pairs do not tell"
    )
  shards = parallel.batch_shards(training.mesh)
  if run.batch % (2 * shards * run.microbatches):
    raise ValueError(
      f"batch={run.batch} must divide by 2 x {shards} shards x microbatches={run.microbatches}: "
      "pairs stay together"
    )
  _on_estimate(training)
