"""Frequency response of levels: how much of a gradient component of each frequency moves them, in closed form and measured.

A frequency `f` is in cycles a token, in (0, 1/2]. A level of period `C` that is given the gradient `e^(2 pi i f t)` at tokens
`t = 0, 1, ..` moves at the last token of each period, by the mean of the period's gradients:

    step_n  = S(f) e^(2 pi i f t_n)     S(f) = -lr A(f) R(f C)     A(f) = sin(pi f C) / (C sin(pi f)) e^(-pi i f (C - 1))
    value_n = V(f) e^(2 pi i f t_n)     V(f) = S(f) K(f C)         R(v) = 1 / (1 - beta e^(-2 pi i v))
                                                                   K(v) = 1 / (1 - keep e^(-2 pi i v))

with `t_n = n C - 1`, `beta` the momentum of its rule, and `keep` its decay (`reset`), `value_n = keep value_{n-1} + step_n`. `A` is
the mean, `R` the momentum, and `K` adds the steps up. Without decay the value is `-lr R(f C) / (C (1 - e^(-2 pi i f)))`: of the
mean nothing is left, as a sum of means over periods is a sum over tokens. Since a level moves once in `C` tokens, it moves at
the frequency `alias(level, f)` where `f` is above `1 / 2C`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from nestling.levels.fast import initial
from nestling.levels.level import Level, as_levels
from nestling.levels.step_of import StepOf
from nestling.levels.update import gather, step
from nestling.memory import GradientDescent
from nestling.optim import PreconditionedMomentum
from nestling.optim.preconditioned_momentum import Identity

UPDATES = 16  # of the slowest level, that are looked at once what came before has died away
REST = 1e-6  # what is left then of the beginning


class Gain(NamedTuple):
    """Complex amplitudes, complex128 `[F]`, for a gradient of amplitude 1: of what an update adds, and of what the level holds.

    Their absolute value is the gain, their angle the phase at the last token of a period. Both begin with -1: down the gradient.
    """

    step: Tensor
    value: Tensor


class Cutoff(NamedTuple):
    """Frequencies, in cycles a token, at which the gains have fallen to `1 / sqrt(2)` (-3 dB) of what they are towards 0.

    Infinity where they never do. A level without decay adds up for ever; its value has no gain at 0, and the cutoff 0.
    """

    step: float
    value: float


def poles(level: Level) -> tuple[float, float]:
    """The momentum of a level and its decay (1 without one), if it is a linear filter of its gradients; raises as `closed_form`."""
    if level.clip is not None or level.rank is not None or isinstance(level.reset, str):
        raise ValueError(
            f"clip={level.clip}, rank={level.rank}, reset={level.reset!r}: with a clip, a rank, or a reset other than a decay, a "
            "level is no filter whose gain is a function of the frequency alone; leave them out"
        )
    keep = 1.0 if level.reset is None else float(level.reset)
    if level.rule == GradientDescent():
        return 0.0, keep
    if isinstance(level.rule, StepOf) and level.rule.optimizer == PreconditionedMomentum.__name__:
        optimizer = PreconditionedMomentum([torch.zeros(1, 1)], **dict(level.rule.settings))
        if optimizer.preconditioner == Identity():
            return float(optimizer.param_groups[0]["momentum"]), keep
    raise ValueError(
        f"rule={level.rule!r} is no linear filter of the gradient, and has no frequency response; use GradientDescent(), or "
        "StepOf('PreconditionedMomentum', momentum=..), which is heavy-ball momentum"
    )


def closed_form(level: Level, frequencies: Tensor) -> Gain:
    """The gains of a level by the equations of this file.

    frequencies: float64 `[F]`, in cycles a token, each in (0, 1/2].

    Raises:
        ValueError: a frequency out of range, or a level that is no linear filter: one with a clip, a rank, a reset that is no
            decay, or a rule other than `GradientDescent()` and `StepOf("PreconditionedMomentum", momentum=..)`.
    """
    beta, keep = poles(level)
    f = _checked(frequencies)
    c, one = level.period, _turn(f)
    mean = torch.sin(torch.pi * f * c) / (c * torch.sin(torch.pi * f)) * _turn(f * (c - 1) / 2)
    moved = -level.lr / (1 - beta * _turn(f * c))
    added = 1 / (c * (1 - one)) if keep == 1 else mean / (1 - keep * _turn(f * c))
    return Gain(moved * mean, moved * added)


def cutoff(level: Level) -> Cutoff:
    """Where the gains of the closed form have fallen to -3 dB, by bisection; raises as it does.

    Of the mean alone it is 0.443 / C for periods of a few tokens and more, and 1/4 for C = 2. Of a momentum or a decay `b` alone it is
    `arccos(1 - (1 - b)^2 / 2b) / (2 pi C)`, where there is such an angle (`b >= 3 - sqrt(8)`). Both gains fall all the way to
    `1 / 2C`, where the mean alone is at -3 dB or below, unless C = 1.
    """
    beta, keep = poles(level)
    unit = replace(level, lr=1.0)

    def step(f: float) -> float:
        return (1 - beta) * _gains(unit, f).step.abs().item()

    def value(f: float) -> float:
        return (1 - beta) * (1 - keep) * _gains(unit, f).value.abs().item()

    highest = 0.5 / level.period
    return Cutoff(_fallen(step, highest), 0.0 if keep == 1 else _fallen(value, highest))


def alias(level: Level, frequencies: Tensor) -> Tensor:
    """The frequencies, `[F]` in [0, 1 / 2C] cycles a token, at which a level moves when gradients have those given."""
    turns = _checked(frequencies) * level.period
    return (turns - turns.round()).abs() / level.period


@torch.no_grad()
def measure(levels: Sequence[Level], frequencies: Tensor) -> list[Gain]:
    """The gains that levels are seen to have: sine and cosine gradients go through `gather` and `step`, in float64.

    The levels, fast to slow, read one stream; its length is as many periods of the slowest as its momentum and its decay
    need to settle and some more, and a cycle of the lowest frequency. It costs a call of each function for every period of the
    fastest. The value of a level without decay has a constant in it, what the stream began with: it is NaN where `alias` is so
    low that it could not be told from that.

    Raises:
        ValueError: as `closed_form`; or levels that are not sorted, or whose periods are no multiples of the fastest's.
    """
    levels = as_levels(levels)
    f = _checked(frequencies)
    if not levels:
        return []
    filters = [poles(level) for level in levels]
    settling = [level.period * max(map(_settling, pair)) for level, pair in zip(levels, filters, strict=True)]
    slowest = levels[-1].period
    length = max(settling) + UPDATES * slowest + math.ceil(1 / f.min().item())
    values = _driven(levels, f, -(-length // slowest) * slowest)
    pairs = zip(levels, filters, settling, values, strict=True)
    return [_gain(level, keep, settled, f, value) for level, (_, keep), settled, value in pairs]


def _driven(levels: list[Level], f: Tensor, length: int) -> list[Tensor]:
    """What each level holds after each of its updates, `[updates, F]` complex: cosines drive the real part, sines the other."""
    segment, rows = levels[0].period, 2 * len(f)
    fast = initial(levels, [["w"]] * len(levels), {"w": torch.zeros(1, 1, dtype=f.dtype)}, rows)
    count = torch.full((rows,), segment)
    held: list[list[Tensor]] = [[] for _ in levels]
    for start in range(0, length, segment):
        wave = _turn(-f[:, None] * torch.arange(start, start + segment)).sum(1)
        gradient = torch.cat([wave.real, wave.imag])[:, None, None]
        fast = step(levels, gather(fast, {"w": gradient}, {}, count, count))
        for level, state, found in zip(levels, fast, held, strict=True):
            if (start + segment) % level.period == 0:
                found.append(state.weights["w"].value.flatten())
    return [torch.complex(*torch.stack(found).chunk(2, dim=1)) for found in held]


def _gain(level: Level, keep: float, settled: int, f: Tensor, value: Tensor) -> Gain:
    """The amplitudes in a level's values `[updates, F]`, once it has settled."""
    steps = value - keep * torch.cat([torch.zeros_like(value[:1]), value[:-1]])
    last = torch.arange(1, len(value) + 1) * level.period - 1
    after = settled // level.period
    wave = _turn(-f * last[after:, None])
    return Gain(_amplitude(steps[after:], wave), _amplitude(value[after:], wave, constant=keep == 1))


def _amplitude(signal: Tensor, wave: Tensor, constant: bool = False) -> Tensor:
    """The least-squares amplitude of a wave, each `[N, F]`, in a signal; beside a constant, if there may be one."""
    if constant:
        signal, wave = signal - signal.mean(0), wave - wave.mean(0)
    power = wave.abs().square().mean(0)
    found = (wave.conj() * signal).mean(0) / power
    return torch.where(power > 1e-4, found, torch.nan)  # a hundredth of a cycle at least


def _checked(frequencies: Tensor) -> Tensor:
    f = torch.as_tensor(frequencies, dtype=torch.float64)
    if f.dim() != 1 or not len(f) or not bool(((f > 0) & (f <= 0.5)).all()):
        raise ValueError(
            f"frequencies={frequencies} must be a row of numbers in (0, 0.5] cycles a token: a stream of tokens has no others, and at "
            "0 a level without decay moves on for ever"
        )
    return f


def _turn(x: Tensor) -> Tensor:
    """`e^(-2 pi i x)`, by the fraction of the turn, which keeps its digits late in a stream."""
    angle = -2 * torch.pi * (x - x.round())
    return torch.complex(angle.cos(), angle.sin())


def _settling(pole: float) -> int:
    """Updates until `REST` is left of what a pole remembers; one that forgets nothing has a constant to show for it."""
    return math.ceil(math.log(REST) / math.log(pole)) if 0 < pole < 1 else 0


def _gains(level: Level, f: float) -> Gain:
    return closed_form(level, torch.tensor([f], dtype=torch.float64))


def _fallen(share: Callable[[float], float], highest: float) -> float:
    """Where a falling share of 1 is `1 / sqrt(2)`, up to and with `highest`."""
    if share(highest) > math.sqrt(0.5) * (1 + 1e-12):
        return math.inf
    low, high = 0.0, highest
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) > math.sqrt(0.5) else (low, middle)
    return high
