"""The write-read scan: one recurrence that carries the library (`README.md` beside this file derives its chunk forms)."""

from __future__ import annotations

import torch
from torch import Tensor

from nestling.ops.scan import check
from nestling.ops.scan.channel import channel
from nestling.ops.scan.chunk import chunk, fill_vectors, neutral
from nestling.ops.scan.reference import reference
from nestling.ops.scan.state import ScanState, per_channel
from nestling.ops.state import tree_map

BACKENDS = ("reference", "chunk")

__all__ = ["BACKENDS", "ScanState", "channel", "chunk", "reference", "scan"]


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
    erase: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor | None, ScanState]:
    """Retain, erase, write, with momentum; and read.

        S_t = theta_t S_{t-1} + k_t^T u_t
        M_t = alpha_t M_{t-1} - eps_t k_t^T (k_t M_{t-1}) + S_t
        y_t = q_t M_t  (inclusive)   or   q_t M_{t-1}  (exclusive)

    Every backend computes exactly this; they differ in speed. Linear attention, RetNet, DeltaNet, Gated DeltaNet,
    Titans' matrix memory and DGD (arXiv 2512.24695, Eq. 57, 64, 65, 88) are settings of it. `alpha_t` may be a diagonal
    matrix (gated linear attention, arXiv 2312.06635), and what is erased may be found and removed along directions other than
    the key, `- remove_t^T (look_t M_{t-1})` (RWKV-7, arXiv 2503.14456: look is its kappa-hat, remove is a kappa-hat).

    Args:
        q, k: `[B, H, L, dk]`, queries and keys. `q` may be None when `read` is None.
        u: `[B, H, L, dv]`, what is written. H stands for any number of dimensions, which broadcast.
        alpha: `[B, H, L]` in [0, 1], retention, or `[B, H, L, dk]`, one for every channel of the key; None is 1.
        eps: `[B, H, L]`, erasure along the key; None is 0.
        theta: `[B, H, L]` in [0, 1], momentum; None is 0, and then the state has no momentum.
        mask: `[B, L]` bool; a token that is False changes nothing (its own output is undefined but finite).
        state: where to start; None is zero.
        read: "inclusive", "exclusive" or None (only the final state is wanted).
        chunk_size: tokens of a chunk, for backends that cut. It changes speed and rounding, never the result.
        backend: "chunk", "reference" (the token loop), or "auto": "chunk", but the reference for momentum together with a
            retention per channel or with `erase`, for which there is no chunk form.
        erase: look and remove, `[B, H, L, dk]` each, in place of eps, which is `(k, eps[..., None] * k)`.

    Returns:
        `y [B, H, L, dv]` in the dtype of `u` (None where nothing is read) and the final `ScanState`, in float32 or
        float64: lower precisions are raised to float32, under autocast too.

    Raises:
        ValueError: a shape, dtype, option or combination that is not allowed; the message says which.
    """
    check.check_options(q, read, chunk_size, backend, BACKENDS)
    check.check_tokens(q, k, u)
    check.check_erase(k, eps, erase)
    check.check_gates(k, u, alpha, eps, theta, mask)
    state = check.start(k, u, (alpha, eps, *(erase or ())), theta, state)
    general = per_channel(alpha, k) or erase is not None
    if backend == "chunk" and general and theta is not None:
        raise ValueError(
            "backend='chunk' has no form for theta with alpha per channel or with erase; "
            "choose backend='reference' or 'auto', alpha [B, H, L] and eps, or theta=None"
        )
    given = u.dtype
    exact = torch.promote_types(given, torch.float32)
    with torch.autocast(u.device.type, enabled=False):
        q, k, u, alpha, eps, theta, erase = tree_map(lambda x: x.to(exact), (q, k, u, alpha, eps, theta, erase))
        if mask is not None:  # not even a NaN there is seen
            q, k, erase = tree_map(lambda x: fill_vectors(x, mask, 0.0), (q, k, erase))
            alpha = torch.ones_like(k[..., 0]) if alpha is None else alpha
            u, alpha, eps, theta = neutral(mask, u, alpha, eps, theta)
        if backend == "reference" or (general and theta is not None):
            y, state = reference(q, k, u, alpha, eps, theta, mask, state, read, chunk_size, erase)
        elif general:
            alpha = alpha if alpha is None or per_channel(alpha, k) else alpha[..., None]
            erase = erase if eps is None else (k, eps[..., None] * k)
            y, state = channel(q, k, u, alpha, erase, state, read, chunk_size)
        else:
            y, state = chunk(q, k, u, alpha, eps, theta, mask, state, read, chunk_size)
    return (None if y is None else y.to(given)), state
