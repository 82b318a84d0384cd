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
