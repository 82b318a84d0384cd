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

# A level is watched for UPDATES of its updates, and for those in a CYCLE of the lowest frequency, MOST at most.
UPDATES, CYCLE, MOST = 64, 1 / 50, 2**14
LIKE = 1e-8  # of a wave's power is left, at least, where it can be told from what looks like it


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


def measure(levels: Sequence[Level], frequencies: Tensor, each: Callable[[], None] = lambda: None) -> list[Gain]:
    """The gains that levels are seen to have: sine and cosine gradients go through `gather` and `step`, in float64.

    Every level reads a stream of its own from its first token on, of `UPDATES` periods and a share of a cycle of the lowest
    frequency. What begins there fades by its momentum and its decay, or stays, without a decay; it is of a known form, and is told
    apart from the wave by least squares. A gain is NaN where the wave is too much like it: at frequencies whose `alias` is so low
    that the wave hardly turns while the level is watched. It costs a call of each function for every period.

    Args:
        levels: fast to slow. frequencies: float64 `[F]`, in cycles a token, each in (0, 1/2].
        each: called after each level.

    Raises:
        ValueError: as `closed_form`; or levels that are not sorted, or whose periods are no multiples of the fastest's.
    """
    levels = as_levels(levels)
    f = _checked(frequencies)
    filters = [poles(level) for level in levels]
    gains = []
    for level, (beta, keep) in zip(levels, filters, strict=True):
        gains.append(_gain(beta, keep, *_driven(level, f)))
        each()
    return gains


@torch.no_grad()
def _driven(level: Level, f: Tensor) -> tuple[Tensor, Tensor]:
    """What a level holds after each of its updates, cosines driving the real part and sines the other, and the wave then.

    Both are `[updates, F]` complex. The wave's sum over a period is taken once; a period later it is the same, further turned.
    """
    rows, period = 2 * len(f), level.period
    updates = UPDATES + min(MOST, math.ceil(CYCLE / (f.min().item() * period)))
    fast = initial([level], [["w"]], {"w": torch.zeros(1, 1, dtype=f.dtype)}, rows)
    count = torch.full((rows,), period)
    total = torch.stack([_turn(-one * torch.arange(period)).sum() for one in f])  # one by one: a period may be long
    starts = period * torch.arange(updates)[:, None]
    held = []
    for wave in _turn(-f * starts) * total:
        gradient = torch.cat([wave.real, wave.imag])[:, None, None]
        fast = step([level], gather(fast, {"w": gradient}, {}, count, count))
        held.append(fast[0].weights["w"].value.flatten())
    return torch.complex(*torch.stack(held).chunk(2, dim=1)), _turn(-f * (starts + period - 1))


def _gain(beta: float, keep: float, value: Tensor, wave: Tensor) -> Gain:
    """The amplitudes of a wave in a level's values and in its steps, all `[updates, F]`, beside what the beginning left in them."""
    steps = value - keep * torch.cat([torch.zeros_like(value[:1]), value[:-1]])
    n = torch.arange(len(value), dtype=wave.real.dtype)
    momentum = [beta**n] if beta else []
    return Gain(
        _amplitude(steps, wave, momentum), _amplitude(value, wave, [keep**n, *(_added(x, keep) for x in momentum)])
    )


def _added(steps: Tensor, keep: float) -> Tensor:
    """What a level holds that adds such steps, `[updates]`, up."""
    held = [0.0]
    for one in steps.tolist():
        held.append(keep * held[-1] + one)
    return torch.tensor(held[1:], dtype=steps.dtype)


def _amplitude(signal: Tensor, wave: Tensor, beside: list[Tensor]) -> Tensor:
    """The least-squares amplitude of a wave, each `[N, F]`, in a signal that has a part along each `[N]` of `beside`."""
    if beside:
        q = torch.linalg.qr(torch.stack(beside, dim=1))[0].to(wave.dtype)
        signal, wave = signal - q @ (q.mH @ signal), wave - q @ (q.mH @ wave)
    power = wave.abs().square().mean(0)
    return torch.where(power > LIKE, (wave.conj() * signal).mean(0) / power, torch.nan)


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
