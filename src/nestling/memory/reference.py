"""The token-loop oracle of the associative memory: gradients by `torch.func.grad`, one token at a time.

It knows nothing of closed forms: any `nn.Module` will do. Slow, and obviously right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from nestling.memory.network import Network
from nestling.ops import ScanState
from nestling.ops.state import tree_map

if TYPE_CHECKING:
    from nestling.memory.associative import AssociativeMemory, MemoryState


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
) -> tuple[Tensor | None, tuple[ScanState, ...]]:
    """A piece of a chunk, token by token. Shapes as `AssociativeMemory.forward`; returns `y` and the moved weights."""
    network, rule = memory.network, memory.rule
    momentum = state.momentum
    rest = memory.retention.rest(network) if isinstance(network, Network) else None
    lead = state.weights[0].shape[: v.dim() - 2]  # rows x heads
    target, held = memory.target(network, state.start, v), state.start
    if memory.detach_writes:
        held = tuple(w.detach() for w in held)
        k, target, eta, alpha, theta = tree_map(Tensor.detach, (k, target, eta, alpha, theta))
    k, eta, alpha, theta = tree_map(lambda x: x.expand(*lead, *x.shape[len(lead) :]), (k, eta, alpha, theta))

    def loss(weights: tuple[Tensor, ...], key: Tensor, value: Tensor) -> Tensor:
        return memory.objective.loss(_apply(network, weights, key), value)

    gradient, apply = grad(loss), lambda weights, x: _apply(network, weights, x)
    for _ in lead:
        gradient, apply = vmap(gradient), vmap(apply)

    weights, outputs = state.weights, []
    for t in range(k.shape[-2]):
        if q is not None:
            outputs.append(apply(weights if memory.read == "token" else state.start, q[..., t, :]))
        key, rate = k[..., t, :], eta[..., t]
        surprises = gradient(held, key, target[..., t, :])
        moved, pushes = [], []
        for i, weight in enumerate(weights):
            x = _inputs(network, held, key)[i] if isinstance(network, Network) else key
            eps, step = rule.factors(rate, x)
            push = -_to(step, weight) * surprises[i]
            if momentum is not None:
                assert theta is not None
                kept = _to(theta[..., t], weight)
                push = kept * momentum[i] + (1 - kept) * push
            after = push + (weight if alpha is None else _to(alpha[..., t], weight) * weight)
            if rest is not None and alpha is not None:
                after = after + (1 - _to(alpha[..., t], weight)) * rest[i]
            if eps is not None:
                after = after - _to(eps, weight) * x[..., :, None] * (x[..., None, :] @ weight)
            moved.append(after)
            pushes.append(push)
        if mask is not None:
            moved = [torch.where(_to(mask[:, t], w), new, w) for new, w in zip(moved, weights, strict=True)]
        weights = tuple(moved)
        if momentum is not None:
            if mask is not None:
                pushes = [torch.where(_to(mask[:, t], s), new, s) for new, s in zip(pushes, momentum, strict=True)]
            momentum = tuple(pushes)
    y = torch.stack(outputs, dim=-2) if outputs else None
    return y, tuple(ScanState(w, None if momentum is None else momentum[i]) for i, w in enumerate(weights))


def _to(gate: Tensor, like: Tensor) -> Tensor:
    return gate.view(*gate.shape, *[1] * (like.dim() - gate.dim()))


def _apply(network: nn.Module, weights: tuple[Tensor, ...], x: Tensor) -> Tensor:
    """The network's output for one token `[dk]` and the weights of one row and head."""
    if isinstance(network, Network):
        return network(x, [lambda a, w=w: a @ w for w in weights])
    names = [name for name, _ in network.named_parameters()]
    return functional_call(network, dict(zip(names, weights, strict=True)), x)


def _inputs(network: Network, weights: tuple[Tensor, ...], x: Tensor) -> list[Tensor]:
    """What each weight is multiplied with, seen by running the network."""
    seen: dict[int, Tensor] = {}

    def product(i: int, a: Tensor) -> Tensor:
        seen[i] = a
        return (a[..., None, :] @ weights[i]).squeeze(-2)

    network(x, [lambda a, i=i: product(i, a) for i in range(len(weights))])
    return [seen[i] for i in range(len(weights))]
