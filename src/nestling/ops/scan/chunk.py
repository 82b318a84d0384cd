"""The write-read scan in exact chunk form: products over a chunk and one triangular solve. Derivation: README.md.

Shapes: B batch, H heads (any number of broadcastable dimensions), C tokens of the chunk, dk and dv widths.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nestling.ops.scan.state import ScanState


@dataclass(frozen=True)
class Decay:
    """How much of each write, and of the start, is left in `M_t` (or, shifted, in `M_{t-1}`).

    old     `[.., C, C]`  `Da[t, s] = prod_{r=s+1..t} alpha_r`: what is left of something put into `M` at s
    write   `[.., C, C]`  `E = Da Dt`: weight of `k_s^T u_s` in `M_t`, through the momentum; `old` without momentum
    memory  `[.., C, 1]`  weight of `M_0`
    momentum`[.., C, 1]`  weight of `S_0`, None without momentum
    """

    old: Tensor
    write: Tensor
    memory: Tensor
    momentum: Tensor | None

    def shifted(self) -> Decay:
        """The same weights for `M_{t-1}`: one token later, with a first row that has seen only `M_0`."""
        old = _shift(self.old, 0.0)
        write = old if self.write is self.old else _shift(self.write, 0.0)
        momentum = None if self.momentum is None else _shift(self.momentum, 0.0)
        return Decay(old, write, _shift(self.memory, 1.0), momentum)


_Push = tuple[Tensor, Tensor]  # Dt [.., C, C] and prod theta [.., C, 1]


def _shift(x: Tensor, first: float) -> Tensor:
    return torch.cat([torch.full_like(x[..., :1, :], first), x[..., :-1, :]], dim=-2)


def _products(gate: Tensor) -> tuple[Tensor, Tensor]:
    """`prod_{r=s+1..t} gate_r` for t >= s (else 0), `[.., C, C]`, and `prod_{1..t} gate`, `[.., C, 1]`.

    In the log domain, so that a product over a long chunk neither under- nor overflows on the way. A gate of
    exactly 0 is raised to a floor far below rounding; the gradient passes straight through.
    """
    floor = torch.finfo(gate.dtype).tiny ** 0.5
    log = (gate + (gate.clamp_min(floor) - gate).detach()).log().cumsum(-1)
    length = gate.shape[-1]
    future = torch.ones(length, length, dtype=torch.bool, device=gate.device).triu(1)
    ratio = (log[..., :, None] - log[..., None, :]).masked_fill(future, -torch.inf)
    return ratio.exp(), log.exp()[..., None]


def decay(k: Tensor, alpha: Tensor | None, theta: Tensor | None, mask: Tensor | None) -> tuple[Decay, _Push | None]:
    """The decay of the memory over a chunk and, with momentum, of the momentum."""
    old, memory = _products(torch.ones_like(k[..., 0]) if alpha is None else alpha)
    if theta is None:
        return Decay(old, old, memory, None), None
    push, push_start = _products(theta)
    # a masked token's momentum is kept but not added to the memory
    added = old if mask is None else old * _over_heads(mask, old.dim() - 1).unsqueeze(-2)
    return Decay(old, added @ push, memory, added @ push_start), (push, push_start)


def _over_heads(mask: Tensor, dims: int) -> Tensor:
    """`mask [B, C]` as `[B, 1.., C]` with `dims` dimensions."""
    return mask.view(mask.shape[0], *[1] * (dims - 2), mask.shape[1])


def chunk_step(
    q: Tensor | None,
    k: Tensor,
    u: Tensor,
    alpha: Tensor | None,
    eps: Tensor | None,
    theta: Tensor | None,
    mask: Tensor | None,
    state: ScanState,
    read: str | None,
) -> tuple[Tensor | None, ScanState]:
    """One chunk. Masked tokens have been neutralised (`neutral`), except for the momentum's share, done here."""
    memory, momentum = state.memory, state.momentum
    now, push = decay(k, alpha, theta, mask)
    before = now.shifted() if eps is not None or read == "exclusive" else None

    erased = None  # eps_t * (k_t M_{t-1}): what the erasures took out, in the direction of k_t
    if eps is not None:
        assert before is not None
        gram = k @ k.mT
        found = _start(k, before, memory, momentum) + (gram * before.write) @ u
        system = gram * before.old * eps[..., None, :]  # strictly lower; the unit diagonal is implied
        erased = eps[..., None] * _solve(system, found)

    y = None
    if read is not None and q is not None:
        seen = before if read == "exclusive" else now
        assert seen is not None
        y = _start(q, seen, memory, momentum) + _mix(q @ k.mT, seen, u, erased)

    last = Decay(now.old[..., -1:, :], now.write[..., -1:, :], now.memory[..., -1:, :], None)
    written = _weigh(last, u, erased)
    after = last.memory * memory + k.mT @ written
    if momentum is None:
        return y, ScanState(after)
    assert now.momentum is not None and push is not None
    after = after + now.momentum[..., -1:, :] * momentum
    inside, start = push
    return y, ScanState(after, start[..., -1:, :] * momentum + k.mT @ (inside[..., -1:, :].mT * u))


def _start(x: Tensor, weights: Decay, memory: Tensor, momentum: Tensor | None) -> Tensor:
    """What `x` reads of the state the chunk began with."""
    y = weights.memory * (x @ memory)
    return y if momentum is None else y + weights.momentum * (x @ momentum)


def _mix(scores: Tensor, weights: Decay, u: Tensor, erased: Tensor | None) -> Tensor:
    """What a query reads of the writes and erasures inside the chunk."""
    if erased is None:
        return (scores * weights.write) @ u
    if weights.write is weights.old:  # without momentum writes and erasures decay alike: one product
        return (scores * weights.old) @ (u - erased)
    return (scores * weights.write) @ u - (scores * weights.old) @ erased


def _weigh(last: Decay, u: Tensor, erased: Tensor | None) -> Tensor:
    """What is left at the chunk's end of each token's write and erasure, `[.., C, dv]`."""
    if erased is None:
        return last.write.mT * u
    if last.write is last.old:
        return last.old.mT * (u - erased)
    return last.write.mT * u - last.old.mT * erased


def _solve(lower: Tensor, right: Tensor) -> Tensor:
    """`(I + lower) X = right` for a strictly lower triangular matrix; batch dimensions broadcast."""

    def solve(b: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(lower, b, upper=False, unitriangular=True)

    if lower.shape[:-2] == right.shape[:-2]:
        return solve(right)
    identity = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
    return solve(identity.expand_as(lower)) @ right  # memories that share a key share the factor: invert it once


def chunk(
    q: Tensor | None,
    k: Tensor,
    u: Tensor,
    alpha: Tensor | None,
    eps: Tensor | None,
    theta: Tensor | None,
    mask: Tensor | None,
    state: ScanState,
    read: str | None,
    chunk_size: int,
) -> tuple[Tensor | None, ScanState]:
    """The whole sequence, chunk after chunk. Arguments as `nestling.ops.scan`."""
    outputs = []
    u, alpha, eps, theta = neutral(mask, u, alpha, eps, theta)
    for start in range(0, k.shape[-2], chunk_size):
        part = slice(start, start + chunk_size)
        y, state = chunk_step(
            *(None if x is None else x[..., part, :] for x in (q, k, u)),
            *(None if x is None else x[..., part] for x in (alpha, eps, theta, mask)),
            state,
            read,
        )
        outputs.append(y)
    return (None if read is None or q is None else torch.cat(outputs, dim=-2)), state


def neutral(
    mask: Tensor | None, u: Tensor, alpha: Tensor | None, eps: Tensor | None, theta: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """A masked token writes nothing, erases nothing and lets nothing decay: `u = 0, alpha = 1, eps = 0, theta = 1`."""
    if mask is None:
        return u, alpha, eps, theta

    def fill(gate: Tensor | None, value: float) -> Tensor | None:
        return None if gate is None else torch.where(_over_heads(mask, gate.dim()), gate, value)

    write = torch.where(_over_heads(mask, u.dim() - 1)[..., None], u, 0.0)
    return write, fill(alpha, 1.0), fill(eps, 0.0), fill(theta, 1.0)
