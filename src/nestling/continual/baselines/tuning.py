"""Online fine-tuning: an optimiser moves all weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nestling.continual.baselines.method import moving
from nestling.models import HopeForCausalLM


@dataclass(frozen=True)
class FineTuning:
    """One step of an optimiser a chunk; the others here are a change of it.

    optimizer: from weights, for instance `lambda w: torch.optim.SGD(w, lr=0.2)`.
    clip: norm above which a gradient is scaled down, as in training.
    """

    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    clip: float = 1.0

    def prepare(self, model: HopeForCausalLM, old: Tensor) -> torch.optim.Optimizer:
        """The optimiser of the weights that are not frozen."""
        return self.optimizer(moving(model))

    def step(
        self, model: HopeForCausalLM, state: torch.optim.Optimizer, chunk: Tensor, loss: Tensor
    ) -> torch.optim.Optimizer:
        """Gradient, clip, step."""
        loss.backward()
        nn.utils.clip_grad_norm_(moving(model), self.clip)
        state.step()
        state.zero_grad()
        return state

    def own(self, model: HopeForCausalLM, state: torch.optim.Optimizer) -> list[Tensor]:
        """The moved weights and the optimiser's averages."""
        averages = [value for held in state.state.values() for value in held.values() if isinstance(value, Tensor)]
        return [*moving(model), *averages]
