"""The Continuum Memory System (arXiv 2512.24695, section 7, Eq. 70-74): MLPs whose parts move at different periods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from nestling.layers.linear import Linear
from nestling.levels import FastWeights, HasLevels, Level, Moving, as_levels, effective, initial, nested

VARIANTS = ("sequential", "nested", "independent", "superposed")


class SwiGLU(nn.Module):
    """The gated MLP (Shazeer, arXiv 2002.05202) with its norm and residual: `x + down(silu(gate(n)) * up(n))`."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.gate, self.up, self.down = Linear(dim, hidden), Linear(dim, hidden), Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.change(x)

    def change(self, x: Tensor) -> Tensor:
        """What it adds to its input."""
        n = self.norm(x)
        return self.down(F.silu(self.gate(n)) * self.up(n))


class ContinuumMemory(nn.Module, HasLevels):
    """A continuum of MLPs, `x [B, L, D] -> [B, L, D]`, residual included.

    variant: "sequential" - a chain of MLPs, one a level, the fastest first (Eq. 73);
             "nested" - the same chain (Eq. 72), where a level also moves the state that every faster one starts from, and a
             faster one goes back to it when the next slower one's period ends: to first order, a slow level learns where the
             fast ones should begin (its gradients are taken where they are). Periods must nest;
             "independent" - MLPs side by side, one a level; what they add is summed with learned weights (Eq. 74);
             "superposed" - one MLP whose weights are `W_0 + sum_l D_l`, every level a difference on the same weights.
    levels: from fast to slow; `[]` is the plain MLP of a Transformer (`k = 1`, frequency 0).
    hidden: hidden width over the whole chain, so that the variants have equal parameters.

    The layer computes; what moves its weights is `nestling.levels` (its own weights per row, `init_state`) or an
    optimiser (`nestling.levels.LevelOptimizer`).
    """

    def __init__(
        self,
        dim: int,
        levels: Sequence[Level | dict[str, Any]] = (),
        variant: str = "sequential",
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant={variant!r} is not available; choose {' or '.join(map(repr, VARIANTS))}")
        self.levels, self.variant = nested(levels) if variant == "nested" else as_levels(levels), variant
        count = len(self.levels) if variant != "superposed" and self.levels else 1
        hidden = hidden or 8 * dim // 3
        if hidden % count:
            raise ValueError(f"hidden={hidden} does not divide among {count} MLPs of a chain; make it a multiple")
        self.chain = nn.ModuleList(SwiGLU(dim, hidden // count) for _ in range(count))
        if variant == "independent":
            self.mix = nn.Parameter(torch.ones(count))

    def initial_values(self) -> dict[str, Tensor]:
        """Of the layer's own parameters."""
        return {"mix": torch.ones(len(self.chain))} if self.variant == "independent" else {}

    def extra_repr(self) -> str:
        return f"{self.variant}, levels={self.levels}"

    def moves(self) -> list[list[str]]:
        """For each level the names of the weights it moves."""
        names = [[f"chain.{i}.{n}.weight" for n in ("gate", "up", "down")] for i in range(len(self.chain))]
        if self.variant == "superposed":
            return [names[0] for _ in self.levels]
        reach = [names[: i + 1] if self.variant == "nested" else names[i : i + 1] for i in range(len(self.levels))]
        return [[name for mlp in mlps for name in mlp] for mlps in reach]

    def moving(self) -> Moving:
        return Moving(self.levels, self.moves(), dict(self.named_parameters()))

    def init_state(self, batch: int) -> FastWeights:
        """Fast weights of every row, at zero difference."""
        return initial(self.levels, self.moves(), dict(self.named_parameters()), batch)

    def forward(self, x: Tensor, state: FastWeights | None = None) -> Tensor:
        """The layer's output, with the fast weights of `state` where given."""
        if state is not None:
            weights: dict[str, Tensor] = effective(state, dict(self.named_parameters()))
            return functional_call(self, weights, (x,))
        if self.variant == "independent":
            # to a type checker the items of a ModuleList are plain modules
            return x + sum(a * mlp.change(x) for a, mlp in zip(self.mix, self.chain, strict=True))  # pyright: ignore[reportCallIssue]
        for mlp in self.chain:
            x = mlp(x)
        return x
