"""What a problem is, and what comes out of running an optimiser on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

Make = Callable[[nn.Module], torch.optim.Optimizer]


@dataclass
class Outcome:
    """One run.

    steps, losses, seconds: the curve: after how many steps, which loss, after how many seconds of the processor (of one
        thread: other work on the machine hardly matters).
    score: what is judged, lower is better; nan where the run diverged. state_bytes: of the optimiser.
    """

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    score: float = float("nan")
    state_bytes: int = 0


class Problem(Protocol):
    """A problem trains a model from a seed with the optimiser that `make(model)` returns.

    name: as on the command line. measure: what the score is. final: False judges by data for tuning, True by data that
    nothing was tuned on.
    """

    @property
    def name(self) -> str: ...

    @property
    def measure(self) -> str: ...

    def run(self, make: Make, seed: int, final: bool) -> Outcome: ...


class Recorder:
    """Writes the curve of a run, and ends one that diverges."""

    def __init__(self, steps: int, points: int = 50) -> None:
        self.outcome, self.every, self.taken = Outcome(), max(1, steps // points), 0
        self.sum, self.begun = 0.0, time.process_time()

    def __call__(self, loss: float) -> bool:
        """Note a step's loss; False when it is not finite and the run should end."""
        self.taken, self.sum = self.taken + 1, self.sum + loss
        if self.taken % self.every == 0:
            self.outcome.steps.append(self.taken)
            self.outcome.losses.append(self.sum / self.every)
            self.outcome.seconds.append(time.process_time() - self.begun)
            self.sum = 0.0
        return abs(loss) < float("inf")

    def done(self, score: float, optimizer: torch.optim.Optimizer) -> Outcome:
        """The outcome, with its score and the size of the optimiser's state."""
        self.outcome.score, self.outcome.state_bytes = score, state_bytes(optimizer)
        return self.outcome


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors that an optimiser carries from step to step."""
    tensors = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)
