"""Class-, domain- and task-incremental learning: a protocol, its metrics, scenarios and methods."""

from nestling.evals.continual.protocol import final_accuracy, learn, run
from nestling.evals.continual.stream import Examples, Experience, Labelled, Stream, validation

__all__ = ["Examples", "Experience", "Labelled", "Stream", "final_accuracy", "learn", "run", "validation"]
