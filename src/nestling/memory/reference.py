"""The token-loop oracle of the associative memory: gradients by `torch.func.grad`, one token at a time.

It knows nothing of closed forms: any `nn.Module` will do. Slow, and obviously right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from nestling.memory.compound import Orthogonal, window_of
from nestling.memory.matrix_rule import MatrixRule
from nestling.memory.network import Network
from nestling.memory.recent import joined, latest
from nestling.memory.state import MemoryState, Moved
from nestling.ops.newton_schulz import newton_schulz
from nestling.ops.state import tree_map

if TYPE_CHECKING:
    from nestling.memory.associative import AssociativeMemory

Weights = tuple[Tensor, ...]


def token_loop(
    memory: AssociativeMemory,
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    alpha: Tensor | None,
    theta: Tensor | None,
    state: MemoryState,
    mask: Tensor | None,
) -> tuple[Tensor | None, Moved]:
    """A piece of a chunk, token by token. Shapes as `AssociativeMemory.forward`; returns `y` and what has moved."""
    network, rule, retention, momentum = memory.network, memory.rule, memory.retention, state.momentum
    assert not isinstance(rule, MatrixRule)  # it has a loop of its own
    rest = retention.rest(network) if isinstance(network, Network) else None
    lead = state.weights[0].shape[: v.dim() - 2]  # rows x heads
    start = tree_map(retention.weight, state.start)
    held = start
    if memory.detach_writes:
        held, k, v, eta, alpha, theta = tree_map(Tensor.detach, (held, k, v, eta, alpha, theta))
    target = memory.target(network, held, v)
    k, eta, alpha, theta = tree_map(lambda x: x.expand(*lead, *x.shape[len(lead) :]), (k, eta, alpha, theta))
    gradient, apply = _over(memory, lead)
    gradients = _gathered(memory, gradient, held, k, v, target, state, mask)

    stored, outputs = state.weights, []
    for t in range(k.shape[-2]):
        before = stored
        key, rate = k[..., t, :], eta[..., t]
        moved, pushes = [], []
        for i, weight in enumerate(stored):
            x = _inputs(network, held, key)[i] if isinstance(network, Network) else key
            x = x.detach() if memory.detach_writes else x
            eps, step = rule.factors(rate, x)
            orthogonal = rule if isinstance(rule, Orthogonal) else None
            push = -gradients[t][i] if orthogonal else -_to(step, weight) * gradients[t][i]
            if momentum is not None:
                assert theta is not None
                kept = _to(theta[..., t], weight)
                push = kept * momentum[i] + (1 - kept) * push
            pushes.append(push)
            if orthogonal:
                push = _to(rate, weight) * newton_schulz(push, orthogonal.steps)
            after = push + (weight if alpha is None else _to(_at(alpha, t, k), weight) * weight)
            if rest is not None and alpha is not None:
                after = after + (1 - _to(alpha[..., t], weight)) * rest[i]
            if eps is not None:
                after = after - _to(eps, weight) * x[..., :, None] * (x[..., None, :] @ weight)
            moved.append(after)
        if mask is not None:
            moved = [torch.where(_to(mask[:, t], w), new, w) for new, w in zip(moved, stored, strict=True)]
        stored = tuple(moved)
        if momentum is not None:
            if mask is not None:
                pushes = [torch.where(_to(mask[:, t], s), new, s) for new, s in zip(pushes, momentum, strict=True)]
            momentum = tuple(pushes)
        if q is not None:
            seen = {"token": before, "inclusive": stored, "chunk": state.start}[memory.read]
            outputs.append(apply(tree_map(retention.weight, seen), q[..., t, :]))
    y = torch.stack(outputs, dim=-2) if outputs else None
    carried = state.carried
    if carried:
        carried = latest(joined(carried, k, v, mask), window_of(memory.rule))
    return y, Moved(stored, momentum, carried)


def _over(memory: AssociativeMemory, lead: torch.Size) -> tuple[Callable[..., Weights], Callable[..., Tensor]]:
    """The gradient of a token's loss at given weights, and the network's output, for all rows and heads."""

    def loss(weights: Weights, key: Tensor, value: Tensor) -> Tensor:
        return memory.objective.loss(_apply(memory.network, weights, key), value).sum()

    gradient, apply = grad(loss), lambda weights, x: _apply(memory.network, weights, x)
    if not isinstance(memory.network, Network):  # which takes all rows and heads at once: the loss is their sum
        for _ in lead:
            gradient, apply = vmap(gradient), vmap(apply)
    if not memory.detach_writes:
        return gradient, apply
    return lambda *given: tree_map(Tensor.detach, gradient(*given)), apply


def _gathered(
    memory: AssociativeMemory,
    gradient: Callable[..., Weights],
    held: Weights,
    k: Tensor,
    v: Tensor,
    target: Tensor,
    state: MemoryState,
    mask: Tensor | None,
) -> list[Weights]:
    """What each token's step is taken along, before momentum: its own gradient, or the mean of its window's."""
    window = window_of(memory.rule)
    if window == 1:
        return [gradient(held, k[..., t, :], target[..., t, :]) for t in range(k.shape[-2])]
    k, v, there = joined(state.carried, k, v, mask)
    target = memory.target(memory.network, held, v)
    found = []
    for t in range(k.shape[-2]):
        own = gradient(held, k[..., t, :], target[..., t, :])
        found.append([torch.where(_to(there[:, t], g), g, 0.0) for g in own])
    places = range(len(found) - window + 1)
    return [tuple(torch.stack(parts).mean(0) for parts in zip(*found[t : t + window], strict=True)) for t in places]


def _at(gate: Tensor, t: int, k: Tensor) -> Tensor:
    """A token's gate: a number, or one a channel `[.., d]`."""
    return gate[..., t, :] if gate.dim() == k.dim() else gate[..., t]


def _to(gate: Tensor, like: Tensor) -> Tensor:
    return gate.view(*gate.shape, *[1] * (like.dim() - gate.dim()))


def _apply(network: nn.Module, weights: Weights, x: Tensor) -> Tensor:
    """The network's output for one token: of all rows and heads `[.., dk]`, or of one row and head for a module."""
    if isinstance(network, Network):
        return network.read(x.unsqueeze(-2), weights).squeeze(-2)
    names = [name for name, _ in network.named_parameters()]
    return functional_call(network, dict(zip(names, weights, strict=True)), x)


def _inputs(network: Network, weights: Weights, x: Tensor) -> list[Tensor]:
    """What each weight is multiplied with, seen by running the network."""
    seen: dict[int, Tensor] = {}

    def product(i: int, a: Tensor) -> Tensor:
        seen[i] = a
        return a @ weights[i]

    network(x.unsqueeze(-2), [lambda a, i=i: product(i, a) for i in range(len(weights))])
    return [seen[i].squeeze(-2) for i in range(len(weights))]
