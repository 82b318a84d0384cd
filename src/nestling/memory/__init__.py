"""Associative memories: a network, an objective, a rule and a retention, composed."""

from nestling.memory.adapt import adapt, query_loss
from nestling.memory.associative import AssociativeMemory, MemoryState
from nestling.memory.hypernetwork import Hypernetwork
from nestling.memory.network import MLP, Matrix, Network
from nestling.memory.objective import L2, DotProduct, Huber
from nestling.memory.retention import ToInitial, ToZero
from nestling.memory.rule import DeltaGradientDescent, GradientDescent, RetainPredictions, RetainSeen
from nestling.memory.target import Given, SelfGenerated, unit

__all__ = [
    "L2",
    "MLP",
    "AssociativeMemory",
    "DeltaGradientDescent",
    "DotProduct",
    "Given",
    "GradientDescent",
    "Huber",
    "Hypernetwork",
    "Matrix",
    "MemoryState",
    "Network",
    "RetainPredictions",
    "RetainSeen",
    "SelfGenerated",
    "ToInitial",
    "ToZero",
    "adapt",
    "query_loss",
    "unit",
]
