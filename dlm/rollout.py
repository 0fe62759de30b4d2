"""Roll-outs: the model writes the rows that it learns from, with the parameters it has by then.

  rows of the data -> prompts -> Canvas -> THE sampling loop -> Batch -> the training path

A row's prompt is all before its first learned token; the answer that the data has is not looked at.
The sampler is the one of `dlm.sampling`, on the mesh that trains, over the parameters that train.
`Batch.extra` says how a row came to be: "when", the forward of its answer that wrote each token
(-1: it was given), and "end", where the model wrote a stop id. Where rows are rewarded, several of
a prompt stand side by side, and `Judge` adds what they are worth.

An update's rows depend on the run's seed, the update's index and the parameters before it alone, so
that a resumed run writes what the unbroken one wrote; each update has its own for that reason.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from dlm import build, parallel
from dlm.build import Training
from dlm.data import Tokenizer
from dlm.models.apart import apart
from dlm.rewards import scores
from dlm.rewards.judge import RewardConfig
from dlm.rewards.written import Written
from dlm.sampling import loop, relay
from dlm.sampling.canvas import untouched
from dlm.sampling.sampler import Sampler
from dlm.types import Array, Batch, Canvas, Params


@dataclasses.dataclass(frozen=True)
class RollOut:
  """What the model writes after the prompts of rows.

  Args:
    sampler: rows run `positions` of it at a time where they may: see `dlm.sampling.relay`.
    room: tokens of an answer at most.
    by_prompt: blocks are counted from the answer's first slot, else from the canvas's.
    group: answers to each prompt, side by side.
  """

  sampler: Sampler
  mesh: jax.sharding.Mesh
  driver: parallel.Driver
  room: int
  by_prompt: bool
  pad_id: int
  group: int = 1

  def __call__(self, params: Params, batch: Batch, key: Array) -> tuple[Batch, dict[str, Array]]:
    """The rows, and of them: tokens an answer, tokens a forward that decides, the share that has an
    end, and the entropy, as the mean of -log p of what was drawn."""
    return self._written(apart(params), batch, key)

  @functools.cached_property
  def _written(self):
    def shard(params: Params, canvas: Canvas) -> Canvas:
      if _take_turns(self.sampler, self.mesh):
        return relay.run(self.sampler, params, canvas, group=self.group)
      return loop.run(self.sampler, params, canvas)

    run = parallel.over_batch(
      shard, self.mesh, batched_in=(False, True), batched_out=True, driver=self.driver
    )

    def written(params: Params, batch: Batch, key: Array) -> tuple[Batch, dict[str, Array]]:
      batch = jax.tree.map(lambda x: jnp.repeat(x, self.group, axis=0), batch)
      canvas = run(params, self.canvas(batch, key))
      rows = self.rows(batch, canvas)
      rows = jax.lax.with_sharding_constraint(rows, parallel.batch_sharding(self.mesh))
      tokens = rows.noisable_BxL.sum(dtype=jnp.float32)
      return rows, {
        "rollout/tokens": tokens / len(rows.tokens_BxL),
        "rollout/tokens_per_forward": tokens / canvas.turn_B.sum(),
        "rollout/ended": rows.extra["end"].any(-1).mean(),
        "rollout/entropy": -jnp.nanmean(jnp.where(rows.noisable_BxL, canvas.logp_BxL, jnp.nan)),
      }

    return jax.jit(written)

  def canvas(self, batch: Batch, key: Array) -> Canvas:
    """The rows up to their answers, and masks from there on."""
    rows, slots = batch.tokens_BxL.shape
    first_B = jnp.argmax(batch.noisable_BxL, axis=1).astype(jnp.int32)
    length_B = jnp.minimum(first_B + self.room, slots)
    slot_L = jnp.arange(slots)
    inside_BxL = slot_L[None] < length_B[:, None]
    open_BxL = inside_BxL & (slot_L[None] >= first_B[:, None])
    tokens_BxL = jnp.where(open_BxL, self.sampler.mask_id, batch.tokens_BxL)
    return untouched(
      tokens_BxL=jnp.where(inside_BxL, tokens_BxL, 0),
      open_BxL=open_BxL,
      start_B=first_B if self.by_prompt else first_B // self.sampler.block * self.sampler.block,
      length_B=length_B,
      key_B=jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows)),
    )

  def rows(self, batch: Batch, canvas: Canvas) -> Batch:
    """A finished canvas as rows.

    Learned is an answer up to its first stop id, with that. The rest of the stop id's block stays
    in the row, as the model saw it there, and no more; nothing behind a slot that was not written.
    """
    slots = batch.tokens_BxL.shape[1]
    slot_L, block = jnp.arange(slots), self.sampler.block
    open_BxL = canvas.open_BxL

    def first_slot(where_BxL: Array) -> Array:
      return jnp.where(where_BxL.any(-1), jnp.argmax(where_BxL, axis=1), slots)

    written_BxL = open_BxL & (canvas.tokens_BxL != self.sampler.mask_id)
    stops_BxL = written_BxL & jnp.isin(
      canvas.tokens_BxL, jnp.array(self.sampler.eos_ids, jnp.int32)
    )
    stop_B = first_slot(stops_BxL)
    origin_B = canvas.answer_B if self.by_prompt else jnp.zeros_like(stop_B)
    stop_block_B = stop_B + block - (stop_B - origin_B) % block
    end_B = jnp.minimum(
      jnp.minimum(first_slot(open_BxL & ~written_BxL), stop_block_B), canvas.length_B
    )
    inside_BxL = slot_L[None] < end_B[:, None]
    answer_BxL = open_BxL & inside_BxL
    return batch.replace(
      tokens_BxL=jnp.where(inside_BxL, canvas.tokens_BxL, self.pad_id),
      noisable_BxL=answer_BxL & (slot_L[None] <= stop_B[:, None]),
      segment_BxL=inside_BxL.astype(jnp.int32),
      position_BxL=slot_L[None] - jnp.where(inside_BxL, 0, end_B[:, None]),
      extra=batch.extra
      | {
        "when": jnp.where(answer_BxL, canvas.when_BxL, -1),
        "end": inside_BxL & (slot_L[None] == stop_B[:, None]),
      },
    )


def _take_turns(sampler: Sampler, mesh: jax.sharding.Mesh) -> bool:
  """Where XLA splits rows itself they do not: it would gather all keys to move one row's."""
  return relay.runs(sampler) and parallel.splits_data_alone(mesh)


def of(training: Training) -> RollOut | None:
  """The roll-outs that a run's config asks for; None: it asks for none."""
  if training.run.rollout is None:
    return None
  sampler, own = build.sampling(training.run.rollout, training.model, training.facts)
  counted = training.run.rollout.commit == "auto" and not training.run.rollout.max_forwards
  if counted and _take_turns(sampler, training.mesh):  # the forwards more are allowed for
    sampler = relay.of_one_width(sampler)
  return RollOut(
    sampler=build.on_mesh(sampler, training.mesh),
    mesh=training.mesh,
    driver=training.run.parallel,
    room=own.max_new_tokens or training.run.data.length,
    by_prompt=own.align == "prompt",
    pad_id=training.tokenizer.pad_id,
    group=1 if training.run.rewards is None else training.run.rewards.group,
  )


@dataclasses.dataclass(frozen=True)
class Judge:
  """Reads what was written and says what it is worth, on the host.

  Args:
    room: tokens at most that a row is written in.
  """

  config: RewardConfig
  tokenizer: Tokenizer
  mesh: jax.sharding.Mesh
  room: int

  def __call__(self, rows: Batch, given: Batch) -> tuple[list[Batch], dict[str, float]]:
    """One batch, the rows with "advantage_B" and "right_B" in `extra`, and nothing to learn in
    groups that are left out; and means of each reward, of what is right, kept, and of rewards that
    failed.

    Args:
      given: the data's rows, one a group, whose answers are what rewards compare with.
    """
    written = self.written(rows, given)
    score_BxK = scored(self.config.names, written)
    judged = self.config.judged(score_BxK, written, self.room)
    put = functools.partial(parallel.put, sharding=parallel.batch_sharding(self.mesh))
    extra = {
      "advantage_B": put(judged.advantage.astype(np.float32)),
      "right_B": put(judged.right),
    }
    kept_Bx1 = put(judged.kept)[:, None]
    rows = rows.replace(noisable_BxL=rows.noisable_BxL & kept_Bx1, extra=rows.extra | extra)
    return [rows], {
      "rollout/right": float(judged.right.mean()),
      "rollout/kept": float(judged.kept.mean()),
      **means(self.config.names, score_BxK),
    }

  def written(self, rows: Batch, given: Batch) -> list[Written]:
    """Every row as text; the end and what stands behind it are no part of it.

    Of rows that say where their answer stands ("answer" in `extra`) the text is that alone.
    """
    prompts, answers = self.given(given)
    rows = parallel.to_host(rows)
    found, group = [], len(rows.tokens_BxL) // len(prompts)
    for i, tokens_L in enumerate(rows.tokens_BxL):
      at_L = rows.noisable_BxL[i] & ~rows.extra["end"][i]
      whole = text = self.tokenizer.decode(tokens_L[at_L])
      if "answer" in rows.extra:
        text = self.tokenizer.decode(tokens_L[rows.extra["answer"][i]])
        first, last = (int(at_L.argmax()), len(at_L) - int(at_L[::-1].argmax()))
        whole = self.tokenizer.decode(tokens_L[first:last]) if at_L.any() else ""
      found.append(
        Written(
          prompt=prompts[i // group],
          text=text,
          answer=answers[i // group],
          when=tuple(rows.extra["when"][i][at_L].tolist()),
          ended=bool(rows.extra["end"][i].any()),
          whole=whole,
        )
      )
    return found

  def given(self, given: Batch) -> tuple[list[str], list[str]]:
    """The data's prompts and answers."""
    given = parallel.to_host(given)
    prompts, answers = [], []
    for tokens_L, learned_L, segment_L in zip(
      given.tokens_BxL, given.noisable_BxL, given.segment_BxL, strict=True
    ):
      first = int(learned_L.argmax())
      prompts.append(self.tokenizer.decode(tokens_L[:first][segment_L[:first] > 0]))
      answers.append(self.tokenizer.decode(tokens_L[learned_L & (segment_L > 0)]))
    return prompts, answers


def scored(names: tuple[str, ...], written: list[Written]) -> np.ndarray:
  """[B, K]: what each reward gives each row. Of several processes each scores its share."""
  own = [*parallel.share(written)]
  score_KxB = [scores(name, own) for name in names]
  return np.array(parallel.joined(np.transpose(score_KxB).tolist()))


def means(names: tuple[str, ...], score_BxK: np.ndarray) -> dict[str, float]:
  """Of each reward the mean of what it gave, and the share that failed, which is NaN."""
  told_BxK = np.isfinite(score_BxK)
  mean_K = np.where(told_BxK, score_BxK, 0).sum(0) / np.maximum(told_BxK.sum(0), 1)
  return {
    "rollout/failed": float(1 - told_BxK.mean()),
    **{f"reward/{name}": float(x) for name, x in zip(names, mean_K, strict=True)},
  }


def judge(training: Training) -> Judge | None:
  """What a run's `rewards` ask for; None: nothing."""
  run = training.run
  if run.rewards is None:
    return None
  room = run.rollout.max_new_tokens or run.data.length
  if run.tools is not None:
    room = run.tools.turns * room + run.tools.answer_tokens
  return Judge(run.rewards, training.tokenizer, training.mesh, room)
