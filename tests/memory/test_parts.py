"""The parts of a memory, each against `autograd`: objectives, networks, targets."""

import pytest
import torch

from nestling.memory import L2, MLP, DotProduct, Given, Matrix, SelfGenerated, unit
from tests.helpers import close, randn

D, HEADS = 4, 3
OBJECTIVES = (DotProduct(), L2())
NETWORKS = {
    "matrix": lambda: Matrix(D, 5, heads=HEADS),
    "mlp": lambda: MLP(D, 6, heads=HEADS),
    "headless": lambda: MLP(D, 6),
    "memories": lambda: MLP(D, 6, heads=(2, HEADS)),
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
