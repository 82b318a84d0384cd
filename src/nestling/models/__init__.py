"""Models: Hope and its relatives, as Hugging Face models."""

from nestling.models.cache import HopeCache
from nestling.models.config import HopeConfig
from nestling.models.hope import HopeForCausalLM, HopeModel

__all__ = ["HopeCache", "HopeConfig", "HopeForCausalLM", "HopeModel"]
