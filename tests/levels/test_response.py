"""What levels make of a gradient's frequencies: measured through `gather` and `step`, and by the closed form."""

import math

import pytest
import torch

from nestling.levels import Level, StepOf
from nestling.levels.response import alias, closed_form, cutoff, measure
from nestling.memory import DeltaGradientDescent, RetainSeen
from nestling.optim.preconditioned_momentum import Diagonal

DECADES = torch.logspace(math.log10(4.9e-4), math.log10(0.49), 31, dtype=torch.float64)  # three of them


def momentum(beta):
    return StepOf("PreconditionedMomentum", momentum=beta)


LEVELS = {
    "at every token": [Level(1, lr=0.3), Level(2, lr=0.1, rule=momentum(0.9)), Level(4, lr=1.0, reset=0.8)],
    "slow": [
        Level(16, lr=0.5, reset=0.5),
        Level(64, lr=0.1, rule=momentum(0.5)),
        Level(256, lr=2.0, rule=momentum(0.7)),
    ],
    "odd": [Level(7, lr=0.3, rule=momentum(0.6), reset=0.9), Level(7, lr=0.3), Level(77, lr=1.0, reset=0.3)],
    "from every token to 1024": [
        Level(1, lr=0.1, rule=momentum(0.8)),
        Level(16, lr=0.5, reset=0.7),
        Level(1024, lr=2.0),
    ],
    "that hardly forget": [
        Level(4, lr=0.3, rule=momentum(0.999), reset=0.99999),
        Level(4096, lr=0.1, rule=momentum(0.9999)),
        Level(4096, lr=0.1, reset=0.999),
    ],
}


@pytest.mark.parametrize("name", LEVELS)
def test_levels_move_by_the_closed_form(name):
    """Over three decades: amplitude and phase of what is added, and of what is held, at each frequency.

    Nothing has to settle: a decay that would take a level millions of tokens costs no more than another.
    """
    levels = LEVELS[name]
    for level, seen in zip(levels, measure(levels, DECADES), strict=True):
        expected = closed_form(level, DECADES)
        for measured, gain in zip(seen, expected, strict=True):
            assert ((measured - gain).abs() / gain.abs()).max() < 1e-9
        assert not torch.stack(seen).isnan().any()


def test_the_cutoff_is_where_the_measured_gain_is_at_3_db():
    """Against a gain measured at a frequency that nothing of a level filters."""
    level, low = Level(8, lr=0.3, rule=momentum(0.6), reset=0.4), 1e-4
    at = cutoff(level)
    (gain,) = measure([level], torch.tensor([low, at.step, at.value], dtype=torch.float64))
    assert (gain.step[1] / gain.step[0]).abs().item() == pytest.approx(math.sqrt(0.5), rel=1e-3)
    assert (gain.value[2] / gain.value[0]).abs().item() == pytest.approx(math.sqrt(0.5), rel=1e-3)
    assert at.value < at.step < 1 / 16


def test_the_cutoffs_that_have_a_formula():
    """Of the mean alone, of a momentum or a decay alone; none where a level hears everything."""
    assert cutoff(Level(2, lr=1.0)).step == pytest.approx(0.25)
    for period in (16, 256, 4096):
        assert cutoff(Level(period)).step * period == pytest.approx(0.443, rel=3e-3)
    for b in (0.3, 0.9, 0.99):
        formula = math.acos(1 - (1 - b) ** 2 / (2 * b)) / (2 * math.pi)
        assert cutoff(Level(1, rule=momentum(b))).step == pytest.approx(formula)
        assert cutoff(Level(1, reset=b)) == (math.inf, pytest.approx(formula))
        assert cutoff(Level(64, rule=momentum(b), reset=0.999)).value < cutoff(Level(64, rule=momentum(b))).step
    assert cutoff(Level(1, lr=0.1)) == cutoff(Level(1)) == (math.inf, 0.0)
    assert cutoff(Level(1, rule=momentum(0.17))).step == math.inf  # less than 3 - sqrt(8)


def test_without_decay_a_slow_level_holds_what_a_fast_one_holds():
    """Of gradients that do not depend on it: a sum of means is a sum, so periods decide when a level moves, and not how far."""
    f = torch.tensor([0.003, 0.027, 0.131, 0.41], dtype=torch.float64)
    fast, slow = measure([Level(1, lr=0.1), Level(50, lr=5.0)], f)
    torch.testing.assert_close(slow.value, fast.value, rtol=1e-9, atol=0)
    assert (slow.step.abs()[1:] < 0.25 * 5.0).all() and (fast.step.abs() > 0.0999).all()


def test_fast_gradients_come_back_as_slow_ones():
    """A level that moves once in 16 tokens cannot tell 1/16 + f from f, by when it moves; by how far it can."""
    level, f = Level(16, lr=1.0), torch.tensor([0.005], dtype=torch.float64)
    folded = f + 1 / 16
    torch.testing.assert_close(alias(level, folded), f)
    torch.testing.assert_close(alias(level, 1 / 16 - f), f)
    gains = [closed_form(level, x).step.abs().item() for x in (f, folded)]
    (measured,) = measure([level], torch.cat([f, folded]))
    assert measured.step.abs().tolist() == pytest.approx(gains, rel=1e-6) and gains[1] < 0.1 * gains[0]


def test_what_cannot_be_told_from_a_constant_is_nan():
    """At whole cycles a period nothing is added, and what is held does not move. Beside a decay it can be told."""
    f = torch.tensor([1 / 16, 0.01], dtype=torch.float64)
    for reset, unknown in ((None, [True, False]), (0.9, [False, False])):
        (gain,) = measure([Level(16, lr=1.0, reset=reset)], f)
        assert gain.step[0].abs() < 1e-12 and gain.value.isnan().tolist() == unknown


def test_the_delay_towards_0_is_half_a_period_and_the_momentum():
    """`(C - 1) / 2` tokens, and `beta / (1 - beta)` updates."""
    f = torch.tensor([1e-6], dtype=torch.float64)
    phase = (-closed_form(Level(32, lr=1.0, rule=momentum(0.75)), f).step).angle()
    assert (-phase / (2 * torch.pi * f)).item() == pytest.approx(31 / 2 + 3 * 32, rel=1e-5)


BAD = {
    "clip": (Level(4, clip=1.0), "clip=1.0"),
    "rank": (Level(4, rank=2), "rank=2"),
    "reset": (Level(4, reset="context"), "reset='context'"),
    "erasing": (Level(4, rule=DeltaGradientDescent()), "DeltaGradientDescent"),
    "retaining": (Level(4, rule=RetainSeen()), "RetainSeen"),
    "optimiser": (Level(4, rule=StepOf("M3")), "M3.*no linear filter"),
    "preconditioner": (Level(4, rule=StepOf("PreconditionedMomentum", preconditioner=Diagonal())), "Diagonal"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_level_that_is_no_linear_filter_raises(name):
    level, message = BAD[name]
    f = torch.tensor([0.1], dtype=torch.float64)
    for call in (lambda: closed_form(level, f), lambda: cutoff(level), lambda: measure([level], f)):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("frequencies", [[0.0, 0.1], [0.6], [-0.1], [math.nan], [], [[0.1]]])
def test_frequencies_are_those_a_stream_of_tokens_has(frequencies):
    f = torch.tensor(frequencies, dtype=torch.float64)
    for call in (lambda: closed_form(Level(4), f), lambda: alias(Level(4), f), lambda: measure([Level(4)], f)):
        with pytest.raises(ValueError, match="frequencies="):
            call()
