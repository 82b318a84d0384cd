"""The short convolution: causal, streamed, and the one PyTorch computes."""

import pytest
import torch
from hypothesis import given
from torch.nn import functional as F

from nestling.layers import CausalConv
from tests.helpers import close, cuts, randn

B, L, D, WIDTH = 2, 15, 3, 4


@pytest.mark.parametrize("filters", [1, 5])
def test_is_a_causal_depthwise_convolution(filters):
    """Filter f of channel c is a grouped `conv1d` over the sequence with `width - 1` zeros in front."""
    conv, x = CausalConv(D, filters, WIDTH).double(), randn(B, L, D)
    y, _ = conv(x, conv.init_tail(B))
    padded = F.pad(x.mT, (WIDTH - 1, 0))
    for f in range(filters):
        close(y[:, f], F.conv1d(padded, conv.weight[:, f].mT[:, None], groups=D).mT)


@given(sizes=cuts(L))
def test_streaming_is_the_whole(sizes):
    """The tail carries the tokens before, calls shorter than the filter included."""
    torch.manual_seed(0)
    conv, x = CausalConv(D, 2).double(), randn(B, L, D)
    y, tail = conv(x, conv.init_tail(B))
    outputs, end = [], conv.init_tail(B)
    for piece in x.split(sizes, dim=1):
        out, end = conv(piece, end)
        outputs.append(out)
    close(torch.cat(outputs, dim=2), y)
    close(end, tail)


@pytest.mark.parametrize("lengths", [(15, 6), (2, 0), (5, 5)])
def test_the_tail_is_each_row_s_own(lengths):
    """A row's tail are its last real tokens; padding is not among them."""
    conv, x = CausalConv(D).double(), randn(B, L, D)
    start = randn(B, WIDTH - 1, D)
    _, tail = conv(x, start, torch.tensor(lengths))
    for b, length in enumerate(lengths):
        close(tail[b], torch.cat([start[b], x[b, :length]])[-(WIDTH - 1) :])


def test_filters_start_different():
    """Each filter looks at other tokens of the past, at unit gain on white noise."""
    conv = CausalConv(2000, 2)
    assert not torch.allclose(conv.weight[:, 0], conv.weight[:, 1])
    y, _ = conv(torch.randn(1, 8, 2000), conv.init_tail(1))
    assert 0.9 < y[:, :, 4:].std() < 1.1
