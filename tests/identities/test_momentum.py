"""Momentum: a memory of the gradients, on a level of its own between them and the weights."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from benchmarks.optimizers import MuonInFloat32
from nestling.memory import L2, DotProduct, GradientDescent
from nestling.ops import newton_schulz, scan
from nestling.ops.newton_schulz import MUON
from nestling.optim import M3, DeepMomentum, DeltaMomentum, Diagonal, PreconditionedMomentum
from nestling.optim.deep_momentum import raw, unit
from tests.helpers import differ, randn
from tests.identities.identity import Identity, proximal, token_by_token
from tests.identities.writing import a_layer, labelled, matrix_memory, taught
from tests.optimizers import learn, network, path, trained, values

LR, ALPHA = 0.1, 0.9
ZERO = torch.zeros(3, 4, dtype=torch.float64)
CUBIC = (1.5, -0.5, 0.0)  # Newton and Schulz's own
a_linear_memory = partial(DeepMomentum, rate=1.0, hidden=0, objective=DotProduct(), features=raw)
nesterov = pytest.mark.parametrize("nesterov", [False, True])


def gradients(count: int = 6) -> list[Tensor]:
    return list(randn(count, 3, 4))


def momentum(p, **settings):
    return torch.optim.SGD(p, LR, momentum=ALPHA, **settings)


@Identity(
    "SGD with momentum is a memory of two levels",
    r"m_t = \alpha\, m_{t-1} - \eta\, u_t^\top x_t, \qquad W_t = W_{t-1} + m_t",
    "Eq. 10-13, 33",
    (
        "`nn.Linear`, cross-entropy, `torch.optim.SGD(momentum=alpha)`, a step a token",
        "two levels: `AssociativeMemory(Matrix, DotProduct(), GradientDescent())` with retention $\\alpha$, and the sum of "
        "what it holds after each token",
        "one `nestling.ops.scan(None, x, -eta u, theta=alpha)` from zero",
    ),
)
def test_momentum_is_a_memory_of_two_levels():
    """The faster level compresses gradients and the slower one adds up what the faster one holds. The scan is both at once."""
    layer, tokens = a_layer(), labelled(9)
    before = layer.weight.detach().clone()
    x, u, after = taught(layer, *tokens, momentum)
    memory = matrix_memory(torch.zeros(4, 3), DotProduct(), GradientDescent())
    rate, kept = (torch.full((1, 1), value, dtype=torch.float64) for value in (LR, ALPHA))
    state, weight = None, before.T
    for key, surprise in zip(x, u, strict=True):
        _, state = memory.step(None, key[None, None], -surprise[None, None], rate, kept, state)
        weight = weight + state.weights[0][0, 0].detach()
    _, scanned = scan(None, x[None, None], -LR * u[None, None], theta=kept.expand(1, 1, len(x)), read=None)
    return after - before, weight.T - before, scanned.memory[0, 0].T


@Identity(
    "That memory has no values, and the dot product as its objective",
    r"m_t = \arg\min_m\ \langle m, \nabla L \rangle + \tfrac{1}{2\eta} |m - \alpha\, m_{t-1}|^2",
    "Eq. 12-13, 34",
    ("the momentum buffer of `torch.optim.SGD`, $-\\eta$ times", "the argmin, once a gradient"),
)
def test_momentum_is_a_proximal_argmin():
    """What a step of gradient descent is to the weights, on the level of the gradients."""
    g = torch.stack(gradients())
    parameter = nn.Parameter(ZERO.clone())
    optimizer = momentum([parameter])
    for x in g:
        parameter.grad = x
        optimizer.step()
    step = lambda m, x: proximal(lambda new: (new * x).sum(), ALPHA * m, LR)  # noqa: E731
    return -LR * optimizer.state[parameter]["momentum_buffer"], token_by_token(step, ZERO, g)


@Identity(
    "With the identity as its values it is momentum",
    r"m \leftarrow \alpha\, m + P\, G, \qquad P = I",
    "Eq. 47",
    ("`torch.optim.SGD(momentum=0.9)` on a network", "`nestling.optim.PreconditionedMomentum`"),
)
def test_preconditioned_by_the_identity_it_is_momentum():
    """Preconditioned momentum stores a value for each gradient: which one is the preconditioner's to say."""
    return trained(momentum), trained(lambda p: PreconditionedMomentum(p, LR, ALPHA))


@pytest.mark.parametrize(("alpha", "decay", "eps"), [(0.0, 0.99, 1e-8), (0.9, 0.9, 1e-3)])
@Identity(
    "With root mean squares as its values it is RMSprop",
    r"m \leftarrow \alpha\, m + \frac{G}{\sqrt{v} + \epsilon}, \qquad v \leftarrow \beta\, v + (1 - \beta)\, G^2",
    "Eq. 47; Tieleman and Hinton 2012",
    ("`torch.optim.RMSprop` on a network", "`nestling.optim.PreconditionedMomentum(preconditioner=Diagonal())`"),
)
def test_preconditioned_by_its_size_it_is_rmsprop(alpha, decay, eps):
    """Its momentum comes after the preconditioner."""
    found = trained(lambda p: PreconditionedMomentum(p, 0.01, alpha, Diagonal(decay, eps)))
    differ(trained(lambda p: PreconditionedMomentum(p, 0.01, alpha, Diagonal(0.5, eps))), found, 1e-3)
    return trained(lambda p: torch.optim.RMSprop(p, 0.01, alpha=decay, eps=eps, momentum=alpha)), found


@Identity(
    "Delta momentum is momentum that learns by regression",
    r"m\,(\alpha I - c\, G^\top G) + G = m\, \alpha - c\, \nabla_m\, \tfrac12 \big| m\, G^\top - I / c \big|^2",
    "Eq. 48-49 with $P = I$",
    ("`nestling.optim.DeltaMomentum(delta=c |G|^2)`", "the loss's gradient by autograd, step by step"),
)
def test_delta_momentum_learns_by_regression():
    """In place of the dot product. The rate is a share of $1 / |G|^2$, so that no gradient makes it diverge."""
    g, w, m, share = gradients(), ZERO, ZERO.clone().requires_grad_(), 0.6
    for x in g:
        rate = share / x.square().sum()
        loss = 0.5 * (m @ x.T - torch.eye(3, dtype=torch.float64) / rate).square().sum()
        m = (ALPHA * m - rate * torch.autograd.grad(loss, m)[0]).detach().requires_grad_()
        w = w - LR * m.detach()
    return path(lambda p: DeltaMomentum(p, LR, ALPHA, delta=share), ZERO, g), w


@nesterov
@Identity(
    "Deep momentum with a linear memory and the dot product is momentum",
    r"m \leftarrow \alpha\, m - \nabla_m \sum_j -\langle m(g_j), e_j \rangle, \qquad m(g) = g\, m^\top",
    "Eq. 50",
    ("`torch.optim.SGD(momentum=0.9)` on a network", "`nestling.optim.DeepMomentum(hidden=0, objective=DotProduct())`"),
)
def test_a_linear_deep_momentum_is_momentum(nesterov):
    """Nesterov's step is one of a memory that has learnt the gradient twice. A deep memory takes another path."""
    found = trained(lambda p: a_linear_memory(p, LR, nesterov=nesterov))
    deep = partial(DeepMomentum, hidden=4, objective=DotProduct(), features=raw, nesterov=nesterov)
    differ(trained(lambda p: deep(p, LR)), found, 1e-3)
    return trained(lambda p: momentum(p, nesterov=nesterov)), found


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5,), (3, 2, 2)], ids=str)
@Identity(
    "Deep momentum with a linear memory and regression is delta momentum",
    r"m \leftarrow \alpha\, m - \rho\, \nabla_m\, \tfrac{1}{n} \sum_j \tfrac12 |m(g_j) - e_j|^2",
    "Eq. 48-50",
    (
        "`nestling.optim.DeltaMomentum(lr * rate, delta=rate)` on gradients in unit rows",
        "`nestling.optim.DeepMomentum(hidden=0, objective=L2())`",
    ),
)
def test_a_linear_deep_momentum_with_regression_is_delta_momentum(shape):
    """Of the gradients as deep momentum sees them; its rate is what is erased, and scales what is written."""
    start, *g = torch.randn((7, *shape), dtype=torch.float64)
    rows = [x.flatten(1) if x.dim() > 1 else x.reshape(1, -1) for x in g]
    expected = path(lambda p: DeltaMomentum(p, LR * 0.6, ALPHA, 0.6), start, [unit(x).reshape(shape) for x in rows])
    return expected, path(lambda p: DeepMomentum(p, LR, ALPHA, 0.6, hidden=0, objective=L2()), start, g)


# ---- read through Newton and Schulz


def muon(x: Tensor) -> Tensor:
    """Muon's reading of a momentum: its iteration, and its factor for the shape."""
    return newton_schulz(x, coefficients=MUON) * max(1, x.shape[-2] / x.shape[-1]) ** 0.5


def matrices(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.ndim == 2]


@Identity(
    "A step of Newton and Schulz is gradient descent to what is orthogonal",
    r"\tfrac32 X - \tfrac12 X X^\top X = X - \tfrac12\, \nabla_X\, \tfrac14 | X X^\top - I |^2",
    "Eq. 43-44",
    ("`nestling.ops.newton_schulz(steps=4, coefficients=(1.5, -0.5, 0))`", "`torch.optim.SGD`, four steps"),
)
def test_newton_schulz_is_gradient_descent():
    """From the matrix over its norm. So every step of Muon has an optimisation inside, on a level faster than that of the momentum."""
    x = randn(4, 6)
    parameter = nn.Parameter(x / x.norm())
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    for _ in range(4):
        optimizer.zero_grad()
        (0.25 * (parameter @ parameter.T - torch.eye(4, dtype=torch.float64)).square().sum()).backward()
        optimizer.step()
    return parameter.detach(), newton_schulz(x, steps=4, coefficients=CUBIC)


@Identity(
    "Muon is a linear momentum read through Newton and Schulz",
    r"m_t = \alpha\, m_{t-1} + G_t, \qquad W_t = W_{t-1} - \eta\, \mathrm{NS}(m_t)",
    "Eq. 42, 52",
    (
        "`torch.optim.Muon`, its iteration in float64",
        "a loop: the momentum of `torch.optim.SGD`, `nestling.ops.newton_schulz` with Muon's coefficients",
    ),
)
def test_muon_is_momentum_read_through_newton_schulz():
    """torch's code with its cast to bfloat16 left out; the next identity says what the cast does."""
    g = gradients()
    theirs = path(lambda p: MuonInFloat32(p, LR, momentum=ALPHA, nesterov=False, weight_decay=0.0), ZERO, g)
    m, w = ZERO, ZERO
    for x in g:
        m = ALPHA * m + x
        w = w - LR * muon(m)
    return theirs, w


@Identity(
    "And torch's Muon as it is, within bfloat16",
    r"W_t = W_{t-1} - \eta\, \mathrm{NS}_{\text{bfloat16}}(m_t)",
    "Eq. 42, 52; Jordan et al. 2024",
    ("`torch.optim.Muon`, five steps", "`nestling.optim.M3` with Muon's coefficients and without slow memories"),
    tolerance=0.02,
    approximation="torch iterates in bfloat16, whose rounding of 0.4% five steps raise with every small singular value",
)
def test_muon_as_it_is_differs_by_its_rounding():
    """By a hundredth of the length of the path or so, in float32."""
    leaves = [torch.randn(24, 32), torch.randn(32, 24)]
    g = [[torch.randn_like(leaf) for leaf in leaves] for _ in range(5)]
    ours = partial(M3, lr=LR, periods=(), weights=(), coefficients=MUON, adjust_lr="original")
    theirs = partial(torch.optim.Muon, lr=LR, weight_decay=0.0)
    return tuple(
        [path(build, leaf, [row[i] for row in g]) - leaf for i, leaf in enumerate(leaves)] for build in (theirs, ours)
    )


@nesterov
@Identity(
    "Deep momentum with Newton and Schulz on top is Muon",
    r"W \leftarrow W - \eta\, \sigma(m(G)), \qquad \sigma = \mathrm{NS}",
    "Eq. 52",
    (
        "`torch.optim.Muon` on a network, its iteration in float64",
        "`nestling.optim.DeepMomentum(hidden=0, objective=DotProduct(), sigma=newton_schulz)`",
    ),
)
def test_deep_momentum_with_newton_schulz_is_muon(nesterov):
    """A Hebbian momentum with an output that is not linear; weight decay included."""
    ours, theirs = network(), network()
    settings = {"nesterov": nesterov, "weight_decay": 0.1}
    learn(theirs, MuonInFloat32(matrices(theirs), LR, momentum=ALPHA, **settings), range(8))
    learn(ours, a_linear_memory(matrices(ours), LR, sigma=muon, **settings), range(8))
    return values(theirs), values(ours)


@nesterov
@pytest.mark.parametrize("adjust_lr", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("slow", [((), ()), ((3,), (0.0,))], ids=["none", "weight 0"])
@Identity(
    "M3 without its slow memories is Muon",
    r"W \leftarrow W - \eta\, \mathrm{NS}(M_1), \qquad M_1 \leftarrow \beta_1 M_1 + G",
    "Algorithm 1 with $\\alpha = 0$ and no second moment",
    (
        "`torch.optim.Muon` on a network, its iteration in float64",
        "`nestling.optim.M3(periods=(), coefficients=MUON)`, and with a slow memory of weight 0",
    ),
)
def test_m3_without_slow_memories_is_muon(nesterov, adjust_lr, slow):
    """Both of torch's factors for the shape."""
    ours, theirs = network(), network()
    settings = {"nesterov": nesterov, "weight_decay": 0.1, "momentum": ALPHA}
    learn(theirs, MuonInFloat32(matrices(theirs), 0.02, adjust_lr_fn=adjust_lr, **settings), range(8))
    periods, weights = slow
    m3 = M3(matrices(ours), 0.02, periods=periods, weights=weights, coefficients=MUON, adjust_lr=adjust_lr, **settings)
    learn(ours, m3, range(8))
    return values(theirs), values(ours)
