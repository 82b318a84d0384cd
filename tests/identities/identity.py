"""What a test of an identity says: its statement for the page, and that its sides agree. `gallery.py` writes the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from nestling.ops.state import named_tensors
from tests.helpers import EXACT, close

Sides = tuple[Any, ...]


@dataclass(frozen=True)
class Identity:
    """A decorator for a test that computes the sides of an identity, each by another route, and returns them.

    Every side is compared with the first: element by element, `tolerance` being relative and absolute, or, with an
    `approximation`, by the norm of the difference as a share of the first side's.

    title, equation: of the page, in MyST; the equation in LaTeX, and what else is to be said in the test's docstring.
    source: where it is stated. sides: what each is computed with, in the order in which the test returns them.
    approximation: why the sides differ by more than rounding.
    """

    title: str
    equation: str
    source: str
    sides: tuple[str, ...]
    tolerance: float = EXACT
    approximation: str = ""

    def __call__(self, test: Callable[..., Sides]) -> Callable[..., None]:
        @wraps(test)
        def compared(*args: Any, **kwargs: Any) -> None:
            self.compare(test(*args, **kwargs))

        compared.identity = self  # pyright: ignore[reportFunctionMemberAccess]
        return compared

    def compare(self, sides: Sides) -> None:
        """Raise unless the sides are as many as were named, not all zeros, in float64 where exact, and agree."""
        assert len(sides) == len(self.sides)
        first = _flat(sides[0])
        assert first.isfinite().all() and first.abs().max() > 1e-6, "zeros agree with too much"
        for side in sides[1:]:
            if self.approximation:
                assert (_flat(side) - first).norm() <= self.tolerance * first.norm()
            else:
                assert first.dtype == _flat(side).dtype == torch.float64
                close(side, sides[0], self.tolerance)


def _flat(tree: Any) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in named_tensors(tree).values()])


def argmin(objective: Callable[[Tensor], Tensor], *shape: int) -> Tensor:
    """Where a convex quadratic function of a tensor is least: one Newton step from anywhere, by autograd alone.

    Raises a LinAlgError where the Hessian is not positive definite: there is no minimum then.
    """

    def flat(x: Tensor) -> Tensor:
        return objective(x.view(shape))

    start = torch.randn(shape, dtype=torch.float64).flatten()
    slope = torch.autograd.functional.jacobian(flat, start)
    curvature = torch.autograd.functional.hessian(flat, start)
    assert isinstance(slope, Tensor) and isinstance(curvature, Tensor)
    step = torch.cholesky_solve(slope[:, None], torch.linalg.cholesky(curvature))
    return (start - step[:, 0]).view(shape)


def proximal(loss: Callable[[Tensor], Tensor], old: Tensor, rate: float) -> Tensor:
    """The argmin of `loss(W) + |W - old|^2 / (2 rate)`, for a loss that is linear or convex and quadratic."""
    return argmin(lambda w: loss(w) + (w - old).square().sum() / (2 * rate), *old.shape)


def token_by_token(step: Callable[..., Tensor], weight: Tensor, *tokens: Tensor) -> Tensor:
    """`weight = step(weight, *token)` for one token after another."""
    for token in zip(*tokens, strict=True):
        weight = step(weight, *token)
    return weight
