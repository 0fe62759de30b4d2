"""Transformers behind the `Denoiser` protocol: their config, presets, parts."""

from dlm.models.bind import Model, bind
from dlm.models.config import BertConfig, GemmaConfig, ModelConfig
from dlm.models.lora import LoraConfig
from dlm.models.moe.config import MoeConfig
from dlm.models.presets import PRESETS, from_preset
from dlm.models.rope import RopeScaling

__all__ = [
  "PRESETS", "BertConfig", "GemmaConfig", "LoraConfig", "Model", "ModelConfig", "MoeConfig",
  "RopeScaling", "bind", "from_preset",
]  # fmt: skip
