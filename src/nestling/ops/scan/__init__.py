"""The write-read scan: one recurrence that carries the library (`README.md` beside this file derives its chunk form)."""

from __future__ import annotations

import torch
from torch import Tensor

from nestling.ops.scan.chunk import chunk, neutral, over_heads
from nestling.ops.scan.reference import reference
from nestling.ops.scan.state import ScanState
from nestling.ops.state import tree_map

BACKENDS = {"reference": reference, "chunk": chunk}
READS = ("inclusive", "exclusive", None)

__all__ = ["BACKENDS", "ScanState", "chunk", "reference", "scan"]


def scan(
    q: Tensor | None,
    k: Tensor,
    u: Tensor,
    alpha: Tensor | None = None,
    eps: Tensor | None = None,
    theta: Tensor | None = None,
    mask: Tensor | None = None,
    state: ScanState | None = None,
    read: str | None = "inclusive",
    chunk_size: int = 64,
    backend: str = "auto",
) -> tuple[Tensor | None, ScanState]:
    """Retain, erase, write, with momentum; and read.

        S_t = theta_t S_{t-1} + k_t^T u_t
        M_t = alpha_t M_{t-1} - eps_t k_t^T (k_t M_{t-1}) + S_t
        y_t = q_t M_t  (inclusive)   or   q_t M_{t-1}  (exclusive)

    Every backend computes exactly this; they differ in speed. Linear attention, RetNet, DeltaNet, Gated DeltaNet,
    Titans' matrix memory and DGD (arXiv 2512.24695, Eq. 57, 64, 65, 88) are settings of it.

    Args:
        q, k: `[B, H, L, dk]`, queries and keys. `q` may be None when `read` is None.
        u: `[B, H, L, dv]`, what is written. H stands for any number of dimensions, which broadcast.
        alpha: `[B, H, L]` in [0, 1], retention; None is 1.
        eps: `[B, H, L]`, erasure along the key; None is 0.
        theta: `[B, H, L]` in [0, 1], momentum; None is 0, and then the state has no momentum.
        mask: `[B, L]` bool; a token that is False changes nothing (its own output is undefined but finite).
        state: where to start; None is zero.
        read: "inclusive", "exclusive" or None (only the final state is wanted).
        chunk_size: tokens of a chunk, for backends that cut. It changes speed and rounding, never the result.
        backend: "chunk", "reference" (the token loop), or "auto" (the fastest that is present).

    Returns:
        `y [B, H, L, dv]` in the dtype of `u` (None where nothing is read) and the final `ScanState`, in float32 or
        float64: lower precisions are raised to float32, under autocast too.

    Raises:
        ValueError: a shape, dtype, option or combination that is not allowed; the message says which.
    """
    state = _checked(q, k, u, alpha, eps, theta, mask, state, read, chunk_size, backend)
    name = "chunk" if backend == "auto" else backend
    given = u.dtype
    exact = torch.promote_types(given, torch.float32)
    with torch.autocast(u.device.type, enabled=False):
        q, k, u, alpha, eps, theta = tree_map(lambda x: x.to(exact), (q, k, u, alpha, eps, theta))
        if mask is not None:  # not even a NaN there is seen
            q, k = tree_map(lambda x: torch.where(over_heads(mask, x.dim() - 1)[..., None], x, 0.0), (q, k))
            alpha = torch.ones_like(k[..., 0]) if alpha is None else alpha
            u, alpha, eps, theta = neutral(mask, u, alpha, eps, theta)
        y, state = BACKENDS[name](q, k, u, alpha, eps, theta, mask, state, read, chunk_size)
    return (None if y is None else y.to(given)), state


def _checked(q, k, u, alpha, eps, theta, mask, state, read, chunk_size, backend) -> ScanState:
    """Raise a clear error for what the recurrence cannot mean; return the state to start from."""
    if backend not in ("auto", *BACKENDS):
        raise ValueError(
            f"backend={backend!r} is not available; choose one of 'auto', {', '.join(map(repr, BACKENDS))}"
        )
    if read not in READS:
        raise ValueError(f"read={read!r} is unknown; choose 'inclusive', 'exclusive' or None")
    if read is not None and q is None:
        raise ValueError(f"read={read!r} needs queries q; pass q or read=None")
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1")
    for name, x in (("k", k), ("u", u), ("q", q)):
        if x is None:
            continue
        if not x.is_floating_point():
            raise ValueError(f"{name} has dtype {x.dtype}; the scan needs a floating dtype")
        if x.dim() < 3 or x.shape[-2] != k.shape[-2]:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; expected [B, H, L, d] with L = {k.shape[-2]}")
    if k.shape[-2] == 0:
        raise ValueError("the sequence is empty; a scan needs at least one token")
    if q is not None and q.shape[-1] != k.shape[-1]:
        raise ValueError(f"q has width {q.shape[-1]} and k has {k.shape[-1]}; they must be equal")
    batch = torch.broadcast_shapes(k.shape[:-2], u.shape[:-2])
    for name, gate in (("alpha", alpha), ("eps", eps), ("theta", theta)):
        if gate is not None and (gate.dim() != k.dim() - 1 or gate.shape[-1] != k.shape[-2]):
            raise ValueError(f"{name} has shape {tuple(gate.shape)}; expected [B, H, L] = {(*batch, k.shape[-2])}")
    if mask is not None and (mask.dtype != torch.bool or tuple(mask.shape) != (batch[0], k.shape[-2])):
        found = f"{tuple(mask.shape)} {mask.dtype}"
        raise ValueError(f"mask is {found}; expected [B, L] = {(batch[0], k.shape[-2])} torch.bool")
    shape = (*batch, k.shape[-1], u.shape[-1])
    if state is None:
        zero = u.new_zeros(shape, dtype=torch.promote_types(u.dtype, torch.float32))
        return ScanState(zero, None if theta is None else zero)
    if (state.momentum is None) != (theta is None):
        raise ValueError("the state and theta disagree: a momentum state needs theta, and theta a momentum state")
    if state.memory.shape[-2:] != shape[-2:]:
        raise ValueError(f"state.memory has shape {tuple(state.memory.shape)}; expected {shape}")
    return state
