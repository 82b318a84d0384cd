"""Preconditioned momentum: Eq. 47 and Shampoo. As SGD, RMSprop and Muon's limit: `tests/identities`."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nestling.optim import Diagonal, Kronecker, PreconditionedMomentum
from nestling.optim.preconditioned_momentum import LARGEST, Preconditioner, inverse_root
from tests.helpers import close, randn
from tests.optimizers import path

SHAPES = [(4, 6), (6, 4), (5,), (), (3, 2, 2)]
EVERY = Kronecker(decay=0.9, damping=1e-3, period=1)


class Fixed(Preconditioner):
    """A matrix on the left: the least that one can be."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def initial_state(self, parameter):
        return {}

    def __call__(self, gradients, states):
        return [self.matrix @ g for g in gradients]


def power(x: Tensor, exponent: float) -> Tensor:
    """Of a symmetric positive matrix."""
    u, s, _ = torch.linalg.svd(x)
    return u @ torch.diag(s**exponent) @ u.T


def shampoo(w: Tensor, g: list[Tensor], lr: float, alpha: float, p: Kronecker) -> Tensor:
    """Gupta et al. 2018 with means in place of sums, damping, and a momentum of what is preconditioned."""
    shape, w = w.shape, w.flatten(1) if w.dim() > 1 else w.reshape(1, -1)
    sides = [torch.zeros(n, n, dtype=w.dtype) for n in w.shape]
    m, roots = torch.zeros_like(w), sides
    for t, x in enumerate(x.reshape(w.shape) for x in g):
        sides = [p.decay * s + (1 - p.decay) * y for s, y in zip(sides, (x @ x.T, x.T @ x), strict=True)]
        if t % p.period == 0:
            means = [s / (1 - p.decay ** (t + 1)) for s in sides]
            roots = [power(s + p.damping * s.trace() / len(s) * torch.eye(len(s)).double(), -p.exponent) for s in means]
        m = alpha * m + roots[0] @ x @ roots[1]
        w = w - lr * m
    return w.reshape(shape)


def test_it_is_equation_47():
    """`m <- alpha m + P G`, with any `P` that a user brings."""
    w, g, matrix, m = randn(4, 6), [randn(4, 6) for _ in range(5)], randn(4, 4), 0.0
    found = path(lambda p: PreconditionedMomentum(p, 0.1, 0.8, Fixed(matrix)), w, g)
    for x in g:
        m = 0.8 * m + matrix @ x
        w = w - 0.1 * m
    close(found, w, 1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("period", "exponent"), [(1, 0.25), (3, 0.25), (2, 0.5)])
def test_with_kronecker_factors_it_is_shampoo(shape, period, exponent):
    """A transcription's path, roots kept between refreshes, more dimensions as `[out, rest]`, fewer as one row."""
    start, *g = torch.randn((8, *shape), dtype=torch.float64)
    kronecker = Kronecker(decay=0.9, damping=1e-2, period=period, exponent=exponent)
    found = path(lambda p: PreconditionedMomentum(p, 0.1, 0.8, kronecker), start, g)
    close(found, shampoo(start, g, 0.1, 0.8, kronecker), 1e-10)


def test_without_a_past_it_inverts():
    """`(G G^T)^-p G (G^T G)^-p` is `U S^-1 V^T` at p = 1/2."""
    g = randn(5, 5) + 3 * torch.eye(5)
    kronecker = Kronecker(decay=0.0, damping=1e-13, period=1, exponent=0.5)
    step = -path(lambda p: PreconditionedMomentum(p, 1.0, 0.0, kronecker), torch.zeros_like(g), [g])
    close(step, torch.linalg.inv(g).T, 1e-9)


def test_it_turns_with_the_space():
    """Gradients `Q G R` of a turned space have turned steps: no direction is special, as for Adam the axes are."""
    g = [randn(4, 6) for _ in range(5)]
    q, r = (torch.linalg.qr(randn(n, n)).Q for n in (4, 6))
    zero, build = torch.zeros(4, 6, dtype=torch.float64), lambda p: PreconditionedMomentum(p, 0.1, 0.9, EVERY)
    close(path(build, zero, [q @ x @ r for x in g]), q @ path(build, zero, g) @ r, 1e-9)


@given(scale=st.floats(-12.0, 12.0).map(lambda exponent: 10.0**exponent))
def test_kronecker_steps_have_no_scale(scale):
    """Of the loss: at p = 1/4 none, at p = 1/2 its inverse."""
    g, zero = [randn(3, 4) for _ in range(3)], torch.zeros(3, 4, dtype=torch.float64)
    for exponent, factor in ((0.25, 1.0), (0.5, scale)):
        kronecker = Kronecker(period=1, exponent=exponent)
        build = lambda p, kronecker=kronecker: PreconditionedMomentum(p, 0.1, 0.9, kronecker)  # noqa: E731
        close(factor * path(build, zero, [scale * x for x in g]), path(build, zero, g), 1e-9)


def test_what_is_zero_has_a_root_of_zero():
    """The factor of a parameter without gradients yet; the others of its batch have theirs."""
    root = inverse_root(torch.stack([torch.zeros(3, 3), 4 * torch.eye(3)]).double(), 0.5, 1e-15)
    close(root, torch.stack([torch.zeros(3, 3), torch.eye(3) / 2]).double(), 1e-12)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Diagonal(decay=1.0), "decay=1.0"),
        (lambda: Diagonal(eps=-1.0), "eps=-1.0"),
        (lambda: Kronecker(decay=-0.1), "decay=-0.1"),
        (lambda: Kronecker(damping=0.0), "damping=0.0 must be above 0"),
        (lambda: Kronecker(period=0), "period=0 must be a whole number of steps, at least 1"),
        (lambda: Kronecker(period=1.5), "period=1.5"),
        (lambda: Kronecker(exponent=0.0), r"exponent=0.0 must be in \(0, 1\]"),
    ],
)
def test_settings_out_of_range_are_refused(make, says):
    """When a preconditioner is made, with what is allowed."""
    with pytest.raises(ValueError, match=says):
        make()


def test_what_cannot_be_decomposed_is_refused():
    """A side beyond `LARGEST`, a vector of it included, and a CUDA graph; the same parameter goes elsewhere."""
    for shape in ((2, LARGEST + 1), (LARGEST + 1,)):
        with pytest.raises(ValueError, match="give it to another optimiser"):
            PreconditionedMomentum([torch.zeros(shape)], preconditioner=Kronecker())
        PreconditionedMomentum([torch.zeros(shape)], preconditioner=Diagonal())
    with pytest.raises(ValueError, match="capturable=False"):
        PreconditionedMomentum([torch.zeros(2, 2)], preconditioner=Kronecker(), capturable=True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_seen(bad):
    """A step with such a gradient ends, and is nan: what LAPACK makes of it would be an error, or no end."""
    gradient = torch.tensor([[1.0, bad], [0.0, 1.0]], dtype=torch.float64)
    assert (
        path(lambda p: PreconditionedMomentum(p, preconditioner=EVERY), torch.zeros_like(gradient), [gradient])
        .isnan()
        .any()
    )
