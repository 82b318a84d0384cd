"""No stream makes a memory grow beyond the bound of `docs/stability.md`."""

import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from nestling.layers import SelfModifyingTitans
from nestling.layers.gates import RETENTION_CEILING
from nestling.memory import AssociativeMemory, DeltaGradientDescent, Given, GradientDescent, Huber, Matrix
from tests.helpers import directions, randn, uniform

C = 2.0  # the largest norm of a surprise
SLOPE = 1.1  # of silu, at most
WIDTH, HEADS, BATCH = 32, 2, 2


def bound(start, eta, alpha, c=C, momentum=False):
    """The largest Frobenius norm that a weight can reach."""
    reach = math.sqrt(eta) / (2 * (1 - alpha)) if momentum else math.sqrt(eta * alpha / (2 * (1 - alpha**2)))
    return max(float(start), c * reach)


@pytest.mark.parametrize("momentum", [False, True])
@given(
    seed=st.integers(0, 10_000),
    chunk_size=st.sampled_from([1, 3, 8]),
    reach=st.sampled_from([0.01, 1.0, 100.0]),
    longest=st.sampled_from([0.1, 1.0, 30.0]),
    keys=st.sampled_from([1, 2, 5]),
    start=st.sampled_from([0.0, 1.0, 100.0]),
)
def test_one_weight(momentum, seed, chunk_size, reach, longest, keys, start):
    """Few keys of any length, targets far away, rates from nothing to huge: never beyond the claim."""
    torch.manual_seed(seed)
    memory = AssociativeMemory(Matrix(4, 4, heads=1), Huber(C), DeltaGradientDescent(momentum=momentum), chunk_size)
    memory.double().network.weight.data = start * directions(1, 16).view(1, 4, 4)
    length, alpha = 48, 0.5 + 0.49 * torch.rand(1).item()
    few = directions(1, 1, keys, 4) * longest * torch.rand(1, 1, keys, 1)
    k, v = few[:, :, torch.randint(keys, (length,))], 100 * randn(1, 1, length, 4)
    eta = reach * torch.rand(1, 1, length, dtype=torch.float64)
    retention = 0.5 + (alpha - 0.5) * torch.rand(1, 1, length, dtype=torch.float64)
    theta = uniform(0.0, 1.0, 1, 1, length) if momentum else None
    state, most = memory.init_state(1), bound(start, reach, alpha, momentum=momentum)
    for t in range(length):
        part = slice(t, t + 1)
        gates = eta[..., part], retention[..., part]
        later = None if theta is None else theta[..., part]
        _, state = memory(None, k[..., part, :], v[..., part, :], *gates, state, later)
        assert state.weights[0].norm() <= most * (1 + 1e-9)


def test_the_claim_needs_the_erasure():
    """Plain descent with the same bounded surprises leaves the bound: long keys take long steps."""
    norms = {}
    for rule in (GradientDescent(), DeltaGradientDescent()):
        memory = AssociativeMemory(Matrix(4, 4, heads=1), Huber(C), rule, 8, target=Given()).double()
        k, v = 30 * directions(1, 1, 1, 4).repeat(1, 1, 64, 1), 100 * randn(1, 1, 64, 4)
        eta, alpha = (torch.full((1, 1, 64), x, dtype=torch.float64) for x in (1.0, 0.99))
        norms[type(rule)] = memory(None, k, v, eta, alpha)[1].weights[0].norm().item()
    assert norms[DeltaGradientDescent] <= bound(0, 1.0, 0.99) < norms[GradientDescent]


def randomly(length):
    """Noise."""
    return torch.randn(BATCH, length, WIDTH)


def constant(length):
    """One token, again and again."""
    return torch.randn(BATCH, 1, WIDTH).repeat(1, length, 1)


def phrase(length):
    """Five tokens, again and again."""
    return torch.randn(BATCH, 5, WIDTH).repeat(1, length // 5 + 1, 1)[:, :length]


def one_hot(length):
    """One channel at a time."""
    return F.one_hot(torch.randint(WIDTH, (BATCH, length)), WIDTH).float()


def any_size(length):
    """Norms from 1e-3 to 1e3, from token to token."""
    return torch.randn(BATCH, length, WIDTH) * 10 ** (6 * torch.rand(BATCH, length, 1) - 3)


def shifting(length):
    """Another stream every 100 tokens, its sign turned as suddenly."""
    kinds = [make(100) * (-1) ** i for i, make in enumerate([randomly, constant, one_hot, phrase, any_size])]
    return torch.cat(kinds * (length // 500 + 1), dim=1)[:, :length]


STREAMS = (randomly, constant, phrase, one_hot, any_size, shifting)


def ceilings(layer):
    """For the two weights of a memory the bound of the documentation, from the parameters alone."""
    (rate, decay), (rate_bias, decay_bias) = layer.gates.direction.norm(dim=-1), layer.gates.bias
    eta = F.softplus(rate + rate_bias).max().item()
    alpha = (RETENTION_CEILING - (RETENTION_CEILING - 0.5) * torch.sigmoid(decay_bias - decay)).max().item()
    momentum = layer.momentum is not None
    start = [largest(w) for w in layer.memories.network.weights()]
    down = bound(start[1], eta, alpha, C, momentum)
    return bound(start[0], eta, alpha, SLOPE * C * down, momentum), down


def largest(weights):
    """The largest norm of a head's weight."""
    return weights.flatten(-2).norm(dim=-1).max().item()


@torch.no_grad()
def stays_bounded(layer, stream, autocast):
    """Read it in calls of uneven length; the norms' largest growth."""
    state, most, grown, at = None, ceilings(layer), 1.0, 0
    sizes = [700, 1, 1023, 64, 300]
    while at < stream.shape[1]:
        size = sizes[0]
        sizes = sizes[1:] + sizes[:1]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y, state = layer(stream[:, at : at + size], state)
        at += size
        assert y.isfinite().all()
        assert not state.memories.refused.any()
        for weight, limit, start in zip(state.memories.weights, most, layer.memories.network.weights(), strict=True):
            assert largest(weight) <= limit
            grown = max(grown, largest(weight) / largest(start))
    return grown


@functools.cache
def trained(name):
    """A layer that has learnt for a few steps, with a rate that is too large, to say what came three tokens before."""
    layer = SelfModifyingTitans(WIDTH, HEADS, chunk_size=16, **OPTIONS[name])
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2)
    for _ in range(30):
        x = torch.randn(BATCH, 64, WIDTH)
        optimizer.zero_grad()
        (layer(x)[0][:, 3:] - x[:, :-3]).square().mean().backward()
        optimizer.step()
    return layer


OPTIONS = {
    "plain": {},
    "momentum": {"rule": DeltaGradientDescent(momentum=True)},
    "slow projections": {"projection_chunk_size": 64},
}


@pytest.mark.parametrize("length", [3_000, pytest.param(100_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("stream", STREAMS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", OPTIONS)
def test_any_stream(name, stream, autocast, length):
    """Untrained and trained: finite, nothing refused, and every weight below its ceiling and not much above its start."""
    torch.manual_seed(0)
    for layer in (SelfModifyingTitans(WIDTH, HEADS, chunk_size=16, **OPTIONS[name]), trained(name)):
        assert stays_bounded(layer, stream(length), autocast) < 10
