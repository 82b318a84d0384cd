"""The parts of a memory, each against `autograd`: objectives, networks, targets."""

import pytest
import torch
from torch.nn import functional as F

from nestling.memory import (
    L2,
    MLP,
    DotProduct,
    EluPlusOne,
    Features,
    Given,
    Huber,
    Lp,
    Matrix,
    Polynomial,
    RandomFeatures,
    ResidualNorm,
    SelfGenerated,
    as_objective,
    unit,
)
from nestling.memory.fused import fits
from nestling.memory.retention import ToZero
from nestling.memory.rule import DeltaGradientDescent
from tests.helpers import close, gradients, randn, same

D, HEADS = 4, 3


def pseudo_huber(output, target):
    """A loss of a user's own."""
    return (1 + (output - target).square()).sqrt().sum(-1)


OBJECTIVES = (DotProduct(), L2(), Huber(0.5), Lp(1), Lp(1.5), Lp(2), Lp(3), as_objective(pseudo_huber))
NETWORKS = {
    "matrix": lambda: Matrix(D, 5, heads=HEADS),
    "mlp": lambda: MLP(D, 6, heads=HEADS),
    "headless": lambda: MLP(D, 6),
    "memories": lambda: MLP(D, 6, heads=(2, HEADS)),
    "linear": lambda: MLP(D, 6, heads=HEADS, depth=1),
    "not residual": lambda: MLP(D, 6, heads=HEADS, residual=False),
    "deep": lambda: MLP(D, 6, heads=HEADS, depth=4),
    "gated": lambda: MLP(D, 6, heads=HEADS, gate=True),
    "deep gated": lambda: MLP(D, 6, heads=HEADS, depth=4, residual=False, gate=True),
    "polynomial": lambda: Features(Polynomial(3), Matrix(35, 5, heads=HEADS)),
    "random features": lambda: Features(RandomFeatures(6, D), MLP(6, 3, heads=HEADS)),
    "elu": lambda: Features(EluPlusOne(), MLP(D, 6, heads=HEADS, residual=False)),
    "normalised": lambda: ResidualNorm(MLP(D, 6, heads=HEADS, residual=False)),
    "normalised memories": lambda: ResidualNorm(MLP(D, 6, heads=(2, HEADS), depth=1, residual=False)),
    "normalised features": lambda: ResidualNorm(Features(Polynomial(2), Matrix(15, D))),
}


def randomised(make):
    """A network in float64 with random weights."""
    network = make().double()
    for weight in network.parameters():
        weight.data = randn(*weight.shape)
    return network


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_surprise_is_the_gradient_of_the_loss(objective):
    """With respect to the output, target held constant."""
    output, target = randn(5, D, grad=True), randn(5, D)
    (expected,) = torch.autograd.grad(objective.loss(output, target).sum(), output)
    close(objective.surprise(output, target), expected)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_one_step_against_the_surprise_lowers_the_loss(objective):
    """A memory moves towards its target under every objective."""
    output, target = randn(5, D), randn(5, D)
    moved = output - 0.1 * objective.surprise(output, target)
    assert (objective.loss(moved, target) < objective.loss(output, target)).all()


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_writes_are_the_backward_pass(name, objective):
    """Each weight's gradient is `input^T surprise`, summed over the tokens."""
    network = randomised(NETWORKS[name])
    weights = [w.detach().expand(*network.heads, *w.shape[-2:]).requires_grad_() for w in network.weights()]
    k = randn(*network.heads, 7, D)
    output = network.read(k, weights)
    target = torch.randn_like(output)
    expected = torch.autograd.grad(objective.loss(output, target).sum(), weights)
    with torch.no_grad():
        writes = network.writes(k, weights, lambda o: objective.surprise(o, target))
    close([w.input.mT @ w.surprise for w in writes], list(expected))


def test_the_mlp_is_the_paper_s_memory():
    """Eq. 89: `x + silu(x W_up) W_down`; with `W_down = 0` it is the identity."""
    network = randomised(NETWORKS["headless"])
    x, (up, down) = randn(7, D), network.weights()
    z = x @ up
    close(network.read(x, (up, down)), x + (z / (1 + (-z).exp())) @ down)
    close(network.read(x, (up, 0 * down)), x)


def test_a_deep_mlp_is_its_chain():
    """Three hidden layers written out, with gates and without, residual and not."""
    x = randn(7, D)
    plain, gated = MLP(D, 6, depth=4, residual=False).double(), MLP(D, 6, depth=3, gate=True).double()
    up, up2, up3, down = plain.weights()
    close(plain.read(x, plain.weights()), F.silu(F.silu(F.silu(x @ up) @ up2) @ up3) @ down)
    assert [name for name, _ in gated.named_parameters()] == ["up", "gate", "up2", "gate2", "down"]
    up, gate, up2, gate2, down = gated.weights()
    h = F.silu(x @ gate) * (x @ up)
    close(gated.read(x, gated.weights()), x + (F.silu(h @ gate2) * (h @ up2)) @ down)


def test_an_mlp_of_depth_one_is_a_matrix():
    """`x + x W`, and without the residual `x W`."""
    residual, plain = MLP(D, 6, heads=HEADS, depth=1).double(), MLP(D, 6, heads=HEADS, depth=1, residual=False).double()
    x = randn(HEADS, 7, D)
    close(residual.read(x, residual.weights()), x + x @ residual.down)
    close(plain.read(x, plain.weights()), x @ plain.down)


def test_the_default_mlp_is_what_it_was():
    """The names and initial values, by the seed, that saved and published models have; only it is taken for the fused memory."""
    torch.manual_seed(3)
    network = MLP(D, 6, heads=(2, HEADS))
    torch.manual_seed(3)
    up, down = torch.randn(2, HEADS, D, 6), torch.randn(2, HEADS, 6, D) * (D * 6) ** -0.5
    same(dict(network.state_dict()), {"up": up, "down": down})
    parts = Huber(), DeltaGradientDescent(), SelfGenerated(), ToZero(), 0.5
    assert fits(MLP(D, 6), *parts)
    others = {"depth": 3}, {"depth": 1}, {"residual": False}, {"gate": True}
    assert not any(fits(MLP(D, 6, **options), *parts) for options in others)


@pytest.mark.parametrize("gate", [False, True])
def test_hidden_units_are_of_order_one_at_any_depth(gate):
    """For inputs of norm 1: no layer of a fresh network is louder or quieter than another. (Gates square what they are given.)"""
    network = MLP(64, 256, depth=3 if gate else 6, residual=False, gate=gate)
    x = unit(torch.randn(200, 64))
    outputs = [write.output for write in network.writes(x, network.weights(), lambda o: o)]
    assert all(0.7 < output.std() < 1.4 for output in outputs[:-1])
    assert 0.4 < outputs[-1].norm(dim=-1).mean() < 1.0


def test_a_matrix_may_start_from_nothing():
    """Without a learnt start there is nothing to learn and nothing to save, and the numbers are those of a zero one."""
    network, learnt = Matrix(D, 5, heads=HEADS, learnt=False), Matrix(D, 5, heads=HEADS)
    assert not list(network.parameters()) and not network.state_dict()
    same(network.weights(), learnt.weights())
    assert network.double().weights()[0].dtype == torch.float64


def test_heads_have_weights_of_their_own():
    """Every head is a network apart: changing one head's weight changes that head's output only."""
    network = randomised(NETWORKS["mlp"])
    x, (up, down) = randn(HEADS, 7, D), network.weights()
    changed = up.detach().clone()
    changed[1] += 1.0
    moved = (network.read(x, (changed, down)) - network.read(x, (up, down))).abs().amax((1, 2))
    assert moved[1] > 1e-3 and not moved[[0, 2]].any()


def test_a_fresh_matrix_knows_nothing_and_a_fresh_mlp_something():
    """A linear memory starts at zero; the hidden units of a deep one are of order 1 for inputs of norm 1."""
    assert not Matrix(D, D).weight.any()
    mlp = MLP(64, 256)
    hidden = unit(torch.randn(1000, 64)) @ mlp.up
    assert 0.8 < hidden.std() < 1.2
    answer = mlp.read(unit(torch.randn(1000, 64)), mlp.weights()).norm(dim=-1).mean()
    assert 1.0 < answer < 2.0


def test_targets():
    """`Given` is the value; `SelfGenerated` is the memory's own answer to it at unit norm (Eq. 84)."""
    network = randomised(NETWORKS["mlp"])
    v = randn(HEADS, 7, D)
    close(Given()(network, network.weights(), v), v)
    proposed = SelfGenerated()(network, network.weights(), v)
    close(proposed.norm(dim=-1), torch.ones(HEADS, 7, dtype=torch.float64))
    close(proposed, unit(network.read(v, network.weights())))


def test_unit_has_a_gradient_at_zero():
    """A direction of nothing is nothing, and its gradient is finite."""
    x = torch.zeros(2, D, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(unit(x).sum(), x)
    assert not unit(x).any() and slope.isfinite().all()


@pytest.mark.parametrize("p", [1, 1.2, 1.5, 2, 2.5, 3, 4])
def test_lp_is_the_power_of_the_error(p):
    """Beyond the floor the loss is `sum |e|^p / p`, at 2 that of `L2`; at the floor neither it nor the surprise has a step."""
    objective, floor = Lp(p), 1e-3 if p < 2 else 0.0
    output, target = randn(50, D), randn(50, D)
    error = output - target
    output = torch.where(error.abs() > floor, output, target + 1)
    error = output - target
    close(objective.loss(output, target), (error.abs() ** p).sum(-1) / p)
    close(objective.surprise(output, target), error.sign() * error.abs() ** (p - 1))
    if p == 2:
        close(objective.loss(output, target), L2().loss(output, target))
    edge = torch.tensor([[floor * (1 - 1e-12)], [floor * (1 + 1e-12)]], dtype=torch.float64)
    for f in (objective.loss, objective.surprise):
        below, above = f(edge, torch.zeros_like(edge))
        close(below, above)


@pytest.mark.parametrize("p", [1, 1.2, 1.5, 2, 2.5, 3])
def test_lp_has_an_outer_gradient_where_there_is_no_error(p):
    """The slope of the surprise at 0: `floor^(p-2)` below 2, then 1, then 0; and its own slope is finite too."""
    output = torch.zeros(1, D, dtype=torch.float64, requires_grad=True)
    surprise = Lp(p).surprise(output, torch.zeros_like(output))
    (slope,) = torch.autograd.grad(surprise.sum(), output, create_graph=True)
    close(slope, torch.full_like(slope, 1e-3 ** (p - 2) if p < 2 else float(p == 2)))
    (again,) = torch.autograd.grad(slope.sum(), output, allow_unused=True, materialize_grads=True)
    assert again.isfinite().all()


def test_a_function_is_an_objective():
    """As the closed form, with any leading dimensions, and differentiable in output and target; a token is all it sees."""
    objective = as_objective(lambda o, v: 0.5 * (o - v).square().sum())  # of one token: no dimension named
    for shape in ((D,), (5, D), (2, HEADS, 5, D)):
        output, target = randn(*shape, grad=True), randn(*shape, grad=True)
        found = objective.loss(output, target), objective.surprise(output, target)
        expected = L2().loss(output, target), L2().surprise(output, target)
        close(found, expected)
        close(gradients(found, [output, target]), gradients(expected, [output, target]))


def test_an_objective_passes_as_it_is():
    """Nothing is wrapped that has its own surprise; a class, a number and a loss of several numbers are refused."""
    objective = Huber(0.5)
    assert as_objective(objective) is objective
    for wrong in (L2, 3):
        with pytest.raises(ValueError, match=r"objective=.* must be a function of output and target, or an object"):
            as_objective(wrong)
    with pytest.raises(ValueError, match=r"must return one number .* got shape \(4,\): sum over the last dimension"):
        as_objective(lambda o, v: (o - v).square()).surprise(randn(5, D), randn(5, D))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Lp(0.5), "p=0.5 must be at least 1"),
        (lambda: Lp(float("nan")), "p=nan must be at least 1"),
        (lambda: Lp(float("inf")), "p=inf must be at least 1, and finite"),
        (lambda: Lp(1.5, floor=0.0), "floor=0.0 must be above 0"),
        (lambda: Matrix(0, D), "dim_key=0 must be at least 1"),
        (lambda: Matrix(D, -1), "dim_value=-1 must be at least 1"),
        (lambda: MLP(0, 6), "dim=0 must be at least 1"),
        (lambda: MLP(D, 0), "hidden=0 must be at least 1"),
        (lambda: MLP(D, 6, depth=0), "depth=0 must be at least 1"),
        (lambda: MLP(D, 6, depth=1, gate=True), "gate=True needs a hidden layer; got depth=1"),
        (lambda: Polynomial(0), "degree=0 must be at least 1"),
        (lambda: RandomFeatures(0, D), "n=0 must be at least 1"),
        (lambda: RandomFeatures(6, 0), "dim=0 must be at least 1"),
    ],
)
def test_parts_that_cannot_be_are_named(make, words):
    """The argument, its value and what is allowed."""
    with pytest.raises(ValueError, match=words):
        make()
