"""The write-read scan as a token loop: slow and obviously right. The oracle of every other backend."""

from __future__ import annotations

import torch
from torch import Tensor

from nestling.ops.scan.state import ScanState, per_channel


def reference(
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
    erase: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor | None, ScanState]:
    """One token at a time (the recurrence at the head of `README.md`). Arguments as `nestling.ops.scan`."""
    del chunk_size  # the recurrence is exact: how a fast form cuts it is no part of the result
    memory, momentum = state.memory, state.momentum
    alpha = alpha if alpha is None or per_channel(alpha, k) else alpha[..., None]  # [.., L, dk or 1]
    outputs = []
    for t in range(k.shape[-2]):
        column, row = k[..., t, :, None], u[..., t, None, :]  # [.., dk, 1], [.., 1, dv]
        before = memory
        pushed = column * row if momentum is None else _at(theta, t) * momentum + column * row
        after = pushed + (memory if alpha is None else alpha[..., t, :, None] * memory)
        if eps is not None:
            after = after - _at(eps, t) * column * (column.mT @ memory)
        if erase is not None:
            look, remove = (x[..., t, :, None] for x in erase)
            after = after - remove * (look.mT @ memory)
        if mask is None:
            memory, momentum = after, None if momentum is None else pushed
        else:
            real = mask[:, t].view(-1, *[1] * (memory.dim() - 1))
            memory = torch.where(real, after, memory)
            momentum = None if momentum is None else torch.where(real, pushed, momentum)
        if read is not None and q is not None:
            seen = before if read == "exclusive" else memory
            outputs.append((q[..., t, None, :] @ seen).squeeze(-2))
    y = torch.stack(outputs, dim=-2) if outputs else None
    return y, ScanState(memory, momentum)


def _at(gate: Tensor | None, t: int) -> Tensor:
    assert gate is not None
    return gate[..., t, None, None]
