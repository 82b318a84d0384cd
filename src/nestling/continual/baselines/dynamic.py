"""Dynamic evaluation (Krause et al., arXiv 1709.07432 and 1904.08378)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nestling.continual.baselines.method import moving
from nestling.continual.baselines.squares import mean, mean_squares, of_the_text
from nestling.models import HopeForCausalLM

Scales = Callable[[HopeForCausalLM, Tensor], list[Tensor]]


def alike(model: HopeForCausalLM, old: Tensor) -> list[Tensor]:
    """Every weight's gradient counts the same."""
    return [torch.ones_like(weight) for weight in moving(model)]


def root_mean_squares(length: int) -> Scales:
    """Root mean squared gradients on the old domain, in chunks of `length` tokens, over their mean (Eq. 5, 9)."""

    def scales(model: HopeForCausalLM, old: Tensor) -> list[Tensor]:
        roots = [squares.sqrt() for squares in mean_squares(model, old, length, of_the_text)]
        return [root / mean(roots) for root in roots]

    return scales


@dataclass(frozen=True)
class Pull:
    """start: the weights before the stream. scales: of each weight; their mean is 1."""

    start: list[Tensor]
    scales: list[Tensor]


@dataclass(frozen=True)
class DynamicEvaluation:
    """`w <- w - lr g / (s + e) + min(decay s, 1) (w_0 - w)`: steps that decay towards the starting weights `w_0`.

    The rule of arXiv 1709.07432, Eq. 8 and 9, with `s` the root mean squares over their mean, which `lr` absorbs; with
    `s = 1` and `e = 0` it is gradient descent with decay towards the start.

    scales: `alike`, or `root_mean_squares`. epsilon: e. clip: norm above which `g` is scaled down, as in training.
    """

    lr: float
    decay: float
    scales: Scales = alike
    epsilon: float = 0.0
    clip: float = 1.0

    def prepare(self, model: HopeForCausalLM, old: Tensor) -> Pull:
        """Remember the start, and measure the scales."""
        return Pull([weight.detach().clone() for weight in moving(model)], self.scales(model, old))

    def step(self, model: HopeForCausalLM, state: Pull, chunk: Tensor, loss: Tensor) -> Pull:
        """Gradient, clip, step and decay, both from where the weights were."""
        loss.backward()
        nn.utils.clip_grad_norm_(moving(model), self.clip)
        with torch.no_grad():
            for weight, start, scale in zip(moving(model), state.start, state.scales, strict=True):
                if weight.grad is not None:
                    back = (self.decay * scale).clamp(max=1.0) * (start - weight)
                    weight.add_(weight.grad / (scale + self.epsilon), alpha=-self.lr).add_(back)
                weight.grad = None
        return state

    def own(self, model: HopeForCausalLM, state: Pull) -> list[Tensor]:
        """The moved weights."""
        return [*moving(model)]
