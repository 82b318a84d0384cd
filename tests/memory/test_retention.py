"""Retention: the scan equals the token loop, and a memory that fades to its initial weights comes to rest there."""

import pytest
import torch
from torch import nn

from nestling.memory import (
    MLP,
    AssociativeMemory,
    DeltaGradientDescent,
    GradientDescent,
    Huber,
    Matrix,
    Omega,
    Orthogonal,
    SelfGenerated,
    ToInitial,
    ToZero,
)
from tests.helpers import close, differ, directions, gradients, randn, randomise, uniform

B, H, L, D = 2, 2, 19, 4


def make(network, rule, **options):
    """In float64, with initial weights of order 1."""
    options = {"objective": Huber(), "chunk_size": 5, "target": SelfGenerated(), **options}
    return randomise(AssociativeMemory(network(), rule=rule, **options).double())


def tokens():
    """q, k, v, eta, alpha."""
    gates = uniform(0.1, 1, B, H, L, grad=True), uniform(0.5, 1, B, H, L, grad=True)
    return *(directions(B, H, L, D, grad=True) for _ in range(3)), *gates


@pytest.mark.parametrize("read", ["token", "chunk"])
@pytest.mark.parametrize("rule", [DeltaGradientDescent(), GradientDescent()], ids=["delta", "plain"])
@pytest.mark.parametrize(
    "network",
    [lambda: MLP(D, 6, heads=H), lambda: MLP(D, 6), lambda: Matrix(D, D, heads=H)],
    ids=["own heads", "shared", "matrix"],
)
def test_equals_the_token_loop(network, rule, read):
    """Outputs, state, and the gradients of tokens, gates and initial weights; ragged rows."""
    fast = make(network, rule, read=read, retention=ToInitial())
    slow = make(network, rule, read=read, retention=ToInitial(), backend="reference")
    slow.load_state_dict(fast.state_dict())
    given, lengths = tokens(), torch.tensor([L, 8])
    found, expected = (memory(*given, memory.init_state(B, H), lengths=lengths) for memory in (fast, slow))
    close(found, expected)
    inner = (gradients(y, [*given, *memory.parameters()]) for y, memory in ((found, fast), (expected, slow)))
    close(*map(tuple, inner))


def test_what_is_not_written_comes_to_rest():
    """At zero, or at the meta-learned weights: after many tokens of rate 0 nothing else is left of a state."""
    k, v = directions(B, H, 200, D), directions(B, H, 200, D)
    nothing, half = torch.zeros(B, H, 200), torch.full((B, H, 200), 0.5)
    for retention in (ToZero(), ToInitial()):
        memory = make(lambda: MLP(D, 6, heads=H), DeltaGradientDescent(), retention=retention)
        rest = [torch.zeros_like(w) for w in memory.network.weights()]
        rest = memory.network.weights() if retention == ToInitial() else rest
        start = memory.init_state(B).map(lambda t: t + randn(*t.shape) if t.is_floating_point() else t)
        _, state = memory(None, k, v, nothing, half, start)
        close(state.weights, tuple(w.expand(B, *w.shape) for w in rest))


def test_at_retention_1_both_are_one():
    """What does not fade fades nowhere."""
    q, k, v, eta, _ = tokens()
    zero = make(lambda: MLP(D, 6, heads=H), DeltaGradientDescent())
    initial = make(lambda: MLP(D, 6, heads=H), DeltaGradientDescent(), retention=ToInitial())
    initial.load_state_dict(zero.state_dict())
    close(initial(q, k, v, eta, torch.ones(B, H, L)), zero(q, k, v, eta, torch.ones(B, H, L)))


@pytest.mark.parametrize(
    "rule",
    [DeltaGradientDescent(momentum=True), GradientDescent(momentum=True), Omega(3), Orthogonal()],
    ids=["delta", "plain", "window", "orthogonal"],
)
def test_gathered_writes_come_to_rest_on_the_token_loop(rule):
    """Where writes are gathered only the loop fades to the initial weights, and the memory says so."""
    memory = make(lambda: MLP(D, 6, heads=H), rule, retention=ToInitial())
    assert "token-loop oracle" in repr(memory)
    k, v, half = directions(B, H, 120, D), directions(B, H, 120, D), torch.full((B, H, 120), 0.5)
    theta = half if rule.momentum else None
    _, written = memory(None, k, v, half, half, theta=theta)
    _, state = memory(None, k, v, torch.zeros(B, H, 120), half, written, theta)
    weights = tuple(w.expand(B, *w.shape) for w in memory.network.weights())
    differ(written.weights, weights)
    close(state.weights, weights)
    with pytest.raises(ValueError, match=r"ToInitial\(\) has no chunk form"):
        make(lambda: MLP(D, 6), rule, retention=ToInitial(), backend="chunk")


def test_a_network_without_a_closed_form_fades_to_zero_alone():
    """Which of its parameters is a weight's initial value only a network of ours tells."""
    with pytest.raises(ValueError, match=r"ToInitial\(\) needs a network of nestling.memory"):
        make(lambda: nn.Linear(D, D), GradientDescent(), retention=ToInitial())
