"""Levels move at exactly the tokens that their periods say, in both regimes, however a text is cut and wherever it resumes."""

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from nestling.levels import Level, LevelOptimizer
from nestling.memory import DeltaGradientDescent, RetainSeen
from nestling.models import HopeCache
from nestling.ops.state import named_tensors, with_tensors
from tests.helpers import cuts
from tests.tiny import model, read, text

L = 26
periods = st.tuples(st.integers(1, 7), st.integers(1, 3), st.integers(1, 3)).map(
    lambda t: (t[0], t[0] * t[1], t[0] * t[1] * t[2])
)


def levels_of(given):
    """A plain, a retaining, and a decaying and erasing level of these periods."""
    erasing = Level(1, lr=0.02, rule=DeltaGradientDescent(), reset=0.9)
    kinds = [Level(1, lr=0.05), Level(1, lr=0.05, rule=RetainSeen(0.1)), erasing]
    return [replace(level, period=period) for level, period in zip(kinds, given, strict=True)]


def resumed(cache, net):
    """The cache as a file would bring it back: from named tensors, in a new object."""
    state = (cache.memory, cache.session)
    found = HopeCache("context")
    found.memory, found.session = with_tensors(state, {n: t.clone() for n, t in named_tensors(state).items()})
    return found


def standing(memory):
    """Per level the updates of each row, and the weights they have moved."""
    return [(level.updates.tolist(), [d.value.clone() for d in level.weights.values()]) for level in memory]


def moves_of(net, sizes, resumes, lengths):
    """After which token, counted from 1, each level has moved, by row; seen at the ends of the calls."""
    ids, cache, found, before, start = text(len(lengths), L), None, [[], [], []], None, 0
    for size, resume in zip(sizes, resumes, strict=True):
        part = ids[:, start : start + size]
        mask = torch.arange(start, start + size) < torch.tensor(lengths)[:, None]
        start += size
        if mask.any():
            cache = read(net, part, cache, attention_mask=mask.long())[1]
            cache = resumed(cache, net) if resume else cache
            now = standing(cache.memory)
            for l, (updates, values) in enumerate(now):
                old = before[l] if before else ([0] * len(lengths), [torch.zeros_like(v) for v in values])
                for b, (new, last) in enumerate(zip(updates, old[0], strict=True)):
                    changed = any((v[b] != w[b]).any() for v, w in zip(values, old[1], strict=True))
                    assert changed == (new > last)
                    found[l].append((b, min(start, lengths[b]), new))
            before = now
    return found


@given(given=periods, sizes=cuts(L), data=st.data())
@example(given=(1, 1, 1), sizes=[1] * L, data=None)
@example(given=(4, 8, 24), sizes=[1] * L, data=None)
@example(given=(5, 5, 15), sizes=[5, 5, 1, 15], data=None)
@settings(max_examples=8, deadline=None)
@pytest.mark.parametrize("variant", ["superposed", "independent"])
def test_in_the_context_regime(variant, given, sizes, data):
    """A boundary of the fastest period p at token t is acted on when token t + 1 arrives; a level moves at those boundaries
    that are multiples of its own period, in every row by that row's tokens; and weights change where a move is counted only."""
    resumes = (
        data.draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes))) if data else [True] * len(sizes)
    )
    lengths = data.draw(st.tuples(st.integers(1, L), st.just(L))) if data else (L - 9, L)
    net = model("hope-attention", num_hidden_layers=1, levels=levels_of(given), level_variant=variant, learnt="mlp")
    for period, found in zip(given, moves_of(net, sizes, resumes, lengths), strict=True):
        for row, tokens, updates in found:
            assert updates == (tokens - 1) // given[0] * given[0] // period, (row, tokens)


@given(given=periods, steps=st.lists(st.integers(1, 9), min_size=1, max_size=20), resumes=st.sets(st.integers(0, 19)))
@example(given=(4, 8, 24), steps=[1] * 30, resumes={3, 4, 12})
@example(given=(4, 8, 24), steps=[4] * 13, resumes=set())
@settings(max_examples=40, deadline=None)
def test_in_the_parameter_regime(given, steps, resumes):
    """A level moves with the step that fills its period, on the mean over all tokens since its last one; where steps are no
    parts of the period it moves with the first that reaches it. A resume in between changes nothing."""
    net, levels = nn.Linear(3, 2, bias=False).double(), [Level(p, lr=0.1 * 7**i) for i, p in enumerate(given)]
    optimizer = LevelOptimizer(net, levels, [["weight"]] * 3)
    expected, clocks, sums = net.weight.detach().clone(), [0] * 3, [torch.zeros(2, 3).double() for _ in levels]
    for number, tokens in enumerate(steps):
        x = torch.randn(tokens, 3, dtype=torch.float64)
        net(x).square().sum(1).mean().backward()
        slope = net.weight.grad.clone()
        optimizer.step(tokens)
        for i, level in enumerate(levels):
            clocks[i], sums[i] = clocks[i] + tokens, sums[i] + tokens * slope
            if clocks[i] >= level.period:
                expected -= level.lr * sums[i] / clocks[i]
                clocks[i], sums[i] = 0, torch.zeros(2, 3).double()
        torch.testing.assert_close(net.weight.detach(), expected, rtol=1e-9, atol=1e-9)
        assert [int(state.gathered) for state in optimizer.state] == clocks
        if number in resumes:
            state, weights = optimizer.state_dict(), net.state_dict()
            net = nn.Linear(3, 2, bias=False).double()
            net.load_state_dict(weights)
            optimizer = LevelOptimizer(net, levels, [["weight"]] * 3)
            optimizer.load_state_dict(state)


def test_a_state_of_other_levels_is_refused():
    """The message names what does not fit, and nothing has changed."""
    one = LevelOptimizer(nn.Linear(3, 2), [Level(4, lr=0.1)], [["weight"]])
    other = LevelOptimizer(nn.Linear(4, 2), [Level(4, lr=0.1)], [["weight"]])
    before = one.state
    with pytest.raises(ValueError, match=r"other levels or weights \(0/weights/weight/gradient"):
        one.load_state_dict(other.state_dict())
    assert one.state is before
