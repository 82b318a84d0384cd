"""Layers of a model: self-modifying Titans, attention, the continuum memory system, and the block they make."""

from nestling.layers.attention import Attention, AttentionState
from nestling.layers.block import Block
from nestling.layers.continuum import ContinuumMemory, SwiGLU
from nestling.layers.conv import CausalConv
from nestling.layers.linear import Linear
from nestling.layers.self_modifying import SelfModifyingState, SelfModifyingTitans

__all__ = [
    "Attention",
    "AttentionState",
    "Block",
    "CausalConv",
    "ContinuumMemory",
    "Linear",
    "SelfModifyingState",
    "SelfModifyingTitans",
    "SwiGLU",
]
