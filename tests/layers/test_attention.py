"""Attention with rotary positions and a window, against softmax written out one token at a time."""

import math

import pytest
import torch

from nestling.layers import Attention
from nestling.layers.attention import rotate
from tests.helpers import close, in_pieces, randn, randomise

B, L, D, HEADS, THETA = 2, 19, 12, 3, 100.0
HALF = D // HEADS // 2


def turned(x, position):
    """Rotary positions as complex numbers: pair i of `x [H, d]` is turned by `position * theta^(-i / half)`."""
    pairs = torch.complex(x[:, :HALF], x[:, HALF:])
    angle = position * THETA ** (-torch.arange(HALF, dtype=torch.float64) / HALF)
    pairs = pairs * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([pairs.real, pairs.imag], dim=-1)


def naive(layer, x):
    """Every token looks at the last `window` tokens, itself included. `x [L, D]`."""
    q, k, v = (p(x).unflatten(-1, (HEADS, -1)) for p in (layer.query, layer.key, layer.value))
    rows = []
    for t in range(len(x)):
        first = 0 if layer.window is None else max(0, t - layer.window + 1)
        keys = torch.stack([turned(k[s], s) for s in range(first, t + 1)])
        scores = torch.einsum("hd,shd->hs", turned(q[t], t), keys) / math.sqrt(D // HEADS)
        rows.append(torch.einsum("hs,shd->hd", scores.softmax(-1), v[first : t + 1]).flatten())
    return layer.out(torch.stack(rows))


def make(window=None):
    return randomise(Attention(D, HEADS, window, THETA).double())


@pytest.mark.parametrize("window", [None, 1, 2, 6, 18, 19, 50])
def test_is_softmax_attention(window):
    """Whole, one by one, and in pieces with a cache: always the naive form."""
    layer, x = make(window), randn(B, L, D)
    expected = torch.stack([naive(layer, row) for row in x])
    close(layer(x)[0], expected)
    close(in_pieces(layer, x, [1] * L)[0], expected)
    close(in_pieces(layer, x, [7, 1, 8, 3])[0], expected)


@pytest.mark.parametrize("window", [None, 6])
def test_ragged_rows_in_pieces(window):
    """Rows of other lengths in every call, gaps in the cache included, are each the naive form of their own tokens."""
    layer, x = make(window), randn(B, 30, D)
    counts, state = torch.tensor([[5, 3], [1, 0], [0, 4], [7, 7], [2, 9]]), None
    at, found = torch.zeros(B, dtype=torch.int64), [[], []]
    for count in counts:
        width = int(count.max())
        piece = torch.stack([torch.cat([x[b, at[b] : at[b] + count[b]], randn(width, D)])[:width] for b in range(B)])
        y, state = layer(piece, state, count)
        for b in range(B):
            found[b].append(y[b, : count[b]])
        at = at + count
    for b in range(B):
        close(torch.cat(found[b]), naive(layer, x[b, : at[b]]))
    assert torch.equal(state.position, at)


def test_a_window_bounds_the_state():
    """However much is read, what is kept is what can still be seen: one by one, in pieces, and ragged."""
    layer, state = make(6), None
    for count in (1, 1, 1, 40, 3, 1, 100, 1):
        _, state = layer(randn(B, count, D), state)
        assert state.k.shape[1] <= 6
    for t in range(100):
        _, state = layer(randn(B, 1, D), state, torch.tensor([1, t % 10 == 0]))
        assert state.k.shape[1] <= 6 * B
    unbounded = make()
    assert unbounded(randn(B, 40, D))[1].k.shape[1] == 40


def test_positions_are_relative():
    """Scores depend on distance alone: turning queries and keys by one more offset changes no product."""
    q, k = randn(B, L, HEADS, 4), randn(B, L, HEADS, 4)
    at = torch.arange(L).expand(B, L)
    for offset in (1, 1000):
        one, other = (
            torch.einsum("blhd,bmhd->bhlm", rotate(q, at + shift, THETA), rotate(k, at + shift, THETA))
            for shift in (0, offset)
        )
        close(other, one)


def test_rotation_keeps_lengths_and_starts_at_rest():
    """Position 0 is the identity, and no position changes a norm."""
    x, at = randn(B, L, HEADS, 4), torch.arange(L).expand(B, L)
    y = rotate(x, at, THETA)
    close(y.norm(dim=-1), x.norm(dim=-1))
    close(y[:, 0], x[:, 0])


def test_far_positions_keep_their_precision():
    """In float32, half precision included, position 100,000 turns as exactly as float64 does within float32."""
    x, at = randn(1, 1, HEADS, 4), torch.tensor([[100_000]])
    expected = rotate(x, at, 10_000.0)
    assert (rotate(x.float(), at, 10_000.0) - expected).abs().max() < 0.02
    assert rotate(x.bfloat16(), at, 10_000.0).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((10, 3), ["dim=10", "heads=3"]), ((6, 2), ["dim=6", "even"]), ((8, 2, 0), ["window=0", "None"])],
)
def test_the_message_names_what_was_given(arguments, words):
    """A size that does not fit raises a ValueError that repeats it."""
    with pytest.raises(ValueError) as caught:
        Attention(*arguments)
    assert all(word in str(caught.value) for word in words)
