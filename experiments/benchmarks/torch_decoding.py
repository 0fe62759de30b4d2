"""Plain cached decoding by `transformers` in float32: the baseline of the `smollm` suite."""

import os
import tempfile
from collections.abc import Callable

import jax
import numpy as np
import torch
from transformers import AutoModelForCausalLM

from dlm import weights
from dlm.facts import ModelFacts
from dlm.models import ModelConfig
from dlm.types import Params


class Peer:
  """The same weights, by our own export, on the kind of device that JAX runs on."""

  def __init__(self, config: ModelConfig, params: Params, facts: ModelFacts):
    with tempfile.TemporaryDirectory() as folder:
      directory = os.path.join(folder, "model")
      weights.export(directory, "llama", config, params, facts=facts)
      model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model.generation_config.eos_token_id = None  # all rows are written to the end, as ours are
    self.model = model.eval().to("cuda" if jax.default_backend() == "gpu" else "cpu")

  @torch.no_grad()
  def generate(self, prompt_BxP: np.ndarray, new: int) -> np.ndarray:
    """[B, P + new], greedy."""
    prompt = self._tensor(prompt_BxP)
    options = {"attention_mask": torch.ones_like(prompt), "pad_token_id": 0}
    return self.model.generate(prompt, max_new_tokens=new, do_sample=False, **options).cpu().numpy()

  def over(self, prompt_1xP: np.ndarray, width: int, forwards: int) -> Callable[[], np.ndarray]:
    """What runs so many greedy forwards over `width` rows, each behind the prompt alone."""

    @torch.no_grad()
    def run() -> np.ndarray:
      ids = self._tensor(np.zeros((1, width)))
      for _ in range(forwards):
        ids = self.model(ids, past_key_values=cache).logits.argmax(-1)
        cache.crop(-width)  # that many fewer
      return ids.cpu().numpy()

    with torch.no_grad():
      cache = self.model(self._tensor(prompt_1xP)).past_key_values
    return run

  def _tensor(self, ids: np.ndarray) -> torch.Tensor:
    return torch.tensor(ids, dtype=torch.long, device=self.model.device)
