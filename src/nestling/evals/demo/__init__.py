"""The demonstration: do small models that they themselves trained go on learning, keep the old, and survive a restart?"""

from nestling.evals.demo.main import run

__all__ = ["run"]
