"""A piece of a chunk in closed form: the local backward pass at the chunk's start, then one scan a weight.

B batch, H heads (one or more dimensions), L length, d width. The token-loop oracle of it is in `nestling.memory.reference`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nestling.memory import fused
from nestling.memory.network import Network
from nestling.memory.objective import Huber
from nestling.ops import ScanState
from nestling.ops.scan.chunk import Decay, chunk_step
from nestling.ops.state import tree_map

if TYPE_CHECKING:
    from nestling.memory.associative import AssociativeMemory, MemoryState


def closed_form(
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
    """One piece of a chunk, at most: the local backward pass at the chunk's start, then one scan a weight.

    Masked tokens are neutral already (`AssociativeMemory.forward`).
    """
    network = memory.network
    assert isinstance(network, Network)
    alpha = torch.ones_like(k[..., 0]) if alpha is None else alpha
    fresh = memory.at_start(state)
    if not memory.fused or k.shape[-2] > fused.LONGEST:
        return _scans(memory, q, k, v, eta, alpha, theta, state.weights, state.momentum, state.start, fresh, mask)
    assert isinstance(memory.objective, Huber)
    up, down = state.weights
    held_up, held_down = (None, None) if fresh else state.start
    read = q if memory.read == "token" else None
    given = fused.Given(read, k, v, eta, alpha, up, down, held_up, held_down)
    y, after_up, after_down = fused.write_and_read(given, memory.objective.delta, partial(_steps, memory))
    if q is not None and read is None:
        y = network.read(q, [w[:, -q.shape[1] :] for w in state.start])
    return y, (ScanState(after_up), ScanState(after_down))


def _steps(
    memory: AssociativeMemory, q: Tensor | None, k: Tensor, v: Tensor, eta: Tensor, alpha: Tensor, *weights: Any
) -> tuple[Tensor | None, Tensor, Tensor]:
    """`fused.write_and_read` step by step, differentiable as often as wanted."""
    running, held = weights[:2], weights[2:]
    fresh = held[0] is None
    y, moved = _scans(memory, q, k, v, eta, alpha, None, running, None, running if fresh else held, fresh, None)
    up, down = (state.memory for state in moved)
    return y, up, down


def _scans(
    memory: AssociativeMemory,
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    alpha: Tensor,
    theta: Tensor | None,
    weights: tuple[Tensor, ...],
    momentum: tuple[Tensor, ...] | None,
    start: tuple[Tensor, ...],
    fresh: bool,
    mask: Tensor | None,
) -> tuple[Tensor | None, tuple[ScanState, ...]]:
    """Any network, objective, rule and target. fresh: the running weights are those at the chunk's start."""
    network, pushes = memory.network, momentum or (None,) * len(weights)
    assert isinstance(network, Network)
    target, held = memory.target(network, start, v), start
    if memory.detach_writes:
        held = tuple(w.detach() for w in held)
        k, target, eta, alpha, theta = tree_map(Tensor.detach, (k, target, eta, alpha, theta))
    decay = Decay.of(alpha, theta, mask)
    after: dict[int, ScanState] = {}
    # at a chunk's start the running weights are those just read, and give the same outputs
    known = fresh and not memory.detach_writes
    writes = network.writes(k, held, lambda output: memory.objective.surprise(output, target))
    rest = tree_map(lambda w: w.to(weights[0].dtype), memory.retention.rest(network))

    def product(i: int, x: Tensor | None) -> Tensor | None:
        """`x_t W_i` for the running weight, which the scan moves on."""
        x_in, found, surprise = writes[i]
        eps, step = memory.rule.factors(eta, x_in)
        step = step if theta is None else (1 - theta) * step
        u, begin = -step[..., None] * surprise, weights[i]
        if rest is not None:  # the scan moves the difference, which fades to zero; the erasure is of the whole
            begin, base = begin - rest[i], x_in @ rest[i]
            u, found = u if eps is None else u - eps[..., None] * base, found - base
        y, moved = chunk_step(
            x, x_in, u, eps, decay, ScanState(begin, pushes[i]), "exclusive", found if known else None
        )
        after[i] = moved if rest is None else ScanState(moved.memory + rest[i])
        return y if y is None or x is None or rest is None else y + x @ rest[i]

    if q is not None and memory.read == "token":
        y = network(for_all(q, weights), [lambda x, i=i: product(i, x) for i in range(len(writes))])
        y = y[:, -q.shape[1] :]
    else:
        y = None if q is None else network.read(q, [w[:, -q.shape[1] :] for w in start])
        for i in range(len(writes)):
            product(i, None)
    return y, tuple(after[i] for i in range(len(writes)))


def for_all(q: Tensor | None, weights: tuple[Tensor, ...]) -> Tensor | None:
    """Queries for every memory: zero for those that are not read."""
    missing = 0 if q is None else weights[0].shape[1] - q.shape[1]
    if q is None or not missing:
        return q
    return torch.cat([q.new_zeros(q.shape[0], missing, *q.shape[2:]), q], dim=1)
