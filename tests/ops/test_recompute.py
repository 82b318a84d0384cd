"""Computing twice is computing once, gradients taken inside included."""

import torch

from nestling.ops.recompute import recompute
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
