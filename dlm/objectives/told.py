"""Distillation from what a teacher said beforehand: `dlm.targets` wrote it."""

import dataclasses

import jax.numpy as jnp

from dlm.objectives.diffullama import Around
from dlm.objectives.divergence import Kept
from dlm.types import Array, Aux, Batch, Denoiser, LossSum, ModelOutput, Noisy, Params

DRAWN = "drawn/"  # begins the names of noise in `Batch.extra`
KEPT = ("id_BxLxK", "logp_BxLxK", "rest_BxL")  # and these are what its teacher said of it


@dataclasses.dataclass(frozen=True)
class Remembered:
  """In place of the teacher: what it said are its parameters, whatever it is asked."""

  def __call__(self, params: Kept, tokens_BxW: Array, **_) -> ModelOutput:
    del tokens_BxW
    return ModelOutput(head=params, cache=None, aux={})


@dataclasses.dataclass(frozen=True)
class Told(Around):
  """An objective whose noise was drawn, and whose teacher was asked, before the run.

  Rows are those of a source `targets:DIR`. Evaluation has noise of its own, the test split's.
  """

  taught = False
  tellable = False

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    del key, batch
    return {}

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    drawn = {
      name.removeprefix(DRAWN): each for name, each in batch.extra.items() if name.startswith(DRAWN)
    }
    noisy = self.objective.corrupt_with(draws | drawn, batch, step)
    said = {name: batch.extra[name] for name in KEPT}
    return noisy.replace(extra=noisy.extra | said)

  def losses(self, denoise: Denoiser, params: Params, noisy: Noisy) -> tuple[Array, Array, Aux]:
    return self.objective.losses(*self._pairs(denoise, params, noisy), noisy)

  def loss(self, denoise: Denoiser, params: Params, noisy: Noisy) -> tuple[LossSum, Aux]:
    return self.objective.loss(*self._pairs(denoise, params, noisy), noisy)

  def _pairs(self, denoise: Denoiser, params: Params, noisy: Noisy):
    said = Kept(*(noisy.extra[name] for name in KEPT))
    said = said.replace(id_BxLxK=said.id_BxLxK.astype(jnp.int32))
    return (denoise, Remembered()), (params, said)
