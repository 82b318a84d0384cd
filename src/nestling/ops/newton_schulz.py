"""The nearest semi-orthogonal matrix by matrix products alone (Newton-Schulz iteration)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

Triple = tuple[float, float, float]

MUON: Triple = (3.4445, -4.7750, 2.0315)  # of Jordan et al. 2024: steep at zero, then between 0.68 and 1.13 for good
POLISH: Triple = (15 / 8, -10 / 8, 3 / 8)  # p(1) = 1, p'(1) = p''(1) = 0: an error e at 1 becomes 2.5 e^3

# Row i is for the step with i steps to come: `p(s) = a s + b s^3 + c s^5` is the odd quintic of least max |1 - p| on
# [l_i, u_i] (it touches its error four times in turn, which makes it the best), and row i takes [l_i, u_i] into
# [l_(i-1), u_(i-1)]. Composing best polynomials is best over all compositions (Amsel et al. 2025, arXiv 2505.16932).
# Found from the last step backwards: row 0 leaves an error of 0.12; l_i is where row i's error just fits the interval
# of row i-1 less 0.5% at both ends, room for rounding (without it, an error at u_i would grow 13-fold a step). Each row
# by a Remez exchange in 40 digits, each l_i by bisection; a test checks the four touches and the 0.5%.
_UPPER_AND_TRIPLE: tuple[tuple[float, Triple], ...] = (
    (1.559741502298, (2.284864028610, -1.646639567591, 0.412122024027)),
    (1.870330926687, (3.285627272401, -2.442767140077, 0.497613287933)),
    (1.974426253288, (3.945289659571, -2.913291804205, 0.549726780761)),
    (2.001447773103, (4.162059862247, -3.062668887688, 0.566353616966)),
    (2.008000608061, (4.218059385394, -3.100917871211, 0.570614567907)),
    (2.009563466078, (4.231623831059, -3.110162849578, 0.571644639409)),
    (2.009934729295, (4.234858076686, -3.112366053594, 0.571890129123)),
    (2.010022841008, (4.235626334641, -3.112889335860, 0.571948435844)),
    (2.010043747823, (4.235808662092, -3.113013520673, 0.571962273166)),
    (2.010048708249, (4.235851923903, -3.113042986468, 0.571965556401)),
)


def newton_schulz(matrices: Tensor, steps: int = 5, coefficients: Triple | Sequence[Triple] | None = None) -> Tensor:
    """`U V^T` of every `X = U S V^T`, approximately: singular values go to within 12% of 1, and those at zero stay there.

    Each step is `X <- (a I + b X X^T + c (X X^T)^2) X`, on the smaller side, with coefficients of its own. How far down
    from the largest singular value the result is within [0.88, 1.12], smaller ones being raised in proportion:

        steps              1     2     3     4     5      6        7        8        9        10
        condition number   3.5   13.5  56    235   990    4.2e3    1.8e4    7.4e4    3.1e5    1.3e6

    Steps beyond ten polish: 11 leave an error of 0.5%, 12 of 2e-7, 13 none. The table is for a largest singular value
    that is known; it is bounded instead, by up to `m^(1/8)` too much (1.2 to 1.7 for Gaussian matrices of a thousand
    rows and columns or fewer, 1 for rank one and for orthogonal matrices), so divide by as much.

    Not for condition numbers beyond the table: use an SVD. Rounding is raised like any small singular value, so in
    float32 ten steps cannot tell `1e-7` of the largest from zero.

    Args:
        matrices: `[.., m, n]`, float16, bfloat16, float32 or float64. All are iterated in one batch, in float32 or
            better: iterations in bfloat16 leave the band, down to 0.60 for Gaussian matrices of 64 x 128.
        steps: number of steps, at least 1.
        coefficients: `(a, b, c)` for every step, or one triple a step, instead of the schedule. The matrices are then
            divided by their Frobenius norm, as in Muon, whose coefficients are `MUON`.

    Returns:
        `[.., m, n]` in the dtype of `matrices`; a matrix of zeros gives zeros. Gradients flow, to matrices of zeros none.

    Raises:
        ValueError: not a batch of real floating-point matrices, no steps, or triples that are not one a step.
    """
    if not matrices.is_floating_point() or matrices.ndim < 2 or not all(matrices.shape[-2:]):
        raise ValueError(f"matrices is {matrices.dtype} {list(matrices.shape)}; give real floating point [.., m, n]")
    own = None if coefficients is None else _triples(coefficients, steps)
    upper, schedule = _schedule(steps)
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).to(torch.promote_types(matrices.dtype, torch.float32))
    x = x.reshape(-1, *x.shape[-2:])
    zero = (x == 0).flatten(1).all(1)[:, None, None]
    x = _unit(
        torch.where(zero, torch.eye(*x.shape[-2:], dtype=x.dtype, device=x.device), x)
    )  # of zeros a norm has no gradient
    gram, square = _powers(x)
    if own is None:
        scale = upper / _largest(square)
        x, gram, square = x * scale, gram * scale**2, square * scale**4
    for i, (a, b, c) in enumerate(own or schedule):
        if i > 0:
            gram, square = _powers(x)
        x = torch.baddbmm(x, torch.add(b * gram, square, alpha=c), x, beta=a)
    x = torch.where(zero, 0.0, x)
    return (x.mT if tall else x).reshape(matrices.shape).to(matrices.dtype)


def _schedule(steps: int) -> tuple[float, list[Triple]]:
    """The upper end of the first step's interval, and the triples in order."""
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    rows = _UPPER_AND_TRIPLE[:steps][::-1]
    return rows[0][0], [triple for _, triple in rows] + [POLISH] * (steps - len(rows))


def _triples(coefficients: Triple | Sequence[Triple], steps: int) -> list[Triple]:
    """One triple a step."""
    single = isinstance(coefficients[0], float | int)
    triples = cast(Sequence[Triple], [coefficients] * steps if single else coefficients)
    if len(triples) != steps or any(len(triple) != 3 for triple in triples):
        raise ValueError(f"coefficients={coefficients} must be (a, b, c), or as many triples as steps={steps}")
    return list(triples)


def _unit(x: Tensor) -> Tensor:
    """Divided by the Frobenius norm; by the largest entry first, so that no square leaves the range of the dtype."""
    tiny = torch.finfo(x.dtype).tiny
    x = x / x.abs().amax((-2, -1), keepdim=True).clamp_min(tiny)
    return x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp_min(tiny)


def _powers(x: Tensor) -> tuple[Tensor, Tensor]:
    gram = x @ x.mT
    return gram, gram @ gram


def _largest(square: Tensor) -> Tensor:
    """At least the largest singular value of `X`, from `(X X^T)^2 [n, m, m]`, as `[n, 1, 1]`.

    No eigenvalue exceeds the mean of all by more than `sqrt(m - 1)` standard deviations (Wolkowicz and Styan 1980);
    those of `(X X^T)^2` are the fourth powers, which leaves the fourth root of the excess.
    """
    m = square.shape[-1]
    mean = square.diagonal(dim1=-2, dim2=-1).mean(-1)
    variance = square.square().sum((-2, -1)) / m - mean.square()
    numbers = torch.finfo(square.dtype)
    bound = mean + ((m - 1) * variance.clamp_min(numbers.tiny)).sqrt()
    return bound.clamp_min(numbers.eps**2)[:, None, None] ** 0.25  # zeros must not become 0 * inf
