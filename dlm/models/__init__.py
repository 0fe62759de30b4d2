"""Transformers behind the `Denoiser` protocol: presets, layers, attention, transformer, bind."""

from dlm.models.bind import Model, bind
from dlm.models.moe_config import MoeConfig
from dlm.models.presets import PRESETS, ModelConfig

__all__ = ["PRESETS", "Model", "ModelConfig", "MoeConfig", "bind"]
