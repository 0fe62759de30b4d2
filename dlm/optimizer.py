"""The optimizer of a training run, one optax chain from one table; the average of parameters."""

import dataclasses
from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
import optax

from dlm.types import Array, Params

NEVER_DECAYED = ("scale", "bias")  # names of norm gains and biases, also when layers are stacked
EMBEDDING = "embed"  # the matrix that embeds, and unembeds if the model is tied
ROUTER = "router"
ADAPTER = ("lora_a", "lora_b")  # see `dlm.models.lora`
TRAINABLE = ("all", "router")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """The `optimizer` table of a training config. Steps count updates from 0.

  Attributes:
    lr: peak learning rate, reached by `warmup` updates of linear growth (the first one moves).
    decay: "wsd" only: updates of the last phase, linear from `lr` to `end_lr`.
    stages: "stages" only: (updates, lr at start, lr at end) of each phase after the warm-up.
    weight_decay: never on norms and biases; on embeddings only if `decay_embeddings`.
    clip: largest global norm of the gradient; None: no clipping.
    ema: decay of the average of parameters; None: no average is kept.
    ema_warmup: use min(ema, (1 + n) / (10 + n)) at the n-th update, as MDLM (arXiv 2406.07524).
    trainable: "all" (of a model with adapters: those), or the experts' "router" alone.
  """

  lr: float
  name: str = "adamw"
  schedule: str = "constant"
  warmup: int = 0
  decay: int = 0
  end_lr: float = 0.0
  stages: tuple[tuple[int, float, float], ...] = ()
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.0
  decay_embeddings: bool = False
  clip: float | None = 1.0
  ema: float | None = None
  ema_warmup: bool = True
  trainable: str = "all"

  def __post_init__(self):
    _known("optimizer.name", self.name, OPTIMIZERS)
    _known("optimizer.schedule", self.schedule, SCHEDULES)
    _known("optimizer.trainable", self.trainable, TRAINABLE)
    for field in ("lr", "warmup", "decay", "end_lr", "weight_decay"):
      if getattr(self, field) < 0:
        raise ValueError(f"optimizer.{field}={getattr(self, field)} must not be negative")
    for field in ("b1", "b2", "ema"):
      value = getattr(self, field)
      if value is not None and not 0 <= value < 1:
        raise ValueError(f"optimizer.{field}={value} must lie in [0, 1)")
    if self.clip is not None and self.clip <= 0:
      raise ValueError(f"optimizer.clip={self.clip} must be positive; None switches clipping off")
    if (self.schedule == "wsd") != (self.decay > 0):
      raise ValueError(f"optimizer.decay={self.decay} must be positive with schedule='wsd', else 0")
    if (self.schedule == "stages") != bool(self.stages):
      raise ValueError(f"optimizer.stages={self.stages} goes with schedule='stages' and only there")


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
  """Learning rate by update; `steps` is the length of the run.

  Raises:
    ValueError: warm-up and decay do not fit into the run.
  """
  rest = steps - config.warmup
  if rest < max(config.decay, 1):
    raise ValueError(
      f"optimizer.warmup={config.warmup} + decay={config.decay} do not fit into {steps=}"
    )
  after = SCHEDULES[config.schedule](config, rest)
  if not config.warmup:
    return after
  rise = optax.linear_schedule(config.lr / config.warmup, config.lr, config.warmup - 1)
  if config.warmup == 1:  # optax warns about a ramp of no length
    rise = optax.constant_schedule(config.lr)
  return optax.join_schedules([rise, after], [config.warmup])


def transformation(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
  """Clipping, the optimizer, its weight decay and its schedule."""
  clip = optax.identity() if config.clip is None else optax.clip_by_global_norm(config.clip)
  return optax.chain(clip, OPTIMIZERS[config.name](config, learning_rate(config, steps)))


def trained(config: OptimizerConfig, params: Params) -> Params:
  """The parameters that the optimizer changes, None in place of the others.

  Others have no gradient, no moments and no part in the norm that is clipped. A router's bias is
  one in any case: it follows the load of its experts, see `dlm.models.moe.training`. Where there
  are adapters (`dlm.models.lora`), all else is one.
  """
  paths = [_names(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  adapted = any(names[-1] in ADAPTER for names in paths)

  def own(path, leaf):
    names = _names(path)
    if names[-2:] == [ROUTER, "bias"] or (config.trainable == "router" and ROUTER not in names):
      return None
    return None if adapted and names[-1] not in ADAPTER else leaf

  return jax.tree_util.tree_map_with_path(own, params)


def with_trained(params: Params, own: Params) -> Params:
  """`params` with what `trained` left of them taken from `own`."""
  return jax.tree.map(lambda kept, new: kept if new is None else new, params, own)


def is_decayed(config: OptimizerConfig, params: Params) -> Params:
  """Tree of bools: which parameters weight decay pulls to zero, told by their names."""

  def decayed(path, _) -> bool:
    names = _names(path)
    if any(name in NEVER_DECAYED for name in names):
      return False
    return config.decay_embeddings or EMBEDDING not in names

  return jax.tree_util.tree_map_with_path(decayed, params)


def averaged(config: OptimizerConfig, ema: Params, params: Params, step: Array) -> Params:
  """The average after update `step` (0, 1, ...) gave `params`; float32 whatever the parameters."""
  n = step.astype(jnp.float32) + 1
  rate = jnp.minimum(config.ema, (1 + n) / (10 + n)) if config.ema_warmup else config.ema
  return jax.tree.map(lambda e, p: e + (1 - rate) * (p.astype(jnp.float32) - e), ema, params)


def _names(path: tuple) -> list[str]:
  return [str(getattr(key, "key", key)) for key in path]


def _known(field: str, name: str, table: Collection[str]) -> None:
  if name not in table:
    raise ValueError(f"{field}={name!r} is unknown; known: {', '.join(sorted(table))}")


def _cosine(config: OptimizerConfig, steps: int) -> optax.Schedule:
  alpha = config.end_lr / config.lr if config.lr else 0.0
  return optax.cosine_decay_schedule(config.lr, steps, alpha)


def _wsd(config: OptimizerConfig, steps: int) -> optax.Schedule:
  fall = optax.linear_schedule(config.lr, config.end_lr, config.decay)
  return optax.join_schedules([optax.constant_schedule(config.lr), fall], [steps - config.decay])


def _stages(config: OptimizerConfig, steps: int) -> optax.Schedule:
  parts, ends = [], []
  for length, start_lr, end_lr in config.stages:
    parts.append(optax.linear_schedule(start_lr, end_lr, length))
    ends.append((ends[-1] if ends else 0) + length)
  return optax.join_schedules(parts, ends[:-1])


def _adamw(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
  return optax.adamw(
    rate,
    b1=config.b1,
    b2=config.b2,
    eps=config.eps,
    weight_decay=config.weight_decay,
    mask=lambda params: is_decayed(config, params),
  )


def _lion(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
  return optax.lion(
    rate,
    b1=config.b1,
    b2=config.b2,
    weight_decay=config.weight_decay,
    mask=lambda params: is_decayed(config, params),
  )


def _sgd(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
  decay = optax.add_decayed_weights(config.weight_decay, lambda p: is_decayed(config, p))
  return optax.chain(decay, optax.sgd(rate, momentum=config.b1 or None))


OPTIMIZERS: dict[str, Callable] = {"adamw": _adamw, "lion": _lion, "sgd": _sgd}

SCHEDULES: dict[str, Callable] = {
  "constant": lambda config, steps: optax.constant_schedule(config.lr),
  "cosine": _cosine,
  "linear": lambda config, steps: optax.linear_schedule(config.lr, config.end_lr, steps),
  "wsd": _wsd,
  "stages": _stages,
}
