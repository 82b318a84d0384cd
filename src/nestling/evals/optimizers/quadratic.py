"""A rotating, ill-conditioned quadratic: what was learnt about the directions of the past goes stale."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from nestling.evals.optimizers.problem import Make, Outcome, Recorder


@dataclass(frozen=True)
class RotatingQuadratic:
    """`1/2 tr(E H_t E^T)`, `E = W - W*`, for a linear map `W [n, n]`: regression on inputs of covariance `H_t`, noisy targets.

    The eigenvalues of `H_t` go from 1/condition to 1 in equal ratios; its eigenvectors turn, in the planes of neighbouring
    eigenvalues, by `turn` radians a step. The score is log10 of the mean loss over the last quarter.
    """

    n: int = 32
    condition: float = 1e3
    turn: float = 0.01
    noise: float = 1e-2
    steps: int = 1000
    name: str = "quadratic"
    measure: str = "log10 loss, last quarter"

    def run(self, make: Make, seed: int, final: bool) -> Outcome:
        """Seeds of the final runs draw other problems than those of tuning."""
        generator = torch.Generator().manual_seed(2 * seed + final)
        basis = torch.linalg.qr(torch.randn(self.n, self.n, generator=generator)).Q
        values = torch.logspace(0, -torch.log10(torch.tensor(self.condition)).item(), self.n)
        goal, turn = torch.randn(self.n, self.n, generator=generator), self._turn()
        model = nn.Linear(self.n, self.n, bias=False)
        nn.init.zeros_(model.weight)
        optimizer, record, late = make(model), Recorder(self.steps), []
        for step in range(self.steps):
            basis = basis @ turn
            x = values.sqrt()[:, None] * basis.mT
            error = model(x) - x @ goal.mT
            loss = 0.5 * error.detach().square().sum().item()
            noise = self.noise * torch.randn(self.n, self.n, generator=generator)
            optimizer.zero_grad()
            (0.5 * (error + noise).square().sum()).backward()
            optimizer.step()
            late += [loss] if step >= 3 * self.steps // 4 else []
            if not record(loss):
                return record.done(float("nan"), optimizer)
        return record.done(torch.tensor(late).mean().log10().item(), optimizer)

    def _turn(self) -> torch.Tensor:
        """A rotation by `turn` in the planes (0, 1), (2, 3), .. and then in (1, 2), (3, 4), .."""
        out = torch.eye(self.n)
        angle = torch.tensor(self.turn)
        block = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
        for first in (0, 1):
            planes = torch.eye(self.n)
            for i in range(first, self.n - 1, 2):
                planes[i : i + 2, i : i + 2] = block
            out = out @ planes
        return out
