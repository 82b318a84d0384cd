"""What a scan cannot mean raises before it begins, and the message names what was given."""

from __future__ import annotations

import torch
from torch import Tensor

from nestling.ops.scan.state import ScanState, per_channel

READS = ("inclusive", "exclusive", None)


def check_options(q: Tensor | None, read: str | None, chunk_size: int, backend: str, backends: tuple[str, ...]) -> None:
    """Raise for options that there are not."""
    if backend not in ("auto", *backends):
        raise ValueError(
            f"backend={backend!r} is not available; choose one of 'auto', {', '.join(map(repr, backends))}"
        )
    if read not in READS:
        raise ValueError(f"read={read!r} is unknown; choose 'inclusive', 'exclusive' or None")
    if read is not None and q is None:
        raise ValueError(f"read={read!r} needs queries q; pass q or read=None")
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1")


def check_tokens(q: Tensor | None, k: Tensor, u: Tensor) -> None:
    """Raise unless queries, keys and writes are sequences of one length, and queries as wide as keys."""
    for name, x in (("k", k), ("u", u), ("q", q)):
        if x is None:
            continue
        _check_floating(name, x)
        if x.dim() < 3 or x.shape[-2] != k.shape[-2]:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; expected [B, H, L, d] with L = {k.shape[-2]}")
    if k.shape[-2] == 0:
        raise ValueError("the sequence is empty; a scan needs at least one token")
    if q is not None and q.shape[-1] != k.shape[-1]:
        raise ValueError(f"q has width {q.shape[-1]} and k has {k.shape[-1]}; they must be equal")


def check_erase(k: Tensor, eps: Tensor | None, erase: tuple[Tensor, Tensor] | None) -> None:
    """Raise unless `erase` is two vectors a token, as wide as the keys, and the only erasure."""
    if erase is None:
        return
    if eps is not None:
        raise ValueError("eps and erase both say what is erased; pass one: eps is erase=(k, eps[..., None] * k)")
    if not isinstance(erase, tuple) or len(erase) != 2 or not all(isinstance(x, Tensor) for x in erase):
        found = [type(x).__name__ for x in erase] if isinstance(erase, tuple) else type(erase).__name__
        raise ValueError(f"erase is {found}; expected a tuple of two tensors (look, remove), [B, H, L, dk] each")
    for name, x in zip(("erase[0] (look)", "erase[1] (remove)"), erase, strict=True):
        _check_floating(name, x)
        if x.dim() != k.dim() or x.shape[-2:] != k.shape[-2:]:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; expected [B, H, L, dk] as k, {tuple(k.shape)}")


def check_gates(
    k: Tensor, u: Tensor, alpha: Tensor | None, eps: Tensor | None, theta: Tensor | None, mask: Tensor | None
) -> None:
    """Raise unless there is one gate a token, or, of alpha, one for every channel of its key."""
    batch, (length, width) = broadcast(k, u), k.shape[-2:]
    if per_channel(alpha, k) and alpha is not None and alpha.shape[-2:] != k.shape[-2:]:
        expected = f"[B, H, L, dk] = {(*batch, length, width)}, or [B, H, L]"
        raise ValueError(f"alpha has shape {tuple(alpha.shape)}; expected {expected}")
    for name, gate in (("alpha", None if per_channel(alpha, k) else alpha), ("eps", eps), ("theta", theta)):
        if gate is not None and (gate.dim() != k.dim() - 1 or gate.shape[-1] != length):
            raise ValueError(f"{name} has shape {tuple(gate.shape)}; expected [B, H, L] = {(*batch, length)}")
    if mask is not None and (mask.dtype != torch.bool or tuple(mask.shape) != (batch[0], length)):
        found = f"{tuple(mask.shape)} {mask.dtype}"
        raise ValueError(f"mask is {found}; expected [B, L] = {(batch[0], length)} torch.bool")


def broadcast(k: Tensor, u: Tensor, *others: Tensor | None) -> torch.Size:
    """`[B, H]` of memories that take all of these, of which the others are gates or as wide as the keys."""
    shapes = [k.shape[:-2], u.shape[:-2], *(x.shape[: k.dim() - 2] for x in others if x is not None)]
    try:
        return torch.broadcast_shapes(*shapes)
    except RuntimeError:
        found = ", ".join(str(tuple(shape)) for shape in dict.fromkeys(shapes))
        raise ValueError(f"[B, H] of what is given do not broadcast: {found}; each must be that of k or 1") from None


def start(
    k: Tensor, u: Tensor, others: tuple[Tensor | None, ...], theta: Tensor | None, state: ScanState | None
) -> ScanState:
    """The state to start from, zero where none is given; raise where the one given does not fit."""
    shape = (*broadcast(k, u, theta, *others), k.shape[-1], u.shape[-1])
    if state is None:
        zero = u.new_zeros(shape, dtype=torch.promote_types(u.dtype, torch.float32))
        return ScanState(zero, None if theta is None else zero)
    if (state.momentum is None) != (theta is None):
        raise ValueError("the state and theta disagree: a momentum state needs theta, and theta a momentum state")
    if state.memory.shape[-2:] != shape[-2:]:
        raise ValueError(f"state.memory has shape {tuple(state.memory.shape)}; expected {shape}")
    return state


def _check_floating(name: str, x: Tensor) -> None:
    if not x.is_floating_point():
        raise ValueError(f"{name} has dtype {x.dtype}; the scan needs a floating dtype")
