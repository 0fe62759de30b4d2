"""THE training path: rows -> Batch -> corrupt -> Noisy -> denoise -> loss -> LossSum -> update.

`Step.updated` is that arrow. Noise is drawn on the global batch: it is the same on any number of
devices. Gradients are sums, divided once by the summed count: no matter how the batch was cut.
"""

import dataclasses
import functools
import math
import os
import pathlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import lax

from dlm import build, checkpoint, episodes, parallel, rollout, stepwise
from dlm.build import Training
from dlm.checkpoint import Checkpoints
from dlm.data import Rows
from dlm.metrics import Metrics, Tally
from dlm.models import lora
from dlm.models.moe.training import balanced, described, load, penalised
from dlm.objectives import bd3lm
from dlm.objectives.objective import informed, with_own, without_own
from dlm.optimizer import averaged, learning_rate, trained, transformation, with_trained
from dlm.preemption import stop_signal
from dlm.types import Array, Batch, LossSum, Noisy, Params
from dlm.workdir import claimed

Sums = TypeVar("Sums")  # a tree of arrays that add up
Writer = Callable[[Params, int], list[str]]  # parameters, step -> what the model wrote


@struct.dataclass
class TrainState:
  step: Array  # updates done
  params: Params
  opt_state: optax.OptState
  ema: Params | None  # running average of the parameters, where the config asks for one

  def best_params(self) -> Params:
    """What is evaluated and sampled from: the average where there is one."""
    return self.params if self.ema is None else self.ema


# The model's and, of an objective that is taught, its teacher's.
Both = tuple[Params, Params | None]
Updated = tuple[TrainState, LossSum, dict[str, Array]]  # with the gradient's norm and the rate


@dataclasses.dataclass(frozen=True)
class Step:
  """The compiled functions of a run."""

  training: Training

  @functools.cached_property
  def update(self) -> Callable[[TrainState, Batch, Params | None], Updated]:
    """The state after a batch; the one before is donated."""
    return jax.jit(self.updated, donate_argnums=0, compiler_options=self.compiler_options)

  @property
  def compiler_options(self) -> dict[str, bool] | None:
    """XLA's, of the update: see `parallel.OVERLAP`."""
    training = self.training
    if not training.run.overlap or training.mesh.devices.flat[0].platform != "tpu":
      return None
    moe, options = training.model.config.moe, parallel.OVERLAP
    if moe is not None and moe.choice == "token":
      return {name: on for name, on in options.items() if name != parallel.BUT_RAGGED}
    return options

  def updated(self, state: TrainState, batch: Batch, teacher: Params | None = None) -> Updated:
    """corrupt -> loss and gradient, summed over the batch -> update."""
    training, config = self.training, self.training.run.optimizer
    noisy = self.corrupt("train", batch, state.step, state.params)

    def gradient(both: Both, noisy: Noisy) -> tuple[Params, tuple[LossSum, Array | None]]:
      params, teacher = both

      def total(own: Params) -> tuple[Array, tuple[LossSum, Array | None]]:
        asked = self.asked(with_trained(params, own), teacher)
        loss, aux = training.objective.loss(*asked, noisy)
        return penalised(loss, aux), (described(loss, aux), load(aux))

      return jax.grad(total, has_aux=True)(trained(config, params))

    grads, (loss, load_YxE) = self.summed(gradient)((state.params, teacher), noisy)
    # A batch may hold nothing to learn, as where LLaDA cuts it before all answers begin.
    grads = jax.tree.map(lambda g: jnp.where(loss.count > 0, g / loss.count, 0), grads)
    own = trained(config, state.params)
    change, opt_state = self.optimizer.update(grads, state.opt_state, own)
    params = with_trained(state.params, optax.apply_updates(own, change))
    params = balanced(training.model.config.moe, params, load_YxE)
    ema = None if state.ema is None else averaged(config, state.ema, params, state.step)
    rate = learning_rate(config, training.run.steps)(state.step)
    numbers = {"grad_norm": optax.tree.norm(grads), "lr": jnp.asarray(rate, jnp.float32)}
    state = TrainState(state.step + 1, params, opt_state, ema)
    return lax.with_sharding_constraint(state, self.shardings()), loss, numbers

  @functools.cached_property
  def evaluate(self) -> Callable[..., LossSum]:
    """(parameters, batch, its index) -> loss. Its noise depends on seed and index alone.

    A fourth argument: the teacher's parameters.
    """
    objective = self.training.objective
    summed = self.summed(lambda both, noisy: objective.loss(*self.asked(*both), noisy)[0])

    def evaluate(params: Params, batch: Batch, index: Array, teacher: Params | None = None):
      return summed((params, teacher), self.corrupt("eval", batch, index, params))

    return jax.jit(evaluate)

  def asked(self, params: Params, teacher: Params | None) -> tuple[Any, Any]:
    """Denoiser and parameters as the objective takes them: pairs where it is taught.

    A model that learns by adapters is its own teacher without them: no second copy of it is held.
    """
    model = self.training.model
    if not self.training.objective.taught:
      return model, params
    teacher = lora.frozen(params) if self.training.taught_by_base else teacher
    return (model, self.training.teacher_model), (params, teacher)

  @functools.cached_property
  def recalled(self) -> Callable[[Params, Batch, Array, Params | None], dict[str, Array]]:
    """(parameters, batch, update) -> what that update is to recall, as it will estimate it now.

    A fourth argument: the teacher's parameters.
    """
    objective, run = self.training.objective, self.training.run

    def of(both: Both, noisy: Noisy) -> dict[str, Array]:
      return objective.remembered(*self.asked(*both), noisy)

    options = {"batched_in": (False, True), "batched_out": True, "driver": run.parallel}
    estimates = parallel.over_batch(of, self.training.mesh, **options)

    def recalled(params: Params, batch: Batch, index: Array, teacher: Params | None = None):
      noisy = self.corrupt("train", batch, index, params)
      return estimates((params, teacher), noisy)

    return jax.jit(recalled)

  @functools.cached_property
  def spread(self) -> Callable[[Params, Batch, Array], Array]:
    """(parameters, batch, its index) -> how much the losses of its blocks vary."""
    objective, model, run = self.training.objective, self.training.model, self.training.run
    fn = functools.partial(objective.token_losses, model)
    options = {"batched_in": (False, True), "batched_out": True, "driver": run.parallel}
    losses = parallel.over_batch(fn, self.training.mesh, **options)

    def spread(params: Params, batch: Batch, index: Array) -> Array:
      noisy = self.corrupt("eval", batch, index, params)
      return bd3lm.spread(losses(params, noisy), objective.block)

    return jax.jit(spread)

  def corrupt(self, purpose: str, batch: Batch, index: Array, params: Params) -> Noisy:
    """Noise of the index-th batch; evaluation sees the objective as it is at the end of the run."""
    key = jax.random.fold_in(self.key(purpose), index)
    step = index if purpose == "train" else jnp.int32(self.training.run.steps)
    noisy = self.training.objective.corrupt(key, informed(batch, params), step)
    return lax.with_sharding_constraint(noisy, parallel.batch_sharding(self.training.mesh))

  @functools.cached_property
  def optimizer(self) -> optax.GradientTransformation:
    return transformation(self.training.run.optimizer, self.training.run.steps)

  def key(self, purpose: str) -> Array:
    """One stream of randomness for each use of the run's seed."""
    index = ("init", "train", "eval", "write", "write_eval").index(purpose)
    return jax.random.fold_in(jax.random.key(self.training.run.seed), index)

  def init(self) -> TrainState:
    """The first state; parameters, moments and average are born on their shards."""
    shardings, source = self.shardings(), self.training.source
    if source is None:
      return jax.jit(self._random, out_shardings=shardings)()
    held = without_own(shardings.params)
    own = source.model.config.lora is not None
    params, _ = source.params(held if own else lora.frozen(held), "float32")
    return jax.jit(self._start, out_shardings=shardings, donate_argnums=0)(params)

  def teacher(self) -> Params | None:
    """The parameters of the teacher, if there is one, on their shards; None also: see `asked`."""
    source = self.training.teacher
    if source is None or self.training.taught_by_base:
      return None
    shardings = parallel.shard_params(self.training.teacher_model.abstract(), self.training.mesh)
    return source.params(shardings, "float32")[0]

  def abstract(self) -> TrainState:
    """Shapes and shardings of a state, to restore one into."""

    def place(shape: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
      return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    return jax.tree.map(place, jax.eval_shape(self._random), self.shardings())

  def kept(self, state: TrainState) -> TrainState:
    """What a checkpoint holds of a state: of the parameters, if there are adapters, they alone."""
    if self.training.model.config.lora is None:
      return state
    return state.replace(params=lora.adapters(state.params))

  def whole(self, kept: TrainState, base: Params | None) -> TrainState:
    """The state of which `kept` is left; `base`: parameters that `kept` has none of."""
    return kept if base is None else kept.replace(params=lora.joined(base, kept.params))

  def base(self, state: TrainState) -> Params | None:
    """The parameters that no update changes, of a run that trains adapters."""
    return None if self.training.model.config.lora is None else lora.frozen(state.params)

  def _random(self) -> TrainState:
    return self._start(self.training.model.init(self.key("init")))

  def _start(self, params: Params) -> TrainState:
    config, model = self.training.run.optimizer, self.training.model
    if model.config.lora is not None and not lora.adapters(params):  # the source has none
      params = lora.joined(params, lora.adapters(model.init(self.key("init"))))
    params = with_own(params, self.own)
    ema = None if config.ema is None else jax.tree.map(lambda p: p.astype(jnp.float32), params)
    moments = self.optimizer.init(trained(config, params))
    return TrainState(jnp.zeros((), jnp.int32), params, moments, ema)

  @property
  def own(self) -> Params:
    """The objective's first parameters."""
    return self.training.objective.init(self.training.model.config.width)

  def shardings(self) -> TrainState:
    """Moments and average lie where their parameter lies."""
    mesh = self.training.mesh
    params = parallel.shard_params(self.training.model.abstract(), mesh)
    whole = jax.sharding.NamedSharding(mesh, jax.P())
    params = with_own(params, jax.tree.map(lambda _: whole, self.own))
    shapes = jax.eval_shape(self._random)
    keep = {"transform_non_params": lambda _: whole}
    own = trained(self.training.run.optimizer, params)
    moments = optax.tree.map_params(self.optimizer, lambda _, at: at, shapes.opt_state, own, **keep)
    return TrainState(whole, params, moments, None if shapes.ema is None else params)

  def abstract_batch(self) -> Batch:
    """Shapes and shardings of the rows of an update."""
    rows, length = self.training.run.batch, self.training.run.data.length
    split = {"sharding": parallel.batch_sharding(self.training.mesh)}
    ids = jax.ShapeDtypeStruct((rows, length), jnp.int32, **split)
    flags = jax.ShapeDtypeStruct((rows, length), jnp.bool_, **split)
    extra = {"when": ids} if self.training.objective.traced else {}
    if self.training.objective.rewarded:
      worth = jax.ShapeDtypeStruct((rows,), jnp.float32, **split)
      extra |= {"advantage_B": worth, "right_B": worth}
    if self.training.rows is not None and self.training.rows.told is not None:
      told = self.training.rows[0].extra.items()
      extra |= {n: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, **split) for n, x in told}
    if self.training.objective.stepwise:
      sure = jax.ShapeDtypeStruct((rows, length), jnp.float32, **split)
      extra |= {"hidden_BxL": flags, "confidence_BxL": sure}
    return Batch(ids, flags, ids, ids, extra)

  def flops(self) -> float:
    """Matmul FLOPs of one update: what a forward needs, and twice that for its gradient.

    Two a weight for each input, four a channel for each input and key, seen or not. [noisy; clean]
    has 2L inputs, L of which meet the unembedding. Frozen kernels have no gradient: with adapters
    a backward costs one forward. Nothing that is computed again counts.
    """
    corrupt = functools.partial(self.corrupt, "train")
    noisy = jax.eval_shape(corrupt, self.abstract_batch(), jnp.int32(0), {})
    window = noisy.inputs_BxW.shape[1]
    config = self.training.model.config
    forwards = 3.0 if config.lora is None else 2.0
    unasked = noisy.inputs_BxW.size - noisy.targets_BxL.size
    forward = noisy.inputs_BxW.size * config.flops_per_token(window)
    return forwards * (forward - unasked * 2 * config.vocab * config.width)

  def summed(self, fn: Callable[[Params, Noisy], Sums]) -> Callable[[Params, Noisy], Sums]:
    """Sums `fn` over microbatches, then over the shards of the batch."""
    run, mesh = self.training.run, self.training.mesh

    def shard(params: Params, noisy: Noisy) -> Sums:
      sums = parallel.sum_over_parts(functools.partial(fn, params), noisy, run.microbatches)
      return parallel.sum_over_batch(sums, mesh)

    return parallel.over_batch(
      shard, mesh, batched_in=(False, True), batched_out=False, driver=run.parallel
    )


def train(
  training: Training, workdir: str | os.PathLike, samples: Writer | None = None
) -> TrainState:
  """Trains from the start, or from the newest checkpoint in `workdir`, until the last step.

  SIGTERM and Ctrl-C save and return after the update at hand; the same call goes on, bit for bit.

  Args:
    samples: writes what `training.run.sample` asks for; None: no samples.

  Raises:
    CheckpointError, WeightsError: `workdir` belongs to another config or to other data, or its
      checkpoints, or the one that the run starts from, cannot be read.
    ValueError: another process trains in `workdir`.
    FloatingPointError: the loss, the gradient or the new state is not finite; names the step.
  """
  step, meta = Step(training), {"data": {}}
  begun = (pathlib.Path(workdir) / checkpoint.STEPS).is_dir()
  state, base = None, None
  if not begun or training.model.config.lora is not None:
    state = step.init()  # first: a source that cannot be read leaves no folder
    base = step.base(state)
  teacher = step.teacher()
  config = training.config()
  data = {"train": training.rows.fingerprint(), "test": training.eval_rows.fingerprint()}
  if base is not None:
    data["base"] = {"parameters": training.source.digest(base)}
  if training.tools is not None:
    data["tools"] = {"corpus": training.tools.digest}
  with (
    claimed(workdir, config, training.facts, training.tokenizer, data, as_now=build.recorded),
    Checkpoints(workdir, training.run.checkpoint) as checkpoints,
  ):
    if checkpoints.latest() is not None:
      kept, meta = checkpoints.restore(step.kept(step.abstract()))
      state = step.whole(kept, base)
    elif state is None:  # ended before its first checkpoint
      state = step.init()
    first, extra = int(state.step), jax.tree.map(jnp.float32, meta["data"].get("extra", {}))
    tally = Tally(
      training.run.batch * training.run.data.length, step.flops(), meta["data"].get("sums", {})
    )
    with Metrics(workdir, step=first, steps=training.run.steps) as metrics, stop_signal() as stop:
      for line in training.rows.notes():
        metrics.say(line)
      loop = _Loop(training, step, checkpoints, metrics, stop, samples, extra, teacher, tally)
      return loop.run(state, first)


@dataclasses.dataclass
class _Loop:
  """Updates, and what happens between them: records, evaluation, samples, checkpoints."""

  training: Training
  step: Step
  checkpoints: Checkpoints
  metrics: Metrics
  stop: threading.Event
  samples: Writer | None
  extra: dict[str, Any]  # `Batch.extra`: the noise that the last evaluation chose
  teacher: Params | None
  tally: Tally

  def run(self, state: TrainState, first: int) -> TrainState:
    steps = self.training.run.steps
    if first:
      self.metrics.say(f"resumed at step {first}")
    waiting = None  # the report of the update before, fetched while the next one runs
    told = False
    for done in range(first + 1, steps + 1):
      if (done - 1) % self.updates == 0:
        rows = self.rows_of(done - 1, state.params)
      batch, written = rows[(done - 1) % self.updates]
      batch = batch.replace(extra=batch.extra | self.extra)
      with jax.transfer_guard("disallow"):
        state, loss, numbers = self.step.update(state, batch, self.teacher)
      report = loss, numbers | written
      if waiting is not None:
        self.settle(*waiting)
      waiting = done, *report
      told = self.stop.is_set() or self.checkpoints.preempted(done) or told
      stopping = done < steps and told and done % self.updates == 0
      if due := self.due(done, stopping):
        self.settle(*waiting)
        waiting = None
        with self.tally.paused():
          self.between(state, done, due)
      if stopping:
        self.metrics.say(f"stopped and saved at step {done}; the same command goes on from there")
        break
    self.checkpoints.wait()
    return state

  @property
  def updates(self) -> int:
    """On the same rows: a run is saved between such rows alone."""
    rewards = self.training.run.rewards
    return 1 if rewards is None else rewards.updates

  def rows_of(self, done: int, params: Params) -> list[tuple[Batch, dict]]:
    """Of each of the updates from `done` on that share rows: the rows, and what to record."""
    batches, written = self.written("write", self.training.rows, done // self.updates, params)
    if len(batches) == 1:
      batches *= self.updates
    if self.training.objective.recalls and self.updates > 1:
      for i, batch in enumerate(batches):
        old = self.step.recalled(params, batch, jnp.int32(done + i), self.teacher)
        batches[i] = batch.replace(extra=batch.extra | old)
    return [(batch, written) for batch in batches]

  def written(
    self, purpose: str, rows: Rows, index: int, params: Params
  ) -> tuple[list[Batch], dict]:
    """Rows of the data, or what the model writes after their prompts and what to record of it.

    Several of an objective that learns states of answers: the most telling first.
    """
    given = self.put(rows[index])
    if self.roll_out is None:
      return [given], {}
    key = jax.random.fold_in(self.step.key(purpose), index)
    *found, written = self.roll_out(params, given, key)
    if self.judge is None:
      return found, written
    batches, judged = self.judge(*found, given)
    return batches, written | judged

  @functools.cached_property
  def roll_out(
    self,
  ) -> rollout.RollOut | stepwise.StepwiseRollOut | episodes.ToolRollOut | None:
    for kind in (episodes, stepwise, rollout):
      if (found := kind.of(self.training)) is not None:
        return found
    return None

  @functools.cached_property
  def judge(self) -> rollout.Judge | stepwise.StepwiseJudge | None:
    return stepwise.judge(self.training) or rollout.judge(self.training)

  def put(self, rows) -> Batch:
    sharding = parallel.batch_sharding(self.training.mesh)
    put = functools.partial(jax.make_array_from_process_local_data, sharding)
    return Batch(*jax.tree.map(put, tuple(rows)))

  def settle(self, done: int, loss: LossSum, numbers: dict) -> None:
    """Takes one update into the record; stops the run if it is not finite."""
    loss, numbers = jax.device_get((loss, numbers))
    for name, value in (("loss", loss.total), ("gradient", numbers["grad_norm"])):
      if not np.isfinite(value):
        raise FloatingPointError(f"{name} is {value} at step {done}; it was not saved")
    self.tally.add(loss, {name: float(value) for name, value in numbers.items()})
    if done % self.training.run.log_every == 0 or done == self.training.run.steps:
      values = self.tally.values()
      self.metrics.scalars(done, values)
      self.metrics.show(done, values)

  def due(self, done: int, stopping: bool) -> set[str]:
    """What follows update `done`. A run that is told to stop only saves; else what is saved is
    evaluated, so that "best" compares like with like."""
    training = self.training
    last = done == training.run.steps

    def falls(every: int) -> bool:
      return every > 0 and (last or done % every == 0)

    if stopping:
      return {"save"}
    due = {"save"} if last or falls(training.run.checkpoint.every) else set()
    if falls(training.run.eval.every) or (due and training.run.checkpoint.keep_best):
      due.add("evaluate")
    if self.samples is not None and falls(training.run.sample.every):
      due.add("sample")
    return due

  def between(self, state: TrainState, done: int, due: set[str]) -> None:
    """Saves last: a state whose evaluation is not finite is not kept."""
    loss = self.evaluate(state, done) if "evaluate" in due else None
    if "evaluate" in due and self.training.objective.candidates:
      self.extra = self.search(state, done)
    if "sample" in due:
      params = without_own(state.best_params())
      self.metrics.texts(done, "samples", self.samples(params, done))
    if "save" in due:
      extra = jax.tree.map(float, self.extra)
      position = {"step": done, "seed": self.training.run.seed, "extra": extra}
      position["sums"] = self.tally.sums
      self.checkpoints.save(done, self.step.kept(state), position, loss)

  def evaluate(self, state: TrainState, done: int) -> float:
    """Loss per token over the fixed test batches; sums in float64 on the host."""
    total, count, batches = 0.0, 0.0, self.training.run.eval.batches
    params, means = state.best_params(), {}
    for index in range(batches):
      (batch, *_), written = self.written("write_eval", self.training.eval_rows, index, params)
      sums = self.step.evaluate(params, batch, jnp.int32(index), self.teacher)
      sums, written = jax.device_get((sums, written))
      for name, value in written.items():
        means[f"eval/{name}"] = means.get(f"eval/{name}", 0.0) + float(value) / batches
      total, count = total + float(sums.total), count + float(sums.count)
    if not count:
      raise FloatingPointError(
        f"{batches} batches of evaluation hold no learned token (eval.batches); step {done} was "
        "not saved"
      )
    loss = total / count
    if not math.isfinite(loss):
      raise FloatingPointError(f"evaluation loss is {loss} at step {done}; it was not saved")
    values = {"eval/loss": loss, **means}
    if self.training.objective.not_a_likelihood() is None:
      values["eval/bits_per_token"] = loss / math.log(2)
      values["eval/perplexity"] = math.exp(min(loss, 700))
    self.metrics.scalars(done, values)
    self.metrics.say(f"step {done}  " + "  ".join(f"{k} {v:.4f}" for k, v in values.items()))
    return loss

  def search(self, state: TrainState, done: int) -> dict[str, Any]:
    """Of the noises that the objective offers, that whose losses vary least on the test batches."""
    params, candidates = state.best_params(), self.training.objective.candidates
    spreads = np.zeros(len(candidates))
    for index in range(self.training.run.eval.batches):
      batch = self.put(self.training.eval_rows[index])
      for i, extra in enumerate(candidates):
        spreads[i] += self.step.spread(params, batch.replace(extra=extra), jnp.int32(index))
    chosen = candidates[int(spreads.argmin())]
    self.metrics.say(f"step {done}  goes on with {chosen}")
    return jax.tree.map(jnp.float32, chosen)
