"""A piece of a chunk in closed form: the local backward pass at the chunk's start, then one scan a weight.

B batch, H heads (one or more dimensions), L length, d width. The token-loop oracle of it is in `nestling.memory.reference`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nestling.memory import fused
from nestling.memory.matrix_rule import MatrixRule
from nestling.memory.network import Network, Write
from nestling.memory.objective import Huber
from nestling.memory.queries import for_all
from nestling.memory.state import MemoryState, Moved
from nestling.ops import ScanState, scan
from nestling.ops.scan.chunk import Decay, chunk_step
from nestling.ops.state import tree_map

if TYPE_CHECKING:
    from nestling.memory.associative import AssociativeMemory


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
    frugal: bool = False,
) -> tuple[Tensor | None, Moved]:
    """One piece of a chunk, at most: the local backward pass at the chunk's start, then one scan a weight.

    Masked tokens are neutral already (`AssociativeMemory.forward`).
    """
    network = memory.network
    assert isinstance(network, Network)
    alpha = torch.ones_like(k[..., 0]) if alpha is None else alpha
    fresh = memory.at_start(state)
    if not memory.fused or k.shape[-2] > fused.LONGEST:
        y, after = _scans(memory, q, k, v, eta, alpha, theta, state.weights, state.momentum, state.start, fresh, mask)
        gathered = tuple(m.momentum for m in after if m.momentum is not None) or None  # all have one, or none
        return y, Moved(tuple(m.memory for m in after), gathered)
    assert isinstance(memory.objective, Huber)
    up, down = state.weights
    held_up, held_down = (None, None) if fresh else state.start
    read = q if memory.read == "token" else None
    given = fused.Given(read, k, v, eta, alpha, up, down, held_up, held_down)
    general = partial(_steps, memory)
    y, after_up, after_down = fused.write_and_read(given, memory.objective.delta, general, frugal)
    if q is not None and read is None:
        y = network.read(q, [w[:, -q.shape[1] :] for w in state.start])
    return y, Moved((after_up, after_down))


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
    network, rule, pushes = memory.network, memory.rule, momentum or (None,) * len(weights)
    assert isinstance(network, Network) and not isinstance(rule, MatrixRule)
    start = tree_map(memory.retention.weight, start)
    held = start
    if memory.detach_writes:
        held, k, v, eta, alpha, theta = tree_map(Tensor.detach, (held, k, v, eta, alpha, theta))
    target = memory.target(network, held, v)
    decay = None if alpha.dim() == k.dim() else Decay.of(alpha, theta, mask)
    after: dict[int, ScanState] = {}
    # at a chunk's start the running weights are those just read, and give the same outputs
    known = fresh and not (memory.detach_writes or memory.retention.maps)
    read = "inclusive" if memory.read == "inclusive" else "exclusive"
    writes = network.writes(k, held, lambda output: memory.objective.surprise(output, target))
    if memory.detach_writes:  # a network may have parameters that are not its weights
        writes = tuple(Write(*map(Tensor.detach, write)) for write in writes)
    rest = tree_map(lambda w: w.to(weights[0].dtype), memory.retention.rest(network))

    def product(i: int, x: Tensor | None) -> Tensor | None:
        """`x_t W_i` for the running weight, which the scan moves on."""
        x_in, found, surprise = writes[i]
        eps, step = rule.factors(eta, x_in)
        step = step if theta is None else (1 - theta) * step
        u, begin = -step[..., None] * surprise, weights[i]
        if rest is not None:  # the scan moves the difference, which fades to zero; the erasure is of the whole
            begin, base = begin - rest[i], x_in @ rest[i]
            u, found = u if eps is None else u - eps[..., None] * base, found - base
        if decay is None:
            reads = None if x is None else read
            y, moved = scan(x, x_in, u, alpha, eps, state=ScanState(begin), read=reads, chunk_size=u.shape[-2])
        else:
            y, moved = chunk_step(x, x_in, u, eps, decay, ScanState(begin, pushes[i]), read, found if known else None)
        after[i] = moved if rest is None else ScanState(moved.memory + rest[i])
        return y if y is None or x is None or rest is None else y + x @ rest[i]

    if q is not None and memory.read != "chunk":
        y = network(for_all(q, weights), [lambda x, i=i: product(i, x) for i in range(len(writes))])
        y = y[:, -q.shape[1] :]
    else:
        y = None if q is None else network.read(q, [w[:, -q.shape[1] :] for w in start])
        for i in range(len(writes)):
            product(i, None)
    return y, tuple(after[i] for i in range(len(writes)))
