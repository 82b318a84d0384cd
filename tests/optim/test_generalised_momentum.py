"""Generalised momentum: Def. 5's minimum. Adam, AdaGrad and momentum as settings of it: `tests/identities/test_adaptive.py`."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nestling.memory import L2, DotProduct, RetainSeen
from nestling.optim import Elementwise, GeneralisedMomentum, Rows
from nestling.optim.generalised_momentum import curvature
from tests.helpers import close, differ, randn
from tests.optimizers import path, trained

zero = torch.zeros(3, 4, dtype=torch.float64)


class Twice:
    """An objective with a closed form that is neither of the library's: `o^2 - <o, v>`."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return (output.square() - output * target).sum(-1)

    def surprise(self, output: Tensor, target: Tensor) -> Tensor:
        return 2 * output - target


class Absolute:
    """One without: `|o - v|`."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).abs().sum(-1)

    def surprise(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).sign()


def power(x: Tensor, exponent: float) -> Tensor:
    """Of a symmetric positive matrix."""
    u, s, _ = torch.linalg.svd(x)
    return u @ torch.diag(s**exponent) @ u.T


def test_its_defaults_are_adamws():
    """Decoupled decay included; without the root as the target (`power=0`) it is another optimiser."""
    expected = trained(lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=0.1))
    close(trained(lambda p: GeneralisedMomentum(p, weight_decay=0.1)), expected, 1e-12)
    differ(trained(lambda p: GeneralisedMomentum(p, weight_decay=0.1, memory=Elementwise(0.0))), expected, 1e-3)


# ---- that it is the minimum


@given(
    forgetting=st.floats(0.1, 1.0), damping=st.floats(1e-3, 10.0), power_of=st.floats(0.0, 0.9), steps=st.integers(1, 5)
)
@pytest.mark.parametrize("objective", [L2(), Twice(), DotProduct()])
def test_the_elements_memory_is_the_minimum(objective, forgetting, damping, power_of, steps):
    """The gradient of Def. 5's loss vanishes there, by autograd: all past gradients weighed, and the ridge."""
    g, beta = randn(steps, 3, 4), min(forgetting, 0.99)
    retention, memory = RetainSeen(damping, beta), Elementwise(power_of)
    rates = {"lr": 0.0}
    optimizer = GeneralisedMomentum([p := zero.clone().requires_grad_()], 1.0, beta, objective, retention, memory)
    for t, x in enumerate(g):
        optimizer.param_groups[0].update({"lr": 1.0} if t == steps - 1 else rates)
        p.grad = x.clone()
        optimizer.step()
    m = (-p).detach().requires_grad_()
    weights = beta ** torch.arange(steps - 1, -1, -1, dtype=torch.float64)[:, None, None] / sum(
        beta**i for i in range(steps)
    )
    target = (weights * g * g).sum(0) ** power_of
    losses = objective.loss((m * g)[..., None], target.expand_as(g)[..., None])
    (slope,) = torch.autograd.grad((weights * losses).sum() + 0.5 * (damping * target * m * m).sum(), m)
    close(slope, torch.zeros_like(slope), 1e-9)


@pytest.mark.parametrize("exponent", [0.0, 0.5])
def test_the_rows_memory_is_the_minimum(exponent):
    """Likewise, with `1/2 |m G^T|^2 - <m, G P>` for each gradient and the ridge `1/2 <m, m damping P>`."""
    g = randn(5, 3, 4)
    optimizer = GeneralisedMomentum(
        [p := zero.clone().requires_grad_()], 0.0, 0.8, None, RetainSeen(0.1, 0.8), Rows(exponent)
    )
    for t, x in enumerate(g):
        optimizer.param_groups[0]["lr"] = float(t == 4)
        p.grad = x.clone()
        optimizer.step()
    m = (-p).detach().requires_grad_()
    weights = 0.8 ** torch.arange(4, -1, -1, dtype=torch.float64) / sum(0.8**i for i in range(5))
    target = power(torch.einsum("t,tij,tik->jk", weights, g, g), exponent)
    losses = 0.5 * (m @ g.mT).square().sum((1, 2)) - (m * (g @ target)).sum((1, 2))
    (slope,) = torch.autograd.grad((weights * losses).sum() + 0.05 * (m * (m @ target)).sum(), m)
    close(slope, torch.zeros_like(slope), 1e-9)


def test_the_rows_memory_turns_with_the_space():
    """Gradients `Q G R` of a turned space have turned steps; Adam's elements do not."""
    g, q, r = list(randn(6, 3, 4)), torch.linalg.qr(randn(3, 3)).Q, torch.linalg.qr(randn(4, 4)).Q
    turned = [q @ x @ r for x in g]
    for memory, compare in ((Rows(), close), (Elementwise(), differ)):
        build = lambda p, memory=memory: GeneralisedMomentum(p, 0.1, retention=RetainSeen(0.1), memory=memory)  # noqa: E731
        compare(path(build, zero, turned), q @ path(build, zero, g) @ r)


# ---- what is refused


def test_objectives_are_known_by_their_surprise():
    """`a` is found; what has none is refused, with what to use instead."""
    assert [curvature(objective) for objective in (L2(), DotProduct(), Twice())] == [1.0, 0.0, 2.0]
    with pytest.raises(ValueError, match=r"no closed form.* DeepMomentum"):
        GeneralisedMomentum([torch.ones(2)], objective=Absolute())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: GeneralisedMomentum(p, momentum=1.0), "momentum=1.0"),
        (lambda p: GeneralisedMomentum(p, retention=RetainSeen(damping=0.0)), "damping=0.0"),
        (lambda p: GeneralisedMomentum(p, memory=Rows(), capturable=True), "capturable=False"),
        (lambda p: GeneralisedMomentum([torch.zeros(2, 8193)], memory=Rows()), "give it to another optimiser"),
    ],
)
def test_settings_out_of_range_are_refused(make, says):
    """By name, with what is allowed."""
    with pytest.raises(ValueError, match=says):
        make([torch.ones(2, 2, requires_grad=True)])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_seen(bad):
    """A step with such a gradient ends, and is nan: what LAPACK makes of it would be an error, or no end."""
    gradient = torch.tensor([[1.0, bad], [0.0, 1.0]], dtype=torch.float64)
    assert path(lambda p: GeneralisedMomentum(p, memory=Rows()), torch.zeros_like(gradient), [gradient]).isnan().any()
