"""Levels: parameters, period, rule; and what moves them."""

from nestling.levels.description import Component, Description, HasLevels, Moving, describe
from nestling.levels.factor import asked, blocks
from nestling.levels.fast import Difference, FastWeights, LevelState, at_rest, effective, end_context, initial
from nestling.levels.felt import Outputs, moment, outputs
from nestling.levels.level import Level, as_levels, nested
from nestling.levels.optimizer import LevelOptimizer
from nestling.levels.seen import second_moments
from nestling.levels.step_of import StepOf
from nestling.levels.update import gather, step

__all__ = [
    "Component",
    "Description",
    "Difference",
    "FastWeights",
    "HasLevels",
    "Level",
    "LevelOptimizer",
    "LevelState",
    "Moving",
    "Outputs",
    "StepOf",
    "as_levels",
    "asked",
    "blocks",
    "at_rest",
    "describe",
    "effective",
    "end_context",
    "gather",
    "initial",
    "moment",
    "nested",
    "outputs",
    "second_moments",
    "step",
]
