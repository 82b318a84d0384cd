"""Models: Hope and its relatives, as Hugging Face models."""

from nestling.models.cache import HopeCache
from nestling.models.config import HopeConfig
from nestling.models.hope import HopeForCausalLM, HopeModel
from nestling.models.learning import LearningModel
from nestling.models.pretrained import ConvertedConfig, ConvertedForCausalLM, ConvertedModel, convert
from nestling.models.recall import Recall

__all__ = ["HopeCache", "HopeConfig", "HopeForCausalLM", "HopeModel", "LearningModel", "Recall"]
__all__ += ["ConvertedConfig", "ConvertedForCausalLM", "ConvertedModel", "convert"]
