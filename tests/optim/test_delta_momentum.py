"""Delta momentum: Eq. 49 as it is printed, its limits, what it erases and what it keeps, and why it cannot diverge."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nestling.optim import DeltaMomentum, Diagonal
from nestling.optim.delta_momentum import erase_rows, erase_whole_
from tests.helpers import close, differ, randn
from tests.optimizers import path, trained

SHAPES = [(4, 6), (6, 4), (5, 5), (7,), (1, 1), (), (3, 2, 2)]
forms = pytest.mark.parametrize("form", ["matrix", "vector"])
decays = st.floats(0.0, 0.99)
shares = st.floats(0.0, 1.0)
sizes = st.floats(-6.0, 6.0).map(lambda exponent: 10.0**exponent)


def gradients(*shape: int, steps: int = 6) -> list[Tensor]:
    """Random ones of many sizes."""
    return [torch.randn(shape, dtype=torch.float64) * 10 ** randn(1).item() for _ in range(steps)]


def equation_49(w: Tensor, g: list[Tensor], lr: float, alpha: float, delta: float, damping: float) -> Tensor:
    """The memory of gradients in the space of their rows, tokens as rows, `P = I`."""
    shape, w = w.shape, w.flatten(1) if w.dim() > 1 else w.reshape(1, -1)
    m, identity = torch.zeros_like(w), torch.eye(w.shape[1], dtype=w.dtype)
    for x in (x.reshape(w.shape) for x in g):
        c = delta / (damping + torch.linalg.matrix_norm(x) ** 2)
        m = m @ (alpha * identity - c * x.T @ x) + x
        w = w - lr * m
    return w.reshape(shape)


def along(w: Tensor, g: list[Tensor], lr: float, alpha: float, delta: float, damping: float) -> Tensor:
    """The cheap form: a share of the momentum's component along the gradient goes, as a projection."""
    m = torch.zeros_like(w)
    for x in g:
        component = (m * x).sum() / (x * x).sum() * x
        m = alpha * m - delta * (x * x).sum() / (damping + (x * x).sum()) * component + x
        w = w - lr * m
    return w


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("form", "transcription"), [("matrix", equation_49), ("vector", along)])
def test_it_is_its_equation(shape, form, transcription):
    """Eq. 49 for matrices, with what has more dimensions as `[out, rest]` and less as one row; its cheap form for any."""
    start, g, settings = torch.randn(shape).double(), gradients(*shape), (0.1, 0.9, 0.7, 0.3)
    found = path(lambda p: DeltaMomentum(p, *settings, form=form), start, g)
    close(found, transcription(start, g, *settings), 1e-12)


@forms
def test_without_the_delta_term_it_is_momentum(form):
    """`delta = 0`: torch's SGD with momentum; with it another path."""
    expected = trained(lambda p: torch.optim.SGD(p, 0.1, momentum=0.9))
    close(trained(lambda p: DeltaMomentum(p, 0.1, momentum=0.9, delta=0.0, form=form)), expected, 1e-12)
    differ(trained(lambda p: DeltaMomentum(p, 0.1, momentum=0.9, delta=0.5, form=form)), expected, 1e-3)


@forms
def test_without_momentum_and_delta_it_is_gradient_descent(form):
    """`alpha = delta = 0`: nothing is remembered."""
    expected = trained(lambda p: torch.optim.SGD(p, 0.1))
    close(trained(lambda p: DeltaMomentum(p, 0.1, momentum=0.0, delta=0.0, form=form)), expected, 1e-12)


@pytest.mark.parametrize(
    ("form", "erased"), [("matrix", lambda m, g: m @ g.T @ g), ("vector", lambda m, g: (m * g).sum() * g)]
)
def test_preconditioned_gradients_are_what_it_stores(form, erased):
    """`P G` is written, `G` is what is erased for: the `P` of RMSprop."""
    w, g, m, v = randn(4, 6), gradients(4, 6), 0.0, 0.0
    found = path(lambda p: DeltaMomentum(p, 0.1, 0.9, 0.5, form=form, preconditioner=Diagonal(0.9, 1e-3)), w, g)
    for x in g:
        v = 0.9 * v + 0.1 * x * x
        m = 0.9 * m - (0.5 / (x * x).sum() * erased(m, x) if isinstance(m, Tensor) else 0.0) + x / (v.sqrt() + 1e-3)
        w = w - 0.1 * m
    close(found, w, 1e-12)


@given(eta=st.floats(0.03, 30.0), size=st.floats(0.03, 30.0), width=st.integers(1, 6))
def test_it_erases_as_the_proximal_step_does(eta, size, width):
    """`delta = 1, damping = 1 / eta`, one row: `argmin |m' - m|^2 + eta (m' . g)^2` (Eq. 56)."""
    m, g = randn(width), size * randn(width)
    exact = torch.linalg.solve(torch.eye(width, dtype=torch.float64) / eta + torch.outer(g, g), m / eta)
    erase_whole_(found := m.clone(), g, 1.0, 1.0, 1 / eta)
    close(found, exact)


# ---- stability


@given(
    alpha=decays,
    delta=shares,
    damping=st.just(0.0) | sizes,
    size=sizes,
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
)
def test_what_multiplies_the_momentum_is_bounded(alpha, delta, damping, size, rows, columns):
    """Its singular values are at most `max(alpha, |alpha - delta|)`, whatever the gradient: momentum cannot diverge."""
    g = size * randn(rows, columns)
    bound = max(alpha, abs(alpha - delta)) + 1e-12
    whole = erase_rows(torch.eye(columns, dtype=torch.float64), g.expand(1, rows, columns), alpha, delta, damping)
    assert torch.linalg.svdvals(whole).max() <= bound
    basis = torch.eye(rows * columns, dtype=torch.float64).reshape(-1, rows, columns)
    for one in (images := basis.clone()):
        erase_whole_(one, g, alpha, delta, damping)
    assert torch.linalg.svdvals(images.flatten(1)).max() <= bound


@forms
def test_the_printed_equation_diverges_and_this_one_does_not(form):
    """Without `c`, a repeated gradient with `|G|^2 > 1 + alpha` doubles its momentum and more; with it the sum is finite."""
    g = torch.tensor([[1.0, 1.2, 0.5]], dtype=torch.float64)
    assert g.square().sum() > 1.9
    m = torch.zeros_like(g)
    for _ in range(200):
        m = m @ (0.9 * torch.eye(3, dtype=torch.float64) - g.T @ g) + g
    assert m.norm() > 1e6
    before = path(lambda p: DeltaMomentum(p, 1.0, 0.9, 0.5, form=form), torch.zeros_like(g), [g] * 199)
    after = path(lambda p: DeltaMomentum(p, 1.0, 0.9, 0.5, form=form), torch.zeros_like(g), [g] * 200)
    close(before - after, g / (1 - 0.9 + 0.5), 1e-9)


@forms
def test_gradients_that_keep_their_direction_add_up_to_less(form):
    """To `1 / (1 - alpha + delta)`; the matrix form's share is that over the number of equal singular values."""
    g = 3.0 * torch.linalg.qr(randn(4, 4)).Q
    share = 0.4 / 4 if form == "matrix" else 0.4
    ends = [
        path(lambda p: DeltaMomentum(p, 1.0, 0.9, 0.4, form=form), torch.zeros_like(g), [g] * n) for n in (399, 400)
    ]
    close(ends[0] - ends[1], g / (1 - 0.9 + share), 1e-9)


# ---- what is kept, what is not


@forms
def test_momentum_across_a_gradient_is_kept_and_along_it_is_not(form):
    """After a past along one row: a gradient across leaves it to `alpha`, one along takes `delta` more of it."""
    past, across = torch.eye(4, dtype=torch.float64)[:1], torch.eye(4, dtype=torch.float64)[1:2]
    for now, factor in ((across, 0.9), (2 * past, 0.9 - 0.3)):
        start = torch.zeros_like(past)
        first = path(lambda p: DeltaMomentum(p, 1.0, 0.9, 0.3, form=form), start, [past])
        second = path(lambda p: DeltaMomentum(p, 1.0, 0.9, 0.3, form=form), start, [past, now])
        close(first - second, factor * past + now, 1e-12)


@forms
@given(scale=sizes)
def test_a_scale_of_the_loss_is_one_of_the_rate(form, scale):
    """Without damping, as for SGD: gradients times a scale, rate over it, the same path."""
    start, g = randn(3, 4), gradients(3, 4, steps=4)
    scaled = path(lambda p: DeltaMomentum(p, 0.1 / scale, delta=0.5, form=form), start, [scale * x for x in g])
    close(scaled, path(lambda p: DeltaMomentum(p, 0.1, delta=0.5, form=form), start, g), 1e-9)


@forms
def test_damping_says_from_which_gradients_on(form):
    """Far below its root gradients add up as in momentum, far above it they are erased for as without damping."""

    def end(size: float, **settings: float) -> Tensor:
        build = lambda p: DeltaMomentum(p, 1 / size, form=form, **settings)  # noqa: E731
        return path(build, torch.zeros(3, 4, dtype=torch.float64), [size * x for x in g])

    g = gradients(3, 4)
    close(end(1e-6, delta=0.5, damping=1.0), end(1e-6, delta=0.0), 1e-9)
    close(end(1e7, delta=0.5, damping=1.0), end(1e7, delta=0.5), 1e-9)
    differ(end(1.0, delta=0.5, damping=1.0), end(1.0, delta=0.5), 1e-3)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"momentum": 1.0}, "momentum=1.0 must be at least 0 and below 1"),
        ({"delta": 1.1}, r"delta=1.1 must be in \[0, 1\]; 1 erases"),
        ({"delta": float("nan")}, "delta=nan"),
        ({"damping": -1.0}, "damping=-1.0 must be a finite number"),
        ({"form": "rows"}, "form='rows' is unknown; choose one of matrix, vector"),
    ],
)
def test_settings_out_of_range_are_refused(settings, says):
    """With what was given, what is allowed."""
    with pytest.raises(ValueError, match=says):
        DeltaMomentum([torch.ones(2, 2, requires_grad=True)], **settings)
