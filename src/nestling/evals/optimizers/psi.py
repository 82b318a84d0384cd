"""The paper's curve psi (arXiv 2512.24695, Eq. 53 and figure 4): who reaches the bottom of a winding valley first?

    psi(r, th) = r^2 + k (r - th + a sin(w r))^2,    from (-3.5, 2) to its only minimum at (0, 0)

The paper does not print `k`, `a` and `w`. The curve that is drawn is the middle of a grid of them, and the whole grid is
counted as well: how often an optimiser arrives before momentum, and how often after it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Any

import torch
from torch import Tensor

from nestling.optim import DeltaMomentum

START = (-3.5, 2.0)
NEAR = 1e-2  # distance from the minimum at which it is reached, for good
RATES = tuple(torch.logspace(-4, -0.5, 43, dtype=torch.float64).tolist())
BASE = "SGD, momentum"

Make = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
Best = tuple[float, float, Tensor]


def psi(points: Tensor, k: Any, a: Any, w: Any) -> Tensor:
    """`psi [..]` at `points [.., 2]`, each `(r, th)`; `k`, `a` and `w` are numbers or of a shape that fits."""
    r, theta = points.unbind(-1)
    return r**2 + k * (r - theta + a * (w * r).sin()) ** 2


@dataclass(frozen=True)
class Psi:
    """k: how steep the valley's walls are. a, w: how far, and how often, it winds."""

    k: float
    a: float
    w: float


MIDDLE = Psi(10.0, 0.5, 2.0)
GRID = tuple(Psi(*shape) for shape in itertools.product((2.0, 10.0, 50.0), (0.25, 0.5, 1.0), (1.0, 2.0, 4.0)))

# All remember with 0.9. Adam's step has a size of its own, so that its rates are ten times as large.
CONTENDERS: dict[str, tuple[Make, float]] = {
    BASE: (lambda groups: torch.optim.SGD(groups, momentum=0.9), 1.0),
    "SGD, Nesterov": (lambda groups: torch.optim.SGD(groups, momentum=0.9, nesterov=True), 1.0),
    "Adam": (lambda groups: torch.optim.Adam(groups), 10.0),
    "delta momentum": (lambda groups: DeltaMomentum(groups), 1.0),
    "delta momentum, damped": (lambda groups: DeltaMomentum(groups, delta=1.0, damping=100.0), 1.0),
}


def descend(make: Make, surfaces: Sequence[Psi], rates: Sequence[float], steps: int) -> Tensor:
    """The paths of one optimiser, `[surfaces, rates, steps + 1, 2]`; every path is a parameter of its own."""
    k, a, w = torch.tensor([[p.k, p.a, p.w] for p in surfaces], dtype=torch.float64).unbind(-1)
    points = [[torch.tensor(START, dtype=torch.float64) for _ in surfaces] for _ in rates]
    optimizer = make([{"params": group, "lr": rate} for group, rate in zip(points, rates, strict=True)])
    flat = [point for group in points for point in group]
    paths = torch.empty(steps + 1, len(rates), len(surfaces), 2, dtype=torch.float64)
    for step in range(steps + 1):
        at = torch.stack(flat).view(len(rates), len(surfaces), 2)
        paths[step] = at
        (gradient,) = torch.autograd.grad(psi(at.requires_grad_(), k, a, w).sum(), at)
        for point, its in zip(flat, gradient.flatten(0, 1).unbind(), strict=True):
            point.grad = its
        optimizer.step()
    return paths.permute(2, 1, 0, 3)


def arrivals(paths: Tensor) -> Tensor:
    """The step from which on a path stays near the minimum, `[..]` for `[.., steps + 1, 2]`; inf where there is none."""
    far = ~(paths.square().sum(-1).sqrt() <= NEAR)  # a nan is far
    last = (far * torch.arange(1, far.shape[-1] + 1)).amax(-1).double()
    return last.where(last < far.shape[-1], math.inf)


def lasting(found: Tensor) -> Tensor:
    """The later of a rate's arrival and its neighbours': one lucky rate between two that fail is nobody's best."""
    return found.unfold(-1, 3, 1).amax(-1)


def best(make: Make, scale: float, surfaces: Sequence[Psi], steps: int) -> list[Best]:
    """For each surface the best rate, the arrival there, and the path `[steps + 1, 2]`."""
    rates = [scale * rate for rate in RATES]
    paths = descend(make, surfaces, rates, steps)
    found = lasting(arrivals(paths))
    places = found.argmin(-1) + 1  # of the middle one of three neighbours
    return [(rates[i], found[s, i - 1].item(), paths[s, i]) for s, i in enumerate(places.tolist())]


def study(say: Callable[[str], None], grid: Sequence[Psi] = GRID, steps: int = 1000) -> dict[str, Any]:
    """The middle curve's paths, and the counts over the grid (which has to hold the middle one)."""
    middle, found = grid.index(MIDDLE), {}
    for name, (make, scale) in CONTENDERS.items():
        found[name] = best(make, scale, grid, steps)
        say(f"psi, {name}: there after {found[name][middle][1]:g} steps at lr {found[name][middle][0]:.2g}")
    lines = [_line(name, entries, found[BASE], middle) for name, entries in found.items()]
    return {"k": MIDDLE.k, "a": MIDDLE.a, "w": MIDDLE.w, "curves": len(grid), "steps": steps, "lines": lines}


def _line(name: str, entries: Sequence[Best], base: Sequence[Best], middle: int) -> dict[str, Any]:
    """One optimiser: its path on the middle curve, and how it compares with momentum over all of them."""
    lr, arrival, path = entries[middle]
    pairs = [(mine[1], its[1]) for mine, its in zip(entries, base, strict=True)]
    both = [mine / its for mine, its in pairs if max(mine, its) < math.inf]
    return {
        "name": name,
        "lr": lr,
        "arrival": arrival if arrival < math.inf else None,
        "path": path[: int(min(arrival, len(path))) + 1].tolist(),
        "arrived": sum(mine < math.inf for mine, _ in pairs),
        "earlier": sum(mine < its for mine, its in pairs),
        "later": sum(mine > its for mine, its in pairs),
        "ratio": geometric_mean(both) if both else None,
    }
