"""Levels: parameters, period, rule; and what moves them."""

from nestling.levels.fast import (
    Difference,
    FastWeights,
    LevelState,
    effective,
    end_context,
    gather,
    initial,
    second_moments,
    step,
)
from nestling.levels.level import Level, as_levels
from nestling.levels.optimizer import LevelOptimizer
from nestling.levels.step_of import StepOf

__all__ = [
    "Difference",
    "FastWeights",
    "Level",
    "LevelOptimizer",
    "LevelState",
    "StepOf",
    "as_levels",
    "effective",
    "end_context",
    "gather",
    "initial",
    "second_moments",
    "step",
]
