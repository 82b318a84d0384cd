"""Low-rank adaptation, online."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nestling.continual.baselines.tuning import FineTuning
from nestling.models import HopeForCausalLM


class Pair(nn.Module):
    """`W + s B A` with `A [r, in]` random and `B [out, r]` zero (Hu et al., arXiv 2106.09685, section 4.1)."""

    def __init__(self, weight: Tensor, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        out, inside = weight.shape
        down = torch.randn(rank, inside, generator=generator) / math.sqrt(inside)
        self.down, self.up = nn.Parameter(down.to(weight)), nn.Parameter(weight.new_zeros(out, rank))
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * self.up @ self.down


@dataclass(frozen=True)
class LoRA:
    """A pair of low rank beside every linear map of the blocks; only the pairs move.

    tuning: how. rank: of each pair. scale: what their product is multiplied by (the paper's alpha / r).
    seed: of the pairs' first factors.
    """

    tuning: FineTuning
    rank: int = 8
    scale: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank={self.rank} must be at least 1")

    def prepare(self, model: HopeForCausalLM, old: Tensor) -> torch.optim.Optimizer:
        """Freeze the model, add the pairs, and give them an optimiser."""
        generator = torch.Generator().manual_seed(self.seed)
        model.requires_grad_(False)
        for linear in linear_maps(model):
            pair = Pair(linear.weight, self.rank, self.scale, generator)
            parametrize.register_parametrization(linear, "weight", pair)
        return self.tuning.prepare(model, old)

    def step(
        self, model: HopeForCausalLM, state: torch.optim.Optimizer, chunk: Tensor, loss: Tensor
    ) -> torch.optim.Optimizer:
        """As in fine-tuning."""
        return self.tuning.step(model, state, chunk, loss)

    def own(self, model: HopeForCausalLM, state: torch.optim.Optimizer) -> list[Tensor]:
        """The pairs, and their optimiser's averages."""
        return self.tuning.own(model, state)


def linear_maps(model: HopeForCausalLM) -> list[nn.Linear]:
    """Every linear map of the blocks."""
    return [module for module in model.model.stack.layers.modules() if isinstance(module, nn.Linear)]


def merge(model: HopeForCausalLM) -> None:
    """Fold the pairs into the weights, in place: a plain model again, which computes the same."""
    for linear in linear_maps(model):
        if parametrize.is_parametrized(linear, "weight"):
            parametrize.remove_parametrizations(linear, "weight", leave_parametrized=True)
