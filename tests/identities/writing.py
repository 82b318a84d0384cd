"""What several identities write with: a matrix memory read to its end, and a linear layer trained token by token."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nestling.memory import AssociativeMemory, Matrix
from nestling.memory.matrix_rule import MatrixRule
from nestling.memory.objective import Objective
from nestling.memory.rule import Rule


def matrix_memory(
    start: Tensor, objective: Objective, rule: Rule | MatrixRule, chunk_size: int = 1, read: str = "token"
) -> AssociativeMemory:
    """One head whose matrix begins as `start [dk, dv]`."""
    memory = AssociativeMemory(Matrix(*start.shape), objective, rule, chunk_size, read).double()
    assert isinstance(memory.network, Matrix)
    memory.network.weight.data = start.double().clone()
    return memory


def written(
    memory: AssociativeMemory,
    k: Tensor,
    v: Tensor,
    eta: float,
    alpha: float | None = None,
    theta: float | None = None,
) -> Tensor:
    """The first weight `[in, out]` of a memory that has read `k, v [L, d]`, at one rate, retention and momentum."""

    def gate(value: float | None) -> Tensor | None:
        return None if value is None else k.new_full((1, 1, len(k)), value)

    rates = gate(eta)
    assert rates is not None
    _, state = memory(None, k[None, None], v[None, None], rates, gate(alpha), theta=gate(theta))
    return state.weights[0][0, 0].detach()


class Course(NamedTuple):
    """What a linear layer went through. x: `[L, in]`, u: `[L, out]`, the loss's gradient at each output. weight: `[out, in]`."""

    x: Tensor
    u: Tensor
    weight: Tensor


def taught(layer: nn.Linear, x: Tensor, labels: Tensor, build: Callable[..., torch.optim.Optimizer]) -> Course:
    """Train on the cross-entropy of one token after another, the gradient at each output by autograd."""
    optimizer, surprises = build(layer.parameters()), []
    for token, label in zip(x, labels, strict=True):
        optimizer.zero_grad()
        y = layer(token)
        loss = nn.functional.cross_entropy(y, label)
        surprises += torch.autograd.grad(loss, y, retain_graph=True)
        loss.backward()
        optimizer.step()
    return Course(x, torch.stack(surprises), layer.weight.detach())


def a_layer() -> nn.Linear:
    """From 4 to 3 units, without bias."""
    return nn.Linear(4, 3, bias=False).double()


def labelled(length: int) -> tuple[Tensor, Tensor]:
    """Tokens `[L, 4]` and their classes."""
    return torch.randn(length, 4, dtype=torch.float64), torch.randint(3, (length,))
