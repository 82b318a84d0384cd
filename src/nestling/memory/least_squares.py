"""The optimal linear memory: recursive least squares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nestling.memory.matrix_rule import Carried, MatrixRule, Pairs, Update
from nestling.memory.objective import L2
from nestling.ops.products import products_between


@dataclass(frozen=True)
class LeastSquares(MatrixRule):
    """After every token the matrix of least `sum_s eta_s |x_s M - v_s|^2 + ridge |M - M_0|^2`, by Sherman and Morrison's formula.

    It is where a linear memory would be if it went over all pairs for ever, and costs the inverse `P [B, H, d, d]` of what it has
    seen. `alpha` below 1 discounts what is past, the ridge included: directions that are not seen for `T` tokens then grow by
    `alpha^-T` in `P`, until an update is not finite and is refused. Use it near 1, or with inputs that keep coming back.
    The chunk form has no gradient with respect to a rate of exactly 0. Relatives: the Kalman filter, the mesa-layer
    (von Oswald et al., arXiv 2309.05858), SLDA and RanPAC over a feature map.

    ridge: above 0, in units of a squared input.
    """

    ridge: float = 1.0

    objective = L2

    def __post_init__(self) -> None:
        if not self.ridge > 0:
            raise ValueError(f"ridge={self.ridge} must be above 0: it is the weight of the initial state")

    def initial(self, weight: Tensor) -> Carried:
        identity = torch.eye(weight.shape[-2], dtype=weight.dtype, device=weight.device)
        return ((identity / self.ridge).expand(*weight.shape[:-1], -1),)

    def token(self, weight: Tensor, carried: Carried, pair: Pairs) -> Update:
        x, v, eta, alpha = pair
        inverse, column, row = symmetric(carried[0]), x[..., :, None], x[..., None, :]
        eta, alpha = eta[..., None], alpha[..., None]
        gain = inverse @ column * eta / (alpha + eta * (row @ inverse @ column))
        write = gain @ (v[..., None, :] - row @ weight)
        return Update(weight, write, ((inverse - gain @ (row @ inverse)) / alpha,))

    def piece(
        self, q: Tensor | None, pairs: Pairs, weight: Tensor, carried: Carried, read: str
    ) -> tuple[Tensor | None, Tensor, Carried]:
        """With pairs scaled by `sqrt(eta / prod alpha)`, `I + X P X^T = L L^T`: the solution after t tokens needs the first t rows
        of the factor alone, so one factorisation answers for all of them.
        """
        left = products_between(pairs.alpha[..., 0])[..., 1:, :1]  # what is left of the start
        if pairs.x.shape[-2] > 1 and bool((left < torch.finfo(left.dtype).eps ** 0.5).any()):
            return self._halves(q, pairs, weight, carried, read)
        (x, v, eta, _), inverse = pairs, symmetric(carried[0])
        share = eta / left
        weighed = torch.where(share > 0, share, 1.0).sqrt() * (share > 0)  # the root has no gradient at 0
        x, error = weighed * x, weighed * (v - x @ weight)
        spread = x @ inverse
        system = spread @ x.mT
        identity = torch.eye(system.shape[-1], dtype=x.dtype, device=x.device)
        factor, failed = torch.linalg.cholesky_ex(system + identity)
        factor = torch.where(failed[..., None, None] == 0, factor, torch.nan)  # refused later, row by row
        spread = torch.linalg.solve_triangular(factor, spread, upper=False)
        error = torch.linalg.solve_triangular(factor, error, upper=False)
        y = None
        if q is not None:
            y = q @ weight + (q @ spread.mT).tril(0 if read == "inclusive" else -1) @ error
        left = left[..., -1:, :]
        return y, weight + spread.mT @ error, ((inverse - spread.mT @ spread) / left,)

    def _halves(
        self, q: Tensor | None, pairs: Pairs, weight: Tensor, carried: Carried, read: str
    ) -> tuple[Tensor | None, Tensor, Carried]:
        """One after the other: so little is left of the start that pairs as old as it would not be seen beside the last ones."""
        length, outputs = pairs.x.shape[-2], []
        for part in (slice(length // 2), slice(length // 2, None)):
            some = None if q is None else q[..., part, :]
            y, weight, carried = self.piece(some, Pairs(*(x[..., part, :] for x in pairs)), weight, carried, read)
            outputs.append(y)
        return None if q is None else torch.cat(outputs, -2), weight, carried


def symmetric(matrix: Tensor) -> Tensor:
    """Its symmetric part: rounding would pull it away from symmetry, token by token."""
    return 0.5 * (matrix + matrix.mT)
