"""The write-read scan in exact chunk form: products over a chunk and one triangular system. Derivation: README.md.

Shapes: B batch, H heads (any number of broadcastable dimensions), C tokens of the chunk, dk and dv widths.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nestling.ops.products import products_between
from nestling.ops.scan.state import ScanState
from nestling.ops.triangular import solve_unit_lower


@dataclass(frozen=True)
class Weights:
    """How much of each write, and of the start, is left in `M_t`, or in `M_{t-1}`.

    old      `[.., C, C]`  `Da[t, s] = prod_{r=s+1..t} alpha_r`: what is left of something put into `M` at s
    write    `[.., C, C]`  `E = Da Dt`: weight of `k_s^T u_s`, through the momentum; without momentum it is `old`
    memory   `[.., C, 1]`  weight of `M_0`
    momentum `[.., C, 1]`  weight of `S_0`, None without momentum
    """

    old: Tensor
    write: Tensor
    memory: Tensor
    momentum: Tensor | None


@dataclass(frozen=True)
class Decay:
    """What depends on `alpha` and `theta` alone: memories that share these share it.

    now, before: the weights in `M_t` and in `M_{t-1}`. push: `Dt [.., C, C]` and `prod theta [.., C, 1]`, which move the
    momentum itself; None without momentum.
    """

    now: Weights
    before: Weights
    push: tuple[Tensor, Tensor] | None

    @classmethod
    def of(cls, alpha: Tensor, theta: Tensor | None, mask: Tensor | None) -> Decay:
        """`alpha, theta [B, H, C]`, already neutral at masked tokens; `mask [B, C]`."""
        old = products_between(alpha)
        if theta is None:
            return cls(_weights(old[..., 1:, :], None), _weights(old[..., :-1, :], None), None)
        push = products_between(theta)[..., 1:, :]
        # a masked token's momentum is kept but not added to the memory
        added = old[..., 1:] if mask is None else old[..., 1:] * over_heads(mask, alpha.dim()).unsqueeze(-2)
        write = added @ push
        now, before = (_weights(old[..., rows, :], write[..., rows, :]) for rows in (slice(1, None), slice(-1)))
        return cls(now, before, (push[..., 1:], push[..., :1]))


def _weights(old: Tensor, write: Tensor | None) -> Weights:
    """Take the start's column off `[.., C, C + 1]`."""
    if write is None:
        return Weights(old[..., 1:], old[..., 1:], old[..., :1], None)
    return Weights(old[..., 1:], write[..., 1:], old[..., :1], write[..., :1])


def over_heads(mask: Tensor, dims: int) -> Tensor:
    """`mask [B, C]` as `[B, 1.., C]` with `dims` dimensions."""
    return mask.view(mask.shape[0], *[1] * (dims - 2), mask.shape[1])


def chunk_step(
    q: Tensor | None,
    k: Tensor,
    u: Tensor,
    eps: Tensor | None,
    decay: Decay,
    state: ScanState,
    read: str | None,
    found: Tensor | None = None,
) -> tuple[Tensor | None, ScanState]:
    """One chunk, with gates that are neutral at masked tokens (`neutral`). found: `k M_0`, where that is known."""
    memory, momentum = state.memory, state.momentum
    now, before = decay.now, decay.before
    erased = None
    if eps is not None:
        found = k @ memory if found is None else found
        if momentum is None:
            u = _corrected(k, u, eps, before, found)  # an erasure is then one more write along the key
        else:
            erased = _erased(k, u, eps, before, found, momentum)

    y = None
    if read is not None and q is not None:
        seen = before if read == "exclusive" else now
        scores = q @ k.mT
        y = _start(q, seen, q @ memory, momentum) + (scores * seen.write) @ u
        if erased is not None:
            y = y - (scores * seen.old) @ erased

    written = now.write[..., -1:, :].mT * u
    if erased is not None:
        written = written - now.old[..., -1:, :].mT * erased
    after = now.memory[..., -1:, :] * memory + k.mT @ written
    if momentum is None:
        return y, ScanState(after)
    assert now.momentum is not None and decay.push is not None
    push, start = decay.push
    after = after + now.momentum[..., -1:, :] * momentum
    return y, ScanState(after, start[..., -1:, :] * momentum + k.mT @ (push[..., -1:, :].mT * u))


def _corrected(k: Tensor, u: Tensor, eps: Tensor, before: Weights, found: Tensor) -> Tensor:
    """`w_t = u_t - eps_t k_t M_{t-1}` without momentum, where `M_{t-1}` holds the `w` before: one triangular system."""
    system = eps[..., :, None] * before.old * (k @ k.mT)
    return solve_unit_lower(system, u - (eps[..., :, None] * before.memory) * found)


def _erased(k: Tensor, u: Tensor, eps: Tensor, before: Weights, found: Tensor, momentum: Tensor) -> Tensor:
    """`eps_t k_t M_{t-1}` with momentum: writes and erasures decay differently."""
    gram = k @ k.mT
    held = _start(k, before, found, momentum) + (gram * before.write) @ u
    system = eps[..., :, None] * before.old * gram
    return solve_unit_lower(system, eps[..., :, None] * held)


def _start(x: Tensor, weights: Weights, found: Tensor, momentum: Tensor | None) -> Tensor:
    """What `x` reads of the state the chunk began with; `found = x M_0`."""
    y = weights.memory * found
    if momentum is None:
        return y
    assert weights.momentum is not None
    return y + weights.momentum * (x @ momentum)


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
    alpha = torch.ones_like(k[..., 0]) if alpha is None else alpha
    u, alpha, eps, theta = neutral(mask, u, alpha, eps, theta)
    for start in range(0, k.shape[-2], chunk_size):
        part = slice(start, start + chunk_size)
        q_part = None if q is None else q[..., part, :]
        eps_part, theta_part, mask_part = (None if x is None else x[..., part] for x in (eps, theta, mask))
        decay = Decay.of(alpha[..., part], theta_part, mask_part)
        y, state = chunk_step(q_part, k[..., part, :], u[..., part, :], eps_part, decay, state, read)
        outputs.append(y)
    return (None if read is None or q is None else torch.cat(outputs, dim=-2)), state


def neutral(
    mask: Tensor | None, u: Tensor, alpha: Tensor, eps: Tensor | None, theta: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """A masked token writes nothing, erases nothing and lets nothing decay: `u = 0, alpha = 1, eps = 0, theta = 1`.

    alpha: `[B, H, C]`, or `[B, H, C, dk]`, one for every channel.
    """
    if mask is None:
        return u, alpha, eps, theta
    eps, theta = None if eps is None else fill(eps, mask, 0.0), None if theta is None else fill(theta, mask, 1.0)
    retain = fill_vectors if alpha.dim() == u.dim() else fill
    return fill_vectors(u, mask, 0.0), retain(alpha, mask, 1.0), eps, theta


def fill(gate: Tensor, mask: Tensor, value: float) -> Tensor:
    """`gate [B, H, C]`, and `value` at masked tokens."""
    return torch.where(over_heads(mask, gate.dim()), gate, value)


def fill_vectors(x: Tensor, mask: Tensor, value: float) -> Tensor:
    """`x [B, H, C, d]`, and `value` at masked tokens."""
    return torch.where(over_heads(mask, x.dim() - 1)[..., None], x, value)
