"""Elastic weight consolidation (Kirkpatrick et al., arXiv 1612.00796)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nestling.continual.baselines.method import moving
from nestling.continual.baselines.squares import mean, mean_squares, of_the_model
from nestling.continual.baselines.tuning import FineTuning
from nestling.models import HopeForCausalLM


@dataclass(frozen=True)
class Elastic:
    """start: the weights before the stream. fisher: how stiff each is held to it; their mean is 1."""

    optimizer: torch.optim.Optimizer
    start: list[Tensor]
    fisher: list[Tensor]


@dataclass(frozen=True)
class ElasticWeights:
    """The loss, and a quadratic pull to the start: `+ strength / 2 sum F (w - w_0)^2` (Eq. 3).

    F is the diagonal of the Fisher information on the old domain, over its mean, so that a strength means the same
    for every model.

    length: tokens of a chunk of the old sample. seed: of the labels that the model draws for it.
    """

    tuning: FineTuning
    strength: float
    length: int
    seed: int = 0

    def prepare(self, model: HopeForCausalLM, old: Tensor) -> Elastic:
        """Remember the start, and measure the Fisher information."""
        fisher = mean_squares(model, old, self.length, of_the_model(self.seed))
        start = [weight.detach().clone() for weight in moving(model)]
        return Elastic(self.tuning.prepare(model, old), start, [part / mean(fisher) for part in fisher])

    def step(self, model: HopeForCausalLM, state: Elastic, chunk: Tensor, loss: Tensor) -> Elastic:
        """One step on the sum; its gradient is clipped as a whole."""
        pairs = zip(moving(model), state.start, state.fisher, strict=True)
        pulls = [(stiff * (weight - start).square()).sum() for weight, start, stiff in pairs]
        self.tuning.step(model, state.optimizer, chunk, loss + self.strength / 2 * torch.stack(pulls).sum())
        return state

    def own(self, model: HopeForCausalLM, state: Elastic) -> list[Tensor]:
        """As in fine-tuning: the start and its Fisher information are every user's."""
        return self.tuning.own(model, state.optimizer)
