"""Fast weights: what levels do to a linear regression, against a loop written out by hand.

B rows, each a problem of its own: `y = x W^T`, loss `1/2 |W x - y|^2`, `W = W_0 + sum_l D_l` `[out, in]`.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from nestling.levels import Level, StepOf, blocks, effective, end_context, gather, initial, second_moments, step
from nestling.levels.felt import moment as outer_products
from nestling.memory import DeltaGradientDescent, RetainPredictions, RetainSeen
from nestling.memory.moments import second_moment
from nestling.optim.generalised_momentum import Rows
from nestling.optim.preconditioned_momentum import Kronecker
from tests.helpers import close, differ, named, randn, row, same

B, IN, OUT, P = 3, 4, 2, 5
NAME = "w"
PLAIN, SLOW = Level(P, lr=0.05), Level(3 * P, lr=0.5, rule=RetainSeen(damping=0.1, forgetting=0.7))


class Problem:
    """Weights and a stream of segments, `x [B, P, IN]` and `y [B, P, OUT]`."""

    def __init__(self, levels, segments=9):
        self.levels, self.start = levels, randn(OUT, IN)
        self.x, self.y = randn(segments, B, P, IN), randn(segments, B, P, OUT)

    def state(self):
        return initial(self.levels, [[NAME]] * len(self.levels), {NAME: self.start}, B)

    def learn(self, state, x, y, tokens=None):
        """One segment: gradients at the sum of all levels, gathered; then every level that is due moves."""
        weight = effective(state, {NAME: self.start})[NAME]
        error = x @ weight.mT - y
        count = torch.full((B,), x.shape[1]) if tokens is None else tokens
        block = blocks(self.levels, [[NAME]] * len(self.levels)).get(NAME)
        felt = {NAME: outer_products(error, block)}
        return step(
            self.levels, gather(state, {NAME: error.mT @ x}, {NAME: second_moment(x, block)}, count, count, felt)
        )

    def run(self, state=None):
        state = state or self.state()
        for x, y in zip(self.x, self.y, strict=True):
            state = self.learn(state, x, y)
        return state


def protected(moment, damping, block=None):
    """`a (M + a I)^-1` of a second moment that is scaled to a mean eigenvalue of 1, of the blocks along its diagonal alone."""
    runs = 1 if block is None else math.ceil(len(moment) / block)
    width = math.ceil(len(moment) / runs)
    run = torch.arange(len(moment)) // width
    values, vectors = torch.linalg.eigh(torch.where(run[:, None] == run, moment, 0.0))
    mean = values.sum() / (runs * width)
    return vectors @ torch.diag(damping / (values / mean + damping)) @ vectors.T


def by_hand(problem, b):
    """The differences of one row, level by level, with nothing shared with the library."""
    levels = problem.levels
    differences = [torch.zeros(OUT, IN, dtype=torch.float64) for _ in levels]
    slopes, clocks = [0.0] * len(levels), [0] * len(levels)
    seen, count = [torch.zeros(IN, IN, dtype=torch.float64) for _ in levels], [0.0] * len(levels)
    inputs = [0.0] * len(levels)  # of the period
    felt, since, inverses = [0.0] * len(levels), [math.inf] * len(levels), [None] * len(levels)
    counted = [0.0] * len(levels)
    for x, y in zip(problem.x[:, b], problem.y[:, b], strict=True):
        weight = problem.start + sum(differences)
        slope = sum(torch.outer(weight @ x_t - y_t, x_t) for x_t, y_t in zip(x, y, strict=True))
        moment = sum(torch.outer(x_t, x_t) for x_t in x)
        errors = [weight @ x_t - y_t for x_t, y_t in zip(x, y, strict=True)]
        for i, level in enumerate(levels):
            slopes[i], clocks[i] = slopes[i] + slope, clocks[i] + len(x)
            seen[i], count[i], inputs[i] = seen[i] + moment, count[i] + len(x), inputs[i] + moment
            felt[i] = felt[i] + sum(torch.outer(error, error) for error in errors)
            if clocks[i] < level.period:
                continue
            mean = slopes[i] / clocks[i]
            if level.clip is not None:
                mean = mean * min(1.0, level.clip / mean.norm())
            if isinstance(level.rule, RetainSeen):
                unit = seen[i] / count[i]
                unit = unit / unit.diagonal().mean()
                mean = level.rule.damping * mean @ torch.linalg.inv(unit + level.rule.damping * torch.eye(IN))
                seen[i], count[i] = level.rule.forgetting * seen[i], level.rule.forgetting * count[i]
            if isinstance(level.rule, RetainPredictions):
                since[i] += count[i] - counted[i]
                if since[i] >= level.rule.refresh * count[i]:
                    pairs = (seen[i], level.rule.damping), (felt[i], level.rule.output_damping)
                    inverses[i], since[i] = [protected(*pair, level.rule.block) for pair in pairs], 0.0
                counted[i] = level.rule.forgetting * count[i]
                mean = inverses[i][1] @ mean @ inverses[i][0]
                seen[i], felt[i], count[i] = (level.rule.forgetting * value for value in (seen[i], felt[i], count[i]))
            if isinstance(level.rule, DeltaGradientDescent):
                period = inputs[i] / clocks[i]
                mean = (mean + differences[i] @ period) @ torch.linalg.inv(torch.eye(IN) + level.lr * period)
            keep = level.reset if isinstance(level.reset, float) else 1.0
            differences[i] = keep * differences[i] - level.lr * mean
            slopes[i], clocks[i], inputs[i] = 0.0, 0, 0.0
    return differences


OPTIMISED = {
    "momentum": [Level(P, lr=0.05, rule=StepOf("DeltaMomentum"))],
    "plain and optimised": [PLAIN, Level(3 * P, lr=0.1, clip=0.5, rule=StepOf("M3", periods=(2,)))],
    "decompositions": [
        Level(P, lr=0.01, rule=StepOf("PreconditionedMomentum", preconditioner=Kronecker(period=2))),
        Level(P, lr=0.01, rule=StepOf("GeneralisedMomentum", memory=Rows())),
    ],
}
LEVELS = {
    "one plain": [PLAIN],
    "one that retains": [Level(P, lr=0.5, rule=RetainSeen(0.01))],
    "plain and retaining": [PLAIN, SLOW],
    "decaying and retaining": [Level(P, lr=0.05, reset=0.9), SLOW],
    "clipped": [Level(P, lr=0.05, clip=1.0), Level(3 * P, lr=0.5, rule=RetainSeen(0.1), clip=0.5)],
    "erasing": [Level(P, lr=0.3, rule=DeltaGradientDescent())],
    "plain and erasing": [PLAIN, Level(3 * P, lr=0.8, rule=DeltaGradientDescent(), clip=0.5, reset=0.9)],
    "erasing and retaining": [Level(P, lr=0.3, rule=DeltaGradientDescent()), SLOW],
    "retaining predictions": [Level(P, lr=0.3, rule=RetainPredictions(0.5, 0.2, refresh=0.0), clip=1.0)],
    "the same, seldom": [PLAIN, Level(2 * P, lr=0.6, rule=RetainPredictions(0.1, 0.3, 0.8, refresh=0.7), reset=0.9)],
    "in blocks": [
        Level(P, lr=0.3, rule=RetainPredictions(0.5, 0.2, refresh=0.2, block=3)),
        Level(2 * P, lr=0.5, rule=RetainPredictions(block=3)),
        PLAIN,
    ],
    "the smallest blocks": [Level(P, lr=0.3, rule=RetainPredictions(0.2, 0.2, block=1), clip=1.0)],
    "of one period": [PLAIN, Level(P, lr=0.1, rule=RetainSeen(1.0, 0.5))],
}
ALL = {**LEVELS, **OPTIMISED}


@pytest.mark.parametrize("name", LEVELS)
def test_levels_are_the_loop_written_out_by_hand(name):
    """Two levels on one weight, both taking gradients at the sum, each at its period and by its rule."""
    problem = Problem(LEVELS[name])
    state = problem.run()
    for b in range(B):
        for level, expected in zip(state, by_hand(problem, b), strict=True):
            close(level.weights[NAME].value[b], expected)
    assert [int(level.updates[0]) for level in state] == [9 * P // level.period for level in problem.levels]
    assert not any(level.refused.any() for level in state)


def test_the_loss_falls():
    """What a level learns makes it better at what it reads: on one problem repeated, two levels beat none."""
    problem = Problem([PLAIN, SLOW], segments=30)
    problem.y = problem.x @ randn(OUT, IN).mT
    weight = effective(problem.run(), {NAME: problem.start})[NAME]
    errors = [((problem.x @ w.mT - problem.y) ** 2).mean() for w in (problem.start, weight)]
    assert errors[1] < 0.2 * errors[0]


def test_a_level_goes_back_when_the_period_of_the_slower_one_ends():
    """After the slower one has learnt from all of it: the fast level's share is what a fresh one learns from there on."""
    fast, middle, slow = Level(P, lr=0.05, reset="slower"), Level(2 * P, lr=0.1, reset="slower"), Level(4 * P, lr=0.2)
    problem = Problem([fast, middle, slow], segments=8)
    kept = Problem([replace(fast, reset=None), replace(middle, reset=None), slow], segments=8)
    kept.start, kept.x, kept.y = problem.start, problem.x, problem.y
    state, other = problem.state(), kept.state()
    for i, (x, y) in enumerate(zip(problem.x, problem.y, strict=True), 1):
        state = problem.learn(state, x, y)
        zero = [not level.weights[NAME].value.any() for level in state]
        assert zero == [i % 2 == 0, i % 4 < 2, i < 4], i
        assert [int(level.updates[0]) for level in state] == [i, i // 2, i // 4]
        if i == 2:  # until a level is reset nothing differs, and then the slower ones do not
            other = kept.learn(kept.learn(other, *args(kept, 0)), *args(kept, 1))
            close(state[1:], other[1:])
            assert not state[0].gathered.any() and not state[0].weights[NAME].gradient.any()


def args(problem, segment):
    return problem.x[segment], problem.y[segment]


def test_a_frozen_level_does_not_go_back():
    """It stands still, whatever the slower one does."""
    problem = Problem([Level(P, lr=0.05, reset="slower"), Level(2 * P, lr=0.1)], segments=2)
    state = problem.learn(problem.state(), *args(problem, 0))
    state = (replace(state[0], frozen=torch.tensor([True, False, False])), state[1])
    after = problem.learn(state, *args(problem, 1))
    assert after[0].weights[NAME].value.flatten(1).any(1).tolist() == [True, False, False]
    same(row(after[0], 0), row(state[0], 0))


def test_a_level_moves_only_when_its_period_is_full():
    """Between two updates the weights are the same bits, and each row keeps its own clock."""
    problem = Problem([Level(6, lr=0.1)])
    state, updates = problem.state(), torch.zeros(B, dtype=torch.int64)
    for tokens, expected in (([5, 2, 0], [0, 0, 0]), ([1, 4, 0], [1, 1, 0]), ([3, 6, 2], [1, 2, 0])):
        before = state[0].weights[NAME].value
        state = problem.learn(state, problem.x[0], problem.y[0], torch.tensor(tokens))
        assert state[0].updates.tolist() == expected
        moved = (state[0].weights[NAME].value != before).flatten(1).any(1)
        assert torch.equal(moved, state[0].updates > updates)
        updates = state[0].updates
    assert state[0].gathered.tolist() == [3.0, 0.0, 2.0]


def test_gathering_in_parts_is_gathering_the_sum():
    """A period that arrives in several segments is one step on the mean over its tokens."""
    problem = Problem([Level(2 * P, lr=0.1)])
    state = problem.learn(problem.learn(problem.state(), problem.x[0], problem.y[0]), problem.x[1], problem.y[1])
    whole = problem.learn(problem.state(), *(torch.cat([t[0], t[1]], dim=1) for t in (problem.x, problem.y)))
    close(state, whole)
    assert state[0].updates.tolist() == [1] * B


def test_a_rate_of_zero_never_moves():
    """`lr=0.0`: the effective weight is the initial one, bit for bit."""
    problem = Problem([Level(P), Level(2 * P, rule=RetainSeen())])
    weight = effective(problem.run(), {NAME: problem.start})[NAME]
    assert torch.equal(weight, problem.start.expand_as(weight))


def test_seeing_without_learning_moves_nothing_and_protects():
    """Inputs gathered without gradients leave weights and clocks alone; later steps along them are smaller."""
    problem = Problem([SLOW])
    x = torch.zeros(B, 50, IN, dtype=torch.float64)
    x[..., 0] = 1.0
    count = torch.full((B,), 50)
    state = gather(problem.state(), None, {NAME: x.mT @ x}, count, count)
    same(step(problem.levels, state), state)
    assert not state[0].gathered.any() and state[0].count.tolist() == [50.0] * B
    fresh, shown = (problem.run(s)[0].weights[NAME].value for s in (problem.state(), state))
    assert (shown[..., 0].abs() < fresh[..., 0].abs()).all()
    differ(shown, fresh)


def test_the_end_of_a_context_resets_the_fast_and_keeps_the_slow():
    """A level with reset="context" goes back to its start, what it gathered included; others keep everything."""
    levels = [Level(P, lr=0.05, reset="context"), SLOW, Level(6 * P, lr=0.1, reset=0.5)]
    problem = Problem(levels, segments=7)
    state = problem.run()
    ended = end_context(levels, state)
    same(ended[1:], state[1:])
    cleared = ended[0].weights[NAME]
    assert not cleared.value.any() and not cleared.gradient.any() and not ended[0].gathered.any()
    assert state[0].weights[NAME].value.any() and torch.equal(ended[0].updates, state[0].updates)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("name", ALL)
def test_a_step_that_is_not_finite_is_refused_in_its_row_only(name, value):
    """It is counted, the row keeps the weights before it, and the other rows are the same bits as in a clean run."""
    problem = Problem(ALL[name])
    clean = problem.run()
    problem.y[4, 1, 2, 0] = value
    found = problem.run()
    for level, state in zip(problem.levels, found, strict=True):
        assert state.refused.tolist() == [0, 1, 0] and int(state.updates[1]) == 9 * P // level.period - 1
        assert all(d.value.isfinite().all() for d in state.weights.values()) and state.norm.isfinite().all()
    for other in (0, 2):
        same(row(found, other), row(clean, other))


@pytest.mark.parametrize("name", ALL)
def test_learning_goes_on_after_inputs_that_were_not_finite(name):
    """One bad segment costs the updates it is part of and no other: the row learns again from the next one on."""
    problem = Problem(ALL[name], segments=12)
    problem.x[4, 1, 2, 0] = torch.nan
    for level, state in zip(problem.levels, problem.run(), strict=True):
        assert state.refused.tolist() == [0, 1, 0] and int(state.updates[1]) == 12 * P // level.period - 1
        assert all(t.isfinite().all() for t in named(state).values() if t.is_floating_point())


def test_an_overflow_is_refused():
    """A rate so large that the step overflows changes nothing and is counted."""
    problem = Problem([Level(P, lr=1e308)])
    problem.y = problem.y * 1e10
    state = problem.run()
    assert state[0].refused.tolist() == [9] * B and not state[0].weights[NAME].value.any()


def test_a_clip_bounds_the_step_and_keeps_its_direction():
    """Over all the level's weights together: a gradient of any size moves the level by `lr clip` at most."""
    names, level = ["a", "b"], Level(1, lr=0.1, clip=0.5)
    state = initial([level], [names], {n: randn(OUT, IN) for n in names}, B)
    slopes = {n: randn(B, OUT, IN) for n in names}
    one = torch.ones(B)
    for scale in (1e-3, 1e3, 1e100):
        given = {n: scale * slope for n, slope in slopes.items()}
        (moved,) = step([level], gather(state, given, {}, one, one))
        size = torch.stack([slope.square().sum((1, 2)) for slope in slopes.values()]).sum(0).sqrt() * scale
        for name, d in moved.weights.items():
            close(d.value, -0.1 * given[name] * (0.5 / size).clamp_max(1.0)[:, None, None])
        assert (moved.norm <= 0.05 + 1e-12).all()


def test_a_gradient_whose_norm_overflows_is_no_step_of_zero():
    """Finite, but too large for its norm: it is scaled down like any other, or refused; it does not pass for a step."""
    level = Level(1, lr=0.1, clip=0.5)
    state = initial([level], [[NAME]], {NAME: torch.zeros(OUT, IN)}, B)
    one = torch.ones(B)
    (moved,) = step([level], gather(state, {NAME: torch.full((B, OUT, IN), 1e25)}, {}, one, one))
    assert (moved.refused == 1).all() or torch.allclose(moved.norm, torch.tensor(0.05))


def test_the_norm_is_the_size_of_the_last_update():
    """Over all weights of the level, in the row; the steps between leave it."""
    problem = Problem([PLAIN])
    state = problem.run()
    last = problem.learn(state, problem.x[0], problem.y[0])
    moved = last[0].weights[NAME].value - state[0].weights[NAME].value
    close(last[0].norm, moved.flatten(1).norm(dim=1))


def test_second_moments_are_those_of_the_inputs():
    """`sum x x^T` by row of what each named weight is multiplied with, real tokens only; the hooks go in any case."""
    module = nn.Sequential(nn.Linear(IN, 3), nn.Tanh(), nn.Linear(3, OUT)).double()
    x, mask = randn(B, P, IN), torch.rand(B, P) < 0.7
    with second_moments({"0.weight": module[0], "2.weight": module[2]}, mask) as seen:
        module(x)
    for name, inputs in (("0.weight", x), ("2.weight", module[:2](x))):
        for b in range(B):
            expected = sum(torch.outer(v, v) for v in inputs[b, mask[b]].detach())
            close(seen[name][b], expected)
    with pytest.raises(RuntimeError), second_moments({"0.weight": module[0]}, None):
        raise RuntimeError
    assert not any(m._forward_pre_hooks for m in module)
