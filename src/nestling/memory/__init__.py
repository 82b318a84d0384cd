"""Associative memories: a network, an objective, a rule and a retention, composed."""

from nestling.memory.associative import AssociativeMemory, MemoryState
from nestling.memory.features import EluPlusOne, Features, Polynomial, RandomFeatures
from nestling.memory.network import MLP, Matrix, Network
from nestling.memory.objective import L2, DotProduct, Huber, Lp, as_objective
from nestling.memory.residual_norm import ResidualNorm
from nestling.memory.retention import ToInitial, ToZero
from nestling.memory.rule import DeltaGradientDescent, GradientDescent, RetainPredictions, RetainSeen
from nestling.memory.target import Given, SelfGenerated, unit

__all__ = [
    "L2",
    "MLP",
    "AssociativeMemory",
    "DeltaGradientDescent",
    "DotProduct",
    "EluPlusOne",
    "Features",
    "Given",
    "GradientDescent",
    "Huber",
    "Lp",
    "Matrix",
    "MemoryState",
    "Network",
    "Polynomial",
    "RandomFeatures",
    "ResidualNorm",
    "RetainPredictions",
    "RetainSeen",
    "SelfGenerated",
    "ToInitial",
    "ToZero",
    "as_objective",
    "unit",
]
