"""Layers of a model: self-modifying Titans, attention, linear memories, the continuum memory system, and their block."""

from nestling.layers.attention import Attention, AttentionState
from nestling.layers.block import Block
from nestling.layers.continuum import ContinuumMemory, SwiGLU
from nestling.layers.conv import CausalConv
from nestling.layers.drive import Drive
from nestling.layers.linear import Linear
from nestling.layers.memory_layer import MemoryLayer, MemoryLayerState
from nestling.layers.self_modifying import SelfModifyingState, SelfModifyingTitans

__all__ = [
    "Attention",
    "AttentionState",
    "Block",
    "CausalConv",
    "ContinuumMemory",
    "Drive",
    "Linear",
    "MemoryLayer",
    "MemoryLayerState",
    "SelfModifyingState",
    "SelfModifyingTitans",
    "SwiGLU",
]
