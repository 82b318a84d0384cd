"""The token-loop oracle: any `nn.Module` is a memory, and what it computes is written out by hand here."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from nestling.memory import L2, AssociativeMemory, DeltaGradientDescent, GradientDescent, Matrix
from tests.helpers import close, directions, gradients, randn, uniform

B, H, D, C, L = 2, 2, 4, 4, 11


def tokens(grad=False):
    shape = (B, H, L)
    q, k, v = (directions(*shape, D, grad=grad) for _ in range(3))
    return q, k, v, uniform(0.05, 0.4, *shape, grad=grad), uniform(0.9, 1.0, *shape, grad=grad)


def a_module():
    return nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, D)).double()


def by_hand(module, q, k, v, eta, alpha, theta, read):
    """Row by row, head by head, token by token, with `autograd` and the true loss."""
    names = [name for name, _ in module.named_parameters()]
    outputs = torch.zeros(B, H, L, D, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            weights = [p.detach().clone() for p in module.parameters()]
            pushes = [torch.zeros_like(w) for w in weights]
            for t in range(L):
                if t % C == 0:
                    start = [w.clone().requires_grad_() for w in weights]
                now = weights if read == "token" else start
                outputs[b, h, t] = functional_call(module, dict(zip(names, now, strict=True)), q[b, h, t]).detach()
                output = functional_call(module, dict(zip(names, start, strict=True)), k[b, h, t])
                slopes = torch.autograd.grad(0.5 * (output - v[b, h, t]).square().sum(), start)
                for i, slope in enumerate(slopes):
                    pushes[i] = theta[b, h, t] * pushes[i] - (1 - theta[b, h, t]) * eta[b, h, t] * slope
                    weights[i] = alpha[b, h, t] * weights[i] + pushes[i]
    return outputs


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("read", ["token", "chunk"])
def test_a_module_learns_as_written_out_by_hand(read, momentum):
    """Gradients of the true loss at the chunk's start, momentum of the writes, retention, reading before writing."""
    memory = AssociativeMemory(a_module(), L2(), GradientDescent(momentum), C, read)
    q, k, v, eta, alpha = tokens()
    theta = uniform(0.0, 0.7, B, H, L) if momentum else torch.zeros(B, H, L, dtype=torch.float64)
    y, _ = memory(q, k, v, eta, alpha, theta=theta if momentum else None)
    close(y, by_hand(memory.network, q, k, v, eta, alpha, theta, read))


@pytest.mark.parametrize("read", ["token", "chunk"])
def test_a_linear_module_is_the_matrix_memory(read):
    """`nn.Linear` on the oracle and `Matrix` in closed form: one memory, its weight transposed; gradients too."""
    linear, matrix = nn.Linear(D, D, bias=False).double(), Matrix(D, D).double()
    matrix.weight.data = linear.weight.detach().mT.clone()
    given = tokens(grad=True)
    slow = AssociativeMemory(linear, L2(), GradientDescent(), C, read)
    fast = AssociativeMemory(matrix, L2(), GradientDescent(), C, read)
    (y, state), (expected, other) = slow(*given), fast(*given)
    close(y, expected)
    close(state.weights[0].mT, other.weights[0])
    slopes = gradients(y, [*given, linear.weight]), gradients(expected, [*given, matrix.weight])
    close(slopes[0][:-1], slopes[1][:-1])
    close(slopes[0][-1].mT, slopes[1][-1])


def test_a_module_streams_and_its_rows_are_strangers():
    """Pieces are the whole, and a padded row is the row alone."""
    memory = AssociativeMemory(a_module(), L2(), GradientDescent(), C)
    given = tokens()
    whole, state = memory(*given)
    first, start = memory(*(x[:, :, :6] for x in given))
    second, end = memory(*(x[:, :, 6:] for x in given), state=start)
    close(torch.cat([first, second], dim=2), whole)
    close(end, state)
    _, ragged = memory(*given, lengths=torch.tensor([L, 5]))
    _, alone = memory(*(x[1:, :, :5] for x in given))
    close(ragged.select(torch.tensor([1])), alone)


def test_what_a_module_cannot_do_raises():
    """No closed form, no input of each weight, no parameters: each is named."""
    with pytest.raises(ValueError, match="Sequential has no closed form; use backend='reference'"):
        AssociativeMemory(a_module(), L2(), backend="chunk")
    with pytest.raises(ValueError, match=r"DeltaGradientDescent.* the input of each weight.*GradientDescent"):
        AssociativeMemory(a_module(), L2(), DeltaGradientDescent())
    with pytest.raises(ValueError, match="Tanh has no parameters"):
        AssociativeMemory(nn.Tanh(), L2()).init_state(1, H)


def test_a_network_of_other_widths():
    """Keys and values of different widths, without queries: the state is that of reading too."""
    memory = AssociativeMemory(Matrix(D, 3, heads=H), L2(), DeltaGradientDescent(), C).double()
    memory.network.weight.data = randn(H, D, 3)
    q, k, _, eta, alpha = tokens()
    v = randn(B, H, L, 3)
    y, state = memory(q, k, v, eta, alpha)
    nothing, silent = memory(None, k, v, eta, alpha)
    assert y.shape == v.shape and nothing is None
    close(silent, state)
