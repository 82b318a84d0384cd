"""What settings of the scan do: recall, keep, repeat, erase. Which memory each of them is: `tests/identities/test_sequence.py`."""

import pytest
import torch

from nestling.ops import ScanState, scan
from nestling.ops.scan import BACKENDS
from tests.helpers import close, directions, randn, uniform

B, H, L, D = 2, 3, 20, 4

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def tokens(unit: bool = True):
    k = directions(B, H, L, D) if unit else randn(B, H, L, D)
    return randn(B, H, L, D), k, randn(B, H, L, D)


def test_gated_linear_attention_has_a_gate_for_every_channel(backend):
    """arXiv 2312.06635: `y_t = sum_s sum_c (q_t,c prod_{r=s+1..t} alpha_r,c k_s,c) v_s`."""
    q, k, v = tokens(unit=False)
    alpha = uniform(0.5, 1.0, B, H, L, D)
    total = alpha.cumprod(-2)
    weight = ((q * total) @ (k / total).mT).tril()
    y, _ = scan(q, k, v, alpha=alpha, backend=backend, chunk_size=8)
    close(y, weight @ v)


def test_a_channel_forgets_alone(backend):
    """What is stored under one channel of the keys fades by that channel's retention, and no other."""
    _, k, v = tokens()
    start = ScanState(randn(B, H, D, D))
    alpha = torch.tensor([1.0, 0.5, 0.0, 0.9], dtype=torch.float64)
    _, state = scan(None, k, 0 * v, alpha=alpha.expand(B, H, L, D), state=start, read=None, backend=backend)
    close(state.memory, (alpha**L)[:, None] * start.memory)


def test_rwkv7_is_decay_less_a_rank_one_matrix(backend):
    """arXiv 2503.14456: `S_t = S_{t-1} (diag(w) - kappa^T (a * kappa)) + v^T k`, `y = r S^T`, for its state `[dv, dk]`."""
    r, k, v = tokens(unit=False)
    w, a, kappa = uniform(0.6, 1.0, B, H, L, D), uniform(0.0, 1.0, B, H, L, D), directions(B, H, L, D)
    y, state = scan(r, k, v, alpha=w, erase=(kappa, a * kappa), backend=backend, chunk_size=8)
    memory = torch.zeros(B, H, D, D, dtype=torch.float64)
    for t in range(L):
        at = (..., slice(t, t + 1), slice(None))
        transition = torch.diag_embed(w[..., t, :]) - kappa[at].mT @ (a[at] * kappa[at])
        memory = memory @ transition + v[at].mT @ k[at]
        close(y[at], r[at] @ memory.mT)
    close(state.memory, memory.mT)


def test_kimi_delta_attention_retains_by_channel_then_corrects(backend):
    """arXiv 2510.26692: `M_t = (I - beta k^T k) diag(alpha) M_{t-1} + beta k^T v`: what is looked for is the key after the decay."""
    _, k, v = tokens()
    alpha, beta = uniform(0.6, 1.0, B, H, L, D), uniform(0.0, 1.0, B, H, L, 1)
    _, state = scan(None, k, beta * v, alpha, erase=(alpha * k, beta * k), read=None, backend=backend, chunk_size=8)
    memory = torch.zeros(B, H, D, D, dtype=torch.float64)
    for t in range(L):
        at = (..., slice(t, t + 1), slice(None))
        memory = alpha[at].mT * memory
        memory = memory + k[at].mT @ (beta[at] * (v[at] - k[at] @ memory))
    close(state.memory, memory)


def test_deltanet_stores_and_then_recalls_exactly(backend):
    """With beta = 1 and a unit key the value just written is what the key reads, whatever was stored before."""
    _, k, v = tokens()
    one = torch.ones(B, H, L, dtype=torch.float64)
    start = ScanState(randn(B, H, D, D))
    y, _ = scan(k, k, v, eps=one, state=start, backend=backend, chunk_size=8)
    close(y, v)


def test_deltanet_keeps_what_is_orthogonal(backend):
    """Orthonormal keys do not disturb each other: all are recalled at the end; a key written again is overwritten."""
    basis, _ = torch.linalg.qr(randn(B, H, D, D))
    k = torch.cat([basis, basis[:, :, :1]], dim=2)
    v = randn(B, H, D + 1, D)
    one = torch.ones(B, H, D + 1, dtype=torch.float64)
    _, state = scan(None, k, v, eps=one, read=None, backend=backend, chunk_size=2)
    found = basis @ state.memory
    close(found[:, :, 1:], v[:, :, 1:D])
    close(found[:, :, 0], v[:, :, D])


def test_momentum_is_a_filter_of_the_writes(backend):
    """With constant theta a write of s is repeated, theta^(t - s) as large, at every later token."""
    _, k, u = tokens()
    theta = torch.full((B, H, L), 0.8, dtype=torch.float64)
    _, state = scan(None, k, u, theta=theta, read=None, backend=backend, chunk_size=8)
    age = torch.arange(L - 1, -1, -1, dtype=torch.float64)
    close(state.momentum, k.mT @ (0.8 ** age[:, None] * u))
    close(state.memory, k.mT @ ((1 - 0.8 ** (age[:, None] + 1)) / 0.2 * u))


def test_erasure_along_a_unit_key_never_enlarges(backend):
    """With eps in [0, 2] and nothing written the memory's norm cannot grow."""
    _, k, v = tokens()
    start = ScanState(randn(B, H, D, D))
    _, state = scan(None, k, 0 * v, eps=uniform(0.0, 2.0, B, H, L), state=start, read=None, backend=backend)
    before, after = (torch.linalg.matrix_norm(s.memory, 2) for s in (start, state))
    assert (after <= before + 1e-12).all() and (after < 0.99 * before).any()
