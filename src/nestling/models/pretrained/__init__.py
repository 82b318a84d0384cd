"""Pretrained models of transformers, converted into models that keep learning."""

from nestling.models.pretrained.config import ConvertedConfig
from nestling.models.pretrained.convert import convert
from nestling.models.pretrained.model import Converted, ConvertedForCausalLM, ConvertedModel

__all__ = ["Converted", "ConvertedConfig", "ConvertedForCausalLM", "ConvertedModel", "convert"]
