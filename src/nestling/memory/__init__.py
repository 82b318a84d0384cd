"""Associative memories: a network, an objective, a rule and a retention, composed; `zoo` names the classics."""

from nestling.memory.adapt import adapt, query_loss
from nestling.memory.associative import AssociativeMemory
from nestling.memory.attention import AttentionState, SoftmaxAttention
from nestling.memory.compound import Omega, Orthogonal
from nestling.memory.delta_rule import DeltaRule
from nestling.memory.features import EluPlusOne, Features, Polynomial, RandomFeatures
from nestling.memory.hypernetwork import Hypernetwork
from nestling.memory.least_squares import LeastSquares
from nestling.memory.network import MLP, Matrix, Network
from nestling.memory.objective import L2, DotProduct, Huber, Lp, as_objective
from nestling.memory.oja import Oja
from nestling.memory.residual_norm import ResidualNorm
from nestling.memory.retention import KL, Lq, ToInitial, ToZero
from nestling.memory.rule import DeltaGradientDescent, GradientDescent, RetainPredictions, RetainSeen
from nestling.memory.state import MemoryState
from nestling.memory.target import Given, SelfGenerated, unit

__all__ = [
    "KL",
    "L2",
    "MLP",
    "AssociativeMemory",
    "AttentionState",
    "DeltaGradientDescent",
    "DeltaRule",
    "DotProduct",
    "EluPlusOne",
    "Features",
    "Given",
    "GradientDescent",
    "Huber",
    "Hypernetwork",
    "LeastSquares",
    "Lp",
    "Lq",
    "Matrix",
    "MemoryState",
    "Network",
    "Oja",
    "Omega",
    "Orthogonal",
    "Polynomial",
    "RandomFeatures",
    "ResidualNorm",
    "RetainPredictions",
    "RetainSeen",
    "SelfGenerated",
    "SoftmaxAttention",
    "ToInitial",
    "ToZero",
    "adapt",
    "as_objective",
    "query_loss",
    "unit",
]
