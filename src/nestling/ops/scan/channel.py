"""The write-read scan with a retention per channel and any rank-one erasure, in exact chunk form. Derivation: README.md.

    M_t = diag(alpha_t) M_{t-1} - remove_t^T (look_t M_{t-1}) + k_t^T u_t

Shapes: B batch, H heads (any number of broadcastable dimensions), L tokens, N chunks of C, dk and dv widths.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nestling.ops.scan.state import ScanState
from nestling.ops.state import tree_map
from nestling.ops.triangular import solve_unit_lower

Vectors = tuple[Tensor, ...]  # [.., C, d] each
Scores = tuple[tuple[Tensor, ...], ...]  # [.., C, C], by row and column


def channel_step(
    q: Tensor | None,
    k: Tensor,
    u: Tensor,
    alpha: Tensor | None,
    erase: tuple[Tensor, Tensor] | None,
    state: ScanState,
    read: str | None,
) -> tuple[Tensor | None, ScanState]:
    """One chunk of any length. Arguments as `channel`."""
    return channel(q, k, u, alpha, erase, state, read, k.shape[-2])


def channel(
    q: Tensor | None,
    k: Tensor,
    u: Tensor,
    alpha: Tensor | None,
    erase: tuple[Tensor, Tensor] | None,
    state: ScanState,
    read: str | None,
    chunk_size: int,
) -> tuple[Tensor | None, ScanState]:
    """The whole sequence: what does not depend on the state for all chunks at once, then the state from chunk to chunk.

    Masked tokens are neutral already: `alpha = 1`, and zero in all else.

    Args:
        q, k, u, state, read: as `nestling.ops.scan`; the state has no momentum.
        alpha: `[B, H, L, dk]`, or `[B, H, L, 1]` where channels share it; None is 1.
        erase: look and remove, `[B, H, L, dk]` each; None erases nothing.
        chunk_size: is rounded up to a power of two.
    """
    assert state.momentum is None
    length, size = k.shape[-2], 1 << (min(chunk_size, k.shape[-2]) - 1).bit_length()
    alpha = torch.ones_like(k[..., :1]) if alpha is None else alpha
    look, remove = erase or (None, None)
    query = None if read is None or q is None else q * alpha if read == "inclusive" else q
    rows = tuple(_cut(x, size) for x in (look, query) if x is not None)
    columns = tuple(_cut(x, size) for x in (k, remove) if x is not None)
    writes = _cut(u, size)
    scores, rows, columns, kept = meet(rows, columns, _cut(alpha, size, 1.0))

    system = None
    if erase is not None:  # look is the first row, remove the last column
        inverse = _inverse(scores[0][1])
        system = inverse @ rows[0], inverse @ (scores[0][0] @ writes), columns[1].mT
    starts, found, memory = _states(state.memory, kept.mT, columns[0].mT @ writes, system)
    if q is None or query is None:
        return None, ScanState(memory)
    y = rows[-1] @ starts + scores[-1][0] @ writes
    if found is not None:
        y = y - scores[-1][1] @ found
    y = _joined(y, length)
    if read == "exclusive":
        return y, ScanState(memory)
    y = y + _dot(q, k) * u  # the token's own write, and its own erasure
    if found is not None and remove is not None:
        y = y - _dot(q, remove) * _joined(found, length)
    return y, ScanState(memory)


def meet(rows: Vectors, columns: Vectors, gate: Tensor) -> tuple[Scores, Vectors, Vectors, Tensor]:
    """Scores `A[t, s] = sum_c x[t, c] (prod_{s < r < t} gate[r, c]) y[s, c]` for s < t, 0 elsewhere, of every row and column.

    Two tokens meet at the middle of the smallest block of 1, 2, 4, .. C tokens that holds both: the column has come there
    through the gates after it, the row through those before it. So a score is a product of matrices, and a decay is only
    ever a product of gates.

    Args:
        rows, columns: `x, y [.., C, d]` for C a power of two.
        gate: `[.., C, d]` or `[.., C, 1]`.

    Returns:
        Scores by row and column, `[.., C, C]`; the rows decayed since the start, `x[t] prod_{r < t} gate[r]`; the columns
        decayed until the end, `y[s] prod_{r > s} gate[r]`; and the product of all gates, `[.., 1, d]` or `[.., 1, 1]`.
    """
    batch = gate.shape[:-1]
    gate, rows, columns = tree_map(lambda x: _blocks(x, batch), (gate, rows, columns))
    scores = tuple(tuple(torch.zeros_like(x[..., :1] * y[..., :1]) for y in columns) for x in rows)
    while gate.shape[-3] > 1:
        scores, rows, columns, gate = _paired(scores, rows, columns, gate)
    return tree_map(lambda x: x.squeeze(-3), (scores, rows, columns, gate))


def _paired(scores: Scores, rows: Vectors, columns: Vectors, gate: Tensor) -> tuple[Scores, Vectors, Vectors, Tensor]:
    """Every two blocks of n tokens as one: scores `[.., m, n, n]`, rows and columns `[.., m, n, d]`, gate `[.., m, 1, d]`."""
    first, second = _halves(gate)
    x, y = [_halves(row) for row in rows], [_halves(column) for column in columns]
    scores = tuple(
        tuple(_corner(*_halves(score), late @ early.mT) for score, (early, _) in zip(line, y, strict=True))
        for line, (_, late) in zip(scores, x, strict=True)
    )
    rows = tuple(torch.cat([early, first * late], dim=-2) for early, late in x)
    columns = tuple(torch.cat([second * early, late], dim=-2) for early, late in y)
    return scores, rows, columns, first * second


def _blocks(x: Tensor, batch: torch.Size) -> Tensor:
    """`[.., C, d]` as blocks of one token, `[.., C, 1, d]`, of at least the batch of the gates."""
    return x.expand(*torch.broadcast_shapes(x.shape[:-1], batch), x.shape[-1]).unsqueeze(-2)


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks `[.., 2 m, n, d]`, the first and the second of every two, `[.., m, n, d]` each."""
    first, second = x.unflatten(-3, (-1, 2)).unbind(-3)
    return first, second


def _corner(first: Tensor, second: Tensor, across: Tensor) -> Tensor:
    """`[[first, 0], [across, second]]`, of twice the size."""
    above = torch.cat([first, torch.zeros_like(across)], dim=-1)
    return torch.cat([above, torch.cat([across, second], dim=-1)], dim=-2)


def _states(
    memory: Tensor, kept: Tensor, gain: Tensor, system: tuple[Tensor, Tensor, Tensor] | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """What every chunk starts from `[.., N, dk, dv]`, what its erasures find `[.., N, C, dv]`, and the last state.

    kept `[.., N, dk, 1]`, gain `[.., N, dk, dv]`. system: reach `[.., N, C, dk]` and base `[.., N, C, dv]`, which find
    `reach M + base`, and remove `[.., N, dk, C]`, which takes that away.
    """
    starts, found = [], []
    parts = zip(*(x.unbind(-3) for x in (kept, gain, *(system or ()))), strict=True)
    for scale, written, *erasure in parts:
        starts.append(memory)
        after = scale * memory + written
        if erasure:
            reach, base, remove = erasure
            found.append(reach @ memory + base)
            after = after - remove @ found[-1]
        memory = after
    return torch.stack(starts, dim=-3), torch.stack(found, dim=-3) if found else None, memory


def _inverse(strict: Tensor) -> Tensor:
    identity = torch.eye(strict.shape[-1], dtype=strict.dtype, device=strict.device)
    return solve_unit_lower(strict, identity)


def _cut(x: Tensor, size: int, value: float = 0.0) -> Tensor:
    """`[.., L, d]` as `[.., N, C, d]`, and `value` where there is no token."""
    return F.pad(x, (0, 0, 0, -x.shape[-2] % size), value=value).unflatten(-2, (-1, size))


def _joined(x: Tensor, length: int) -> Tensor:
    """`[.., N, C, d]` as `[.., L, d]`."""
    return x.flatten(-3, -2)[..., :length, :]


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1, keepdim=True)
