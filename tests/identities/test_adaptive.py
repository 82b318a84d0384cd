"""Adaptive optimisers: of all memories of the gradients so far, the one that is best for an objective."""

import pytest
import torch
from torch import Tensor

from nestling.memory import L2, DotProduct, RetainSeen
from nestling.optim import Elementwise, GeneralisedMomentum, Kronecker, PreconditionedMomentum, Rows
from tests.helpers import randn
from tests.identities.identity import Identity, argmin
from tests.optimizers import path, trained

LR = 0.1
ZERO = torch.zeros(3, 4, dtype=torch.float64)
FOREVER = RetainSeen(damping=1e-30, forgetting=1.0)  # nothing forgotten, next to no ridge
STEPS = 6


def last_step(build, g: Tensor) -> Tensor:
    """What the last gradient moves, in units of the learning rate."""
    return (path(build, ZERO, list(g[:-1])) - path(build, ZERO, list(g))) / LR


def means(beta: float) -> Tensor:
    """Weights `[STEPS, 1, 1]` of an exponential mean that sum to one: with Adam's bias correction."""
    weights = beta ** torch.arange(STEPS - 1, -1, -1, dtype=torch.float64)
    return (weights / weights.sum())[:, None, None]


def scheduled(build, factor):
    """An optimiser whose learning rate is `LR factor(t)` at its step t."""

    def made(p):
        optimizer, step = build(p), iter(range(1, 100))
        optimizer.register_step_pre_hook(lambda o, *_: o.param_groups[0].update(lr=LR * factor(next(step))))
        return optimizer

    return made


def power(x: Tensor, exponent: float) -> Tensor:
    """Of a symmetric positive matrix."""
    u, s, _ = torch.linalg.svd(x)
    return u @ torch.diag(s**exponent) @ u.T


@pytest.mark.parametrize(("betas", "eps"), [((0.9, 0.999), 1e-8), ((0.5, 0.9), 1e-2), ((0.8, 0.8), 1e-3)])
@Identity(
    "Adam is the optimal element-wise memory for the L2 objective",
    r"m^* = \arg\min_m\ \sum_i w_i\, \tfrac12 (m\, g_i - P)^2 + \tfrac{\epsilon}{2} P\, m^2"
    r" = \frac{P\, \bar g}{\overline{g^2} + \epsilon P}, \qquad"
    r" P = \sqrt{\overline{g^2}} \quad\Longrightarrow\quad m^* = \frac{\bar g}{\sqrt{\overline{g^2}} + \epsilon}",
    "Eq. 101-105",
    (
        "a step of `torch.optim.Adam`, over its learning rate",
        "the argmin over all gradients so far",
        "a step of `nestling.optim.GeneralisedMomentum(objective=L2(), retention=RetainSeen(eps, beta2))`",
    ),
)
def test_adam_is_the_optimal_elementwise_memory(betas, eps):
    """A memory that maps every gradient to what gradients are like. On the way to Adam the paper takes three liberties, and
    the identity is exact given them: $P$, though made of the gradients, is a constant of the minimisation; the ridge is in
    proportion to $P$, which puts it where Adam has $\\epsilon$; and the gradients in $\\bar g$ may be weighed by another
    $\\beta_1$ than those in $\\overline{g^2}$, $\\beta_2$ (with $\\beta_1 = \\beta_2$, the third case of the test, there is one
    sum). Adam's bias correction is no liberty: weights $w_i$ that sum to one are what a mean has, where the paper prints sums.
    """
    g, (first, second) = randn(STEPS, 3, 4), (means(beta) for beta in betas)
    target = (second * g * g).sum(0).sqrt()

    def objective(m):
        regression = second * 0.5 * (m * g).square() - first * m * g * target
        return (regression.sum(0) + eps / 2 * target * m.square()).sum()

    if betas[0] == betas[1]:  # then it is the objective as it is written
        m = randn(3, 4)
        written = (second * 0.5 * (m * g - target).square()).sum() + (eps / 2 * target * m.square()).sum()
        torch.testing.assert_close(written - objective(m), 0.5 * target.square().sum())
    adam = last_step(lambda p: torch.optim.Adam(p, LR, betas=betas, eps=eps), g)
    ours = last_step(lambda p: GeneralisedMomentum(p, LR, betas[0], L2(), RetainSeen(eps, betas[1])), g)
    return adam, argmin(objective, 3, 4), ours


@pytest.mark.parametrize(("betas", "eps"), [((0.9, 0.999), 1e-8), ((0.5, 0.9), 1e-2), ((0.0, 0.99), 1e-8)])
@Identity(
    "So a network trained by that memory is one trained by Adam",
    r"W_{t+1} = W_t - \eta\, m^*_t",
    "Definition 5, Eq. 105",
    ("`torch.optim.Adam` on a network", "`nestling.optim.GeneralisedMomentum` with that memory"),
)
def test_a_network_trained_by_the_optimal_memory(betas, eps):
    """Eight steps."""
    build = lambda p: GeneralisedMomentum(p, 0.01, betas[0], L2(), RetainSeen(eps, betas[1]))  # noqa: E731
    return trained(lambda p: torch.optim.Adam(p, 0.01, betas=betas, eps=eps)), trained(build)


@Identity(
    "AdaGrad is the one that never forgets",
    r"m^*_t = \frac{g_t}{\sqrt{\tfrac1t \sum_i g_i^2}}, \qquad \eta_t = \frac{\eta}{\sqrt t}",
    "Eq. 106-111, element by element; Duchi et al. 2011",
    ("`torch.optim.Adagrad`", "`nestling.optim.GeneralisedMomentum(momentum=0)` with a retention that never forgets"),
)
def test_adagrad_never_forgets():
    """The memory has a mean where AdaGrad has a sum: so its rate falls and AdaGrad's does not."""
    g = list(randn(9, 3, 4))
    build = scheduled(lambda p: GeneralisedMomentum(p, momentum=0.0, retention=FOREVER), lambda t: t**-0.5)
    return path(lambda p: torch.optim.Adagrad(p, LR, eps=0.0), ZERO, g), path(build, ZERO, g)


@Identity(
    "AdaGrad's matrix form is the same memory of whole rows",
    r"m^*_t = \arg\min_m\ \mathbb{E}_i\, \tfrac12 |m\, G_i^\top|^2 - \langle m, G_t P \rangle = G_t P H^{-1}, \qquad"
    r" H = \mathbb{E}_i\, G_i^\top G_i,\ P = H^{1/2}",
    "Eq. 106-111",
    (
        "a step of `nestling.optim.GeneralisedMomentum(momentum=0, memory=Rows())`",
        "the argmin",
        "$G_t H^{-1/2}$, by a singular value decomposition",
    ),
)
def test_adagrad_s_matrix_form_is_of_rows():
    """Products of matrices in the place of those of elements. Of a matrix it is one side of Shampoo (Gupta et al. 2018)."""
    g = randn(STEPS, 3, 4)
    seen = torch.einsum("tij,tik->jk", g, g) / STEPS
    target = power(seen, 0.5)

    def objective(m):
        return 0.5 * (m @ g.mT).square().sum() / STEPS - (m * (g[-1] @ target)).sum()

    ours = last_step(lambda p: GeneralisedMomentum(p, LR, 0.0, L2(), FOREVER, Rows()), g)
    return ours, argmin(objective, 3, 4), g[-1] @ power(seen, -0.5)


@Identity(
    "Where directions never mix, the matrix form is AdaGrad",
    r"H = \operatorname{diag}\Big( \tfrac1t \sum_i g_i^2 \Big) \quad\Longrightarrow\quad"
    r" \eta_t\, g_t H^{-1/2} = \eta\, \frac{g_t}{\sqrt{\sum_i g_i^2}}",
    "Eq. 106-111",
    (
        "`torch.optim.Adagrad`",
        "`nestling.optim.GeneralisedMomentum(momentum=0, memory=Rows())` of a vector, full matrix",
    ),
)
def test_the_diagonal_of_the_matrix_form_is_adagrad():
    """Gradients along one axis at a time. A vector is one row, so that the matrix is that of all its elements."""
    axes = torch.eye(4, dtype=torch.float64)[[0, 1, 2, 3, 1, 3, 0, 1]]
    start, g = torch.zeros(4, dtype=torch.float64), list(axes * randn(8, 1))
    build = scheduled(
        lambda p: GeneralisedMomentum(p, momentum=0.0, retention=FOREVER, memory=Rows()), lambda t: t**-0.5
    )
    return path(lambda p: torch.optim.Adagrad(p, LR, eps=1e-30), start, g), path(build, start, g)


@pytest.mark.parametrize("memory", [Elementwise(), Elementwise(0.0), Rows(), Rows(0.0)], ids=str)
@Identity(
    "With the dot product as its objective the best memory is momentum",
    r"m^* = \arg\min_m\ -\sum_i w_i \langle m\, g_i, P \rangle + \tfrac12 \langle m, m P \rangle = \sum_i w_i\, g_i",
    "Definition 5, Eq. 33",
    (
        "`torch.optim.SGD(momentum=0.9)`",
        "`nestling.optim.GeneralisedMomentum(objective=DotProduct(), retention=RetainSeen(1.0))`, any memory and $P$",
    ),
)
def test_with_the_dot_product_it_is_momentum(memory):
    """As a mean: a rate of $\\eta\\, (1 - \\alpha^t) / (1 - \\alpha)$ makes it the sum."""
    g, retention = list(randn(6, 3, 4)), RetainSeen(damping=1.0)
    build = lambda p: GeneralisedMomentum(p, LR, 0.9, DotProduct(), retention, memory)  # noqa: E731
    found = path(scheduled(build, lambda t: (1 - 0.9**t) / (1 - 0.9)), ZERO, g)
    return path(lambda p: torch.optim.SGD(p, LR, momentum=0.9), ZERO, g), found


@Identity(
    "With a constant as its target it is the retention over what was seen",
    r"m^* = G\, (G^\top G + a I)^{-1}",
    "Definition 5",
    (
        "`nestling.memory.RetainSeen.direction` with the gradient's own rows as what was seen",
        "`nestling.optim.GeneralisedMomentum(momentum=0, memory=Rows(0.0))`, times its damping",
    ),
)
def test_with_a_constant_target_it_is_the_retention_itself():
    """But for the scale that the retention gives to what was seen."""
    (g,), damping = randn(1, 3, 4), 0.3
    scale = g.square().sum().item() / 4
    build = lambda p: GeneralisedMomentum(p, 1.0, 0.0, L2(), RetainSeen(damping * scale), Rows(0.0))  # noqa: E731
    expected = RetainSeen(damping).direction(g, g.T @ g, torch.tensor(1.0, dtype=torch.float64))
    return expected, -damping * scale * path(build, ZERO, [g])


@Identity(
    "Shampoo without a past takes the step of Muon's limit",
    r"(G G^\top)^{-1/4}\, G\, (G^\top G)^{-1/4} = U V^\top, \qquad G = U S V^\top",
    "section 4.2; Bernstein and Newhouse 2024 (arXiv 2409.20325)",
    (
        "`nestling.optim.PreconditionedMomentum(momentum=0, preconditioner=Kronecker(decay=0))`, damping $10^{-13}$",
        "a singular value decomposition",
    ),
)
def test_shampoo_without_a_past_orthogonalises():
    """Its two factors undo the singular values."""
    g = randn(5, 5) + 3 * torch.eye(5)
    kronecker = Kronecker(decay=0.0, damping=1e-13, period=1, exponent=0.25)
    u, _, vh = torch.linalg.svd(g)
    start = torch.zeros_like(g)
    return -path(lambda p: PreconditionedMomentum(p, 1.0, 0.0, kronecker), start, [g]), u @ vh
