"""Models that keep learning: the learner and its store."""

from nestling.continual.learner import Learner, Observation

__all__ = ["Learner", "Observation"]
