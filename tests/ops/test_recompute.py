"""Computing twice is computing once, gradients taken inside included."""

import pytest
import torch

from nestling.ops.recompute import recompute
from nestling.ops.state import zeros
from tests.helpers import close, gradients, same


def test_recomputing_is_computing():
    """Values, the gradients of inputs and of parameters, random numbers included; only a function's start is kept."""
    layer = torch.nn.Sequential(
        torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3)
    ).double()

    def function(state):
        x, count = state
        with torch.enable_grad():
            inner = layer(x).square().sum()
            slope = torch.autograd.grad(inner, layer[0].weight, create_graph=torch.is_grad_enabled())[0]
        return layer(x) @ slope[:3], count + 1, {"kept": x}

    x, count, parameters = (
        torch.randn(4, 3, dtype=torch.float64, requires_grad=True),
        torch.tensor([2]),
        [*layer.parameters()],
    )
    results = []
    for call in (lambda: function((x, count)), lambda: recompute(function, (x, count), parameters)):
        torch.manual_seed(0)
        y, after, rest = call()
        results.append((y.detach(), after, gradients((y, rest), [x, *parameters])))
    close(tuple(results[1][2]), tuple(results[0][2]))
    same(results[1][:2], results[0][:2])


def test_recomputing_is_as_exact_as_the_first_time():
    """Under autocast the second run is cast as the first one was, though the backward pass is outside of it."""
    layer = torch.nn.Linear(16, 16)
    x, parameters = torch.randn(4, 16, requires_grad=True), list(layer.parameters())
    results = []
    for call in (lambda: layer(x), lambda: recompute(layer, x, parameters)):
        with torch.autocast("cpu", torch.bfloat16):
            y = call()
        assert y.dtype == torch.bfloat16
        results.append((y.detach(), tuple(gradients(y, [x, *parameters]))))
    same(results[1], results[0])


def test_a_constant_that_states_share_gets_no_history():
    """What the function returns may be kept elsewhere, as zeros are: that a later graph starts at it must not lead back here."""
    constant = zeros((3,), torch.float64, torch.device("cpu"))
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    y, same_as_constant = recompute(lambda x: (x * constant, constant), x, [])
    assert constant.grad_fn is None and not constant.requires_grad
    (y.sum() + same_as_constant.sum() + x.square().sum()).backward()
    close(x.grad, 2 * x.detach())


def test_a_parameter_that_was_changed_in_between_is_noticed():
    """The second run would be of another function."""
    layer, x = torch.nn.Linear(3, 3), torch.randn(2, 3)
    y = recompute(layer, x, list(layer.parameters()))
    with torch.no_grad():
        layer.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
