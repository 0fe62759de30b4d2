"""MDPO's roll-outs (2508.13148): the states of answers, and what the model made of each.

A roll-out as any (`dlm.rollout`), of as many forwards as `rollout.max_forwards` says. What stood on
the canvas before each of them is kept. One more forward over each state predicts the whole answer
there: what the sampler wrote next where it did, and for all other masks a draw at its temperature.
Each prediction is judged; the forwards that tell most about their group become the rows of as many
updates. Slots that nothing was written to, behind an end, are shown as masks and not learned.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from dlm import masks, parallel, rollout
from dlm.build import Training
from dlm.objectives.cross_entropy import tempered
from dlm.rewards.advantages import of_steps, telling_steps
from dlm.rewards.written import Written
from dlm.sampling import loop
from dlm.sampling.score import score
from dlm.types import Array, Batch, Canvas, Params, StatSpec
from kernels_pallas.linear_xent import linear_xent


@struct.dataclass
class States:
  """What answers went through, and what was made of it: of T forwards."""

  shown_BxTxL: Array  # ids before each forward
  predicted_BxTxL: Array  # the answer without masks; of rows that are done, as they stand
  prob_BxTxL: Array  # of each prediction, at the sampler's temperature


@dataclasses.dataclass(frozen=True)
class StepwiseRollOut:
  """What the model writes after the prompts of rows, forward by forward.

  Args:
    forwards: of an answer, those that change nothing any more included.
  """

  roll: rollout.RollOut
  forwards: int

  def __call__(
    self, params: Params, batch: Batch, key: Array
  ) -> tuple[Batch, States, dict[str, Array]]:
    """The finished rows with all their slots, their states, and numbers as `RollOut` tells them."""
    return self._written(params, batch, key)

  @functools.cached_property
  def _written(self):
    roll = self.roll
    run = parallel.over_batch(
      self.visited, roll.mesh, batched_in=(False, True), batched_out=True, driver=roll.driver
    )

    def written(params: Params, batch: Batch, key: Array):
      batch = jax.tree.map(lambda x: jnp.repeat(x, roll.group, axis=0), batch)
      canvas, states = run(params, roll.canvas(batch, key))
      slot_1xL = jnp.arange(batch.tokens_BxL.shape[1])[None]
      inside_BxL = slot_1xL < canvas.length_B[:, None]
      tokens = canvas.open_BxL.sum(dtype=jnp.float32)
      rows = batch.replace(
        tokens_BxL=canvas.tokens_BxL,
        noisable_BxL=canvas.open_BxL,
        segment_BxL=inside_BxL.astype(jnp.int32),
        position_BxL=slot_1xL - jnp.where(inside_BxL, 0, canvas.length_B[:, None]),
        extra=batch.extra | {"when": jnp.where(canvas.open_BxL, canvas.when_BxL, -1)},
      )
      rows, states = jax.lax.with_sharding_constraint(
        (rows, states), parallel.batch_sharding(roll.mesh)
      )
      return rows, states, {"rollout/tokens_per_forward": tokens / canvas.forwards_Bx3.sum()}

    return jax.jit(written)

  def visited(self, params: Params, canvas: Canvas) -> tuple[Canvas, States]:
    """The canvas after all forwards, and its states."""
    sampler = self.roll.sampler

    def turn(state, _):
      return loop.step(sampler, params, state), state.canvas.tokens_BxL

    last, shown_TxBxL = jax.lax.scan(turn, loop.start(sampler, canvas), length=self.forwards)
    next_TxBxL = jnp.concatenate([shown_TxBxL[1:], last.canvas.tokens_BxL[None]])

    def predict(at: tuple[Array, Array, Array]) -> tuple[Array, Array]:
      return self._predicted(params, canvas, *at)

    turns = jnp.arange(self.forwards)
    found = jax.lax.map(predict, (turns, shown_TxBxL, next_TxBxL))
    states = States(*(jnp.moveaxis(x, 0, 1) for x in (shown_TxBxL, *found)))
    return last.canvas, states

  def _predicted(
    self, params: Params, canvas: Canvas, turn: Array, shown_BxL: Array, next_BxL: Array
  ) -> tuple[Array, Array]:
    """Ids and probabilities [B, L] of one state."""
    sampler = self.roll.sampler
    rows, slots = shown_BxL.shape
    slot_BxL = jnp.broadcast_to(jnp.arange(slots), shown_BxL.shape)
    sees = sampler.sees(slot_BxL, slots, canvas.answer_B, canvas.start_B)
    head = sampler.denoise(
      params,
      shown_BxL,
      slot_BxW=slot_BxL,
      mask=masks.within(sees, canvas.length_B),
      ask_BxA=jnp.maximum(slot_BxL - sampler.shift, 0),
    ).head
    # A stream of its own: the sampler's keys are those of its turns, from 0 on.
    key_B = jax.vmap(lambda key: jax.random.fold_in(key, self.forwards + turn))(canvas.key_B)
    spec = StatSpec(
      temperature=sampler.temperature,
      top_k=sampler.top_k,
      top_p=sampler.top_p,
      top_p_rule=sampler.top_p_rule,
      forbidden=(sampler.mask_id, *sampler.forbidden),
    )
    stats = score(head, spec, current_BxA=shown_BxL, key_B=key_B, slot_BxA=slot_BxL)
    masked_BxL = canvas.open_BxL & (shown_BxL == sampler.mask_id)
    drawn_BxL = jnp.where(next_BxL == sampler.mask_id, stats.token, next_BxL)
    predicted_BxL = jnp.where(masked_BxL, drawn_BxL, shown_BxL)
    head = tempered(head, sampler.temperature)
    nats_R = linear_xent(
      head.hidden_BxAxD.reshape(rows * slots, -1),
      head.unembed_VxD,
      predicted_BxL.reshape(-1),
      soft_cap=head.soft_cap,
      implementation=head.implementation,
    )
    return predicted_BxL, jnp.exp(-nats_R).reshape(shown_BxL.shape)


def of(training: Training) -> StepwiseRollOut | None:
  """What an objective that learns step by step asks for; None: the objective is another."""
  if not training.objective.stepwise:
    return None
  roll = rollout.of(training)
  # A turn of the loop is a forward of every row: none may wait for others to need the same.
  roll = dataclasses.replace(roll, sampler=dataclasses.replace(roll.sampler, positions=0))
  return StepwiseRollOut(roll, training.run.rollout.max_forwards)


@dataclasses.dataclass(frozen=True)
class StepwiseJudge:
  """Judges every prediction, on the host, and chooses what is learned from."""

  judge: rollout.Judge
  eos_ids: tuple[int, ...]

  def __call__(
    self, rows: Batch, states: States, given: Batch
  ) -> tuple[list[Batch], dict[str, float]]:
    """Of each update on these roll-outs the rows, see `dlm.objectives.Mdpo`; and means of the
    rewards in the end, of what is right then, of what was right before and is not then,
    "rollout/backslid", of groups that learn and of rewards that failed."""
    config, (asked, answers) = self.judge.config, self.judge.given(given)
    rows, states = parallel.to_host((rows, states))
    group_B = np.arange(len(rows.tokens_BxL)) // config.group
    steps = []
    for t in range(states.shown_BxTxL.shape[1]):
      written = self._written(rows, states.predicted_BxTxL[:, t], t, asked, answers)
      score_BxK = rollout.scored(config.names, written)
      steps.append(config.rewarded(score_BxK, written, self.judge.room))
    reward_BxT, right_BxT = (
      np.stack([getattr(each, name) for each in steps], axis=1) for name in ("reward", "right")
    )
    advantage_BxT = of_steps(reward_BxT, group_B)
    kept_B = config.advantages.kept(right_BxT[:, -1], steps[-1].speed, group_B)
    at_BxN = telling_steps(advantage_BxT, group_B, config.updates)
    batches = [self._rows(rows, states, at_B, advantage_BxT, kept_B) for at_B in at_BxN.T]
    return batches, {
      "rollout/right": float(right_BxT[:, -1].mean()),
      "rollout/backslid": float((right_BxT.any(1) & ~right_BxT[:, -1]).mean()),
      "rollout/kept": float(kept_B.mean()),
      **rollout.means(config.names, score_BxK),
    }

  def _written(
    self, rows: Batch, predicted_BxL: np.ndarray, turn: int, asked: list[str], answers: list[str]
  ) -> list[Written]:
    """Every row as text up to its first stop id."""
    found, group = [], len(predicted_BxL) // len(asked)
    for i, (ids_L, open_L, when_L) in enumerate(
      zip(predicted_BxL, rows.noisable_BxL, rows.extra["when"], strict=True)
    ):
      ids, when = ids_L[open_L], when_L[open_L]
      end = next(iter(np.flatnonzero(np.isin(ids, self.eos_ids))), len(ids))
      when = np.minimum(np.where(when < 0, turn + 1, when), turn + 1)[:end]
      found.append(
        Written(
          prompt=asked[i // group],
          text=self.judge.tokenizer.decode(ids[:end]),
          answer=answers[i // group],
          when=tuple(when.tolist()),
          ended=end < len(ids),
        )
      )
    return found

  def _rows(
    self, rows: Batch, states: States, at_B: np.ndarray, advantage_BxT: np.ndarray, kept_B
  ) -> Batch:
    """One state of each row."""
    row_B = np.arange(len(at_B))
    shown_BxL, predicted_BxL = states.shown_BxTxL[row_B, at_B], states.predicted_BxTxL[row_B, at_B]
    written_BxL = rows.extra["when"] >= 0
    extra = {
      "when": np.where(written_BxL, 0, -1).astype(np.int32),
      "hidden_BxL": rows.noisable_BxL & (shown_BxL != predicted_BxL),
      "confidence_BxL": states.prob_BxTxL[row_B, at_B],
      "advantage_B": advantage_BxT[row_B, at_B].astype(np.float32),
    }
    chosen = rows.replace(
      tokens_BxL=predicted_BxL, noisable_BxL=written_BxL & kept_B[:, None], extra=rows.extra | extra
    )
    return parallel.put(chosen, parallel.batch_sharding(self.judge.mesh))


def judge(training: Training) -> StepwiseJudge | None:
  """Of such an objective."""
  if not training.objective.stepwise:
    return None
  return StepwiseJudge(rollout.judge(training), training.facts.eos_ids)
