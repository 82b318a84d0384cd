"""Models that keep learning: the learner and its store."""

from nestling.continual.learner import Learner
from nestling.continual.observation import Observation

__all__ = ["Learner", "Observation"]
