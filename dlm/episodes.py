"""Roll-outs in which tools really run: a row is a whole trajectory of DLLM-Searcher (2602.07035).

  prompts -> [ thoughts and a call -> the tool's response ]* -> answer -> Batch -> training

`dlm.agent` writes them, on the mesh that trains, over the parameters that train. All rows write
their turns together; each call runs in a thread of its own from the forward on that completed it,
and a response that fails or is late is an error that the model reads: it costs its row. What was
given is context: prompts, responses with their frames, and tokens that the policy forced.

As of `dlm.rollout`, rows depend on the run's seed, the update's index and the parameters before it,
and on the tools: a resumed run writes what the unbroken one wrote where these answer the same, and
in time.
"""

import dataclasses

import jax
import numpy as np

from dlm import parallel
from dlm.agent import Agent, Episode
from dlm.build import Training
from dlm.generate import Request, generator
from dlm.types import Array, Batch, Params


@dataclasses.dataclass(frozen=True)
class ToolRollOut:
  """What the model writes after the prompts of rows, and what tools answer it.

  Args:
    room: tokens of a turn at most.
    length: of a row.
    group: trajectories from each prompt, side by side.
  """

  agent: Agent
  mesh: jax.sharding.Mesh
  mask_id: int
  pad_id: int
  room: int
  length: int
  group: int

  def __call__(self, params: Params, batch: Batch, key: Array) -> tuple[Batch, dict[str, float]]:
    """The rows, with "answer" and "response" in `extra`: where the answer stands, and what tools
    responded, with its frame; and of them: what `RollOut` tells, calls a trajectory, the share of
    calls that failed, and of prompts that are so long that a trajectory might not fit: these write
    nothing."""
    prompts = _prompts(batch)
    fits = [self.agent.fits(len(ids)) for ids in prompts for _ in range(self.group)]
    asked = [
      Request.from_ids(i, "", prompts[i // self.group], self.mask_id, slots=self.length,
                       max_new_tokens=self.room)
      for i, fit in enumerate(fits) if fit
    ]  # fmt: skip
    seed = int(jax.random.bits(key))
    done = {each.request.id: each for each in self.agent(params, asked, seed=seed)}
    rows = [self._row(done.get(i)) for i in range(len(fits))]
    rows = jax.tree.map(lambda *x: np.stack(x), *rows)
    told = self._told(list(done.values()), rows) | {"rollout/too_long": 1 - float(np.mean(fits))}
    return parallel.put(rows, parallel.batch_sharding(self.mesh)), told

  def _row(self, episode: Episode | None) -> Batch:
    """Of one trajectory; None: of none."""
    tokens_L = np.full(self.length, self.pad_id, np.int32)
    when_L = np.full(self.length, -1, np.int32)
    response_L = np.zeros(self.length, bool)
    slot_L = np.arange(self.length, dtype=np.int32)
    size, stop, (begin, end) = 0, None, (0, 0)
    if episode is not None:
      size, stop, (begin, end) = len(episode.row), episode.stop, episode.answered
      row = episode.row
      tokens_L[:size], when_L[:size], response_L[:size] = row.ids, row.when, row.response
    last = size if stop is None else stop
    return Batch(
      tokens_BxL=tokens_L,
      noisable_BxL=(when_L >= 0) & (slot_L <= last),
      segment_BxL=(slot_L < size).astype(np.int32),
      position_BxL=slot_L - np.where(slot_L < size, 0, size).astype(np.int32),
      extra={
        "when": when_L,
        "end": (slot_L == last) & (stop is not None),
        "answer": (slot_L >= begin) & (slot_L < end),
        "response": response_L,
      },
    )

  def _told(self, done: list[Episode], rows: Batch) -> dict[str, float]:
    tokens, turns = float(rows.noisable_BxL.sum()), [turn for each in done for turn in each.turns]
    logp = np.concatenate([each.row.logp for each in done] or [np.zeros(0)])
    known = np.isfinite(logp)
    return {
      "rollout/tokens": tokens / len(rows.tokens_BxL),
      "rollout/tokens_per_forward": tokens / max(sum(each.forwards for each in done), 1),
      "rollout/ended": float(rows.extra["end"].any(-1).mean()),
      "rollout/entropy": -float(logp[known].mean()) if known.any() else 0.0,
      "rollout/calls": len(turns) / len(rows.tokens_BxL),
      "rollout/calls_failed": sum(turn.failed for turn in turns) / max(len(turns), 1),
    }


def _prompts(batch: Batch) -> list[np.ndarray]:
  """All before the first token that the data would have learned."""
  given = parallel.to_host(batch)
  firsts = given.noisable_BxL.argmax(-1)
  rows = zip(given.tokens_BxL, given.segment_BxL, firsts, strict=True)
  return [ids[:first][segment[:first] > 0] for ids, segment, first in rows]


def of(training: Training) -> ToolRollOut | None:
  """What a run with `tools` asks for; None: it asks for none."""
  run, tools = training.run, training.run.tools
  if tools is None:
    return None
  # One shape for all turns, however many rows still search.
  turn = dataclasses.replace(run.rollout, batch=run.batch, row_tile=0, slots=run.data.length)
  answer = dataclasses.replace(turn, policy=tools.answer, max_new_tokens=tools.answer_tokens)
  (writer, _), (answerer, _) = (
    generator(each, training, mesh=training.mesh) for each in (turn, answer)
  )
  agent = Agent(
    writer,
    answerer,
    training.tools,
    slots=run.data.length,
    turn_tokens=run.rollout.max_new_tokens,
    answer_tokens=tools.answer_tokens,
    turns=tools.turns,
    frame=tools.frame,
    longest=tools.response_tokens,
  )
  return ToolRollOut(
    agent=agent,
    mesh=training.mesh,
    mask_id=training.facts.mask_id,
    pad_id=training.tokenizer.pad_id,
    room=run.rollout.max_new_tokens,
    length=run.data.length,
    group=run.rewards.group,
  )
