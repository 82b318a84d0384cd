"""Deep momentum: Eq. 50-52 by autograd, its bounds, its features. Its linear limits: `tests/identities/test_momentum.py`."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from nestling.memory import L2, DotProduct
from nestling.optim import DeepMomentum
from nestling.optim.deep_momentum import Memory, Polynomial, learnt, raw, read, unit
from tests.helpers import close, differ, randn, same
from tests.optimizers import learn, network, path, trained, values

zero = torch.zeros(3, 4, dtype=torch.float64)
linear = partial(DeepMomentum, rate=1.0, hidden=0, objective=DotProduct(), features=raw)
shapes = pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5,), (), (3, 2, 2)], ids=str)


def mlp(x: Tensor, a: Tensor, u: Tensor, d: Tensor) -> Tensor:
    """The paper's residual memory (Eq. 89) between two widths."""
    return x @ a + F.silu(x @ u) @ d / max(1, u.shape[1]) ** 0.5


def equation_50(w: Tensor, g: list[Tensor], lr: float, alpha: float, rate: float, up: Tensor, objective) -> Tensor:
    """A network trained by autograd on `x_j -> e_j`, and read as the gradient of its answers at `x`."""
    rows, columns = w.shape
    start = [torch.zeros(columns, rows).double(), up, torch.zeros(up.shape[1], rows).double()]
    weights, identity = start, torch.eye(rows).double()
    for x in map(unit, g):
        leaves = [weight.detach().requires_grad_() for weight in weights]
        loss = objective.loss(mlp(x, *leaves), identity).mean()
        slopes = torch.autograd.grad(loss, leaves)
        decayed = [alpha * weight for weight in weights]
        decayed[1] = decayed[1] + (1 - alpha) * up
        weights = [weight - rate * slope for weight, slope in zip(decayed, slopes, strict=True)]
        at = x.clone().requires_grad_()
        w = w - lr * rows * torch.autograd.grad(mlp(at, *weights).diagonal().sum(), at)[0]
    return w


@pytest.mark.parametrize("objective", [L2(), DotProduct()])
@pytest.mark.parametrize("shape", [(4, 6), (6, 3), (1, 5)], ids=str)
def test_it_is_its_equation(shape, objective):
    """Several steps of a transcription that knows no closed form."""
    start, *g = randn(6, *shape)
    up = torch.randn(shape[1], 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = path(lambda p: DeepMomentum(p, 0.1, 0.8, 0.3, hidden=7, seed=3, objective=objective), start, g)
    close(found, equation_50(start, g, 0.1, 0.8, 0.3, up, objective), 1e-11)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 6))
def test_the_local_backward_pass_is_autograds(rows, columns, hidden):
    """What one gradient adds to every weight, and what is read, at any weights."""
    memory = Memory(*(randn(*shape, grad=True) for shape in ((columns, rows), (columns, hidden), (hidden, rows))))
    x = randn(rows, columns, grad=True)
    answers = mlp(x, *memory)
    loss = L2().loss(answers, torch.eye(rows).double()).mean()
    slopes = torch.autograd.grad(loss, memory, retain_graph=True)
    moved = learnt(memory, randn(columns, hidden), x, L2(), 1.0, 0.3)
    close(list(moved), [w - 0.3 * slope for w, slope in zip(memory, slopes, strict=True)], 1e-12)
    close(read(memory, x), rows * torch.autograd.grad(answers.diagonal().sum(), x)[0], 1e-12)


def test_a_gradient_is_recalled_in_proportion_to_its_likeness():
    """Of a last layer that learns by the dot product: `sum_i alpha^(t-i) d K(x_ij, x_j) / d x_j`, `K` of the hidden units."""
    past, up, alpha = randn(3, 4, 5), randn(5, 6), 0.7
    down = torch.zeros(6, 4, dtype=torch.float64)
    for x in past:
        down = alpha * down + (F.silu(x @ up).T / 6**0.5)
    x = randn(4, 5, grad=True)
    likeness = [(F.silu(old @ up) * F.silu(x @ up)).sum() / 6 for old in past]
    (expected,) = torch.autograd.grad(sum(alpha ** (2 - i) * k for i, k in enumerate(likeness)), x)
    close(read(Memory(torch.zeros(5, 4).double(), up, down), x.detach()), 4 * expected, 1e-12)


@pytest.mark.parametrize("coefficients", [(1.0,), (1.0, 0.1), (0.5, 0.0, 2.0)])
def test_features_of_higher_order_are_what_momentum_is_of(coefficients):
    """Eq. 51: a linear memory sums `phi(G)`, here a polynomial of its elements."""
    start, *g = randn(6, 3, 4)
    phi = [sum(c * unit(x) ** (2 * i + 1) for i, c in enumerate(coefficients)) for x in g]
    expected = path(lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), start, phi)
    close(path(lambda p: linear(p, 0.1, features=Polynomial(coefficients)), start, g), expected, 1e-12)


# ---- bounds and invariances


@given(
    alpha=st.floats(0.0, 0.99),
    share=st.floats(0.0, 1.0),
    signs=st.lists(st.sampled_from([-1, 1]), min_size=1, max_size=6),
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
)
@pytest.mark.parametrize(
    ("objective", "largest"), [(L2(), lambda a: 0.5), (DotProduct(), lambda a: 1 - a)], ids=["l2", "dot"]
)
def test_a_deep_memory_is_bounded(objective, largest, alpha, share, signs, rows, columns):
    """At the rates that the docstring allows no gradients, repeated or alternating, make a weight leave its range."""
    kinds, up = unit(randn(len(signs), rows, columns)), randn(columns, 4)
    memory = Memory(torch.zeros(columns, rows).double(), up, torch.zeros(4, rows).double())
    for step in range(60):
        x = signs[step % len(signs)] * kinds[step // 20 % len(signs)]
        memory = learnt(memory, up, x, objective, alpha, share * largest(alpha))
    assert max(weight.abs().max().item() for weight in memory) < 10


@given(scale=st.floats(-150.0, 150.0).map(lambda exponent: 10.0**exponent))
def test_steps_have_no_scale(scale):
    """With `unit` features, those of the default, a scale of the loss changes nothing."""
    g = randn(3, 3, 4)
    build = lambda p: DeepMomentum(p, 0.1, hidden=4)  # noqa: E731
    close(path(build, zero, list(scale * g)), path(build, zero, list(g)), 1e-9)


@given(
    size=st.floats(-300.0, 300.0).map(lambda exponent: 10.0**exponent),
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
)
def test_unit_rows(size, rows, columns):
    """The mean squared norm of a row is one, whatever the size; zeros stay zeros, in a batch with others too."""
    x = unit(torch.stack([size * randn(rows, columns), torch.zeros(rows, columns).double()]))
    close(x.square().sum(-1).mean(-1), torch.tensor([1.0, 0.0]).double(), 1e-9)


def test_opposite_gradients_are_opposite_features():
    """A polynomial is odd, so that a gradient and its negation cancel in a linear memory."""
    x = randn(3, 4)
    same(Polynomial()(-x), -Polynomial()(x))


# ---- its beginning


def test_a_seed_is_all_of_chance():
    """One seed, one path; another seed, another path; parameters of one shape begin alike, whatever stands beside them."""
    paths = [trained(lambda p, seed=seed: DeepMomentum(p, 0.1, hidden=4, seed=seed)) for seed in (0, 0, 1)]
    same(paths[0], paths[1])
    differ(paths[0], paths[2], 1e-4)
    optimizer = DeepMomentum([torch.ones(3, 4), torch.zeros(3, 4)], hidden=4)
    group = optimizer.param_groups[0]
    same(*(optimizer.initial_state(p, group) for p in group["params"]))


def test_a_loaded_memory_keeps_its_own_beginning():
    """`U` decays to where it started, which is saved with it: the seed of the optimiser that loads does not matter."""
    module = network()
    optimizer = DeepMomentum(module.parameters(), 0.1, hidden=4, seed=5)
    learn(module, optimizer, range(3))
    other = network()
    other.load_state_dict(module.state_dict())
    loaded = DeepMomentum(other.parameters(), 0.1, hidden=4, seed=6)
    loaded.load_state_dict(optimizer.state_dict())
    for m, o in ((module, optimizer), (other, loaded)):
        learn(m, o, range(3, 6))
    same(values(other), values(module))


# ---- what is refused


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"rate": -0.1}, "rate=-0.1"),
        ({"hidden": -1}, "hidden=-1 must be a whole number of units; 0 is a linear memory"),
        ({"hidden": 2.5}, "hidden=2.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings, says):
    """By name, with what is allowed."""
    with pytest.raises(ValueError, match=says):
        DeepMomentum([torch.ones(2, 2, requires_grad=True)], **settings)


@pytest.mark.parametrize("part", ["features", "sigma"])
def test_maps_that_change_the_shape_are_refused(part):
    """In the first step, where they are first called; the parameter has not moved then."""
    p = nn.Parameter(torch.ones(2, 3))
    optimizer = DeepMomentum([p], **{part: lambda x: x[..., :1]})
    p.grad = torch.ones(2, 3)
    with pytest.raises(ValueError, match=rf"{part} made \[1, 2, 1\] of \[1, 2, 3\]; .* keep the shape"):
        optimizer.step()
    same(p.detach(), torch.ones(2, 3))
