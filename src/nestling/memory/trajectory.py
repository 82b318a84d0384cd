"""A piece of a chunk where writes are mixed beyond what the scan does: over a window, through Newton-Schulz, or through a map.

The gradients of a piece are taken at its chunk's start, so what is written is a fixed linear mixture of outer products:

    S_t = momentum_t S_0 + sum_s P[t, s] x_s^T (-delta_s)             A_t = memory_t A_0 + sum_r Da[t, r] w_r

with `w_r` the write of token r. Where it is linear in `S` all mixing is of `[n, n]` matrices, and no token's own matrix is ever
made. Newton-Schulz of `S_t`, or a weight that is a map of `A_t`, need them: `n x in x out` numbers a weight and head, for one piece
at a time: the backward pass makes them again.

n tokens of the piece, m = window - 1 + n tokens that it sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nestling.memory.compound import Orthogonal, window_of
from nestling.memory.network import Network, Write
from nestling.memory.queries import for_all
from nestling.memory.recent import joined, latest
from nestling.memory.state import MemoryState, Moved
from nestling.ops.newton_schulz import newton_schulz
from nestling.ops.scan.chunk import Decay, Weights
from nestling.ops.state import tree_map

if TYPE_CHECKING:
    from nestling.memory.associative import AssociativeMemory


class Mixing(NamedTuple):
    """How the tokens' gradients come together.

    decay: of memory and momentum. band: `[.., n, m]`, the share of token s's gradient in what token r gathers.
    rate: `[.., n]`, the step on what is gathered: within `band` already, or None, where the write is linear.
    """

    decay: Decay
    band: Tensor
    rate: Tensor | None


def trajectory(
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
    """One piece of a chunk, at most. Arguments as `closed_form`'s."""
    network, retention = memory.network, memory.retention
    assert isinstance(network, Network)
    alpha = torch.ones_like(k[..., 0]) if alpha is None else alpha
    start = tree_map(retention.weight, state.start)
    held, there, carried = start, None, state.carried
    if memory.detach_writes:
        held, k, v, eta, alpha, theta = tree_map(Tensor.detach, (held, k, v, eta, alpha, theta))
    if carried:
        k, v, there = seen = joined(carried, k, v, mask)
        carried = latest(seen, window_of(memory.rule))
    target = memory.target(network, held, v)
    mixing = _mixing(memory, eta, alpha, theta, mask, there)
    writes = network.writes(k, held, lambda output: memory.objective.surprise(output, target))
    if memory.detach_writes:  # a network may have parameters that are not its weights
        writes = tuple(Write(*map(Tensor.detach, write)) for write in writes)
    pushes = state.momentum or (None,) * len(writes)
    reads = q is not None and memory.read != "chunk"
    dense = isinstance(memory.rule, Orthogonal) or (reads and retention.maps)
    moved: dict[int, Sequence[Any]] = {}

    def product(i: int, x: Tensor | None) -> Tensor | None:
        """`x_t W_i` for the running weight, which moves on."""
        if not dense:
            y, *moved[i] = _linear(x, writes[i], mixing, state.weights[i], pushes[i], memory.read)
            return y
        parts = memory, writes[i], mixing, state.weights[i], pushes[i]
        # every token's matrices: too many to keep for the backward pass
        y, *moved[i] = checkpoint(_dense, x, *parts, use_reentrant=False, preserve_rng_state=False)
        return y

    if q is not None and reads:
        y = network(for_all(q, state.weights), [lambda x, i=i: product(i, x) for i in range(len(writes))])
        y = y[:, -q.shape[1] :]
    else:
        y = None if q is None else network.read(q, [w[:, -q.shape[1] :] for w in start])
        for i in range(len(writes)):
            product(i, None)
    weights, gathered = zip(*(moved[i] for i in range(len(writes))), strict=True)
    return y, Moved(weights, None if state.momentum is None else gathered, carried)


def _mixing(
    memory: AssociativeMemory,
    eta: Tensor,
    alpha: Tensor,
    theta: Tensor | None,
    mask: Tensor | None,
    there: Tensor | None,
) -> Mixing:
    window, length = window_of(memory.rule), eta.shape[-1]
    age = torch.arange(window - 1, window - 1 + length)[:, None] - torch.arange(window - 1 + length)
    band = ((age >= 0) & (age < window)).to(eta) / window
    if there is not None:  # the first window of a row reaches back before its first token
        band = band * there.view(there.shape[0], *[1] * (eta.dim() - 2), 1, -1)
    share = torch.ones_like(eta) if theta is None else 1 - theta
    if isinstance(memory.rule, Orthogonal):
        return Mixing(Decay.of(alpha, theta, mask), share[..., None] * band, eta)
    return Mixing(Decay.of(alpha, theta, mask), (eta * share)[..., None] * band, None)


def _linear(
    q: Tensor | None, write: Write, mixing: Mixing, memory: Tensor, momentum: Tensor | None, read: str
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """What q reads, the weight after the piece, and its momentum."""
    decay, x, u = mixing.decay, write.input, -write.surprise
    y = None
    if q is not None:
        seen = decay.now if read == "inclusive" else decay.before
        y = _rest(seen, q @ memory, None if momentum is None else q @ momentum)
        y = y + ((q @ x.mT) * (seen.write @ mixing.band)) @ u
    last = tree_map(lambda w: w[..., -1:, :], (decay.now.write, decay.now.memory, decay.now.momentum))
    at_end = Weights(last[0], last[0], last[1], last[2])
    after = _rest(at_end, memory, momentum) + x.mT @ ((last[0] @ mixing.band).mT * u)
    if momentum is None or decay.push is None:
        return y, after, None
    push, start = (w[..., -1:, :] for w in decay.push)
    return y, after, start * momentum + x.mT @ ((push @ mixing.band).mT * u)


def _rest(weights: Weights, memory: Tensor, momentum: Tensor | None) -> Tensor:
    """What is left of the start."""
    rest = weights.memory * memory
    return rest if momentum is None or weights.momentum is None else rest + weights.momentum * momentum


def _dense(
    q: Tensor | None,
    memory: AssociativeMemory,
    write: Write,
    mixing: Mixing,
    weight: Tensor,
    momentum: Tensor | None,
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """As `_linear`, by way of every token's weight."""
    path, gathered = _matrices(memory.rule, write, mixing, weight, momentum)
    y = None
    if q is not None:
        seen = path[..., 1:, :, :] if memory.read == "inclusive" else path[..., :-1, :, :]
        y = (q[..., None, :] @ memory.retention.weight(seen)).squeeze(-2)
    return y, path[..., -1, :, :], gathered


def _matrices(
    rule: object, write: Write, mixing: Mixing, memory: Tensor, momentum: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """`A_0, .., A_n [.., n + 1, in, out]`, and the momentum after the piece."""
    decay, lead = mixing.decay, memory.shape[:-2]
    outer = (write.input[..., :, None] * -write.surprise[..., None, :]).flatten(-2)  # [.., m, in * out]

    def mix(weights: Tensor, what: Tensor) -> Tensor:
        return (weights.expand(*lead, *weights.shape[-2:]) @ what.expand(*lead, *what.shape[-2:])).unflatten(
            -1, memory.shape[-2:]
        )

    gathered = None
    if momentum is not None and decay.push is not None:
        push, start = decay.push
        gathered = start[..., None] * momentum[..., None, :, :] + mix(push @ mixing.band, outer)
    if isinstance(rule, Orthogonal):
        assert mixing.rate is not None
        found = mix(mixing.band, outer) if gathered is None else gathered
        writes = mixing.rate[..., None, None] * newton_schulz(found, rule.steps)
        after = decay.now.memory[..., None] * memory[..., None, :, :] + mix(decay.now.old, writes.flatten(-2))
    else:
        after = decay.now.memory[..., None] * memory[..., None, :, :] + mix(decay.now.write @ mixing.band, outer)
        if momentum is not None and decay.now.momentum is not None:
            after = after + decay.now.momentum[..., None] * momentum[..., None, :, :]
    path = torch.cat([memory[..., None, :, :], after], -3)
    return path, None if gathered is None else gathered[..., -1, :, :]
